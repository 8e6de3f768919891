//! Takes the snapshots that records want: of one Vm, or of several members of an Env at one point
//! in time.
//!
//! Each try plans new names and commits them first, so what an interrupted one left belongs to no
//! record and is removed like everything else that no record names.

use crate::settle::has_arrived;
use crate::visit::COMMIT_TRIES;
use crate::{Clock, HostError, Next, Pause, Queue, Visitor, failpoint, layers};
use std::sync::Arc;
use std::time::Duration;
use tt_engine::Hold;
use tt_model::plan::{plan_take, plan_take_failed, plan_taken};
use tt_model::{EnvId, ErrorCode, Goal, Snapshot, SnapshotState, Trouble, Vm, VmId};
use tt_store::tables::{Change, Committed, Row, Tables};

/// How often a snapshot that fails is tried before it is given up.
const TRIES: u32 = 3;
/// Pause before members are looked at again that are on their way: a part of how long it has been wanted, within these.
/// One that arrives is told at once; it may never, and its snapshot is wanted until somebody removes it.
const NOT_SETTLED_MIN: Duration = Duration::from_millis(200);
const NOT_SETTLED_MAX: Duration = Duration::from_secs(10);

/// Takes snapshots, those of one Env one after the other.
#[derive(Debug)]
pub struct SnapshotTaker {
    tables: Tables,
    visitor: Arc<Visitor>,
    clock: Arc<dyn Clock>,
    /// The queue of visits: members of a snapshot are not visited while it is taken.
    vms: Arc<Queue<VmId>>,
}

/// A member while its snapshot is taken.
struct Part<'a> {
    vm: &'a Vm,
    snapshot: &'a Snapshot,
    hold: Option<Box<dyn Hold>>,
    has_memory: bool,
}

impl SnapshotTaker {
    /// See the fields' types.
    pub fn new(
        tables: Tables,
        visitor: Arc<Visitor>,
        clock: Arc<dyn Clock>,
        vms: Arc<Queue<VmId>>,
    ) -> Self {
        Self { tables, visitor, clock, vms }
    }

    /// Works until the queue is closed.
    pub(crate) fn run(&self, envs: &Queue<EnvId>) {
        while let Some(id) = envs.take() {
            match self.visit(id, envs.failures(&id)) {
                Next::Never => envs.done(&id, None),
                Next::Settled(delay) | Next::Wait(delay) => envs.wait(&id, delay),
                Next::BackOff => envs.failed(&id),
            }
        }
    }

    /// Takes the oldest snapshot that members of an Env want, if there is one. `failures`: how
    /// often in a row that failed before.
    pub fn visit(&self, id: EnvId, failures: u32) -> Next {
        match self.try_visit(id, failures) {
            Ok(next) => next,
            Err(error) => {
                tracing::error!(env = %id, error = layers::chain(&error), "no snapshot taken");
                Next::BackOff
            }
        }
    }

    fn try_visit(&self, id: EnvId, failures: u32) -> Result<Next, HostError> {
        let Some((name, ids)) = self.wanted(id)? else { return Ok(Next::Never) };
        if let Some(pause) = self.pause_for_others(&name, &ids)? {
            return Ok(Next::Wait(pause));
        }
        // In the order of their ids, so that two who claim the same never wait for each other.
        if !self.vms.claim(&ids) {
            return Ok(Next::Never);
        }
        let next = self.take(&name, &ids, failures);
        self.vms.free(&ids);
        next
    }

    /// The oldest snapshot that is wanted, with the members that want it.
    fn wanted(&self, id: EnvId) -> Result<Option<(String, Vec<VmId>)>, HostError> {
        let Some(env) = self.tables.env(id)? else { return Ok(None) };
        let rows = self.tables.vms_of(&env.value)?;
        let wanted = rows.iter().filter(|row| row.value.goal != Goal::Gone);
        let wanted = wanted.flat_map(|row| row.value.wanted_snapshots());
        let oldest = wanted.min_by_key(|s| (s.start_timestamp, &s.name));
        let Some(name) = oldest.map(|snapshot| snapshot.name.clone()) else { return Ok(None) };
        let ids = rows.iter().filter(|row| wants(&row.value, &name)).map(|row| row.value.id);
        let ids = ids.collect();
        Ok(Some((name, ids)))
    }

