//! One run of an engine's program: a question in, an answer out, both bounded in size, and the whole in time.

use crate::EngineError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long an answer may take. The host's settling waits for it.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Bytes of an answer, and of what a program says when it fails.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Characters of a reason.
const REASON_CHARS_MAX: usize = 500;
/// Where it finds other programs: what is usual for root.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs `program`, lets it read `request`, and returns what it wrote before it ended well.
pub(super) fn call(
    program: &Path,
    verb: &'static str,
    request: &[u8],
) -> Result<Vec<u8>, EngineError> {
    let failed =
        |problem: String| EngineError::Program { program: program.to_owned(), verb, problem };
    let run = run(program, request).map_err(|error| failed(error.to_string()))?;
    match run.is_good {
        true => Ok(run.answer),
        false => Err(failed(last_line(&run.messages))),
    }
}

/// How it ended, and what it wrote.
struct Run {
    is_good: bool,
    answer: Vec<u8>,
    messages: Vec<u8>,
}

fn run(program: &Path, request: &[u8]) -> io::Result<Run> {
    let until = Instant::now() + ANSWER_MAX;
    let mut command = Command::new(program);
    command.env_clear().env("PATH", PATH).current_dir("/");
    command.stdin(question(request)?).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0);
    let parent = rustix::process::getpid();
    let child = move || {
        // Nobody would wait for it any more.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        match rustix::process::getppid() == Some(parent) {
            true => Ok(()),
            false => Err(ErrorKind::BrokenPipe.into()),
        }
    };
    // SAFETY: the closure runs between fork and exec; it makes two system calls, and neither allocates nor takes a lock.
    unsafe { command.pre_exec(child) };
    let mut child = command.spawn()?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(ErrorKind::BrokenPipe.into());
    };
    let mut streams = [Stream::new(stdout), Stream::new(stderr)];
    let heard = hear(&mut streams, until).and_then(|()| ended(&child, until));
    if heard.is_err() {
        // With all that it has started: they hold its pipes.
        let group = Pid::from_child(&child);
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let status = child.wait()?;
    heard?;
    let [answer, messages] = streams.map(|stream| stream.bytes);
    Ok(Run { is_good: status.success(), answer, messages })
}

/// The request as a file: a program that does not read it makes nobody wait.
fn question(request: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("request", MemfdFlags::CLOEXEC)?);
    file.write_all(request)?;
    file.rewind()?;
    Ok(file)
}

/// What a program writes, until it closes it.
struct Stream {
    file: File,
    bytes: Vec<u8>,
    is_open: bool,
}

impl Stream {
    fn new(file: impl Into<OwnedFd>) -> Self {
        Self { file: File::from(file.into()), bytes: Vec::new(), is_open: true }
    }

    /// Takes what is there.
    fn take(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        let n = match self.file.read(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            n => n?,
        };
        self.is_open = n > 0;
        self.bytes.extend(bytes.get(..n).unwrap_or_default());
        match self.bytes.len() <= ANSWER_BYTES_MAX {
            true => Ok(()),
            false => Err(io::Error::other(format!("it says more than {ANSWER_BYTES_MAX} bytes"))),
        }
    }
}

/// Reads all streams to their ends.
fn hear(streams: &mut [Stream; 2], until: Instant) -> io::Result<()> {
    loop {
        let mut open: Vec<_> = streams.iter_mut().filter(|stream| stream.is_open).collect();
        if open.is_empty() {
            return Ok(());
        }
        let left = until.saturating_duration_since(Instant::now());
        let within = Timespec::try_from(left).unwrap_or_default();
        let mut polled: Vec<_> =
            open.iter().map(|stream| PollFd::new(&stream.file, PollFlags::IN)).collect();
        match poll(&mut polled, Some(&within)) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(0) => return Err(io::Error::new(ErrorKind::TimedOut, too_late())),
            Ok(_) => {}
        }
        let has: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (stream, _) in open.iter_mut().zip(has).filter(|(_, has)| *has) {
            stream.take()?;
        }
    }
}

/// Waits for the end of a program that has nothing more to say.
fn ended(child: &Child, until: Instant) -> io::Result<()> {
    let process = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let mut polled = [PollFd::new(&process, PollFlags::IN)];
    let left = until.saturating_duration_since(Instant::now());
    match poll(&mut polled, Some(&Timespec::try_from(left).unwrap_or_default()))? {
        0 => Err(io::Error::new(ErrorKind::TimedOut, too_late())),
        _ => Ok(()),
    }
}

fn too_late() -> String {
    format!("it has not answered within {} s", ANSWER_MAX.as_secs())
}

/// What a failed program said last, on one line and without what would confuse a terminal.
fn last_line(messages: &[u8]) -> String {
    let text = String::from_utf8_lossy(messages);
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    let clean = last.unwrap_or("it failed without a word").chars().filter(|c| !c.is_control());
    clean.take(REASON_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path)
    }

    #[test]
    fn an_answer_comes_back_and_a_reason_is_told() {
        let (_dir, good) = sh("cat; echo noise >&2");
        assert_eq!(call(&good, "init", b"{}").unwrap(), b"{}");
        let (_dir, deaf) = sh("echo yes");
        assert_eq!(call(&deaf, "init", &[b' '; 200_000]).unwrap(), b"yes\n");
        let (_dir, bad) = sh("echo first >&2; printf 'no \\033[1mpower\\n\\n' >&2; exit 3");
        let told = call(&bad, "start", b"").unwrap_err().to_string();
        assert!(told.contains("start") && told.ends_with("no [1mpower"), "{told}");
        let told = call(Path::new("/no/engine"), "init", b"").unwrap_err().to_string();
        assert!(told.contains("/no/engine") && told.contains("No such file"), "{told}");
    }

    #[test]
    fn one_that_talks_without_end_is_stopped() {
        let (_dir, endless) = sh("yes & yes >&2");
        let told = call(&endless, "init", b"").unwrap_err().to_string();
        assert!(told.contains("more than 65536 bytes"), "{told}");
    }
}
