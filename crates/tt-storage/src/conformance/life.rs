//! The life of one Vm as the planner orders it: the suite and the planner must agree about every name.

use super::{DISK_MB, Rig, must, vm};
use std::collections::BTreeMap;
use std::fs;
use tt_model::plan::{
    ApplyWorld, Policy, plan_apply, plan_detach, plan_drop_snapshot, plan_frozen, plan_made,
    plan_merge, plan_merged, plan_snapshot, plan_take, plan_taken,
};
use tt_model::{AtEnd, Env, EnvId, EnvState, Host, SnapshotSpec, Usage, Vm, VmId, sample};

/// Where the guest of a life writes: so many clusters of a qcow2 image.
const PLACES: u64 = 60;
/// One of them, in bytes.
const PLACE_BYTES: u64 = 1 << 16;

/// One Vm with all its disks, and what they have to be.
pub struct Life<'a> {
    rig: &'a dyn Rig,
    env: Env,
    /// The record.
    pub vm: Vm,
    host: Host,
    policy: Policy,
    /// What was frozen: the record and the content of the disk.
    frozen: BTreeMap<String, (Vm, u64)>,
    /// What the runtime image has to be.
    content: u64,
    /// Counts writes, from another number for each Vm: what two of them write differs.
    writes: u64,
}

impl<'a> Life<'a> {
    /// A new Vm of that id with its runtime image.
    #[must_use]
    pub fn new(rig: &'a dyn Rig, id: u64) -> Self {
        Self::of(rig, vm(id, rig.storage().kind()))
    }

    /// As [`Life::new`], with a record of its own.
    #[must_use]
    pub fn of(rig: &'a dyn Rig, vm: Vm) -> Self {
        must(rig.storage().create_image(&vm));
        let env = Env {
            id: EnvId(1),
            name: vm.env_name.clone(),
            start_timestamp: 0,
            end_timestamp: u64::MAX,
            vm_set: [vm.id].into(),
            state: EnvState::default(),
            at_end: AtEnd::Destroy,
            request_key: String::new(),
            is_created: true,
            is_ending: false,
            failure: None,
        };
        let policy = Policy { mgmt_interval: 0, ..Policy::default() };
        let content = content(rig, &vm);
        let (host, frozen) = (sample::host("qemu"), BTreeMap::new());
        let writes = vm.id.0 * 10;
        Self { rig, env, vm, host, policy, frozen, content, writes }
    }

    /// Its guest writes.
    pub fn write(&mut self) {
        self.writes += 1;
        let offset = self.writes % PLACES * PLACE_BYTES;
        self.rig.fill(&self.vm, offset, 4096, (self.writes % 255) as u8 + 1);
        let before = self.content;
        self.content = content(self.rig, &self.vm);
        assert_ne!(self.content, before, "a write went elsewhere");
    }

    /// Wants a snapshot, and names its disk. Answers whether the planner lets it.
    pub fn plan_take(&mut self, name: &str) -> bool {
        let spec = SnapshotSpec { name: name.into(), life_time: None, with_memory: false };
        let vms = std::slice::from_mut(&mut self.vm);
        if plan_snapshot(&mut self.env, vms, &spec, &self.host, 1, &self.policy).is_err() {
            return false;
        }
        plan_take(&mut self.vm, name);
        true
    }

    /// Takes a snapshot that is planned, twice, as by a daemon that died before it had noted the first time.
    pub fn take_planned(&mut self, name: &str) {
        let snapshot = &self.vm.snapshots[name];
        let epoch = snapshot.epoch.unwrap_or(u32::MAX);
        for _ in 0..2 {
            must(self.rig.storage().create_snapshot(&self.vm, snapshot));
            must(self.rig.storage().sync_disk(&self.vm, epoch));
        }
        plan_taken(&mut self.vm, name, None, 1);
        must(self.rig.storage().create_snapshot(&self.vm, &self.vm.snapshots[name]));
        must(self.rig.storage().destroy_snapshot(&self.vm));
        self.frozen.insert(name.into(), (self.vm.clone(), self.content));
    }

    /// Takes a snapshot. Answers whether the planner let it.
    pub fn take(&mut self, name: &str) -> bool {
        let planned = self.plan_take(name);
        if planned {
            self.take_planned(name);
        }
        planned
    }

    /// Names the disk that a snapshot is to be applied with.
    pub fn plan_apply(&mut self, name: &str) {
        let (frozen, content) = &self.frozen[name];
        let world = ApplyWorld { now: 1, policy: &self.policy, host: &self.host, free_ports: &[] };
        let (vms, frozen) = (std::slice::from_mut(&mut self.vm), std::slice::from_ref(frozen));
        must(plan_apply(&mut self.env, vms, frozen, name, &mut Usage::default(), &world));
        self.content = *content;
    }

    /// Brings the Vm back to a snapshot.
    pub fn apply(&mut self, name: &str) {
        self.plan_apply(name);
        self.apply_planned(name);
    }

    /// The same, once its disk is named.
    pub fn apply_planned(&mut self, name: &str) {
        must(self.rig.storage().apply_snapshot(&self.vm, &self.vm.snapshots[name]));
        must(self.rig.storage().create_image(&self.vm));
        plan_detach(&mut self.vm);
        must(self.rig.storage().destroy_snapshot(&self.vm));
        self.check_runtime();
    }

