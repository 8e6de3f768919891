//! The lives of the daemons on a [`World`]: one acts until everything has settled, or dies. It does
//! what the threads of a host's service do, in one thread.

use crate::api::policy;
use crate::world::{Daemon, Death, World};
use std::collections::BTreeSet;
use testkit::sequence::{Action, Mishap};
use tt_host::{Clock, Drivers, Next};
use tt_model::plan::{plan_drop_expired, plan_end};
use tt_model::{EnvId, Vm, VmId, names};
use tt_store::tables::{Change, Key, Table, Tables};
use tt_store::{Kv, Revision};

/// Rounds over what changed after which everything must have settled.
const ROUNDS_MAX: u32 = 60;

/// A daemon that outlives steps, as long as nothing kills it.
pub struct Life {
    daemon: Daemon,
    drivers: Drivers,
    tables: Tables,
    /// As far as the records were followed.
    seen: Revision,
    /// Vms that had not settled when they were visited.
    restless: BTreeSet<VmId>,
    /// Envs of which a snapshot may be wanted.
    wanting: BTreeSet<EnvId>,
}

/// Whose records changed.
#[derive(Debug, Default)]
struct Changed {
    vms: BTreeSet<VmId>,
    envs: BTreeSet<EnvId>,
    images: BTreeSet<VmId>,
}

impl Life {
    pub fn begin(world: &World) -> Self {
        world.begin(Death::Never);
        let drivers = world.drivers();
        Self {
            daemon: world.daemon(drivers.clone()),
            drivers,
            tables: world.dying_tables(),
            seen: Revision(0),
            restless: BTreeSet::new(),
            wanting: BTreeSet::new(),
        }
    }

    /// Lets the host follow what happened, in spite of the mishap.
    pub fn follow(&mut self, world: &World, action: &Action, mishap: Mishap) -> Result<(), String> {
        if matches!(action, Action::PowerFails | Action::StoreIsLost) {
            *self = Self::begin(world);
        }
        if matches!(action, Action::TimePasses(_)) {
            expire(world);
        }
        world.begin(Death::Never);
        match mishap {
            Mishap::None => return self.settle(world),
            Mishap::FailureAt(step) => world.script.lock().unwrap().fail_at = Some(step),
            Mishap::DeathAt(step) => {
                world.begin(Death::At(step));
                self.settle(world)?;
                *self = Self::begin(world);
            }
        }
        self.settle(world)?;
        world.script.lock().unwrap().fail_at = None;
        self.look_again(world)
    }

    /// Acts until nothing is to be done any more, or the daemon is dead.
    fn settle(&mut self, world: &World) -> Result<(), String> {
        for _ in 0..ROUNDS_MAX {
            let has_settled = self.round(world);
            if has_settled || world.script.lock().unwrap().is_dead {
                return Ok(());
            }
        }
        let statuses = self.tables.statuses().unwrap();
        Err(format!("it does not settle: {statuses:?}"))
    }

    /// A visit that finds its work done does nothing.
    fn look_again(&self, world: &World) -> Result<(), String> {
        let marks = || (self.tables.revision().unwrap(), world.script.lock().unwrap().steps);
        let before = marks();
        for key in self.tables.keys(Table::Vms).unwrap() {
            if let Key::Vm(id) = key {
                self.daemon.visitor.visit(id, 0);
            }
        }
        if marks() == before { Ok(()) } else { Err("a further visit does something".into()) }
    }

    /// Looks once at everything that changed. Answers whether there was nothing.
    fn round(&mut self, world: &World) -> bool {
        let mut changed = self.changed(world);
        changed.vms.append(&mut self.restless);
        changed.vms.append(&mut world.woken.lock().unwrap());
        changed.envs.append(&mut self.wanting);
        let is_idle =
            changed.vms.is_empty() && changed.envs.is_empty() && changed.images.is_empty();
        for id in changed.vms {
            let next = self.daemon.visitor.visit(id, 0);
            let is_settled = matches!(next, Next::Never | Next::Settled(_));
            if !is_settled || self.daemon.merger.visit(id) != Next::Never {
                self.restless.insert(id);
            }
        }
        for id in changed.envs {
            if self.daemon.taker.visit(id, 0) != Next::Never {
                self.wanting.insert(id);
            }
        }
        changed.images.into_iter().for_each(|id| self.remove_image(world, id));
        is_idle
    }

    /// Whose records changed since the last round; what a follower of the store is told.
    fn changed(&mut self, world: &World) -> Changed {
        let (mut changed, seen) = (Changed::default(), self.seen);
        self.seen = world.tables().revision().unwrap();
        for prefix in ["vm/", "env/", "image/"] {
            let entries = world.kv.range(prefix, None, 10_000).unwrap().entries;
            for entry in entries.iter().filter(|entry| entry.mod_revision > seen) {
                match Key::parse(&entry.key) {
                    Some(Key::Vm(id)) => drop(changed.vms.insert(id)),
                    Some(Key::Image(id)) => drop(changed.images.insert(id)),
                    Some(Key::Env(id)) => {
                        let env = world.tables().env(id).unwrap().unwrap().value;
                        changed.vms.extend(env.vm_set.first());
                    }
                    _ => {}
                }
                // Every visit to a Vm that wants a snapshot says so.
                let wants = entry.value.windows(8).any(|bytes| bytes == b"\"wanted\"");
                if let (true, Some(Key::Vm(id))) = (wants, Key::parse(&entry.key)) {
                    let vm = world.tables().vm(id).unwrap().unwrap().value;
                    changed.envs.extend(vm.wanted_snapshots().next().map(|_| vm.env_id));
                }
            }
        }
        changed
    }

    /// As the thread for kept images does; what fails is done in the next round.
    fn remove_image(&mut self, world: &World, id: VmId) {
        let Some(row) = self.tables.image(id).unwrap().filter(|row| !row.value.is_wanted) else {
            return;
        };
        let storages = &self.drivers.storages;
        if storages.iter().all(|storage| storage.remove_stray(id).is_ok()) {
            world.metas().remove(&names::image_meta(id)).unwrap();
            let _ = self.tables.commit(&Change::new().remove_image(&row));
        } else {
            self.seen = Revision(0);
        }
    }
}

/// Gives every Env and snapshot whose time is over its end, as the thread for it does.
fn expire(world: &World) {
    let (tables, now) = (world.tables(), world.clock.now());
    for mut env in tables.envs().unwrap() {
        let mut rows = tables.vms_of(&env.value).unwrap();
        let mut vms: Vec<Vm> = rows.iter().map(|row| row.value.clone()).collect();
        if plan_end(&mut env.value, &mut vms, &world.host, now, &policy()) {
            rows.iter_mut().zip(vms).for_each(|(row, vm)| row.value = vm);
            world.commit(Change::new().env(&env).unwrap().vms(&rows).unwrap());
        }
    }
    for mut row in tables.vms().unwrap() {
        if plan_drop_expired(&mut row.value, now, |_| false) {
            world.commit(Change::new().vm(&row).unwrap());
        }
    }
}
