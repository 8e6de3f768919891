//! Programs of the system, run by argv with bounds on their time and output. It never starts a shell.

mod sandbox;

pub(crate) use sandbox::Sandbox;

use crate::{ImageError, Progress};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process_group, pidfd_open};
use sandbox::end_with;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the size of the output is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// What is shown of a failed program's last words.
const STDERR_TAIL_BYTES: u64 = 800;
/// Most that a program may print, unless it is said otherwise.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;

/// A program with its arguments: a value, so that tests can look at it.
#[derive(Clone, Debug)]
pub(crate) struct Tool {
    program: OsString,
    package: &'static str,
    args: Vec<OsString>,
    dir: Option<PathBuf>,
    env: Vec<(&'static str, String)>,
    input: Vec<u8>,
    output_bytes_max: u64,
    timeout: Duration,
    sandbox: Option<Arc<Sandbox>>,
    /// Exit codes that are no failure.
    fine: Vec<i32>,
}

impl Tool {
    /// A program that the Debian package `package` brings; it may take `timeout`.
    pub(crate) fn new(
        program: impl Into<OsString>,
        package: &'static str,
        timeout: Duration,
    ) -> Self {
        Self {
            program: program.into(),
            package,
            args: Vec::new(),
            dir: None,
            env: Vec::new(),
            input: Vec::new(),
            output_bytes_max: OUTPUT_BYTES_MAX,
            timeout,
            sandbox: None,
            fine: vec![0],
        }
    }

    /// With this exit code it has not failed either.
    pub(crate) fn fine(mut self, code: i32) -> Self {
        self.fine.push(code);
        self
    }

    /// Runs in a box.
    pub(crate) fn sandbox(mut self, sandbox: Sandbox) -> Self {
        self.sandbox = Some(Arc::new(sandbox));
        self
    }

    /// One more argument.
    pub(crate) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// More arguments.
    pub(crate) fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Runs in `dir`.
    pub(crate) fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Runs with this variable, too.
    pub(crate) fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// Gets `input`, and may print up to `output_bytes_max`.
    pub(crate) fn filter(mut self, input: Vec<u8>, output_bytes_max: u64) -> Self {
        self.input = input;
        self.output_bytes_max = output_bytes_max;
        self
    }

    /// Runs it to its end, or until nobody wants it any more; answers what it printed.
    pub(crate) fn run_for(&self, progress: &dyn Progress) -> Result<Vec<u8>, ImageError> {
        Ok(self.run_all_for(progress)?.stdout)
    }

    /// As [`Tool::run_for`], for those who want it in any case.
    #[cfg(test)]
    pub(crate) fn run(&self) -> Result<Vec<u8>, ImageError> {
        self.run_for(&crate::Quiet)
    }

    /// As [`Tool::run_for`], with what it printed on its other stream, for programs that fail without saying so.
    pub(crate) fn run_all_for(&self, progress: &dyn Progress) -> Result<Printed, ImageError> {
        let failed =
            |source| ImageError::Run { program: self.program.to_string_lossy().into(), source };
        // Files in memory instead of pipes: nobody has to read while it runs, and nobody can be blocked.
        let mut input = memory_file().map_err(failed)?;
        let mut output = memory_file().map_err(failed)?;
        let mut stderr = memory_file().map_err(failed)?;
        input.write_all(&self.input).map_err(failed)?;
        input.rewind().map_err(failed)?;
        let mut child = self.spawn(&input, &output, &stderr)?;
        let outcome = match self.wait(&mut child, &[&output, &stderr], progress) {
            Ok((Ended::Exit, status)) if status.code().is_some_and(|c| self.fine.contains(&c)) => {
                return Ok(Printed {
                    stdout: read_all(&mut output).map_err(failed)?,
                    stderr: read_all(&mut stderr).map_err(failed)?,
                });
            }
            Ok((Ended::Exit, status)) => format!("failed ({status})"),
            Ok((Ended::Late, _)) => format!("took more than {} s", self.timeout.as_secs()),
            Ok((Ended::Flood, _)) => format!("printed more than {} bytes", self.output_bytes_max),
            Ok((Ended::Given(why), _)) => return Err(why),
            Err(e) => return Err(failed(e)),
        };
        Err(ImageError::Tool {
            command: self.command_line(),
            outcome,
            stderr: tail(&mut stderr).map_err(failed)?,
        })
    }

