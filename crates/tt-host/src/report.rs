//! What is written down about a Vm while it is settled: only changes, and never back to a step
//! that a settled Vm merely passes again.

use crate::settle::phase_at;
use crate::{Clock, HostError, layers};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tt_model::{Goal, Phase, Trouble, Vm, VmId, VmStatus};
use tt_store::tables::{Change, Tables};

/// Writes statuses.
#[derive(Debug)]
pub(crate) struct Reporter {
    tables: Tables,
    clock: Arc<dyn Clock>,
    known: Mutex<HashMap<VmId, Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    status: VmStatus,
    /// When the present generation was first seen, if this daemon saw it begin.
    begun: Option<Instant>,
}

impl Reporter {
    pub(crate) fn new(tables: Tables, clock: Arc<dyn Clock>) -> Self {
        Self { tables, clock, known: Mutex::default() }
    }

    /// A visit begins: finds out what is known of the Vm.
    pub(crate) fn begin(&self, vm: &Vm) -> Result<(), HostError> {
        let known = self.known().get(&vm.id).cloned();
        let known = match known {
            Some(known) => known,
            None => match self.tables.status(vm.id)? {
                Some(row) => Known { status: row.value, begun: None },
                None => Known { status: self.blank(vm, Phase::Planned), begun: None },
            },
        };
        let is_new =
            known.status.generation != vm.generation || known.status.phase == Phase::Planned;
        let begun = match known.begun {
            Some(begun) if known.status.generation == vm.generation => Some(begun),
            _ if is_new => Some(Instant::now()),
            _ => None,
        };
        self.known().insert(vm.id, Known { begun, ..known });
        Ok(())
    }

    /// The pass turns to a layer. A failed write is no reason to stop: the next one repeats it.
    pub(crate) fn entered(&self, vm: &Vm, phase: Phase) {
        let Some(known) = self.known().get(&vm.id).cloned() else { return };
        let answers = known.status.generation == vm.generation;
        let is_settled = answers && known.status.phase == phase_at(vm.goal);
        let is_behind = answers && rank(known.status.phase) >= rank(phase);
        if is_settled || is_behind {
            return;
        }
        if let Err(error) = self.write(vm, VmStatus { trouble: None, ..self.blank(vm, phase) }) {
            tracing::warn!(vm = %vm.id, error = layers::chain(&error), "status not written");
        }
    }

    /// The pass ended before the goal, at `phase`, and nothing is wrong.
    pub(crate) fn waiting(&self, vm: &Vm, phase: Phase) -> Result<(), HostError> {
        self.write_if_changed(vm, self.blank(vm, phase))
    }

    /// The pass ended before the goal, at `phase`.
    pub(crate) fn trouble(
        &self,
        vm: &Vm,
        phase: Phase,
        trouble: &Trouble,
    ) -> Result<(), HostError> {
        let status = VmStatus { trouble: Some(trouble.clone()), ..self.blank(vm, phase) };
        self.write_if_changed(vm, status)
    }

    /// The goal is reached.
    pub(crate) fn arrived(&self, vm: &Vm, phase: Phase) -> Result<(), HostError> {
        let known = self.known().get(&vm.id).cloned();
        let ready_ms = known.and_then(|known| {
            let answers = known.status.generation == vm.generation;
            let kept = known.status.ready_ms.filter(|_| answers);
            let begun = known.begun.filter(|_| vm.goal == Goal::Running);
            let measured = begun.and_then(|begun| u64::try_from(begun.elapsed().as_millis()).ok());
            kept.or(measured)
        });
        self.write_if_changed(vm, VmStatus { ready_ms, ..self.blank(vm, phase) })
    }

    /// The Vm has no record any more.
    pub(crate) fn forget(&self, id: VmId) {
        self.known().remove(&id);
    }

    fn write_if_changed(&self, vm: &Vm, status: VmStatus) -> Result<(), HostError> {
        let known = self.known().get(&vm.id).map(|known| known.status.clone());
        let same = known.is_some_and(|known| {
            VmStatus { since_ms: 0, ..known } == VmStatus { since_ms: 0, ..status.clone() }
        });
        if same { Ok(()) } else { self.write(vm, status) }
    }

    fn write(&self, vm: &Vm, status: VmStatus) -> Result<(), HostError> {
        self.tables.commit(&Change::new().status(vm.id, &status)?)?;
        if let Some(known) = self.known().get_mut(&vm.id) {
            known.status = status;
        }
        Ok(())
    }

    fn blank(&self, vm: &Vm, phase: Phase) -> VmStatus {
        let (generation, since_ms) = (vm.generation, self.clock.now_ms());
        let known = self.known().get(&vm.id).map(|known| known.status.clone());
        let ready_ms =
            known.filter(|known| known.generation == generation).and_then(|k| k.ready_ms);
        VmStatus { phase, generation, since_ms, ready_ms, trouble: None }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<VmId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far on its way a phase is.
fn rank(phase: Phase) -> u8 {
    match phase {
        Phase::Planned => 0,
        Phase::Image => 1,
        Phase::Net => 2,
        Phase::Machine => 3,
        // On the way down the layers that stay are only looked at.
        Phase::Guest | Phase::Stopping | Phase::Removing => 4,
        Phase::Ready | Phase::Paused | Phase::Stopped => 5,
    }
}
