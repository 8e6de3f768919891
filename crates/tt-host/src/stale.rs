//! What an earlier daemon said of machines that ended without it, e.g. when the host lost its power.

use crate::{Clock, Drivers, HostError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use tt_engine::{Machine, VmEngine};
use tt_model::{HostId, Phase, Vm, VmId, VmStatus};
use tt_store::tables::{Change, Tables};

/// Statuses that are written in one commit. Each is two operations of a transaction, which is far below its bounds.
const STATUSES: usize = 1000;
/// How long machines are looked at, all together: an engine may ask a program or a daemon that does not answer.
const LOOK_MAX: Duration = Duration::from_secs(3);

/// Takes back every status of this host that says a machine runs or stands still, and it does not, or it is not known in
/// time. To be called before anybody reads statuses: the visits that start those machines again come later, and would be
/// waited for in vain by whoever was told that all is ready; of one that lives after all they soon say so again. Returns how
/// many there were. Takes a few seconds at most, however many Vms there are.
///
/// # Errors
/// The records can not be read or written. A machine whose engine fails keeps its status.
pub fn take_back(
    tables: &Tables,
    drivers: &Drivers,
    clock: &dyn Clock,
    host: HostId,
) -> Result<usize, HostError> {
    let claims: BTreeMap<VmId, VmStatus> =
        tables.statuses()?.into_iter().filter(|(_, status)| claims_machine(status.phase)).collect();
    let rows = tables.vms()?.into_iter().map(|row| row.value);
    let claiming = rows.filter(|vm| vm.host == host && claims.contains_key(&vm.id)).collect();
    let stale: Vec<(VmId, VmStatus)> = without_process(drivers, claiming)
        .into_iter()
        .filter_map(|id| Some((id, claims.get(&id)?)))
        .map(|(id, status)| {
            let since_ms = clock.now_ms();
            (id, VmStatus { phase: Phase::Machine, since_ms, ..status.clone() })
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

/// Which of `vms` have no process, as far as their engines tell in time; those that are not known then count as such.
fn without_process(drivers: &Drivers, vms: Vec<Vm>) -> BTreeSet<VmId> {
    let deadline = Instant::now() + LOOK_MAX;
    let mut missing = BTreeSet::new();
    let (seen, looks) = channel();
    for engine in &drivers.engines {
        let own: Vec<Vm> = vms.iter().filter(|vm| vm.engine == engine.name()).cloned().collect();
        if own.is_empty() {
            continue;
        }
        missing.extend(own.iter().map(|vm| vm.id));
        let (engine, seen) = (engine.clone(), seen.clone());
        // One that can not be had is one that looks at nothing in time.
        let look = move || look_at(&*engine, &own, &seen, deadline);
        if let Err(error) = std::thread::Builder::new().name("tt-look".into()).spawn(look) {
            tracing::warn!(%error, "machines of one engine are not looked at");
        }
    }
    drop(seen);
    remove_living(&mut missing, &looks, deadline);
    missing
}

/// Tells of each whether it may have a process. One engine's threads do not wait for another one's.
fn look_at(engine: &dyn VmEngine, vms: &[Vm], seen: &Sender<(VmId, bool)>, deadline: Instant) {
    for vm in vms.iter().take_while(|_| Instant::now() < deadline) {
        let look = engine.look(vm);
        let is_over = matches!(look, Ok(Machine::Absent | Machine::Exited { .. }));
        if seen.send((vm.id, !is_over)).is_err() {
            return;
        }
    }
}

fn remove_living(missing: &mut BTreeSet<VmId>, looks: &Receiver<(VmId, bool)>, deadline: Instant) {
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        match looks.recv_timeout(left) {
            Ok((id, true)) => drop(missing.remove(&id)),
            Ok((_, false)) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_looked_at_in_time_counts_as_without_a_process() {
        let (seen, looks) = channel();
        let mut missing: BTreeSet<VmId> = (1..=3).map(VmId).collect();
        seen.send((VmId(1), true)).unwrap();
        seen.send((VmId(2), false)).unwrap();
        remove_living(&mut missing, &looks, Instant::now() + Duration::from_millis(50));
        assert_eq!(missing, BTreeSet::from([VmId(2), VmId(3)]));
    }
}
