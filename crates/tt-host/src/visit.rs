//! One visit to one Vm: read its record, settle it, write down what was seen.

use crate::cache::MetaCache;
use crate::report::Reporter;
use crate::settle::{has_arrived, phase_at};
use crate::{
    Clock, Drivers, GuestControl, HostError, Image, Layer, Machine, Metas, Net, Pause, Queue,
    Ready, Unmerged, erase, failpoint, layers, settle,
};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tt_engine::VmEngine;
use tt_model::env::Failure;
use tt_model::plan::{needs_merge, plan_detach, plan_frozen, plan_made, plan_undo};
use tt_model::{Env, EnvId, ErrorCode, Goal, HostId, KeptImage, Phase, Trouble, Vm, VmId};
use tt_network::EnvNames;
use tt_storage::Storage;
use tt_store::Revision;
use tt_store::tables::{Change, Committed, Row, Tables};

/// How often a settled Vm is looked at without any event.
const SAFETY_LOOK: Duration = Duration::from_secs(30);
/// How often a member of an Env that is being created may fail before the Env is undone.
const CREATE_TRIES: u32 = 5;
/// How often a change of records is planned again after others changed them.
pub(crate) const COMMIT_TRIES: u32 = 64;

/// When a Vm is to be visited again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Not before an event names it.
    Never,
    /// It has settled: after that time, or when an event names it.
    Settled(Duration),
    /// It is on its way: after that time, or when an event names it.
    Wait(Duration),
    /// It failed: after a pause that grows.
    BackOff,
}

/// Who is told what visits find to be done that they do not wait for.
#[derive(Clone, Debug, Default)]
pub struct Errands {
    /// Envs with members that want a snapshot.
    pub snapshots: Arc<Queue<EnvId>>,
    /// Vms with layers that are to be merged.
    pub merges: Arc<Queue<VmId>>,
    /// What came of it where it failed.
    pub unmerged: Arc<Unmerged>,
}

/// Visits the Vms of one host. Visits to different Vms may run at once.
#[derive(Debug)]
pub struct Visitor {
    tables: Tables,
    drivers: Drivers,
    guests: Arc<dyn GuestControl>,
    clock: Arc<dyn Clock>,
    host: HostId,
    reporter: Reporter,
    metas: MetaCache,
    errands: Errands,
    /// At which revision of its Env the network was told who is who.
    named: Mutex<HashMap<EnvId, Revision>>,
}

impl Visitor {
    /// See the fields' types.
    pub fn new(
        tables: Tables,
        drivers: Drivers,
        guests: Arc<dyn GuestControl>,
        clock: Arc<dyn Clock>,
        host: HostId,
        metas: Metas,
        errands: Errands,
    ) -> Self {
        let reporter = Reporter::new(tables.clone(), clock.clone());
        let metas = MetaCache::new(metas);
        let named = Mutex::default();
        Self { tables, drivers, guests, clock, host, reporter, metas, errands, named }
    }

    /// Visits a Vm. `failures`: how often in a row visits to it failed before.
    pub fn visit(&self, id: VmId, failures: u32) -> Next {
        match self.try_visit(id, failures) {
            Ok(next) => next,
            Err(error) => {
                tracing::error!(vm = %id, error = layers::chain(&error), "visit failed");
                Next::BackOff
            }
        }
    }

    fn try_visit(&self, id: VmId, failures: u32) -> Result<Next, HostError> {
        let Some(vm) = self.tables.vm(id)? else {
            self.reporter.forget(id);
            return Ok(Next::Never);
        };
        if vm.value.host != self.host {
            return Ok(Next::Never);
        }
        let Some(env) = self.tables.env(vm.value.env_id)? else {
            // A Vm and its Env are committed together, so this is a damaged store.
            tracing::error!(vm = %id, env = %vm.value.env_id, "its Env has no record");
            return Ok(Next::BackOff);
        };
        self.reporter.begin(&vm.value)?;
        let phase = Cell::new(Phase::Planned);
        let settled = self.cache(&vm, &env).and_then(|()| self.settle(&vm.value, &env, &phase));
        match settled {
            Ok(()) => self.settled(vm, &env.value),
            Err(pause) => self.paused(&vm, &env.value, phase.get(), pause, failures),
        }
    }

