//! The agent: serves one host at a time over one channel, as a service or as the guest's first process.

mod console;
mod copy;
mod disk;
mod entry;
mod exec;
mod files;
mod init;
mod link;
mod log;
mod network;
mod outbox;
mod power;
mod process;
mod refusal;
mod session;
mod setup;
mod spawn;
mod stage1;
mod stream;
mod time;
mod users;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use link::Link;
use log::{explain, say};
use outbox::Outbox;
use process::Processes;

/// Stacks of the agent's threads: none calls deep, and buffers are on the heap.
const STACK_BYTES: usize = 128 * 1024;

/// How the agent was started.
#[derive(Debug, Default)]
pub struct Options {
    /// Use this virtio-serial port instead of the one with the agent's name.
    pub port: Option<PathBuf>,
    /// Listen on this unix socket instead of a port.
    pub unix: Option<PathBuf>,
    /// Change nothing of this machine's identity, network, disk or clock.
    pub no_setup: bool,
}

/// What all threads share.
struct Agent {
    options: Options,
    link: Link,
    outbox: Outbox,
    processes: Arc<Processes>,
    pid1: bool,
    /// Set once the guest was set up for the first time.
    ready: Flag,
    /// Milliseconds from boot to the first session.
    boot_ms: std::sync::OnceLock<u64>,
    /// How the image's process ended.
    entry_exit: std::sync::OnceLock<process::Exit>,
}

/// Runs the agent until it is told to end.
pub fn run(options: Options) -> ExitCode {
    let pid1 = std::process::id() == 1;
    let mut kept = stage1::Kept::default();
    if pid1 && stage1::is_initramfs() {
        let entered = stage1::enter_root().and_then(|kept| match kept.has_init {
            true => Err(stage1::become_init()),
            false => Ok(kept),
        });
        kept = match entered {
            Ok(kept) => kept,
            Err(error) => {
                // The kernel then panics, below a line that says why.
                say(explain(&error));
                return ExitCode::FAILURE;
            }
        };
    }
    power::block_signals();
    process::hide_inherited_files();
    if pid1 {
        init::mount_all(kept.entry.is_some());
    }
    match start(options, pid1, kept) {
        Ok(agent) => power::wait_for_signals(&agent),
        Err(error) => {
            say(format!("cannot start: {}", explain(&error)));
            ExitCode::FAILURE
        }
    }
}

fn start(options: Options, pid1: bool, kept: stage1::Kept) -> io::Result<Arc<Agent>> {
    let link = match &options.unix {
        Some(path) => Link::listen(path)?,
        None if options.port.is_none() && stage1::has_vsock() => kept.listen()?,
        None => Link::open_port(options.port.as_deref())?,
    };
    let agent = Arc::new(Agent {
        options,
        link,
        outbox: Outbox::default(),
        processes: Processes::start()?,
        pid1,
        ready: Flag::default(),
        boot_ms: std::sync::OnceLock::new(),
        entry_exit: std::sync::OnceLock::new(),
    });
    let writer = Arc::clone(&agent);
    thread("writer", move || write(&writer))?;
    let reader = Arc::clone(&agent);
    thread("reader", move || session::serve(&reader))?;
    let reminder = Arc::clone(&agent);
    thread("reminder", move || session::remind(&reminder))?;
    if pid1 {
        init::begin(&agent, kept)?;
    }
    Ok(agent)
}

/// Carries frames to the host.
fn write(agent: &Agent) {
    loop {
        let (epoch, frame) = agent.outbox.next();
        if let Err(error) = agent.link.write(&frame, &|| agent.outbox.is_stale(epoch)) {
            say(format!("cannot write to the host: {error}"));
            // Without this a broken port would make the loop spin.
            thread::sleep(Duration::from_secs(1));
        }
    }
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(run).map(drop)
}

/// Something that happens once, and can be waited for.
#[derive(Default)]
struct Flag {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Flag {
    /// Sets it; returns whether it was not set before.
    fn set(&self) -> bool {
        let was_set =
            std::mem::replace(&mut *self.set.lock().unwrap_or_else(PoisonError::into_inner), true);
        self.changed.notify_all();
        !was_set
    }

    /// Waits until it is set, but no longer than `timeout`; returns whether it is.
    fn wait(&self, timeout: Duration) -> bool {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        *self
            .changed
            .wait_timeout_while(set, timeout, |set| !*set)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}
