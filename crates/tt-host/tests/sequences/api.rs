//! Does on a [`World`] what a step says: plans and commits as the API does, or acts on the machines
//! as guests and power plants do. What is asked for is decided elsewhere.

use crate::world::{World, open_epoch};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use testkit::sequence::{Action, Target};
use tt_host::{Clock, recover};
use tt_model::plan::{
    ApplyWorld, Policy, UpdateWorld, World as PlanWorld, needs, plan_add, plan_apply, plan_destroy,
    plan_drop_snapshot, plan_env, plan_extend, plan_outgoing, plan_rm, plan_snapshot, plan_start,
    plan_stop, plan_update,
};
use tt_model::{
    Env, EnvSpec, ErrorCode, Goal, KeptImage, Refusal, SnapshotState, Usage, Vm, VmId, VmSpec,
    VmTemplate, VmUpdate, sample,
};
use tt_network::fake::FakeWorld as FakeNets;
use tt_store::memory::MemoryKv;
use tt_store::tables::{Change, Committed, Row};

/// What new members are planned from.
struct Ground {
    usage: Option<Row<Usage>>,
    next_id: Option<Row<u64>>,
    used: Usage,
    policy: Policy,
    templates: BTreeMap<String, VmTemplate>,
    image_rows: Vec<Row<KeptImage>>,
    images: BTreeMap<VmId, KeptImage>,
    addresses: Vec<std::net::Ipv4Addr>,
    ports: Vec<u16>,
    random: Vec<u8>,
}

/// Management calls follow each other at once here.
pub fn policy() -> Policy {
    Policy { mgmt_interval: 0, ..Policy::default() }
}

impl World {
    /// Does what happens. A refusal has changed nothing.
    pub fn act(&mut self, at: &Target, action: &Action) -> Result<(), Refusal> {
        let (now, policy) = (self.clock.now(), policy());
        match action {
            Action::Create(spec) => self.create(&at.env, spec),
            Action::Add(spec) => self.add(&at.env, spec),
            Action::Update(update) => self.update(at, update),
            Action::Apply(name) => self.apply(at, name),
            Action::Destroy => self.edit(at, true, |env, vms, _| {
                plan_destroy(env, vms);
                Ok(())
            }),
            Action::Extend(more) => {
                self.edit(at, false, |env, _, _| plan_extend(env, *more, now, &policy))
            }
            Action::Rm => self.edit(at, true, |env, vms, _| {
                plan_rm(env, vms, at.vm.as_deref().unwrap_or_default())
            }),
            Action::Stop(mode) => self.edit(at, false, |env, vms, is_whole| {
                plan_stop(env, vms, is_whole, *mode, &self.host, now, &policy)
            }),
            Action::Start => self.edit(at, false, |env, vms, _| plan_start(env, vms, now, &policy)),
            Action::Snapshot(spec) => self.edit(at, false, |env, vms, _| {
                plan_snapshot(env, vms, spec, &self.host, now, &policy)
            }),
            Action::DropSnapshot(name) => {
                self.edit(at, false, |env, vms, _| plan_drop_snapshot(env, vms, name))
            }
            Action::Outgoing { deny } => {
                self.edit(at, false, |env, vms, _| plan_outgoing(env, vms, at.vm.is_none(), *deny))
            }
            Action::RemoveImage => self.unwant(at.image),
            outside => {
                self.befall(at, outside);
                Ok(())
            }
        }
    }

    /// What happens without anybody asking the API.
    fn befall(&mut self, at: &Target, action: &Action) {
        match action {
            Action::TimePasses(seconds) => {
                self.clock.0.fetch_add(seconds * 1000, Ordering::SeqCst);
            }
            Action::GuestWorks { disk } => {
                for vm in self.those(at) {
                    if self.machines.tick(vm.id).is_some() && *disk {
                        let epoch = open_epoch(&self.machines, vm.id).unwrap();
                        assert!(
                            self.disk.write(vm.id, epoch),
                            "the guest of {} has no disk",
                            vm.id
                        );
                    }
                }
            }
            Action::GuestPowersOff => {
                for vm in self.those(at).iter().filter(|vm| vm.goal == Goal::Running) {
                    self.machines.exit(vm.id, true);
                }
            }
            Action::MachineCrashes => {
                self.those(at).iter().for_each(|vm| self.machines.exit(vm.id, false));
            }
            Action::PowerFails => {
                self.machines.lose_power();
                *self.nets.lock().unwrap() = FakeNets { host: true, ..FakeNets::default() };
            }
            Action::StoreIsLost => {
                self.kv = Arc::new(MemoryKv::new());
                self.register();
                let recovered = recover(&self.tables(), &self.metas(), &[], false).unwrap();
                assert!(recovered.refused.is_empty(), "{:?}", recovered.refused);
            }
            _ => {}
        }
    }

