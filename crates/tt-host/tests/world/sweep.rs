//! What the sweep asks of a [`World`], how its daemons live, and what is there when they have settled.

use crate::world::{Daemon, Death, World};
use std::collections::{BTreeMap, BTreeSet};
use tt_engine::Machine;
use tt_host::{Next, take_back};
use tt_model::plan::{ApplyWorld, Policy, UpdateWorld, World as PlanWorld, needs};
use tt_model::plan::{
    plan_apply, plan_destroy, plan_drop_snapshot, plan_env, plan_snapshot, plan_update,
};
use tt_model::{
    Env, EnvSpec, Goal, HostId, Phase, Refusal, SnapshotSpec, SnapshotState, StorageKind, Vm, VmId,
    VmSpec, VmUpdate, names, sample,
};
use tt_network::fake::FakeWorld as FakeNets;
use tt_store::Kv;
use tt_store::tables::{Change, Committed};

/// Side effects of a create, one of each driver.
pub const CREATE_EFFECTS: [&str; 3] = ["image.", "net.", "machine."];

/// Visits to one Vm after which it must have settled.
const VISITS_MAX: u32 = 60;

impl World {
    pub fn new() -> Self {
        Self::with(StorageKind::File)
    }

    pub fn create(&self, name: &str, count: u32) {
        let tables = self.tables();
        let host = &self.host;
        let vm = VmSpec {
            count: Some(count),
            ports: vec!["80".parse().unwrap()],
            ..VmSpec::new("micro")
        };
        let spec = EnvSpec { vms: vec![vm], ..EnvSpec::default() };
        let needs = needs(&spec.vms);
        let usage = tables.usage(host.id).unwrap();
        let next_id = tables.next_id().unwrap();
        let used = usage.clone().map(|row| row.value).unwrap_or_default();
        let world = PlanWorld {
            now: 1000,
            policy: &Policy::default(),
            host,
            usage: &used,
            next_id: next_id.as_ref().map_or(1, |row| row.value),
            templates: &[("micro".to_owned(), sample::template("fake"))].into(),
            images: &BTreeMap::new(),
            free_addresses: &tables.free_addresses(host, 0, needs.addresses).unwrap(),
            free_ports: &tables.free_ports(host, 0, needs.ports, |_| true).unwrap(),
            random: &vec![7; needs.random_bytes],
        };
        let plan = plan_env(name, "k", &spec, &world).unwrap();
        let change = Change::new().create_env(&plan, usage.as_ref(), next_id.as_ref()).unwrap();
        assert!(matches!(tables.commit(&change).unwrap(), Committed::Done(_)));
    }

    /// Asks for a goal, as the API would; an Env that is ending or gone is left to it.
    pub fn set_goal(&self, name: &str, goal: Goal) {
        let planned = self.edit(name, |env, vms| {
            match goal {
                Goal::Gone => plan_destroy(env, vms),
                goal => vms.iter_mut().for_each(|vm| vm.set_goal(goal, 0)),
            }
            Ok(())
        });
        planned.unwrap();
    }

    /// Wants a snapshot of the whole Env, with memory.
    pub fn want_snapshot(&self, name: &str, snapshot: &str) -> Result<(), Refusal> {
        let spec = SnapshotSpec { name: snapshot.into(), life_time: None, with_memory: true };
        self.edit(name, |env, vms| plan_snapshot(env, vms, &spec, &self.host, 1000, &policy()))
    }

    /// Removes a snapshot of the whole Env.
    pub fn drop_snapshot(&self, name: &str, snapshot: &str) -> Result<(), Refusal> {
        self.edit(name, |env, vms| plan_drop_snapshot(env, vms, snapshot))
    }

    /// The disks of all snapshots.
    pub fn frozen(&self, name: &str) -> BTreeMap<(VmId, String), Option<u64>> {
        let mut frozen = BTreeMap::new();
        for vm in self.members(name) {
            for (name, snapshot) in &vm.snapshots {
                let content = snapshot.epoch.and_then(|epoch| self.disk.content(vm.id, epoch));
                frozen.insert((vm.id, name.clone()), content);
            }
        }
        frozen
    }

    /// Applies a snapshot to the whole Env.
    pub fn apply(&self, name: &str, snapshot: &str) -> Result<(), Refusal> {
        let tables = self.tables();
        let mut usage = tables.usage(self.host.id).unwrap().unwrap().value;
        self.edit(name, |env, vms| {
            let frozen: Vec<Vm> = vms
                .iter()
                .filter_map(|vm| vm.snapshots.get(snapshot))
                .filter(|snapshot| snapshot.state == SnapshotState::Ready)
                .map(|snapshot| self.metas().read(&snapshot.meta_path).unwrap())
                .collect();
            let policy = policy();
            let world =
                ApplyWorld { now: 1000, policy: &policy, host: &self.host, free_ports: &[] };
            plan_apply(env, vms, &frozen, snapshot, &mut usage, &world)
        })
    }

