//! Whether a machine has a process, and the end of it: for engines whose machines are processes of this host. It starts
//! nothing.

use crate::EngineError;
use crate::process::Process;
use crate::remains::Remains;
use crate::watch::Watcher;
use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};
use tt_model::Vm;

/// There from before a machine may stand still until after it went on: without it nobody needs to ask its program.
pub(crate) const PAUSED: &str = "paused";
/// There from before the process is made that begins from memory until that memory is consumed.
pub(crate) const LOADING: &str = "loading";
/// Holds the incarnation of the process.
pub(crate) const INCARNATION: &str = "incarnation";

/// How often the process of a machine is looked up anew because it ended meanwhile.
const LOOKS_MAX: u32 = 10;
/// How long a process that hung up may take to be gone: the kernel frees its memory meanwhile, and KVM what it knew of it.
const DYING_MAX: Duration = Duration::from_secs(2);
/// How often it is looked at meanwhile.
const DYING_POLL: Duration = Duration::from_millis(5);
/// How long a process that was killed is waited for.
const END_MAX: Duration = Duration::from_secs(5);

/// One machine's process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life<'a> {
    pub remains: Remains<'a>,
    /// What tells its end; `None` where processes can not be watched.
    pub watcher: Option<&'a Watcher>,
}

impl Life<'_> {
    /// Whether the machine has a process; if so, its end will be told.
    pub fn lives(&self) -> Result<bool, EngineError> {
        let remains = &self.remains;
        for _ in 0..LOOKS_MAX {
            let Some(pid) = remains.pids()?.first().copied() else {
                return Ok(false);
            };
            let Some(watcher) = self.watcher else {
                return Ok(true);
            };
            if watcher.watches(remains.id, pid) {
                return Ok(true);
            }
            let failed = |source| EngineError::Process { action: "watch", pid, source };
            match Process::open(pid) {
                // Held by its descriptor and still in the cgroup: it is the machine's, not a later one of that number.
                Ok(process) if remains.pids()?.contains(&pid) => {
                    watcher.watch(remains.id, process).map_err(failed)?;
                    return Ok(true);
                }
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(true)
    }

    /// Whether it goes on living: a process that is being killed hangs up before it is gone.
    pub fn stays(&self) -> Result<bool, EngineError> {
        let until = Instant::now() + DYING_MAX;
        while Instant::now() < until {
            if !self.lives()? {
                return Ok(false);
            }
            thread::sleep(DYING_POLL);
        }
        Ok(true)
    }

    /// Kills the machine. False if there is no process.
    pub fn kill(&self) -> Result<bool, EngineError> {
        match self.lives()? {
            true => self.remains.kill(),
            false => Ok(false),
        }
    }

    /// Kills the machine, waits for its end and removes everything of it.
    pub fn end(&self) -> Result<(), EngineError> {
        self.remains.kill()?;
        let until = Instant::now() + END_MAX;
        while self.lives()? && Instant::now() < until {
            thread::sleep(END_MAX / 1000);
        }
        self.remove()
    }

    /// Removes everything of a machine without a process.
    pub fn remove(&self) -> Result<(), EngineError> {
        match self.remains.remove()? {
            true => Ok(()),
            false => Err(EngineError::Remove {
                path: self.remains.layout.cgroup(self.remains.id),
                source: io::Error::from_raw_os_error(libc::EBUSY),
            }),
        }
    }

    /// The refusal to start where a machine of an earlier incarnation lives.
    pub fn replace(&self, vm: &Vm) -> EngineError {
        let found = self.incarnation();
        EngineError::Replace { id: vm.id, found, wanted: vm.incarnation }
    }

    /// The incarnation of the process; that of a process without a note is the first one.
    pub fn incarnation(&self) -> u32 {
        let text = fs::read_to_string(self.remains.file(INCARNATION)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }
}
