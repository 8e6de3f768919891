//! The agent: serves one host at a time over one channel, as a service or as the guest's first process.

mod console;
mod container;
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
mod setups;
mod six;
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
    /// It is a container's first process: the kernel, its clock and its name are the host's.
    is_container: bool,
    /// What a container's first process ends with, once everything else has ended.
    exit_code: std::sync::OnceLock<u8>,
    /// Set once the guest was set up for the first time.
    ready: Flag,
    /// Milliseconds from boot to the first session.
    boot_ms: std::sync::OnceLock<u64>,
    /// How the image's process ended.
    entry_exit: std::sync::OnceLock<process::Exit>,
}

impl Agent {
    /// Whether clock and random numbers of the kernel are this guest's, and may be set.
    fn owns_kernel(&self) -> bool {
        !self.options.no_setup && !self.is_container
    }
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
    let link = match &options.unix {
        Some(path) => Link::listen(path),
        None if options.port.is_none() && stage1::has_vsock() => kept.listen(),
        None => Link::open_port(options.port.as_deref()),
    };
    ended(link.and_then(|link| {
        let agent = start(options, link, pid1, false)?;
        if pid1 {
            init::begin(&agent, kept)?;
        }
        Ok(agent)
    }))
}

/// Runs the agent as the first process of a container.
pub fn run_container() -> ExitCode {
    power::block_signals();
    process::hide_inherited_files();
    time::note_birth();
    // Its threads take it over; without it they would be called as the file is.
    let _ = rustix::thread::set_name(c"tt-guest");
    ended(container::wait().and_then(|begun| {
        begun.open_console()?;
        let agent = start(Options::default(), Link::listening(begun.agent)?, true, true)?;
        init::begin_container(&agent, begun.start.entry)?;
        Ok(agent)
    }))
}

/// Serves to the end, if there was a beginning.
fn ended(started: io::Result<Arc<Agent>>) -> ExitCode {
    match started {
        Ok(agent) => power::wait_for_signals(&agent),
        Err(error) => {
            say(format!("cannot start: {}", explain(&error)));
            ExitCode::FAILURE
        }
    }
}

fn start(options: Options, link: Link, pid1: bool, is_container: bool) -> io::Result<Arc<Agent>> {
    let agent = Arc::new(Agent {
        options,
        link,
        outbox: Outbox::default(),
        processes: Processes::start()?,
        pid1,
        is_container,
        exit_code: std::sync::OnceLock::new(),
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
