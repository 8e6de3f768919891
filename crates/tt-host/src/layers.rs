//! The four layers of a Vm, bottom up: image, net, machine, ready. Each joins one driver to
//! [`settle`](crate::settle).
//!
//! To the image belongs all that a Vm has on disk: its disks, and the memory of snapshots and
//! suspended machines.

use crate::guest::{GuestControl, GuestState};
use crate::meta::MetaError;
use crate::{Clock, Layer, Pause};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tt_engine::{EngineError, VmEngine};
use tt_model::{ErrorCode, Goal, Phase, StopMode, Trouble, Vm};
use tt_network::{Network, NetworkError};
use tt_storage::{Storage, StorageError};

/// Pause before a disk is looked at again that waits for what others take in.
const NOT_YET: Duration = Duration::from_millis(500);
/// A safety look behind an event that should come: the end of a process, the word of a guest.
const EVENT_OVERDUE: Duration = Duration::from_secs(2);

/// How long a killed machine is waited for that another one is to replace.
const DYING_MAX: Duration = Duration::from_secs(1);

/// The drivers of a host.
#[derive(Clone, Debug)]
pub struct Drivers {
    /// By preference.
    pub engines: Vec<Arc<dyn VmEngine>>,
    /// Every kind that the records of this host name.
    pub storages: Vec<Arc<dyn Storage>>,
    /// The network plane.
    pub network: Arc<dyn Network>,
}

/// The layer of the runtime image.
#[derive(Debug)]
pub struct Image<'a> {
    /// The Vm's back end.
    pub storage: &'a dyn Storage,
    /// The Vm's engine: only it can grow a disk that a machine has open, and it knows memory.
    pub engine: &'a dyn VmEngine,
}

/// The layer of the network.
#[derive(Debug)]
pub struct Net<'a> {
    /// The network plane.
    pub network: &'a dyn Network,
}

/// The layer of the machine.
#[derive(Debug)]
pub struct Machine<'a> {
    /// The Vm's engine.
    pub engine: &'a dyn VmEngine,
    /// Asked first when a guest is to shut down.
    pub guests: &'a dyn GuestControl,
    /// Says when the guest's time is over.
    pub clock: &'a dyn Clock,
}

/// The layer of the guest's readiness.
#[derive(Debug)]
pub struct Ready<'a> {
    /// The channels to the guests' agents.
    pub guests: &'a dyn GuestControl,
}

impl Layer for Image<'_> {
    fn phase(&self) -> Phase {
        Phase::Image
    }

    fn ensure(&self, vm: &Vm) -> Result<(), Pause> {
        let update = || self.engine.update_vm(vm).map_err(|e| engine_pause(ErrorCode::UpdateVm, e));
        match self.storage.create_image(vm) {
            Err(StorageError::InUse { .. }) => {
                update()?;
                self.storage.create_image(vm)
            }
            made => made,
        }
        .map_err(|e| storage_pause(ErrorCode::CreateImage, e))?;
        // Before anything goes: a machine that has just been started may not have opened all of it yet.
        update()?;
        let dropped = self.storage.destroy_snapshot(vm);
        dropped.map_err(|e| storage_pause(ErrorCode::SnapshotDestroy, e))?;
        let dropped = self.engine.remove_memory(vm);
        dropped.map_err(|e| engine_pause(ErrorCode::SnapshotDestroy, e))
    }

    fn remove(&self, vm: &Vm) -> Result<(), Pause> {
        let removed = self.engine.remove_stray_memory(vm.id);
        removed.map_err(|e| engine_pause(ErrorCode::DestroyImage, e))?;
        match vm.state.keep_image {
            true => self.storage.keep_image(vm).map(drop),
            false => self.storage.destroy_image(vm),
        }
        .map_err(|e| storage_pause(ErrorCode::DestroyImage, e))
    }
}

impl Layer for Net<'_> {
    fn phase(&self) -> Phase {
        Phase::Net
    }

    fn ensure(&self, vm: &Vm) -> Result<(), Pause> {
        self.network.set_net(vm).map_err(|e| network_pause(ErrorCode::SetNet, e))
    }

    fn remove(&self, vm: &Vm) -> Result<(), Pause> {
        self.network.unset_net(vm).map_err(|e| network_pause(ErrorCode::UnsetNet, e))
    }
}

