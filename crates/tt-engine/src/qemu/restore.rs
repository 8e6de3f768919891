//! From memory on disk to a running machine. It never lets a guest run whose memory could be begun from again.

use super::migration::{self, Progress};
use super::{Host, MONITOR, disk, machine, unusable};
use crate::EngineError;
use crate::life::PAUSED;
use crate::memory::files::Memory;
use crate::remains::MESSAGES;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use tt_model::{Vm, VmId};

/// How long a machine may take to load its state; some ms are usual.
const LOAD_MAX: Duration = Duration::from_secs(30);

impl Host {
    /// Starts a machine of which there is nothing: from memory if there is some, else by booting.
    pub fn begin(&self, vm: &Vm) -> Result<(), EngineError> {
        let usable = self.usable.as_ref().map_err(|why| unusable(why))?;
        let memory = Memory::of(&self.config.layout, vm)?;
        let state = memory.as_ref().map(|m| m.check(&usable.writer(), vm.machine)).transpose()?;
        let remains = self.remains(vm.id);
        let process = machine::start(&self.config, usable, &remains, vm, memory.as_ref())?;
        let pid = process.pid;
        tracing::debug!(vm = %vm.id, pid, from_memory = memory.is_some(), "machine started");
        if let Some(watcher) = &self.watcher {
            let watched = watcher.watch(vm.id, process);
            watched.map_err(|source| EngineError::Process { action: "watch", pid, source })?;
        }
        let (Some(memory), Some(state)) = (memory, state) else {
            if !remains.file(PAUSED).exists() {
                return Ok(());
            }
            return match self.resume(vm) {
                // How it ended, a look tells.
                Err(_) if !self.life(vm.id).stays()? => Ok(()),
                resumed => resumed,
            };
        };
        let loaded = self.load(vm.id, &state).and_then(|()| disk::limit(&remains, vm));
        let loaded = loaded.and_then(|()| memory.consume(&self.config.layout, vm));
        if let Err(error) = loaded {
            let said = super::qmp::quote(self.remains(vm.id).messages(MESSAGES).trim());
            self.end(vm)?;
            let problem = format!("{} {said}", crate::error::chain(&error));
            return Err(EngineError::Load { path: memory.dir, problem });
        }
        self.go_on(vm.id)
    }

    fn load(&self, id: VmId, state: &[u8]) -> Result<(), EngineError> {
        let path = self.remains(id).file(MONITOR);
        let failed = |source| EngineError::Make { what: "socket", path: "pair".into(), source };
        let (mut ours, its) = UnixStream::pair().map_err(failed)?;
        ours.set_write_timeout(Some(LOAD_MAX)).map_err(failed)?;
        let mut qmp = self.monitor(id)?;
        migration::take(&mut qmp, its.as_fd())?;
        drop(its);
        ours.write_all(state).map_err(failed)?;
        drop(ours);
        migration::wait(&mut qmp, &path, LOAD_MAX, Progress::is_complete)
    }
}
