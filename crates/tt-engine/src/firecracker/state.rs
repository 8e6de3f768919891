//! What there is of a machine, and how it stands still, goes on and grows. It starts nothing.

use super::api::Does;
use super::channels::API;
use super::request::{self, Request};
use super::{Host, machine};
use crate::life::{LOADING, PAUSED};
use crate::limit::DiskLimit;
use crate::memory::files::{self as memory, Memory};
use crate::remains::{gone, note};
use crate::{EngineError, Machine};
use std::fs::{self, OpenOptions};
use std::io;
use tt_model::{Vm, VmId};

/// Below a machine's directory: the size in MB that its guest was told, so that nobody asks again.
const GROWN: &str = "disk_mb";

impl Host {
    pub fn look(&self, vm: &Vm) -> Result<Machine, EngineError> {
        let (remains, life) = (self.remains(vm.id), self.life(vm.id));
        if life.lives()? {
            if life.incarnation() < vm.incarnation {
                return Ok(Machine::Outdated);
            }
            if !remains.file(PAUSED).exists() {
                return Ok(Machine::Running);
            }
            match self.does(vm.id) {
                Ok(Does::Running) => return Ok(Machine::Running),
                Ok(Does::Paused | Does::NotStarted) => return Ok(Machine::Paused),
                Err(error) if life.stays()? => return self.unheard(vm.id, error),
                Err(_) => {}
            }
        }
        match remains.exist()? {
            true => Ok(machine::verdict(&remains)),
            false => Ok(Machine::Absent),
        }
    }

    /// What a machine is that does not say what it does though it goes on living: its socket may have been removed, and then
    /// nobody reaches it any more.
    fn unheard(&self, id: VmId, error: EngineError) -> Result<Machine, EngineError> {
        match self.remains(id).own(API).symlink_metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(vm = %id, "its socket was removed; it is to be replaced");
                Ok(Machine::Outdated)
            }
            _ => Err(error),
        }
    }

    /// What the machine does. One that does not answer yet was not told what it is.
    fn does(&self, id: VmId) -> Result<Does, EngineError> {
        let answer = self.api(id).and_then(|mut api| api.does());
        match answer {
            Err(_) if self.remains(id).file(LOADING).exists() => Ok(Does::NotStarted),
            answer => answer,
        }
    }

    /// Whether a machine that stands still is one that can go on: else it is one whose start was cut short, and what it was
    /// to begin from is still there.
    pub fn can_go_on(&self, vm: &Vm) -> Result<bool, EngineError> {
        let loading = self.remains(vm.id).file(LOADING).exists();
        match self.does(vm.id)? {
            Does::NotStarted => Ok(false),
            Does::Running => Ok(true),
            Does::Paused => Ok(!loading || Memory::of(&self.config.layout, vm)?.is_none()),
        }
    }

    pub fn ask(&self, id: VmId, request: &Request) -> Result<(), EngineError> {
        self.api(id)?.ask(request).map(drop)
    }

    pub fn pause(&self, id: VmId) -> Result<(), EngineError> {
        note(&self.remains(id), PAUSED, "")?;
        self.ask(id, &request::pause())
    }

    /// Lets a machine go on that stands still for whatever reason.
    pub fn resume(&self, vm: &Vm) -> Result<(), EngineError> {
        // Left by a daemon that died before it killed the machine: what was suspended is this machine.
        memory::consume_suspended(&self.config.layout, vm)?;
        self.go_on(vm.id)
    }

    /// As [`Host::resume`], for one that has no memory on disk.
    pub fn go_on(&self, id: VmId) -> Result<(), EngineError> {
        self.ask(id, &request::resume())?;
        self.forget_pause(id)
    }

    /// The machine runs: nobody needs to ask it.
    pub fn forget_pause(&self, id: VmId) -> Result<(), EngineError> {
        for marker in [LOADING, PAUSED] {
            let marker = self.remains(id).file(marker);
            gone(fs::remove_file(&marker), &marker)?;
        }
        Ok(())
    }

    /// Brings the machine's disk to what the record says.
    pub fn update_disk(&self, vm: &Vm) -> Result<(), EngineError> {
        self.grow(vm)?;
        match DiskLimit::of(vm).is_told(&self.remains(vm.id)) {
            true => Ok(()),
            false => self.limit(vm),
        }
    }

    /// Limits what the disk does, whatever the machine was told before.
    pub fn limit(&self, vm: &Vm) -> Result<(), EngineError> {
        let limit = DiskLimit::of(vm);
        limit.give(&self.remains(vm.id), || self.ask(vm.id, &request::limit(limit)))
    }

    /// Brings the disk to the size that the record says, and tells the guest.
    fn grow(&self, vm: &Vm) -> Result<(), EngineError> {
        let remains = self.remains(vm.id);
        let wanted_mb = vm.resource.disk_size.to_string();
        if fs::read_to_string(remains.file(GROWN)).is_ok_and(|told| told == wanted_mb) {
            return Ok(());
        }
        let (path, wanted) = (self.config.layout.disk(vm), u64::from(vm.resource.disk_size) << 20);
        let grown = OpenOptions::new().write(true).open(&path).and_then(|file| {
            let meta = file.metadata()?;
            // A device is grown by who made it.
            match meta.is_file() && meta.len() < wanted {
                true => file.set_len(wanted),
                false => Ok(()),
            }
        });
        grown.map_err(|source| EngineError::Make { what: "larger disk", path, source })?;
        self.ask(vm.id, &request::grow())?;
        note(&remains, GROWN, &wanted_mb)
    }
}
