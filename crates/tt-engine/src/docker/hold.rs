//! A container that stands still for a moment. It has no memory on disk, and its disk is committed by the storage.

use super::NAME;
use super::host::Host;
use crate::{EngineError, Hold, Machine};
use std::sync::Arc;
use tt_model::{Vm, VmId};

/// What lets a container stand still and go on.
#[derive(Debug)]
struct Held {
    host: Arc<Host>,
    id: VmId,
    /// Whether it ran before; otherwise the calls do nothing.
    ran: bool,
    is_paused: bool,
}

pub(super) fn prepare(
    host: &Arc<Host>,
    vm: &Vm,
    memory: Option<&str>,
) -> Result<Box<dyn Hold>, EngineError> {
    if let Some(memory) = memory {
        return Err(EngineError::Describe {
            engine: NAME,
            what: format!("memory in {memory}"),
            problem: "a container's memory can not go to disk; leave memory out".to_owned(),
        });
    }
    let ran = host.look(vm)? == Machine::Running;
    Ok(Box::new(Held { host: host.clone(), id: vm.id, ran, is_paused: false }))
}

impl Hold for Held {
    fn pause(&mut self) -> Result<(), EngineError> {
        if self.ran {
            self.host.pause(self.id)?;
            self.is_paused = true;
        }
        Ok(())
    }

    fn switch_disk(&mut self, vm: &Vm) -> Result<(), EngineError> {
        Err(EngineError::Describe {
            engine: NAME,
            what: format!("the disk {}", vm.runtime_image),
            problem: "a container's disk has no layers that it could be switched to".to_owned(),
        })
    }

    fn release(&mut self) -> Result<(), EngineError> {
        if std::mem::take(&mut self.is_paused) {
            self.host.resume(self.id)?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<bool, EngineError> {
        Ok(false)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            // The next visit finds it standing still, and lets it go on.
            tracing::warn!(vm = %self.id, error = crate::error::chain(&error), "not released");
        }
    }
}
