//! Child processes: one thread reaps them all, orphans included, and hands each exit to whoever started the process. No
//! signal is ever sent to a process id that may have been given to another process.

use std::collections::HashMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Gid, Pid, Uid, WaitOptions, WaitStatus, waitpid};

use super::users::User;

/// How a process ended: its code, or the signal that ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

/// Groups of a user at most: more than any real one has, few enough for the stack, since nothing may be allocated
/// between fork and exec.
const MAX_GROUPS: usize = 256;

/// As what a program runs.
pub struct Identity {
    /// The user; `None` changes nothing.
    pub user: Option<User>,
    /// Its standard input becomes the controlling terminal of its session.
    pub takes_terminal: bool,
}

type OnExit = Box<dyn FnOnce(Exit) + Send>;

#[derive(Default)]
struct State {
    waiting: HashMap<i32, OnExit>,
    /// How many processes were ever started: tells the reaper that it has something to wait for.
    spawned: u64,
    childless: bool,
    closed: bool,
}

/// All child processes of the agent.
#[derive(Default)]
pub struct Processes {
    state: Mutex<State>,
    changed: Condvar,
}

impl Processes {
    /// Starts the thread that reaps.
    pub fn start() -> io::Result<Arc<Self>> {
        let processes = Arc::new(Self::default());
        let reaper = Arc::clone(&processes);
        thread::Builder::new().name("reaper".to_owned()).spawn(move || reaper.reap())?;
        Ok(processes)
    }

    /// Starts a program as leader of its own session and process group, with no signal blocked. `on_exit` is called once,
    /// from another thread, perhaps before this returns.
    pub fn spawn(
        &self,
        command: &mut Command,
        identity: Identity,
        on_exit: impl FnOnce(Exit) + Send + 'static,
    ) -> io::Result<Child> {
        // SAFETY: `assume` only makes system calls, so it may run between fork and exec.
        unsafe { command.pre_exec(move || assume(&identity)) };
        // Held until the process is registered: the reaper looks it up under the same lock, so it cannot be too early.
        let mut state = self.lock();
        if state.closed {
            return Err(io::Error::other("the guest shuts down"));
        }
        let child = command.spawn()?;
        state.waiting.insert(child.id().cast_signed(), Box::new(on_exit));
        state.spawned += 1;
        state.childless = false;
        self.changed.notify_all();
        Ok(child)
    }

    /// Sends a signal to the process group of a process that has not been reaped; returns whether it was sent.
    pub fn signal_group(&self, pid: i32, signal: i32) -> bool {
        let state = self.lock();
        state.waiting.contains_key(&pid) && kill(-pid, signal)
    }

    /// Refuses to start any more processes.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// Waits until no child is left, but no longer than `timeout`.
    pub fn wait_for_none(&self, timeout: Duration) {
        let until = Instant::now() + timeout;
        let mut state = self.lock();
        while !state.childless {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn reap(&self) {
        loop {
            let spawned = self.lock().spawned;
            if let Some(pid) = next_ended() {
                self.reap_one(pid);
                continue;
            }
            let mut state = self.lock();
            while state.spawned == spawned {
                state.childless = true;
                self.changed.notify_all();
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn reap_one(&self, pid: Pid) {
        let mut state = self.lock();
        // A program that could not be executed was reaped by `spawn` itself meanwhile.
        let Ok(Some((_, status))) = waitpid(Some(pid), WaitOptions::NOHANG) else { return };
        let on_exit = state.waiting.remove(&pid.as_raw_nonzero().get());
        drop(state);
        if let Some(on_exit) = on_exit {
            on_exit(exit(status));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps whatever descriptors this process was started with from the programs that it starts.
pub fn hide_inherited_files() {
    /// The first descriptor that is not a standard file.
    const FIRST: libc::c_uint = 3;
    // SAFETY: this only sets flags of descriptors. Where the kernel is too old for it, they stay as they were.
    unsafe {
        libc::close_range(FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int)
    };
}

/// Sends a signal as `kill(2)` does: a negative `pid` means a process group, -1 all processes but this one.
pub fn kill(pid: i32, signal: i32) -> bool {
    // SAFETY: `kill` takes two numbers and touches no memory.
    unsafe { libc::kill(pid, signal) == 0 }
}

/// Runs in the child.
fn assume(identity: &Identity) -> io::Result<()> {
    rustix::process::setsid()?;
    unblock_signals();
    if identity.takes_terminal {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
    }
    let Some(user) = identity.user.as_ref().filter(|_| rustix::process::getuid().is_root()) else {
        return Ok(());
    };
    let mut groups = [Gid::ROOT; MAX_GROUPS];
    let count = user.groups.len().min(MAX_GROUPS);
    for (slot, gid) in groups.iter_mut().zip(&user.groups) {
        *slot = Gid::from_raw(*gid);
    }
    rustix::thread::set_thread_groups(&groups[..count])?;
    rustix::thread::set_thread_gid(Gid::from_raw(user.gid))?;
    rustix::thread::set_thread_uid(Uid::from_raw(user.uid))?;
    Ok(())
}

fn unblock_signals() {
    // SAFETY: `set` is initialised by `sigemptyset` before it is read; both calls are async-signal-safe.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Waits for any child to end and leaves it to be reaped; `None` if there are no children.
fn next_ended() -> Option<Pid> {
    loop {
        // SAFETY: all zeros is a valid `siginfo_t`, and `waitid` writes to nothing else.
        let (done, info) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            (libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOWAIT), info)
        };
        if done == 0 {
            // SAFETY: `waitid` succeeded, so the fields of `SIGCHLD` are set.
            return Pid::from_raw(unsafe { info.si_pid() });
        }
        if io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return None;
        }
    }
}

fn exit(status: WaitStatus) -> Exit {
    Exit { code: status.exit_status(), signal: status.terminating_signal() }
}
