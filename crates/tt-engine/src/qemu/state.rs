//! What there is of a machine, and how it stands still, goes on and ends. It starts nothing.

use super::memory::{self, Memory};
use super::qmp::Qmp;
use super::{Host, INCARNATION, LOADING, MONITOR, PAUSED, machine, migration, mould};
use crate::process::Process;
use crate::remains::{Remains, gone};
use crate::{EngineError, Machine};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::{MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tt_model::{Vm, VmId};

/// How often the process of a machine is looked up anew because it ended meanwhile.
const LOOKS_MAX: u32 = 10;
/// How long a process that hung up may take to be gone: the kernel frees its memory meanwhile.
const DYING_MAX: Duration = Duration::from_millis(250);
/// How long a process that was killed is waited for.
const END_MAX: Duration = Duration::from_secs(5);

impl Host {
    pub fn remains(&self, id: VmId) -> Remains<'_> {
        Remains { layout: &self.config.layout, groups: &self.groups, id }
    }

    /// A conversation with the machine's monitor.
    pub fn monitor(&self, id: VmId) -> Result<Qmp, EngineError> {
        Qmp::connect(&self.remains(id).file(MONITOR))
    }

    pub fn order(&self, id: VmId, command: &'static str) -> Result<(), EngineError> {
        self.monitor(id)?.run(command)
    }

    pub fn look(&self, vm: &Vm) -> Result<Machine, EngineError> {
        self.end_stray_mould(vm.id)?;
        let remains = self.remains(vm.id);
        if self.lives(&remains)? {
            if incarnation(&remains) < vm.incarnation {
                return Ok(Machine::Outdated);
            }
            if !remains.file(PAUSED).exists() {
                return Ok(Machine::Running);
            }
            match self.monitor(vm.id).and_then(|mut qmp| qmp.running()) {
                Ok(true) => return Ok(Machine::Running),
                Ok(false) => return Ok(Machine::Paused),
                Err(error) if self.stays(&remains)? => return Err(error),
                Err(_) => {}
            }
        }
        match remains.exist()? {
            true => Ok(machine::verdict(&remains)),
            false => Ok(Machine::Absent),
        }
    }

    /// Whether a machine that stands still has memory of its own: else it is one whose start was cut short, and what it
    /// was to begin from is still there.
    pub fn is_loaded(&self, vm: &Vm) -> Result<bool, EngineError> {
        let loading = self.remains(vm.id).file(LOADING).exists();
        Ok(!loading || Memory::of(&self.config.layout, vm)?.is_none())
    }

    /// Lets a machine go on that stands still for whatever reason.
    pub fn resume(&self, vm: &Vm) -> Result<(), EngineError> {
        // Left by a daemon that died before it killed the machine: what was suspended is this machine.
        memory::consume_suspended(&self.config.layout, vm)?;
        self.go_on(vm.id)
    }

    /// As [`Host::resume`], for one that has no memory on disk.
    pub fn go_on(&self, id: VmId) -> Result<(), EngineError> {
        let remains = self.remains(id);
        let monitor = remains.file(MONITOR);
        let mut qmp = Qmp::connect(&monitor)?;
        migration::cancel(&mut qmp, &monitor)?;
        qmp.run("cont")?;
        for marker in [LOADING, PAUSED] {
            let marker = remains.file(marker);
            gone(fs::remove_file(&marker), &marker)?;
        }
        Ok(())
    }

    pub fn pause(&self, id: VmId) -> Result<(), EngineError> {
        machine::note(&self.remains(id), PAUSED, "")?;
        self.order(id, "stop")
    }

    /// Kills the machine. False if there is no process.
    pub fn kill(&self, id: VmId) -> Result<bool, EngineError> {
        self.end_stray_mould(id)?;
        let remains = self.remains(id);
        match self.lives(&remains)? {
            true => remains.kill(),
            false => Ok(false),
        }
    }

    /// Removes everything of a machine without a process.
    pub fn remove(&self, id: VmId) -> Result<(), EngineError> {
        match self.remains(id).remove()? {
            true => Ok(()),
            false => Err(EngineError::Remove {
                path: self.config.layout.cgroup(id),
                source: io::Error::from_raw_os_error(libc::EBUSY),
            }),
        }
    }

    /// Kills a machine, waits for its end and removes everything of it.
    pub fn end(&self, vm: &Vm) -> Result<(), EngineError> {
        let remains = self.remains(vm.id);
        remains.kill()?;
        let until = Instant::now() + END_MAX;
        while self.lives(&remains)? && Instant::now() < until {
            thread::sleep(END_MAX / 1000);
        }
        self.remove(vm.id)
    }

    /// The refusal to start where a machine of an earlier incarnation lives.
    pub fn replace(&self, vm: &Vm) -> EngineError {
        let found = incarnation(&self.remains(vm.id));
        EngineError::Replace { id: vm.id, found, wanted: vm.incarnation }
    }

    /// Ends the mould that a dead daemon has left, with what it has made.
    pub fn end_stray_mould(&self, id: VmId) -> Result<(), EngineError> {
        let remains = self.remains(id);
        if self.held().contains(&id) || self.groups.pids(&remains.mould())?.is_none() {
            return Ok(());
        }
        // Killed first: it writes there. Its group goes last: it says that there is something to do.
        crate::process::kill_group(&self.groups, &remains.mould())?;
        memory::remove_partial(&self.config.layout, id)?;
        mould::end(&remains).map(drop)
    }

    pub fn held(&self) -> MutexGuard<'_, BTreeSet<VmId>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the machine has a process; if so, its end will be told.
    fn lives(&self, remains: &Remains<'_>) -> Result<bool, EngineError> {
        for _ in 0..LOOKS_MAX {
            let Some(pid) = remains.pids()?.first().copied() else {
                return Ok(false);
            };
            let Some(watcher) = &self.watcher else {
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
    fn stays(&self, remains: &Remains<'_>) -> Result<bool, EngineError> {
        let until = Instant::now() + DYING_MAX;
        while Instant::now() < until {
            if !self.lives(remains)? {
                return Ok(false);
            }
            thread::sleep(DYING_MAX / 50);
        }
        Ok(true)
    }
}

/// The incarnation of the process; that of a process without a note is the first one.
fn incarnation(remains: &Remains<'_>) -> u32 {
    let text = fs::read_to_string(remains.file(INCARNATION)).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}