    fn take(&self, name: &str, ids: &[VmId], failures: u32) -> Result<Next, HostError> {
        for id in ids {
            match self.visitor.visit(*id, 0) {
                Next::Settled(_) | Next::Never => {}
                Next::Wait(_) => return Ok(Next::Wait(self.pause(name, *id)?)),
                Next::BackOff if failures + 1 < TRIES => return Ok(Next::BackOff),
                Next::BackOff => {
                    let trouble = self.trouble_of(*id)?;
                    return self.failed(name, ids, |vm| wants(vm, name), trouble);
                }
            }
        }
        let vms = self.change(name, ids, |vm| wants(vm, name), |vm| plan_take(vm, name))?;
        // It may be removed meanwhile, and another one of its name be wanted.
        let is_same = |vm: &Vm| wants(vm, name) && vms.iter().any(|old| is_same_try(old, vm, name));
        for vm in &vms {
            // Else a store that is lost meanwhile would come back without the disk that the guest is given now.
            if self.visitor.note(vm.id)?.is_err() {
                return Ok(Next::BackOff);
            }
        }
        failpoint::reached("snapshot", "take", "before");
        let taken = self.act(name, &vms);
        failpoint::reached("snapshot", "take", "after");
        match taken {
            Ok(versions) => {
                let now = self.clock.now();
                let version = |vm: &Vm| {
                    versions.iter().find(|(id, _)| *id == vm.id).and_then(|(_, v)| v.clone())
                };
                self.change(name, ids, is_same, |vm| plan_taken(vm, name, version(vm), now))?;
                Ok(Next::Wait(Duration::ZERO))
            }
            Err(Pause::GiveUp(trouble)) => self.failed(name, ids, is_same, trouble),
            Err(Pause::Retry(trouble)) if failures + 1 >= TRIES => {
                self.failed(name, ids, is_same, trouble)
            }
            Err(Pause::Retry(trouble)) => {
                tracing::warn!(snapshot = name, why = trouble.why, "snapshot not taken; again");
                Ok(Next::BackOff)
            }
            Err(Pause::Wait(_) | Pause::PoweredOff | Pause::Died) => Ok(Next::Never),
        }
    }

    /// How long to wait for a member that is on its way and in no trouble. As long as there is one, no other is visited for
    /// the snapshot's sake.
    fn pause_for_others(&self, name: &str, ids: &[VmId]) -> Result<Option<Duration>, HostError> {
        for id in ids {
            let Some(vm) = self.tables.vm(*id)? else { continue };
            let status = self.tables.status(*id)?.map(|row| row.value);
            if !status.is_some_and(|s| s.trouble.is_some() || has_arrived(&s, &vm.value)) {
                return Ok(Some(self.pause(name, *id)?));
            }
        }
        Ok(None)
    }

    /// Why a member is not where it should be.
    fn trouble_of(&self, id: VmId) -> Result<Trouble, HostError> {
        let trouble = self.tables.status(id)?.and_then(|row| row.value.trouble);
        let (why, retry) = trouble.map_or_else(
            || (format!("vm {id} is not where it should be"), false),
            |trouble| (trouble.why, trouble.retry),
        );
        Ok(Trouble { code: ErrorCode::SnapshotCreate, why, retry })
    }

    /// How long to leave a member alone that is on its way.
    fn pause(&self, name: &str, id: VmId) -> Result<Duration, HostError> {
        let row = self.tables.vm(id)?;
        let snapshot = row.as_ref().and_then(|row| row.value.snapshots.get(name));
        let since = snapshot.map_or(0, |s| self.clock.now().saturating_sub(s.start_timestamp));
        Ok((Duration::from_secs(since) / 10).clamp(NOT_SETTLED_MIN, NOT_SETTLED_MAX))
    }