    /// Removes a snapshot.
    pub fn drop(&mut self, name: &str) {
        let vms = std::slice::from_mut(&mut self.vm);
        must(plan_drop_snapshot(&self.env, vms, name));
        self.frozen.remove(name);
        must(self.rig.storage().destroy_snapshot(&self.vm));
        self.check_runtime();
    }

    /// Makes one merge, if the planner wants one: planned, interrupted, and made twice. Answers whether it did.
    pub fn merge(&mut self) -> bool {
        let storage = self.rig.storage();
        let taken_mb = must(storage.taken_mb(&self.vm));
        if !plan_merge(&mut self.vm, &taken_mb) {
            return false;
        }
        let mut given_up = must(storage.begin_merge(&self.vm));
        assert!(!must(given_up.copy(&|| false)));
        // Whatever is done to the Vm meanwhile leaves it alone.
        must(storage.create_image(&self.vm));
        must(storage.destroy_snapshot(&self.vm));
        drop(given_up);
        for _ in 0..2 {
            let mut merging = must(storage.begin_merge(&self.vm));
            assert!(must(merging.copy(&|| true)));
            must(storage.destroy_snapshot(&self.vm));
            must(merging.finish());
        }
        assert!(plan_merged(&mut self.vm));
        for _ in 0..2 {
            must(storage.create_image(&self.vm));
            must(storage.destroy_snapshot(&self.vm));
        }
        self.check_runtime();
        true
    }

    /// A visit finds the Vm settled: its machine writes to the runtime image.
    pub fn settle(&mut self) {
        must(self.rig.storage().create_image(&self.vm));
        plan_frozen(&mut self.vm);
        plan_made(&mut self.vm);
    }

    /// Grows the disk.
    pub fn grow(&mut self, more_mb: u32) {
        self.vm.resource.disk_size += more_mb;
        must(self.rig.storage().create_image(&self.vm));
        self.check_runtime();
    }

    /// The names of its snapshots.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.frozen.keys().cloned().collect()
    }

    /// Checks content and size of the runtime image.
    pub fn check_runtime(&self) {
        assert_eq!(content(self.rig, &self.vm), self.content, "{}", self.vm.runtime_image);
        assert_eq!(self.rig.size_mb(&self.vm), Some(self.vm.resource.disk_size.into()));
    }

    /// Checks every disk, and that there is no other one.
    pub fn check(&self) {
        self.check_runtime();
        for (name, (_, frozen)) in &self.frozen {
            let snapshot = &self.vm.snapshots[name];
            let epoch = snapshot.epoch.unwrap_or(u32::MAX);
            let view = Vm { epoch, runtime_image: snapshot.path.clone(), ..self.vm.clone() };
            assert_eq!(content(self.rig, &view), *frozen, "snapshot {name}");
        }
        if let Some(layout) = self.rig.layout() {
            let files = must(fs::read_dir(layout.images_of(self.vm.id))).count();
            assert_eq!(files, self.vm.disks.len(), "{:?}", self.vm.disks);
        }
    }

    /// Removes all its disks.
    pub fn end(self) {
        must(self.rig.storage().destroy_image(&self.vm));
    }
}

/// What an image is, which must be there.
pub(super) fn content(rig: &dyn Rig, vm: &Vm) -> u64 {
    match rig.content(vm) {
        Some(content) => content,
        None => panic!("{} is not there", vm.runtime_image),
    }
}

/// Lives `steps` steps that follow from `seed`, and checks every content.
pub fn live_at_random(rig: &dyn Rig, seed: u64, steps: u32) {
    let mut life = Life::new(rig, 90);
    let mut dice = Dice(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1);
    for step in 0..steps {
        let names = life.names();
        let some = names.get(dice.below(names.len().max(1) as u64) as usize);
        match (dice.below(10), some) {
            (0 | 1, _) => life.write(),
            (2, _) => drop(life.take(&format!("s{step}"))),
            // A try that was given up before or after its disk was made; the next one has other names.
            (3, _) if life.plan_take(&format!("s{step}")) => {
                let name = format!("s{step}");
                if dice.below(2) == 0 {
                    let snapshot = &life.vm.snapshots[&name];
                    must(rig.storage().create_snapshot(&life.vm, snapshot));
                }
                plan_take(&mut life.vm, &name);
                life.take_planned(&name);
            }
            (4, Some(name)) => life.apply(name),
            // Applied, but nothing of it is made before the next thing happens.
            (5, Some(name)) => {
                life.plan_apply(name);
                let name = format!("s{step}");
                match life.take(&name) {
                    true => life.check_runtime(),
                    false => must(rig.storage().create_image(&life.vm)),
                }
            }
            (6, Some(name)) => life.drop(name),
            (7, _) => life.settle(),
            (8, _) => drop(life.merge()),
            (9, _) if life.vm.resource.disk_size < 4 * DISK_MB => life.grow(1),
            _ => must(rig.storage().create_image(&life.vm)),
        }
    }
    must(rig.storage().destroy_snapshot(&life.vm));
    life.settle();
    while life.merge() {}
    life.check();
    let id = life.vm.id;
    life.end();
    assert!(!must(rig.storage().images()).contains(&VmId(id.0)));
}

/// A repeatable sequence of numbers (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}
