//! The one way a Vm changes.
//!
//! A Vm is a stack of layers and its goal is a height. What stands above the goal is shed, top
//! down; what belongs below it is ensured, bottom up. Start, stop, destroy, undo, expiry and the
//! recovery after a crash are all [`settle`].

use std::time::Duration;
use tt_model::{Goal, Phase, Trouble, Vm, VmStatus};

/// Why a pass ended before the goal. "Not finished" travels the same road as "went wrong".
#[derive(Debug)]
pub enum Pause {
    /// Not yet. Look again then, or when an event names this Vm.
    Wait(Duration),
    /// Went wrong; may heal by itself.
    Retry(Trouble),
    /// Went wrong; will not heal by itself.
    GiveUp(Trouble),
    /// The guest switched itself off: it is stopped, as if its owner had asked for it.
    PoweredOff,
    /// The daemon is ending: nothing may be done or recorded any more.
    Died,
}

/// One undoable part of a Vm. Both verbs look first and act on the difference.
pub trait Layer: Send + Sync {
    /// Where a Vm stands while this layer is being made.
    fn phase(&self) -> Phase;

    /// Makes what is missing.
    fn ensure(&self, vm: &Vm) -> Result<(), Pause>;

    /// Removes what is there; accepts "never made" and "half made".
    fn remove(&self, vm: &Vm) -> Result<(), Pause>;
}

/// Moves `vm` towards its goal; `Ok` means that it is there. `enter` is told what is done next.
pub fn settle(vm: &Vm, stack: &[&dyn Layer], mut enter: impl FnMut(Phase)) -> Result<(), Pause> {
    let (keep, shed) = stack.split_at(vm.goal.height().min(stack.len()));
    for layer in shed.iter().rev() {
        enter(if vm.goal == Goal::Gone { Phase::Removing } else { Phase::Stopping });
        layer.remove(vm)?;
    }
    for layer in keep {
        enter(layer.phase());
        layer.ensure(vm)?;
    }
    Ok(())
}

/// Whether a status says that `vm` has reached its goal, as its record is now.
pub(crate) fn has_arrived(status: &VmStatus, vm: &Vm) -> bool {
    status.generation == vm.generation && status.phase == phase_at(vm.goal)
}

/// Where a Vm stands that has reached `goal`.
pub(crate) fn phase_at(goal: Goal) -> Phase {
    match goal {
        Goal::Gone => Phase::Removing,
        Goal::Stopped | Goal::Suspended => Phase::Stopped,
        Goal::Paused => Phase::Paused,
        Goal::Running => Phase::Ready,
    }
}
