//! How the guest ends: asked by the host, by a signal, or by the power button. In good order when this is the first
//! process; otherwise the guest's own `poweroff` or `reboot` is told.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::mount::MountFlags;
use rustix::system::RebootCommand;
use tt_guest::container::AGAIN_CODE;
use tt_guest::message::{ByeReason, FailureCode, GuestMessage};

use super::log::say;
use super::process::{Identity, kill};
use super::refusal::Refusal;
use super::{Agent, spawn};

/// The host is told before the guest ends, if it listens.
const BYE_WAIT: Duration = Duration::from_millis(500);
/// Programs have this long to end after `SIGTERM`, and then after `SIGKILL`.
const TERM_WAIT: Duration = Duration::from_secs(3);
const KILL_WAIT: Duration = Duration::from_millis(500);

/// From `linux/input-event-codes.h`.
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Set once the guest ends.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Blocks the signals that [`wait_for_signals`] takes. Call it before any thread is started: they inherit it.
pub fn block_signals() {
    let set = signals();
    // SAFETY: `set` is initialised; the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

/// Serves signals until the agent has to end.
pub fn wait_for_signals(agent: &Arc<Agent>) -> ExitCode {
    let set = signals();
    if agent.pid1 && !agent.is_container {
        // Else the kernel restarts on ctrl-alt-del without asking; where it refuses, it does just that.
        let _ = rustix::system::reboot(RebootCommand::CadOff);
    }
    loop {
        let mut signal = 0;
        // SAFETY: `set` is initialised, and `signal` is written by the call alone.
        let failed = unsafe { libc::sigwait(&raw const set, &raw mut signal) };
        if let Some(code) = agent.exit_code.get() {
            return ExitCode::from(*code);
        }
        if failed != 0 {
            continue;
        }
        if !agent.pid1 {
            return ExitCode::SUCCESS;
        }
        if let Err(Refusal { why, .. }) = shut_down(agent, means_reboot(signal)) {
            say(why);
        }
    }
}

/// What a signal asks the first process for, as BusyBox's programs send them: `reboot` sends `SIGTERM`, ctrl-alt-del
/// `SIGINT`, `halt` and `poweroff` the two others. Docker sends `SIGTERM` when it ends itself: its containers are to come
/// back then.
fn means_reboot(signal: i32) -> bool {
    matches!(signal, libc::SIGTERM | libc::SIGINT)
}

/// Ends the guest. Returns when this is refused, or under way.
pub fn shut_down(agent: &Agent, reboot: bool) -> Result<(), Refusal> {
    if ENDING.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    let reason = if reboot { ByeReason::Reboot } else { ByeReason::Poweroff };
    let restarts = reboot || agent.link.ends_by_restart();
    if !agent.pid1 {
        let told = tell_init(agent, restarts);
        ENDING.store(false, Ordering::SeqCst);
        told?;
        agent.outbox.tell_now(&GuestMessage::Bye { reason });
        return Ok(());
    }
    agent.outbox.tell_now(&GuestMessage::Bye { reason });
    agent.outbox.flush(BYE_WAIT);
    agent.processes.close();
    for (signals, wait) in [
        (&[libc::SIGTERM, libc::SIGHUP, libc::SIGCONT][..], TERM_WAIT),
        (&[libc::SIGKILL], KILL_WAIT),
    ] {
        for signal in signals {
            kill(-1, *signal);
        }
        agent.processes.wait_for_none(wait);
    }
    if agent.is_container {
        // With its first process, whose main thread waits for signals, a container ends; the code says how.
        let _ = agent.exit_code.set(if reboot { AGAIN_CODE } else { 0 });
        kill(1, libc::SIGUSR1);
        return Ok(());
    }
    rustix::fs::sync();
    if let Err(error) = rustix::mount::mount_remount("/", MountFlags::RDONLY, c"") {
        say(format!("cannot make the root file system read-only: {error}"));
    }
    let command = if restarts { RebootCommand::Restart } else { RebootCommand::PowerOff };
    let ended = rustix::system::reboot(command);
    ENDING.store(false, Ordering::SeqCst);
    ended.map_err(|error| Refusal::io("cannot end the guest", &error.into()))
}

/// Ends the guest when its power button is pressed; returns if it has none.
pub fn watch_button(agent: &Agent) {
    let Some(mut button) = find_button() else { return };
    /// The kernel's `struct input_event` on 64 bits: a time of 16 bytes, type, code, value.
    const EVENT_LEN: usize = 24;
    let mut event = [0; EVENT_LEN];
    while button.read_exact(&mut event).is_ok() {
        let kind = u16::from_ne_bytes([event[16], event[17]]);
        let code = u16::from_ne_bytes([event[18], event[19]]);
        if (kind, code) == (EV_KEY, KEY_POWER)
            && let Err(Refusal { why, .. }) = shut_down(agent, false)
        {
            say(why);
        }
    }
}

fn find_button() -> Option<File> {
    let inputs = fs::read_dir("/sys/class/input").ok()?;
    let event = inputs.flatten().find(|input| {
        let name = fs::read_to_string(input.path().join("device/name"));
        input.file_name().as_encoded_bytes().starts_with(b"event")
            && name.is_ok_and(|name| name.trim_end() == "Power Button")
    })?;
    File::open(Path::new("/dev/input").join(event.file_name())).ok()
}

/// Asks the guest's own first process, by the program that every one of them brings.
fn tell_init(agent: &Agent, reboot: bool) -> Result<(), Refusal> {
    if agent.options.no_setup {
        return Err(Refusal::new(FailureCode::Permission, "the agent was started with --no-setup"));
    }
    let program = if reboot { "reboot" } else { "poweroff" };
    let mut command = Command::new(program);
    command.env("PATH", spawn::PATH);
    let identity = Identity { user: None, takes_terminal: false };
    let started: io::Result<_> = agent.processes.spawn(&mut command, identity, |_| ());
    started.map(drop).map_err(|error| Refusal::io(&format!("cannot start {program}"), &error))
}

fn signals() -> libc::sigset_t {
    // SAFETY: `sigemptyset` initialises the set before anything reads it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGUSR2] {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}