    fn failed(
        &self,
        name: &str,
        ids: &[VmId],
        is_meant: impl Fn(&Vm) -> bool,
        trouble: Trouble,
    ) -> Result<Next, HostError> {
        tracing::warn!(snapshot = name, why = trouble.why, "snapshot not taken");
        self.change(name, ids, is_meant, |vm| plan_take_failed(vm, name, trouble.clone()))?;
        Ok(Next::Wait(Duration::ZERO))
    }

    /// Commits a change to all members that it is meant for; answers them as they are then.
    fn change(
        &self,
        name: &str,
        ids: &[VmId],
        is_meant: impl Fn(&Vm) -> bool,
        plan: impl Fn(&mut Vm),
    ) -> Result<Vec<Vm>, HostError> {
        for _ in 0..COMMIT_TRIES {
            let mut rows: Vec<Row<Vm>> = Vec::new();
            for id in ids {
                rows.extend(self.tables.vm(*id)?.filter(|row| is_meant(&row.value)));
            }
            rows.iter_mut().for_each(|row| plan(&mut row.value));
            if rows.is_empty() {
                return Ok(Vec::new());
            }
            if let Committed::Done(_) = self.tables.commit(&Change::new().vms(&rows)?)? {
                return Ok(rows.into_iter().map(|row| row.value).collect());
            }
        }
        Err(HostError::Contended { what: format!("snapshot {name}"), tries: COMMIT_TRIES })
    }

    /// Takes it: all members stand still at one moment, and none longer than it takes to freeze
    /// its own disk and device state. Answers who wrote each member's memory, where there is any.
    fn act(&self, name: &str, vms: &[Vm]) -> Result<Vec<(VmId, Option<String>)>, Pause> {
        let mut parts: Vec<Part<'_>> = Vec::new();
        for vm in vms {
            let Some(snapshot) = vm.snapshots.get(name) else { continue };
            parts.push(Part { vm, snapshot, hold: None, has_memory: false });
        }
        each(&mut parts, |part| self.prepare(part))?;
        each(&mut parts, |part| self.flush(part))?;
        each(&mut parts, |part| held(part, |hold, _| hold.pause()))?;
        let begin = std::time::Instant::now();
        failpoint::reached("snapshot", "hold", "before");
        // All stand still at one moment; from then on each goes on as soon as its own is safe. A container's disk may take
        // long, and nothing of the others depends on it.
        each(&mut parts, |part| {
            self.freeze(part)?;
            failpoint::reached("snapshot", "hold", "after");
            held(part, |hold, _| hold.release())?;
            // Its clock stood still, too; and who finds that the channel did not outlive the moment opens another one now, not
            // when somebody needs it.
            if part.vm.goal == Goal::Running {
                self.visitor.resumed(part.vm);
            }
            Ok(())
        })?;
        tracing::info!(snapshot = name, held_us = begin.elapsed().as_micros(), "guests go on");
        each(&mut parts, |part| self.finish(part))?;
        parts.iter().map(|part| Ok((part.vm.id, self.version(part)?))).collect()
    }

    fn prepare(&self, part: &mut Part<'_>) -> Result<(), Pause> {
        let Part { vm, snapshot, .. } = *part;
        if vm.storage.is_layered() {
            // The new layer may be there before the machine writes to it.
            let made = self.visitor.storage(vm)?.create_snapshot(vm, snapshot);
            made.map_err(|e| layers::storage_pause(ErrorCode::SnapshotCreate, e))?;
        }
        let hold = self.visitor.engine(vm)?.prepare_hold(vm, snapshot.memory.as_deref());
        part.hold = Some(hold.map_err(|e| layers::engine_pause(ErrorCode::SnapshotCreate, e))?);
        Ok(())
    }