    fn spawn(&self, input: &File, output: &File, stderr: &File) -> Result<Child, ImageError> {
        let failed = |source: io::Error| {
            if source.kind() == ErrorKind::NotFound {
                ImageError::Missing {
                    program: self.program.to_string_lossy().into(),
                    package: self.package,
                }
            } else {
                ImageError::Run { program: self.program.to_string_lossy().into(), source }
            }
        };
        let stdio = |file: &File| file.try_clone().map(Stdio::from).map_err(failed);
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            // What is printed must not depend on the user's language.
            .env("LC_ALL", "C")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            // So that its own children end with it.
            .process_group(0)
            .stdin(stdio(input)?)
            .stdout(stdio(output)?)
            .stderr(stdio(stderr)?);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        if self.sandbox.is_some() {
            command.current_dir("/");
        }
        let (sandbox, own) = (self.sandbox.clone(), getpid());
        let enter = move || {
            if let Some(sandbox) = &sandbox {
                sandbox.enter()?;
            }
            // Last: a change of the user takes it back.
            end_with(own)
        };
        // SAFETY: between fork and exec it makes system calls only, on values that were made before: no memory is taken
        // and no lock.
        unsafe { command.pre_exec(enter) };
        command.spawn().map_err(failed)
    }

    fn wait(
        &self,
        child: &mut Child,
        outputs: &[&File],
        progress: &dyn Progress,
    ) -> io::Result<(Ended, ExitStatus)> {
        let deadline = Instant::now() + self.timeout;
        let group = Pid::from_child(child);
        let ended = match pidfd_open(group, PidfdFlags::empty()) {
            Err(e) => Err(e.into()),
            Ok(pidfd) => loop {
                let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
                let pause = Timespec::try_from(LOOK).map_err(io::Error::other)?;
                match poll(&mut fds, Some(&pause)) {
                    Ok(0) | Err(rustix::io::Errno::INTR) => {}
                    Ok(_) => break Ok(Ended::Exit),
                    Err(e) => break Err(e.into()),
                }
                if Instant::now() >= deadline {
                    break Ok(Ended::Late);
                }
                if let Err(why) = progress.check() {
                    break Ok(Ended::Given(why));
                }
                if self.is_flooded(outputs)? {
                    break Ok(Ended::Flood);
                }
            },
        };
        // Not reaped yet, so the group's number is still its own. What it left behind has nobody to wait for it.
        let _ = kill_process_group(group, Signal::KILL);
        let status = child.wait()?;
        ended.map(|ended| (ended, status))
    }

    fn is_flooded(&self, outputs: &[&File]) -> io::Result<bool> {
        for output in outputs {
            if output.metadata()?.len() > self.output_bytes_max {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What a person would type, for messages only.
    pub(crate) fn command_line(&self) -> String {
        let mut line = self.program.to_string_lossy().into_owned();
        for arg in &self.args {
            line.push(' ');
            line.push_str(&arg.to_string_lossy());
        }
        line
    }
}

/// What a program printed.
#[derive(Debug)]
pub(crate) struct Printed {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

enum Ended {
    Exit,
    Late,
    Flood,
    Given(ImageError),
}

fn memory_file() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("tool", MemfdFlags::CLOEXEC)?.into())
}

fn read_all(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The last lines of what it said, in one line.
fn tail(stderr: &mut File) -> io::Result<String> {
    let skip = stderr.metadata()?.len().saturating_sub(STDERR_TAIL_BYTES);
    stderr.seek(SeekFrom::Start(skip))?;
    let mut bytes = Vec::new();
    stderr.take(STDERR_TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    Ok(if lines.is_empty() { "it said nothing".into() } else { lines.join("; ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout_ms: u64) -> Tool {
        Tool::new("sh", "dash", Duration::from_millis(timeout_ms)).args(["-c", script])
    }

    #[test]
    fn output_comes_back_and_input_goes_in() {
        let tool = sh("cat; echo done", 5000).filter(b"abc".to_vec(), 100);
        assert_eq!(tool.run().unwrap(), b"abcdone\n");
    }

    #[test]
    fn a_failure_says_what_was_run_and_its_last_words() {
        let error = sh("echo first >&2; echo last >&2; exit 3", 5000).run().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`sh -c echo first >&2; echo last >&2; exit 3` failed (exit status: 3): first; last"
        );
    }

    #[test]
    fn a_slow_program_and_its_children_are_ended() {
        let start = Instant::now();
        let error = sh("sleep 60 & wait", 200).run().unwrap_err();
        assert!(error.to_string().contains("took more than"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_flood_is_ended() {
        let tool = sh("while :; do echo 0123456789012345678901234567890123456789; done", 60_000);
        let error = tool.filter(Vec::new(), 10_000).run().unwrap_err();
        assert!(error.to_string().contains("printed more than 10000"), "{error}");
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let error = Tool::new("tt-no-such-program", "tt-no-such-package", LOOK).run().unwrap_err();
        assert_eq!(
            error.to_string(),
            "tt-no-such-program is not installed: run `apt-get install tt-no-such-package`"
        );
    }
}