    /// Changes an Env and its members as `plan` says; one that is ending or gone is left to it.
    pub fn edit(
        &self,
        name: &str,
        plan: impl FnOnce(&mut Env, &mut [Vm]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let tables = self.tables();
        let Some(mut env) = tables.env_by_name(name).unwrap() else { return Ok(()) };
        if env.value.is_ending {
            return Ok(());
        }
        let mut rows = tables.vms_of(&env.value).unwrap();
        let mut vms: Vec<Vm> = rows.iter().map(|row| row.value.clone()).collect();
        plan(&mut env.value, &mut vms)?;
        rows.iter_mut().zip(vms).for_each(|(row, vm)| row.value = vm);
        let change = Change::new().env(&env).unwrap().vms(&rows).unwrap();
        assert!(matches!(tables.commit(&change).unwrap(), Committed::Done(_)));
        Ok(())
    }

    /// Updates every member, as the API would.
    pub fn update_all(&self, name: &str, update: &VmUpdate) {
        for at in 0..self.members(name).len() {
            let tables = self.tables();
            let mut env = tables.env_by_name(name).unwrap().unwrap();
            let rows = tables.vms_of(&env.value).unwrap();
            let mut vms: Vec<Vm> = rows.iter().map(|row| row.value.clone()).collect();
            let mut usage = tables.usage(self.host.id).unwrap().unwrap();
            let number = update.ports.as_ref().map_or(0, Vec::len);
            let world = UpdateWorld {
                now: 1000,
                policy: &policy(),
                host: &self.host,
                free_ports: &tables.free_ports(&self.host, 0, number, |_| true).unwrap(),
            };
            plan_update(&mut env.value, &mut vms, at, update, &mut usage.value, &world).unwrap();
            let change = Change::new().env(&env).unwrap().usage(self.host.id, &usage).unwrap();
            let change = change.replace_vm(&rows[at], &vms[at]).unwrap();
            assert!(matches!(tables.commit(&change).unwrap(), Committed::Done(_)));
        }
    }

    /// Lets every running guest change its memory and its disk.
    pub fn change_all(&self, name: &str) {
        for vm in self.members(name) {
            if self.machines.tick(vm.id).is_some() {
                assert!(self.disk.write(vm.id, vm.epoch));
            }
        }
    }

    /// Disk and memory of every member; memory only of those that have a machine.
    pub fn contents(&self, name: &str) -> Vec<(Option<u64>, Option<u64>)> {
        let content = |vm: &Vm| (self.disk.content(vm.id, vm.epoch), self.machines.content(vm.id));
        self.members(name).iter().map(content).collect()
    }

    /// The members of an Env as recorded.
    pub fn members(&self, name: &str) -> Vec<Vm> {
        let tables = self.tables();
        let env = tables.env_by_name(name).unwrap().unwrap();
        tables.vms_of(&env.value).unwrap().into_iter().map(|row| row.value).collect()
    }

    /// What is told of the members of an Env.
    pub fn phases(&self, name: &str) -> Vec<Phase> {
        let status = |vm: Vm| self.tables().status(vm.id).unwrap().unwrap().value.phase;
        self.members(name).into_iter().map(status).collect()
    }

    /// The first thing that a daemon does; answers how many were wrong.
    pub fn take_back(&self) -> usize {
        take_back(&self.tables(), &self.drivers(), &*self.clock, self.host.id).unwrap()
    }

    pub fn fail_always(&self, effect: &'static str) {
        self.fail_times(effect, u32::MAX);
    }

    pub fn fail_times(&self, effect: &'static str, times: u32) {
        self.script.lock().unwrap().failing = Some((effect, times));
    }

    /// The host loses its power: what is not on disk is gone.
    pub fn lose_power(&self) {
        self.machines.lose_power();
        self.disk.lose_power();
        *self.nets.lock().unwrap() = FakeNets { host: true, ..FakeNets::default() };
    }

    pub fn exit_all(&self, name: &str, clean: bool) {
        let env = self.tables().env_by_name(name).unwrap().unwrap();
        env.value.vm_set.iter().for_each(|id| self.machines.exit(*id, clean));
    }

    /// A daemon is started and visits every Vm until all have settled. Returns whether it died.
    pub fn converge(&self, death: Death) -> bool {
        self.begin(death);
        let daemon = self.daemon(self.drivers());
        for _ in 0..VISITS_MAX {
            let mut is_settled = true;
            for row in self.tables().vms().unwrap() {
                // Every step twice: a visit that finds its work done does nothing.
                for failures in 0..2 {
                    let next = daemon.visitor.visit(row.value.id, failures);
                    if self.script.lock().unwrap().is_dead {
                        return true;
                    }
                    is_settled &= matches!(next, Next::Never) || matches!(next, Next::Settled(_));
                }
            }
            for row in self.tables().vms().unwrap() {
                is_settled &= daemon.merger.visit(row.value.id) == Next::Never;
                if self.script.lock().unwrap().is_dead {
                    return true;
                }
            }
            for failures in 0..4 {
                for row in self.tables().envs().unwrap() {
                    is_settled &= daemon.taker.visit(row.value.id, failures) == Next::Never;
                    if self.script.lock().unwrap().is_dead {
                        return true;
                    }
                }
            }
            if is_settled && self.further_visit_does_nothing(&daemon) {
                return false;
            }
        }
        // A member that can not be made fails again and again until the Env is undone.
        for _ in 0..VISITS_MAX {
            for row in self.tables().vms().unwrap() {
                daemon.visitor.visit(row.value.id, VISITS_MAX);
            }
        }
        assert!(self.further_visit_does_nothing(&daemon), "it does not settle");
        false
    }

    pub fn assert_settled(&self, name: &str, goal: Goal) {
        let tables = self.tables();
        let env = tables.env_by_name(name).unwrap();
        if goal == Goal::Gone {
            assert!(env.is_none(), "{name} should be gone");
            if tables.envs().unwrap().is_empty() {
                self.assert_empty();
            }
            return;
        }
        let env = env.unwrap_or_else(|| panic!("{name} should be {goal:?}")).value;
        assert!(env.is_created);
        let members: BTreeSet<VmId> = env.vm_set.clone();
        assert_eq!(members.len(), 2);
        let nets = self.nets.lock().unwrap().clone();
        assert_eq!(nets.namespaces.get(&env.id), Some(&members));
        for id in members {
            let disks = tables.vm(id).unwrap().unwrap().value.disks;
            let images = self.disk.images_of(id);
            assert_eq!(images.keys().collect::<Vec<_>>(), disks.keys().collect::<Vec<_>>());
            let machine = self.machines.machine(id);
            if let Some(layers) = self.machines.layers(id) {
                assert_eq!(layers, layers_of(&tables.vm(id).unwrap().unwrap().value));
            }
            let expected = match goal {
                Goal::Running => Machine::Running,
                Goal::Paused => Machine::Paused,
                _ => Machine::Absent,
            };
            assert_eq!(machine, expected, "{name} to {goal:?}");
        }
    }

    /// Disk, ports and policies are those of the update of the sweep, sizes of machines those of before.
    pub fn assert_updated(&self, name: &str, rest: Goal) {
        let nets = self.nets.lock().unwrap().clone();
        let vms = self.members(name);
        for vm in &vms {
            assert_eq!(self.disk.images_of(vm.id)[&vm.epoch].size_mb, 96);
            assert_eq!(nets.blacklists[&vm.id], [[192, 0, 2, 9].into()].into());
            assert!(nets.denied.contains(&vm.id));
            let has_machine = matches!(rest, Goal::Running | Goal::Paused);
            assert_eq!(self.machines.disk_mb(vm.id), has_machine.then_some(96));
            let limit = has_machine.then_some((Some(1024), None));
            assert_eq!(self.machines.disk_limit(vm.id), limit);
            let mem_mb = self.machines.size(vm.id).map(|size| size.mem_size);
            assert_eq!(mem_mb, has_machine.then_some(vm.machine.mem_size));
            assert_eq!(vm.needs_restart(), rest != Goal::Stopped, "{rest:?}");
        }
        let published = vms.iter().flat_map(|vm| vm.resource.port_map.iter());
        let published: BTreeSet<_> =
            published.map(|(inner, port)| (inner.protocol, *port)).collect();
        assert_eq!(published.len(), 4);
        assert_eq!(nets.ports.keys().copied().collect::<BTreeSet<_>>(), published);
    }

    fn assert_empty(&self) {
        assert!(self.machines.is_empty());
        assert!(self.disk.is_empty());
        let nets = self.nets.lock().unwrap().clone();
        assert_eq!(nets, FakeNets { host: true, ..FakeNets::default() });
        let left = self.kv.range("", None, 100).unwrap().entries;
        let keys: Vec<_> = left.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(keys, ["host/0000000000000001", "next-id", "usage/0000000000000001"]);
        let usage = self.tables().usage(HostId(1)).unwrap().unwrap().value;
        assert_eq!((usage.vm_num, usage.mem_size), (0, 0));
        let metas = std::fs::read_dir(self.dir.path().join("meta"));
        let left: Vec<_> = metas.into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    fn further_visit_does_nothing(&self, daemon: &Daemon) -> bool {
        let revision = self.tables().revision().unwrap();
        let steps = self.script.lock().unwrap().steps;
        for row in self.tables().vms().unwrap() {
            daemon.visitor.visit(row.value.id, 0);
        }
        revision == self.tables().revision().unwrap() && steps == self.script.lock().unwrap().steps
    }
}

/// The disk that a machine writes to, and what that lies on in turn.
fn layers_of(vm: &Vm) -> Vec<String> {
    let path = |epoch| names::runtime_image(vm.storage, vm.id, epoch);
    vm.chain(vm.epoch).into_iter().map(path).collect()
}

fn policy() -> Policy {
    Policy { mgmt_interval: 0, ..Policy::default() }
}