    /// Brings to disk what the guest has written so far: it need not be written while it stands still.
    fn flush(&self, part: &Part<'_>) -> Result<(), Pause> {
        let is_layered = part.vm.storage.is_layered();
        let written = if is_layered { part.snapshot.epoch } else { Some(part.vm.epoch) };
        self.sync(part.vm, written)
    }

    fn sync(&self, vm: &Vm, epoch: Option<u32>) -> Result<(), Pause> {
        let Some(epoch) = epoch else { return Ok(()) };
        let synced = self.visitor.storage(vm)?.sync_disk(vm, epoch);
        synced.map_err(|e| layers::storage_pause(ErrorCode::SnapshotCreate, e))
    }

    fn freeze(&self, part: &mut Part<'_>) -> Result<(), Pause> {
        if part.vm.storage.is_layered() {
            return held(part, |hold, vm| hold.switch_disk(vm));
        }
        let made = self.visitor.storage(part.vm)?.create_snapshot(part.vm, part.snapshot);
        made.map_err(|e| layers::storage_pause(ErrorCode::SnapshotCreate, e))
    }

    /// Makes durable what was taken, while the guest runs again.
    fn finish(&self, part: &mut Part<'_>) -> Result<(), Pause> {
        if let Some(hold) = part.hold.take() {
            let finished = hold.finish();
            part.has_memory =
                finished.map_err(|e| layers::engine_pause(ErrorCode::SnapshotCreate, e))?;
        }
        self.sync(part.vm, part.snapshot.epoch)?;
        let cached = self.visitor.metas().write(&part.snapshot.meta_path, part.vm);
        cached.map_err(|e| layers::meta_pause(ErrorCode::MetaCreate, &e))
    }

    /// The engine that wrote a member's memory, with its version.
    fn version(&self, part: &Part<'_>) -> Result<Option<String>, Pause> {
        if !part.has_memory {
            return Ok(None);
        }
        let host = self.tables.host(part.vm.host).ok().flatten();
        let engine = host.as_ref().and_then(|host| host.value.engine(&part.vm.engine));
        let named = engine.map(|engine| format!("{} {}", engine.name, engine.version));
        let why = || format!("the version of engine {} is not recorded", part.vm.engine);
        let trouble = || Trouble { code: ErrorCode::SnapshotCreate, why: why(), retry: true };
        named.map(Some).ok_or_else(|| Pause::Retry(trouble()))
    }
}

fn wants(vm: &Vm, name: &str) -> bool {
    let snapshot = vm.snapshots.get(name);
    vm.goal != Goal::Gone && snapshot.is_some_and(|s| s.state == SnapshotState::Wanted)
}

/// Whether both want it as it was planned in one try: each try has names of its own.
fn is_same_try(one: &Vm, other: &Vm, name: &str) -> bool {
    let meta = |vm: &Vm| vm.snapshots.get(name).map(|snapshot| snapshot.meta_path.clone());
    one.id == other.id && meta(one) == meta(other)
}

fn held(
    part: &mut Part<'_>,
    act: impl FnOnce(&mut dyn Hold, &Vm) -> Result<(), tt_engine::EngineError>,
) -> Result<(), Pause> {
    let Some(hold) = &mut part.hold else { return Ok(()) };
    act(&mut **hold, part.vm).map_err(|e| layers::engine_pause(ErrorCode::SnapshotCreate, e))
}

/// Acts on all parts at once; the first failure is answered when all have ended.
fn each<'a>(
    parts: &mut [Part<'a>],
    act: impl Fn(&mut Part<'a>) -> Result<(), Pause> + Sync,
) -> Result<(), Pause> {
    if let [part] = parts {
        return act(part);
    }
    let act = &act;
    let results: Vec<Result<(), Pause>> = std::thread::scope(|scope| {
        let threads: Vec<_> = parts.iter_mut().map(|part| scope.spawn(move || act(part))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Err(Pause::Died))).collect()
    });
    results.into_iter().collect()
}
