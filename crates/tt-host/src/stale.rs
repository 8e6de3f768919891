//! What an earlier daemon said of machines that ended without it, e.g. when the host lost its power.

use crate::{Clock, Drivers, HostError};
use std::collections::BTreeMap;
use tt_engine::Machine;
use tt_model::{HostId, Phase, Vm, VmId, VmStatus};
use tt_store::tables::{Change, Tables};

/// Statuses that are written in one commit. Each is two operations of a transaction, which is far below its bounds.
const STATUSES: usize = 1000;

/// Takes back every status of this host that says a machine runs or stands still, and it does not. To be called before
/// anybody reads statuses: the visits that start those machines again come later, and would be waited for in vain by
/// whoever was told that all is ready. Returns how many there were. No program is run, however many Vms there are.
///
/// # Errors
/// The records can not be read or written. A machine that can not be looked at keeps its status.
pub fn take_back(
    tables: &Tables,
    drivers: &Drivers,
    clock: &dyn Clock,
    host: HostId,
) -> Result<usize, HostError> {
    let claims: BTreeMap<VmId, VmStatus> =
        tables.statuses()?.into_iter().filter(|(_, status)| claims_machine(status.phase)).collect();
    let rows = tables.vms()?;
    let ours = rows.iter().map(|row| &row.value).filter(|vm| vm.host == host);
    let stale: Vec<(VmId, VmStatus)> = ours
        .filter_map(|vm| Some((vm, claims.get(&vm.id)?)))
        .filter(|(vm, _)| has_no_process(drivers, vm))
        .map(|(vm, status)| {
            let since_ms = clock.now_ms();
            (vm.id, VmStatus { phase: Phase::Machine, since_ms, ..status.clone() })
        })
        .collect();
    for some in stale.chunks(STATUSES) {
        let change = some
            .iter()
            .try_fold(Change::new(), |change, (id, status)| change.status(*id, status))?;
        tables.commit(&change)?;
    }
    Ok(stale.len())
}

fn claims_machine(phase: Phase) -> bool {
    matches!(phase, Phase::Guest | Phase::Ready | Phase::Paused)
}

fn has_no_process(drivers: &Drivers, vm: &Vm) -> bool {
    let engine = drivers.engines.iter().find(|engine| engine.name() == vm.engine);
    let seen = engine.map(|engine| engine.look(vm));
    matches!(seen, Some(Ok(Machine::Absent | Machine::Exited { .. })))
}