    fn those(&self, at: &Target) -> Vec<Vm> {
        let tables = self.tables();
        let env = tables.env_by_name(&at.env).unwrap();
        let rows = env.map(|env| tables.vms_of(&env.value).unwrap()).unwrap_or_default();
        let vms = rows.into_iter().map(|row| row.value);
        vms.filter(|vm| at.vm.as_ref().is_none_or(|name| *name == vm.name)).collect()
    }

    /// The Env of a step, and the members that it is about, or all of them.
    fn read(&self, at: &Target, all: bool) -> Result<(Row<Env>, Vec<Row<Vm>>), Refusal> {
        let tables = self.tables();
        let env = tables.env_by_name(&at.env).unwrap().ok_or_else(|| absent("env"))?;
        let mut rows = tables.vms_of(&env.value).unwrap();
        rows.retain(|row| all || at.vm.as_ref().is_none_or(|name| *name == row.value.name));
        if rows.is_empty() { Err(absent("vm")) } else { Ok((env, rows)) }
    }

    fn edit(
        &self,
        at: &Target,
        all: bool,
        plan: impl FnOnce(&mut Env, &mut [Vm], bool) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let (mut env, mut rows) = self.read(at, all)?;
        let is_whole = rows.len() == env.value.vm_set.len();
        let mut vms: Vec<Vm> = rows.iter().map(|row| row.value.clone()).collect();
        plan(&mut env.value, &mut vms, is_whole)?;
        let before = rows.clone();
        rows.iter_mut().zip(vms).for_each(|(row, vm)| row.value = vm);
        rows.retain(|row| before.iter().all(|old| old.value != row.value));
        self.commit(Change::new().env(&env).unwrap().vms(&rows).unwrap());
        Ok(())
    }

    fn create(&self, name: &str, spec: &EnvSpec) -> Result<(), Refusal> {
        if self.tables().env_by_name(name).unwrap().is_some() {
            return Err(Refusal::new(ErrorCode::Exists, "env", "there is one", "choose another"));
        }
        let ground = self.ground(&spec.vms);
        let plan = plan_env(name, "key", spec, &ground.world(self))?;
        let (usage, next_id) = (ground.usage.as_ref(), ground.next_id.as_ref());
        self.commit(ground.hold(Change::new().create_env(&plan, usage, next_id).unwrap()));
        Ok(())
    }

    fn add(&self, name: &str, spec: &VmSpec) -> Result<(), Refusal> {
        let at = Target { env: name.to_owned(), vm: None, image: VmId(0) };
        let (mut env, rows) = self.read(&at, true)?;
        let members: Vec<Vm> = rows.into_iter().map(|row| row.value).collect();
        let ground = self.ground(std::slice::from_ref(spec));
        let plan = plan_add(&mut env.value, &members, None, spec, &ground.world(self))?;
        let (usage, next_id) = (ground.usage.as_ref(), ground.next_id.as_ref());
        self.commit(ground.hold(Change::new().add_vms(&plan, &env, usage, next_id).unwrap()));
        Ok(())
    }

    fn update(&self, at: &Target, update: &VmUpdate) -> Result<(), Refusal> {
        let (mut env, rows) = self.read(at, true)?;
        let found = rows.iter().position(|row| Some(&row.value.name) == at.vm.as_ref());
        let index = found.ok_or_else(|| absent("vm"))?;
        let mut vms: Vec<Vm> = rows.iter().map(|row| row.value.clone()).collect();
        let mut usage = self.usage();
        let free_ports = self.free_ports(&usage.value, update.ports.as_ref().map_or(0, Vec::len));
        let world = UpdateWorld {
            now: self.clock.now(),
            policy: &policy(),
            host: &self.host,
            free_ports: &free_ports,
        };
        plan_update(&mut env.value, &mut vms, index, update, &mut usage.value, &world)?;
        let change = Change::new().env(&env).unwrap().usage(self.host.id, &usage).unwrap();
        self.commit(change.replace_vm(&rows[index], &vms[index]).unwrap());
        Ok(())
    }

