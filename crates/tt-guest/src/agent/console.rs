//! A root shell on the guest's serial console, started again whenever it ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::log::say;
use super::process::{Identity, Processes};
use super::{Agent, Flag, spawn};

const SHELL: &str = "/bin/sh";
/// A shell that ends at once is started again no more often than this.
const RESPAWN: Duration = Duration::from_secs(1);
/// A shell is waited for in pieces of this length.
const LIFE: Duration = Duration::from_secs(3600);

/// Keeps a shell on the console for ever; returns if there is no console.
pub fn serve(agent: &Agent) {
    let Some(device) = device() else { return };
    loop {
        let started = Instant::now();
        match run(&agent.processes, &device) {
            Ok(ended) => while !ended.wait(LIFE) {},
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => say(format!("cannot start a shell on {device}: {error}")),
        }
        thread::sleep(RESPAWN.saturating_sub(started.elapsed()));
    }
}

/// The device behind `/dev/console`: the last one named is the one that it stands for.
fn device() -> Option<String> {
    let active = fs::read_to_string("/sys/class/tty/console/active").ok()?;
    active.split_whitespace().last().map(|name| format!("/dev/{name}"))
}

fn run(processes: &Processes, device: &str) -> io::Result<Arc<Flag>> {
    // Without `NONBLOCK` it would wait for a modem's carrier.
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let terminal: File =
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(device)?;
    rustix::fs::fcntl_setfl(&terminal, OFlags::empty())?;
    let mut command = Command::new(SHELL);
    command
        .arg("-l")
        .env_clear()
        .env("PATH", spawn::PATH)
        .env("HOME", "/root")
        .env("TERM", "vt100")
        .current_dir("/");
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    let ended = Arc::new(Flag::default());
    let told = Arc::clone(&ended);
    let identity = Identity { user: None, takes_terminal: true };
    processes.spawn(&mut command, identity, move |_| {
        told.set();
    })?;
    Ok(ended)
}
