//! A machine that is held still for a moment, and one that is suspended. Firecracker writes a machine's memory while it stands
//! still, so that is how long the moment is. Whatever fails, the guest goes on.

use super::host::never_swaps;
use super::machine::{BOOTED, last_words, limits};
use super::{Host, NAME, request, unusable};
use crate::life::PAUSED;
use crate::memory::files::{self as memory, Draft, Meta, STATE_BYTES_MAX};
use crate::remains::{gone, note};
use crate::{EngineError, Hold, Machine, absent};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use tt_model::{Vm, VmId, names};

/// What Firecracker writes beside the memory, in its working directory.
const STATE: &str = "state";

/// See [`VmEngine::prepare_hold`](crate::VmEngine::prepare_hold).
pub(super) fn prepare(
    host: &Arc<Host>,
    vm: &Vm,
    path: Option<&str>,
) -> Result<Box<dyn Hold>, EngineError> {
    let ran = match host.look(vm)? {
        Machine::Running => true,
        Machine::Paused if host.can_go_on(vm)? => false,
        _ => return absent::hold(&host.config.layout, vm, path),
    };
    // It may stand still from here on, and a later daemon is to see that.
    note(&host.remains(vm.id), PAUSED, "")?;
    let capture = path.map(|path| Capture::begin(host, vm, path)).transpose()?;
    Ok(Box::new(Held { host: host.clone(), id: vm.id, ran, step: Step::Prepared, capture }))
}

/// See [`StopMode::Suspend`](tt_model::StopMode::Suspend). `runs`: whether the guest does.
pub(super) fn suspend(host: &Arc<Host>, vm: &Vm, runs: bool) -> Result<(), EngineError> {
    let layout = &host.config.layout;
    let is_kept = !runs && (!host.can_go_on(vm)? || memory::is_suspended(layout, vm)?);
    if !is_kept {
        let capture = Some(Capture::begin(host, vm, &names::suspended(vm.id, vm.incarnation))?);
        host.pause(vm.id)?;
        let mut held =
            Held { host: host.clone(), id: vm.id, ran: runs, step: Step::Paused, capture };
        if let Some(capture) = &held.capture {
            capture.save()?;
        }
        if let Some(capture) = held.capture.take() {
            capture.publish()?;
        }
        held.step = Step::Released;
    }
    host.life(vm.id).kill().map(drop)
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
        self.host.pause(self.id)?;
        self.step = Step::Paused;
        Ok(())
    }

    fn switch_disk(&mut self, _: &Vm) -> Result<(), EngineError> {
        self.stands("switch_disk")?;
        Err(EngineError::Describe {
            engine: NAME,
            what: "a layer over its disk".to_owned(),
            problem: "its disks are raw; a snapshot of one is a clone".to_owned(),
        })
    }

    fn release(&mut self) -> Result<(), EngineError> {
        self.stands("release")?;
        self.capture.as_ref().map_or(Ok(()), Capture::save)?;
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
            Some(capture) => capture.publish().map(|()| true),
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

/// A machine's memory on its way to disk. Dropped, it comes to nothing and leaves nothing.
#[derive(Debug)]
struct Capture {
    host: Arc<Host>,
    vm: Vm,
    draft: Draft,
    ram: PathBuf,
    target: PathBuf,
}

impl Capture {
    /// Makes room for the memory in the directory `path`, relative to the data directory.
    fn begin(host: &Arc<Host>, vm: &Vm, path: &str) -> Result<Self, EngineError> {
        let layout = &host.config.layout;
        let draft = Draft::begin(layout, vm.id, path)?;
        let ram = draft.make_ram(vm.machine.mem_size, layout.uid(vm.id))?;
        let (host, target) = (host.clone(), layout.data.join(path));
        Ok(Self { host, vm: vm.clone(), draft, ram, target })
    }

    /// Lets the machine, which stands still, write all of itself.
    fn save(&self) -> Result<(), EngineError> {
        let remains = self.host.remains(self.vm.id);
        remains.make_cgroup(&limits(self.vm.machine, true))?;
        let is_sparse = remains.file(BOOTED).exists() && never_swaps();
        let (id, mem_mb) = (self.vm.id, self.vm.machine.mem_size);
        let ram = self.host.show_saved(id, &self.ram)?;
        let saved = self.host.ask(id, &request::save(STATE.as_ref(), &ram, is_sparse, mem_mb));
        // Whatever came of it: what it is shown takes room, though its name is gone.
        let hidden = self.host.hide_saved(id);
        saved.and(hidden).map_err(|error| {
            let problem = format!("{} {}", crate::error::chain(&error), last_words(&remains));
            self.failed(problem)
        })
    }

    /// Completes the directory.
    fn publish(self) -> Result<(), EngineError> {
        let usable = self.host.usable.as_ref().map_err(|why| unusable(why))?;
        let remains = self.host.remains(self.vm.id);
        let state = remains.written(STATE, STATE_BYTES_MAX)?;
        let meta = Meta::new(&usable.writer(), self.vm.machine, &state);
        let own = remains.own(STATE);
        gone(fs::remove_file(&own), &own)?;
        self.draft.publish(&state, &meta, self.host.config.layout.uid(self.vm.id), true)
    }

    fn failed(&self, problem: String) -> EngineError {
        EngineError::Capture { path: self.target.clone(), problem }
    }
}
