//! What there is of a machine, and how it stands still, goes on and ends. It starts nothing.

use super::qmp::Qmp;
use super::{Host, MONITOR, disk, machine, migration, mould};
use crate::life::{LOADING, Life, PAUSED};
use crate::memory::files::{self as memory, Memory};
use crate::remains::{Remains, gone, note};
use crate::{EngineError, Machine};
use std::collections::BTreeSet;
use std::fs;
use std::sync::{MutexGuard, PoisonError};
use tt_model::{Vm, VmId};

impl Host {
    pub fn remains(&self, id: VmId) -> Remains<'_> {
        Remains { layout: &self.config.layout, groups: &self.groups, id }
    }

    /// The machine's process.
    pub fn life(&self, id: VmId) -> Life<'_> {
        Life { remains: self.remains(id), watcher: self.watcher.as_ref() }
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
        let (remains, life) = (self.remains(vm.id), self.life(vm.id));
        if life.lives()? {
            if life.incarnation() < vm.incarnation {
                return Ok(Machine::Outdated);
            }
            if !remains.file(PAUSED).exists() {
                return Ok(Machine::Running);
            }
            match self.monitor(vm.id).and_then(|mut qmp| qmp.running()) {
                Ok(true) => return Ok(Machine::Running),
                Ok(false) => return Ok(Machine::Paused),
                Err(error) if life.stays()? => return Err(error),
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
        disk::limit(&self.remains(vm.id), vm)?;
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
        note(&self.remains(id), PAUSED, "")?;
        self.order(id, "stop")
    }

    /// Kills the machine. False if there is no process.
    pub fn kill(&self, id: VmId) -> Result<bool, EngineError> {
        self.end_stray_mould(id)?;
        self.life(id).kill()
    }

    /// Kills a machine, waits for its end and removes everything of it.
    pub fn end(&self, vm: &Vm) -> Result<(), EngineError> {
        self.life(vm.id).end()
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
}