impl Layer for Machine<'_> {
    fn phase(&self) -> Phase {
        Phase::Machine
    }

    fn ensure(&self, vm: &Vm) -> Result<(), Pause> {
        use tt_engine::Machine as Seen;
        let seen = match self.look(vm)? {
            Seen::Outdated => self.replace(vm)?,
            seen => seen,
        };
        match seen {
            Seen::Absent => {
                self.start(vm)?;
                if vm.goal == Goal::Paused { self.stop(vm, StopMode::Pause) } else { Ok(()) }
            }
            Seen::Running if vm.goal == Goal::Paused => self.stop(vm, StopMode::Pause),
            Seen::Paused if vm.goal != Goal::Paused => {
                self.start(vm)?;
                self.guests.resumed(vm.id);
                Ok(())
            }
            Seen::Running | Seen::Paused => Ok(()),
            // The record comes first: what is left of the machine is all that tells that its guest
            // wanted to end, and a daemon that died here would start it again.
            Seen::Exited { clean: true, .. } if self.clock.now() > vm.kill_timestamp => {
                Err(Pause::PoweredOff)
            }
            // It obeyed an order to shut down that was taken back meanwhile.
            Seen::Exited { clean: true, .. } => {
                self.guests.forget(vm.id);
                self.stop(vm, StopMode::Kill)?;
                self.start(vm)
            }
            Seen::Exited { clean: false, why } => {
                self.guests.forget(vm.id);
                self.stop(vm, StopMode::Kill)?;
                Err(Pause::Retry(Trouble { code: ErrorCode::Exited, why, retry: true }))
            }
            Seen::Outdated => Err(Pause::Wait(EVENT_OVERDUE)),
        }
    }

    fn remove(&self, vm: &Vm) -> Result<(), Pause> {
        use tt_engine::Machine as Seen;
        let seen = self.look(vm)?;
        let has_memory = matches!(seen, Seen::Running | Seen::Paused);
        if vm.goal == Goal::Suspended && has_memory {
            self.stop(vm, StopMode::Suspend)?;
        }
        let is_over = matches!(seen, Seen::Absent | Seen::Exited { .. } | Seen::Outdated);
        if is_over || vm.goal == Goal::Suspended || vm.kill_timestamp <= self.clock.now() {
            return self.end(vm).map(drop);
        }
        if seen == Seen::Paused {
            // A guest that stands still hears nothing.
            self.start(vm)?;
        }
        if !self.guests.shut_down(vm.id)
            && let Err(error) = self.engine.stop_vm(vm, StopMode::Shutdown)
        {
            // A machine that is ending hears nothing, and one that only looks so is killed in time.
            tracing::debug!(vm = %vm.id, error = chain(&error), "guest not asked to shut down");
        }
        let left = vm.kill_timestamp.saturating_sub(self.clock.now()).max(1);
        Err(Pause::Wait(Duration::from_secs(left).min(EVENT_OVERDUE)))
    }
}

impl Machine<'_> {
    fn start(&self, vm: &Vm) -> Result<(), Pause> {
        self.engine.start_vm(vm).map_err(|e| engine_pause(ErrorCode::StartVm, e))
    }

    fn stop(&self, vm: &Vm, mode: StopMode) -> Result<(), Pause> {
        self.engine.stop_vm(vm, mode).map_err(|e| engine_pause(ErrorCode::StopVm, e))
    }

    /// Ends a machine of an earlier incarnation without a question: another one takes its place,
    /// and its guest should not have to wait for longer than a process takes to die.
    fn replace(&self, vm: &Vm) -> Result<tt_engine::Machine, Pause> {
        let begin = Instant::now();
        loop {
            match self.end(vm) {
                Err(Pause::Wait(_)) if begin.elapsed() < DYING_MAX => {
                    std::thread::sleep(DYING_MAX / 200);
                }
                ended => return ended,
            }
        }
    }

    /// Kills the machine and removes what it leaves; its end is an event.
    fn end(&self, vm: &Vm) -> Result<tt_engine::Machine, Pause> {
        if self.look(vm)? != tt_engine::Machine::Absent {
            self.stop(vm, StopMode::Kill)?;
            if self.look(vm)? != tt_engine::Machine::Absent {
                return Err(Pause::Wait(EVENT_OVERDUE));
            }
        }
        self.guests.forget(vm.id);
        Ok(tt_engine::Machine::Absent)
    }

    fn look(&self, vm: &Vm) -> Result<tt_engine::Machine, Pause> {
        self.engine.look(vm).map_err(|e| engine_pause(ErrorCode::StartVm, e))
    }
}

impl Layer for Ready<'_> {
    fn phase(&self) -> Phase {
        Phase::Guest
    }

    fn ensure(&self, vm: &Vm) -> Result<(), Pause> {
        match self.guests.ensure(vm) {
            GuestState::Ready => Ok(()),
            GuestState::Waiting => Err(Pause::Wait(EVENT_OVERDUE)),
            GuestState::Refused(why) => {
                Err(Pause::Retry(Trouble { code: ErrorCode::Guest, why, retry: true }))
            }
        }
    }

    fn remove(&self, vm: &Vm) -> Result<(), Pause> {
        match vm.goal {
            // Its sessions go on with it.
            Goal::Paused => {}
            Goal::Gone => self.guests.erase(vm.id),
            // The channel is what a guest is asked through; it ends with the machine.
            Goal::Stopped | Goal::Suspended | Goal::Running => {}
        }
        Ok(())
    }
}

pub(crate) fn engine_pause(code: ErrorCode, error: EngineError) -> Pause {
    match error {
        EngineError::Died => Pause::Died,
        error => pause(code, error.is_retryable(), &error),
    }
}

pub(crate) fn storage_pause(code: ErrorCode, error: StorageError) -> Pause {
    match error {
        StorageError::Died { .. } => Pause::Died,
        StorageError::NotYet { .. } => Pause::Wait(NOT_YET),
        error => pause(code, error.is_retryable(), &error),
    }
}

fn network_pause(code: ErrorCode, error: NetworkError) -> Pause {
    match error {
        NetworkError::Died => Pause::Died,
        error => pause(code, error.is_retryable(), &error),
    }
}

pub(crate) fn meta_pause(code: ErrorCode, error: &MetaError) -> Pause {
    pause(code, error.is_retryable(), error)
}

fn pause(code: ErrorCode, retry: bool, error: &dyn Error) -> Pause {
    let trouble = Trouble { code, why: chain(error), retry };
    if retry { Pause::Retry(trouble) } else { Pause::GiveUp(trouble) }
}

/// The error with all its causes, outermost first.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