    /// Writes the metas of a Vm down; what is in the way is said by its next visit.
    pub(crate) fn note(&self, id: VmId) -> Result<Result<(), Pause>, HostError> {
        let Some(vm) = self.tables.vm(id)? else { return Ok(Ok(())) };
        let Some(env) = self.tables.env(vm.value.env_id)? else { return Ok(Ok(())) };
        Ok(self.cache(&vm, &env))
    }

    /// Writes the metas down, before anything is done because of the records.
    fn cache(&self, vm: &Row<Vm>, env: &Row<Env>) -> Result<(), Pause> {
        if vm.value.goal == Goal::Gone {
            return Ok(());
        }
        self.metas.follow(vm, env).map_err(|e| layers::meta_pause(ErrorCode::MetaCreate, &e))
    }

    fn settle(&self, vm: &Vm, env: &Row<Env>, phase: &Cell<Phase>) -> Result<(), Pause> {
        if vm.goal != Goal::Gone {
            self.name_members(env)?;
        }
        let image = Traced(Image { storage: self.storage(vm)?, engine: self.engine(vm)? });
        let net = Traced(Net { network: &*self.drivers.network });
        let machine = Traced(Machine {
            engine: self.engine(vm)?,
            guests: &*self.guests,
            clock: &*self.clock,
        });
        let ready = Traced(Ready { guests: &*self.guests });
        settle(vm, &[&image, &net, &machine, &ready], |entered| {
            phase.set(entered);
            self.reporter.entered(vm, entered);
        })
    }

    fn settled(&self, vm: Row<Vm>, env: &Env) -> Result<Next, HostError> {
        if vm.value.goal == Goal::Gone {
            self.erase(&vm.value, env)?;
            return Ok(Next::Never);
        }
        self.reporter.arrived(&vm.value, phase_at(vm.value.goal))?;
        if !env.is_created {
            self.mark_created(env.id)?;
        }
        if vm.value.wanted_snapshots().next().is_some() {
            // Not more: a snapshot that waits for another member keeps its pause.
            self.errands.snapshots.remind(env.id);
        }
        let mut vm = vm;
        if plan_detach(&mut vm.value) | plan_frozen(&mut vm.value) | plan_made(&mut vm.value) {
            // Others who change the record meanwhile cause another visit.
            self.tables.commit(&Change::new().vm(&vm)?)?;
        }
        if needs_merge(&vm.value) {
            self.errands.merges.remind(vm.value.id);
        }
        Ok(Next::Settled(SAFETY_LOOK))
    }

    /// Drops the records of a Vm of which the host has nothing any more but, maybe, its disk.
    fn erase(&self, vm: &Vm, env: &Env) -> Result<(), HostError> {
        failpoint::reached("erase", "", "before");
        let kept = self.kept(vm)?;
        self.metas.forget(vm.id)?;
        if erase::erase(&self.tables, vm.id, kept.as_ref(), &self.metas)? {
            self.named().remove(&env.id);
            self.guests.forget_names(env.id);
            // Only memory is freed: a name that is left over answers nobody.
            let _ = self.drivers.network.set_names(env.id, &EnvNames::default());
        }
        failpoint::reached("erase", "", "after");
        self.reporter.forget(vm.id);
        Ok(())
    }

