//! A machine that is held still for a moment, and one that is suspended. Whatever fails, the guest goes on.

use super::capture::Capture;
use super::{Host, disk};
use crate::life::PAUSED;
use crate::memory::files as memory;
use crate::remains::note;
use crate::{EngineError, Hold, Machine, absent};
use std::sync::Arc;
use tt_model::{Vm, VmId, names};

/// See [`VmEngine::prepare_hold`](crate::VmEngine::prepare_hold).
pub(super) fn prepare(
    host: &Arc<Host>,
    vm: &Vm,
    path: Option<&str>,
) -> Result<Box<dyn Hold>, EngineError> {
    let ran = match host.look(vm)? {
        Machine::Running => true,
        Machine::Paused if host.is_loaded(vm)? => false,
        _ => return absent::hold(&host.config.layout, vm, path),
    };
    // It may stand still from here on, and a later daemon is to see that.
    note(&host.remains(vm.id), PAUSED, "")?;
    let mut hold = Held { host: host.clone(), id: vm.id, ran, step: Step::Prepared, capture: None };
    if let Some(path) = path {
        let capture = hold.capture.insert(Capture::begin(host, vm, path)?);
        capture.settle().map_err(|error| capture.explain(error))?;
    }
    Ok(Box::new(hold))
}

/// See [`StopMode::Suspend`](tt_model::StopMode::Suspend). `runs`: whether the guest does.
pub(super) fn suspend(host: &Arc<Host>, vm: &Vm, runs: bool) -> Result<(), EngineError> {
    let layout = &host.config.layout;
    let is_kept = !runs && (!host.is_loaded(vm)? || memory::is_suspended(layout, vm)?);
    if !is_kept {
        // Nobody waits for the guest: it stands still from the beginning, and nothing is copied twice.
        host.pause(vm.id)?;
        let held =
            Held { host: host.clone(), id: vm.id, ran: runs, step: Step::Paused, capture: None };
        capture_still(held, vm)?;
    }
    host.kill(vm.id).map(drop)
}

fn capture_still(mut held: Held, vm: &Vm) -> Result<(), EngineError> {
    let path = names::suspended(vm.id, vm.incarnation);
    let capture = held.capture.insert(Capture::begin(&held.host, vm, &path)?);
    let copied = capture.settle().and_then(|()| capture.stand());
    let copied = copied.and_then(|()| capture.complete());
    copied.map_err(|error| capture.explain(error))?;
    if let Some(capture) = held.capture.take() {
        capture.save()?;
    }
    held.step = Step::Released;
    Ok(())
}

/// A machine with a process.
#[derive(Debug)]
struct Held {
    host: Arc<Host>,
    id: VmId,
    /// Whether the guest goes on afterwards.
    ran: bool,
    step: Step,
    capture: Option<Capture>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Prepared,
    Paused,
    Released,
}

impl Held {
    fn stands(&self, call: &'static str) -> Result<(), EngineError> {
        match self.step {
            Step::Paused => Ok(()),
            _ => Err(EngineError::Order { call }),
        }
    }
}

impl Hold for Held {
    fn pause(&mut self) -> Result<(), EngineError> {
        match &self.capture {
            Some(capture) => capture.stand().map_err(|error| capture.explain(error))?,
            None => self.host.order(self.id, "stop")?,
        }
        self.step = Step::Paused;
        Ok(())
    }

    fn switch_disk(&mut self, vm: &Vm) -> Result<(), EngineError> {
        self.stands("switch_disk")?;
        disk::switch(&self.host.remains(self.id), vm)
    }

    fn release(&mut self) -> Result<(), EngineError> {
        self.stands("release")?;
        if let Some(capture) = &self.capture {
            capture.complete().map_err(|error| capture.explain(error))?;
        }
        if self.ran {
            self.host.go_on(self.id)?;
        }
        self.step = Step::Released;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<bool, EngineError> {
        if self.step != Step::Released {
            return Err(EngineError::Order { call: "finish" });
        }
        match self.capture.take() {
            Some(capture) => capture.save().map(|()| true),
            None => Ok(false),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.capture = None;
        if self.step != Step::Released
            && self.ran
            && let Err(error) = self.host.go_on(self.id)
        {
            let error = crate::error::chain(&error);
            tracing::warn!(vm = %self.id, error, "a machine that was held does not go on");
        }
    }
}