    fn apply(&self, at: &Target, name: &str) -> Result<(), Refusal> {
        let (mut env, rows) = self.read(at, false)?;
        let mut vms: Vec<Vm> = rows.iter().map(|row| row.value.clone()).collect();
        let snapshots = vms.iter().filter_map(|vm| vm.snapshots.get(name));
        let ready = snapshots.filter(|snapshot| snapshot.state == SnapshotState::Ready);
        let frozen: Vec<Vm> =
            ready.map(|snapshot| self.metas().read(&snapshot.meta_path).unwrap()).collect();
        let mut usage = self.usage();
        let ports = frozen.iter().map(|vm| vm.resource.port_map.len()).sum();
        let world = ApplyWorld {
            now: self.clock.now(),
            policy: &policy(),
            host: &self.host,
            free_ports: &self.free_ports(&usage.value, ports),
        };
        plan_apply(&mut env.value, &mut vms, &frozen, name, &mut usage.value, &world)?;
        let change = Change::new().env(&env).unwrap().usage(self.host.id, &usage).unwrap();
        let mut pairs = rows.iter().zip(&vms);
        let change = pairs.try_fold(change, |change, (row, vm)| change.replace_vm(row, vm));
        self.commit(change.unwrap());
        Ok(())
    }

    fn unwant(&self, id: VmId) -> Result<(), Refusal> {
        let tables = self.tables();
        let mut row = tables.image(id).unwrap().ok_or_else(|| absent("image"))?;
        let lies_on = |base: &Option<String>| base.as_ref() == Some(&row.value.runtime_image);
        let is_used = tables.vms().unwrap().iter().any(|vm| lies_on(&vm.value.base))
            || tables.images().unwrap().iter().any(|image| lies_on(&image.value.base));
        if is_used {
            return Err(Refusal::new(ErrorCode::InUse, "image", "it is used", "remove the others"));
        }
        row.value.is_wanted = false;
        self.commit(Change::new().image(&row).unwrap());
        Ok(())
    }

    fn ground(&self, specs: &[VmSpec]) -> Ground {
        let tables = self.tables();
        let (usage, next_id) = (tables.usage(self.host.id).unwrap(), tables.next_id().unwrap());
        let used = usage.clone().map(|row| row.value).unwrap_or_default();
        let needs = needs(specs);
        let mut image_rows: Vec<Row<KeptImage>> = Vec::new();
        for id in specs.iter().filter_map(|spec| spec.image) {
            if image_rows.iter().all(|row| row.value.id != id) {
                image_rows.extend(tables.image(id).unwrap().filter(|row| row.value.is_wanted));
            }
        }
        let free = tables.free_addresses(&self.host, used.addr_cursor, needs.addresses);
        Ground {
            policy: policy(),
            templates: [("micro".to_owned(), sample::template("fake"))].into(),
            images: image_rows.iter().map(|row| (row.value.id, row.value.clone())).collect(),
            image_rows,
            addresses: free.unwrap(),
            ports: self.free_ports(&used, needs.ports),
            random: (0..needs.random_bytes).map(|n| n as u8).collect(),
            usage,
            next_id,
            used,
        }
    }

    fn usage(&self) -> Row<Usage> {
        self.tables().usage(self.host.id).unwrap().unwrap()
    }

    fn free_ports(&self, usage: &Usage, number: usize) -> Vec<u16> {
        self.tables().free_ports(&self.host, usage.port_cursor, number, |_| true).unwrap()
    }

    pub fn commit(&self, change: Change) {
        let committed = self.tables().commit(&change).unwrap();
        assert!(matches!(committed, Committed::Done(_)), "nobody else commits here");
    }
}

impl Ground {
    fn world<'a>(&'a self, world: &'a World) -> PlanWorld<'a> {
        PlanWorld {
            now: world.clock.now(),
            policy: &self.policy,
            host: &world.host,
            usage: &self.used,
            next_id: self.next_id.as_ref().map_or(1, |row| row.value),
            templates: &self.templates,
            images: &self.images,
            free_addresses: &self.addresses,
            free_ports: &self.ports,
            random: &self.random,
        }
    }

    fn hold(&self, change: Change) -> Change {
        self.image_rows.iter().try_fold(change, Change::image).unwrap()
    }
}

fn absent(what: &str) -> Refusal {
    Refusal::new(ErrorCode::NotFound, what, "there is none", "look")
}