    /// What outlives a Vm of which everything else is gone.
    fn kept(&self, vm: &Vm) -> Result<Option<KeptImage>, HostError> {
        let storage = self.storage(vm).ok().filter(|_| vm.state.keep_image);
        let Some(storage) = storage else { return Ok(None) };
        let failed = |source| HostError::KeepImage { id: vm.id, source };
        if !storage.keep_image(vm).map_err(failed)? {
            return Ok(None);
        }
        let image = KeptImage::of(vm, self.clock.now());
        self.metas.keep(&image)?;
        Ok(Some(image))
    }

    fn paused(
        &self,
        vm: &Row<Vm>,
        env: &Env,
        phase: Phase,
        pause: Pause,
        failures: u32,
    ) -> Result<Next, HostError> {
        let (trouble, is_final) = match pause {
            Pause::Died => return Ok(Next::Never),
            Pause::Wait(delay) => {
                self.reporter.waiting(&vm.value, phase)?;
                return Ok(Next::Wait(delay));
            }
            Pause::PoweredOff if !env.is_created && vm.value.goal == Goal::Running => {
                let why = "its guest switched itself off before it was ready".to_owned();
                (Trouble { code: ErrorCode::Exited, why, retry: false }, true)
            }
            Pause::PoweredOff => {
                self.stop_powered_off(vm)?;
                return Ok(Next::Wait(Duration::ZERO));
            }
            Pause::Retry(trouble) => (trouble, failures + 1 >= CREATE_TRIES),
            Pause::GiveUp(trouble) => (trouble, true),
        };
        tracing::warn!(
            env = vm.value.env_name, vm = vm.value.name, phase = phase.name(),
            code = %trouble.code, why = trouble.why, "not settled"
        );
        self.reporter.trouble(&vm.value, phase, &trouble)?;
        if is_final && !env.is_created && vm.value.goal != Goal::Gone {
            self.undo(env.id, &vm.value.name, &trouble)?;
        }
        Ok(Next::BackOff)
    }

    /// Tells the network who is who in an Env, once for each change of the Env.
    fn name_members(&self, env: &Row<Env>) -> Result<(), Pause> {
        if self.named().get(&env.value.id) == Some(&env.revision) {
            return Ok(());
        }
        let refuse = |code, error: &dyn std::error::Error| {
            Pause::Retry(Trouble { code, why: layers::chain(error), retry: true })
        };
        let vms = self.tables.vms_of(&env.value).map_err(|e| refuse(ErrorCode::Store, &e))?;
        let vms: Vec<Vm> = vms.into_iter().map(|row| row.value).collect();
        // Only an agent is sure to give its guest the address of IPv6 that is derived.
        let others = vms.iter().filter(|vm| !vm.has_agent());
        let without_six = others.map(|vm| vm.resource.ip_addr).collect();
        let members = vms.into_iter().map(|vm| (vm.name, vm.resource.ip_addr)).collect();
        let names = EnvNames { env_name: env.value.name.clone(), members, without_six };
        self.guests.set_names(env.value.id, &names.members);
        let network = &self.drivers.network;
        network.set_names(env.value.id, &names).map_err(|e| refuse(ErrorCode::SetNet, &e))?;
        self.named().insert(env.value.id, env.revision);
        Ok(())
    }

    /// Marks an Env as created when every member has reached its goal.
    fn mark_created(&self, id: EnvId) -> Result<(), HostError> {
        for _ in 0..COMMIT_TRIES {
            let Some(mut env) = self.tables.env(id)? else { return Ok(()) };
            if env.value.is_created || env.value.is_ending {
                return Ok(());
            }
            for vm in self.tables.vms_of(&env.value)? {
                let status = self.tables.status(vm.value.id)?;
                if !status.is_some_and(|row| has_arrived(&row.value, &vm.value)) {
                    return Ok(());
                }
            }
            env.value.is_created = true;
            if let Committed::Done(_) = self.tables.commit(&Change::new().env(&env)?)? {
                return Ok(());
            }
        }
        Err(HostError::Contended { what: format!("env {id}"), tries: COMMIT_TRIES })
    }

