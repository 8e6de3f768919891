//! The process of a container image, as a child of the agent: started once the guest is set up, with its output on the
//! console. When it ends the guest stays, says so, and starts it no second time.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::fs::{Gid, Uid};
use rustix::pipe::PipeFlags;
use tt_guest::entry::Entry;
use tt_guest::message::GuestMessage;

use super::log::say;
use super::process::{Exit, Identity};
use super::users::{self, User};
use super::{Agent, spawn};

/// Output is carried to the console in pieces of this size.
const PIECE_BYTES: usize = 4096;

/// Starts it; returns when that is done or has failed.
pub fn start(agent: &Arc<Agent>, entry: &Entry) {
    // Whether there is one is checked before it is started.
    let program = entry.argv.first().map_or("", String::as_str);
    let own = Arc::clone(agent);
    match try_start(agent, entry, move |exit| own.note_entry(exit)) {
        Ok(pid) => say(format!("the image's process {program:?} runs as {pid}")),
        Err(error) => {
            say(format!("the image's process {program:?} can not be started: {error}"));
            /// What a shell answers for a program that it can not run.
            const NOT_RUN: i32 = 126;
            agent.note_entry(Exit { code: Some(NOT_RUN), signal: None });
        }
    }
}

impl Agent {
    /// Remembers how it ended, and says so on the console and to the host.
    fn note_entry(&self, exit: Exit) {
        let how = match exit {
            Exit { signal: Some(signal), .. } => format!("by signal {signal}"),
            Exit { code, .. } => format!("with code {}", code.unwrap_or_default()),
        };
        say(format!("the image's process ended {how}; the guest stays"));
        // It ends once; whoever asks later is told by the next set-up.
        if self.entry_exit.set(exit).is_ok() {
            self.tell_entry();
        }
    }

    /// Tells the host how it ended, if it has.
    pub fn tell_entry(&self) {
        if let Some(exit) = self.entry_exit.get() {
            self.outbox
                .tell_now(&GuestMessage::EntryEnded { code: exit.code, signal: exit.signal });
        }
    }
}

fn try_start(
    agent: &Agent,
    entry: &Entry,
    on_exit: impl FnOnce(Exit) + Send + 'static,
) -> io::Result<u32> {
    let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidInput, problem);
    entry.check().map_err(|problem| invalid(problem.into()))?;
    let user = find_user(entry.user.as_deref().unwrap_or("0"))?;
    let cwd = Path::new("/").join(entry.cwd.as_deref().unwrap_or_default());
    make_directory(&cwd, &user)?;
    // A pipe, and the user's: programs open `/dev/stdout` a second time, which the console allows to root alone.
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fchown(&writer, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
    let mut command = Command::new(&entry.argv[0]);
    command
        .args(&entry.argv[1..])
        .env_clear()
        .env("PATH", spawn::PATH)
        .env("HOME", &user.home)
        .envs(entry.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&cwd)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let identity = Identity { user: Some(user), takes_terminal: false };
    let child = agent.processes.spawn(&mut command, identity, on_exit)?;
    // Its own ends of the pipe are closed, so that the thread sees the end of it.
    drop(command);
    super::thread("entry", move || carry(reader.into()))?;
    Ok(child.id())
}

/// Carries output to the console for as long as anybody has the pipe open.
fn carry(mut output: File) {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        match output.read(&mut buffer) {
            Ok(0) => return,
            // Without a console there is nobody to tell, and the process must not be held up.
            Ok(len) => drop(io::stderr().write_all(&buffer[..len])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// `USER` or `USER:GROUP`. A number need not be in the guest's files.
fn find_user(wanted: &str) -> io::Result<User> {
    let (name, group) = match wanted.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (wanted, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let missing = |what: &str, name: &str| {
        let problem = format!("there is no {what} {name:?} in the image");
        io::Error::new(io::ErrorKind::NotFound, problem)
    };
    let mut user = match users::find(name)? {
        Some(user) => user,
        None => users::unknown(name.parse().map_err(|_| missing("user", name))?),
    };
    if let Some(group) = group.filter(|group| !group.is_empty()) {
        let gid = users::find_group(group)?.ok_or_else(|| missing("group", group))?;
        // As Docker has it: who names a group has no others.
        (user.gid, user.groups) = (gid, vec![gid]);
    }
    Ok(user)
}

/// Makes the working directory with those above it, as the user's own.
fn make_directory(path: &Path, user: &User) -> io::Result<()> {
    let describe = |error: io::Error| {
        io::Error::new(error.kind(), format!("working directory {}: {error}", path.display()))
    };
    let missing: Vec<PathBuf> =
        path.ancestors().take_while(|dir| !dir.exists()).map(Path::to_owned).collect();
    fs::create_dir_all(path).map_err(describe)?;
    match missing.first() {
        Some(own) => {
            std::os::unix::fs::chown(own, Some(user.uid), Some(user.gid)).map_err(describe)
        }
        None => Ok(()),
    }
}