    /// Takes an Env back of which a member can not be made.
    fn undo(&self, id: EnvId, vm_name: &str, trouble: &Trouble) -> Result<(), HostError> {
        for _ in 0..COMMIT_TRIES {
            let Some(mut env) = self.tables.env(id)? else { return Ok(()) };
            if env.value.is_created {
                return Ok(());
            }
            let mut rows = self.tables.vms_of(&env.value)?;
            let mut vms: Vec<Vm> = rows.iter().map(|row| row.value.clone()).collect();
            let failure = Failure { vm_name: vm_name.to_owned(), trouble: trouble.clone() };
            plan_undo(&mut env.value, &mut vms, failure);
            rows.iter_mut().zip(vms).for_each(|(row, vm)| row.value = vm);
            let change = Change::new().env(&env)?.vms(&rows)?;
            if let Committed::Done(_) = self.tables.commit(&change)? {
                return Ok(());
            }
        }
        Err(HostError::Contended { what: format!("env {id}"), tries: COMMIT_TRIES })
    }

    /// A guest that switched itself off is stopped; a newer wish of its owner comes first.
    fn stop_powered_off(&self, vm: &Row<Vm>) -> Result<(), HostError> {
        let mut row = vm.clone();
        row.value.set_goal(Goal::Stopped, 0);
        self.tables.commit(&Change::new().vm(&row)?)?;
        Ok(())
    }

    /// The metas of this host.
    pub(crate) fn metas(&self) -> &Metas {
        self.metas.metas()
    }

    pub(crate) fn engine(&self, vm: &Vm) -> Result<&dyn VmEngine, Pause> {
        let engine = self.drivers.engines.iter().find(|engine| engine.name() == vm.engine);
        engine.map(|engine| &**engine).ok_or_else(|| no_driver("engine", &vm.engine))
    }

    /// The Vm's guest stood still and goes on.
    pub(crate) fn resumed(&self, vm: &Vm) {
        self.guests.resumed(vm.id);
    }

    pub(crate) fn storage(&self, vm: &Vm) -> Result<&dyn Storage, Pause> {
        let storage = self.drivers.storages.iter().find(|s| s.kind() == vm.storage);
        storage.map(|s| &**s).ok_or_else(|| no_driver("storage", vm.storage.name()))
    }

    fn named(&self) -> std::sync::MutexGuard<'_, HashMap<EnvId, Revision>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_driver(what: &str, name: &str) -> Pause {
    let why = format!("this daemon has no {what} {name}; use the version that made the Vm");
    Pause::GiveUp(Trouble { code: ErrorCode::Unsupported, why, retry: false })
}

/// A layer with a span for its log lines, its time, and the places where a test lets it die.
struct Traced<L>(L);

impl<L: Layer> Traced<L> {
    fn run(
        &self,
        vm: &Vm,
        verb: &str,
        act: impl FnOnce(&L) -> Result<(), Pause>,
    ) -> Result<(), Pause> {
        let layer = failpoint::layer_name(self.0.phase());
        let span = tracing::debug_span!(
            "layer",
            layer,
            verb,
            env = vm.env_name,
            vm = vm.name,
            id = vm.id.0
        );
        let _entered = span.enter();
        failpoint::reached(layer, verb, "before");
        let begin = std::time::Instant::now();
        let result = act(&self.0);
        failpoint::reached(layer, verb, "after");
        tracing::debug!(took_us = begin.elapsed().as_micros(), ok = result.is_ok(), "done");
        result
    }
}

impl<L: Layer> Layer for Traced<L> {
    fn phase(&self) -> Phase {
        self.0.phase()
    }

    fn ensure(&self, vm: &Vm) -> Result<(), Pause> {
        self.run(vm, "ensure", |layer| layer.ensure(vm))
    }

    fn remove(&self, vm: &Vm) -> Result<(), Pause> {
        self.run(vm, "remove", |layer| layer.remove(vm))
    }
}
