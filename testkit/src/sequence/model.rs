//! What should be, as plain values: the reference that the daemon's work is compared with. It knows
//! no disks, processes, records or deaths, only what a user was promised.

use super::action::{Action, ENVS, Step, Target, has_machine};
use crate::Must;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tt_model::{AtEnd, EnvId, EnvSpec, Goal, InnerPort, MachineSize, StopMode, VmId, VmSpec};

/// Seconds in a day: what an Env lives that asks for nothing.
const DAY: u64 = 24 * 3600;
/// Longest lifetime, in seconds.
const LIFE_MAX: u64 = 30 * DAY;
/// The disk of the template, in MB.
const TEMPLATE_MB: u32 = 64;

/// What was ever written to a disk, as a number that no other history has. 0: the template's.
pub type Content = u64;

/// What a host allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most CPUs of a machine.
    pub cpu_max: u16,
    /// Least memory of a machine, in MB.
    pub mem_min: u32,
    /// How long a guest may take to shut down, in seconds.
    pub grace: u64,
}

/// A host and all that users have on it.
#[derive(Clone, Debug)]
pub struct Model {
    /// Seconds since the epoch.
    pub now: u64,
    /// The next id of an Env or a Vm.
    pub next_id: u64,
    /// By name.
    pub envs: BTreeMap<String, Env>,
    /// Disks that outlived their Vms.
    pub images: BTreeMap<VmId, Image>,
    pub(super) limits: Limits,
    /// How often a guest wrote to a disk.
    pub(super) writes: u64,
    /// How often a guest changed its memory.
    pub(super) ticks: u64,
}

/// An Env.
#[derive(Clone, Debug)]
pub struct Env {
    /// Its id.
    pub id: EnvId,
    /// When its life ends, seconds since the epoch.
    pub end: u64,
    /// What becomes of it then.
    pub at_end: AtEnd,
    /// Whether it was stopped as a whole.
    pub is_stopped: bool,
    /// Whether members that join are denied.
    pub denies: bool,
    /// Its members.
    pub vms: BTreeMap<VmId, Vm>,
}

/// A member.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// How much of it should exist.
    pub goal: Goal,
    /// As it is.
    pub now: Moment,
    /// Until then a guest that switches itself off obeys an order, seconds since the epoch.
    pub grace_end: u64,
    /// The kept image that its disk began as.
    pub base: Option<VmId>,
    /// By name.
    pub snapshots: BTreeMap<String, Frozen>,
}

/// All of a Vm that a snapshot freezes.
#[derive(Clone, Debug)]
pub struct Moment {
    /// What is on its disk.
    pub disk: Content,
    /// The memory of its machine, or what the next one begins from: the last tick that it saw, 0
    /// after a boot.
    pub memory: Option<u64>,
    /// What its machine is made with.
    pub machine: MachineSize,
    /// What is wanted.
    pub size: MachineSize,
    /// The size of its disk, in MB.
    pub disk_mb: u32,
    /// KiB and operations of its disk in a second; 0 for as much as it can.
    pub disk_limit: (u32, u32),
    /// What it publishes.
    pub ports: BTreeSet<InnerPort>,
    /// What it can not connect to.
    pub blacklist: BTreeSet<IpAddr>,
    /// Whether it may not open connections to the outside.
    pub denies: bool,
    /// Whether its disk outlives it.
    pub keeps: bool,
}

/// A snapshot.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// What was frozen.
    pub moment: Moment,
    /// Seconds since the epoch.
    pub end: Option<u64>,
}

/// A disk that outlived its Vm.
#[derive(Clone, Debug)]
pub struct Image {
    /// What is on it.
    pub disk: Content,
    /// Its size, in MB.
    pub disk_mb: u32,
    /// The kept image that it began as.
    pub base: Option<VmId>,
}

impl Model {
    /// A host without Envs.
    pub fn new(now: u64, next_id: u64, limits: Limits) -> Self {
        let (envs, images) = (BTreeMap::new(), BTreeMap::new());
        Self { now, next_id, envs, images, limits, writes: 0, ticks: 0 }
    }

    /// Whom a step is about, and what is done: where there is no Env, nothing but a new one can be.
    pub fn resolve(&self, step: &Step, otherwise: &EnvSpec) -> (Target, Action) {
        let of_env = !matches!(
            step.action,
            Action::TimePasses(_)
                | Action::RemoveImage
                | Action::PowerFails
                | Action::StoreIsLost
                | Action::Create(_)
        );
        let mut action = match self.envs.is_empty() && of_env {
            true => Action::Create(otherwise.clone()),
            false => step.action.clone(),
        };
        let pick = |number: u8, len: usize| usize::from(number) % len.max(1);
        let living = self.envs.keys().nth(pick(step.env, self.envs.len()));
        let slot = ENVS[pick(step.env, ENVS.len())].to_owned();
        let env = match action {
            Action::Create(_) => slot,
            _ => living.cloned().unwrap_or(slot),
        };
        let members = self.envs.get(&env).map(|env| &env.vms);
        let names: Vec<_> = members.into_iter().flatten().map(|(_, vm)| vm.name.clone()).collect();
        let needs_one = matches!(action, Action::Rm | Action::Update(_));
        let number = step.vm.or(needs_one.then_some(0));
        let vm = number.and_then(|number| names.get(pick(number, names.len())).cloned());
        let image = self.images.keys().nth(pick(step.image, self.images.len())).copied();
        match &mut action {
            Action::Create(spec) => spec.vms.iter_mut().for_each(|vm| choose(vm, image)),
            Action::Add(spec) => choose(spec, image),
            _ => {}
        }
        (Target { env, vm, image: image.unwrap_or(VmId(0)) }, action)
    }

    /// Does what happens. Answers whether it was accepted; otherwise nothing has changed.
    pub fn act(&mut self, at: &Target, action: &Action) -> bool {
        let accepted = match action {
            Action::Create(spec) => self.create(&at.env, spec),
            Action::Destroy => self.destroy(&at.env),
            Action::Extend(more) => self.extend(&at.env, *more),
            Action::Add(spec) => self.add(&at.env, spec),
            Action::Rm => self.rm(at),
            Action::Update(update) => self.update(at, update),
            Action::Stop(mode) => self.stop(at, *mode),
            Action::Start => self.start(at),
            Action::Snapshot(spec) => self.snapshot(at, spec),
            Action::DropSnapshot(name) => self.drop_snapshot(at, name),
            Action::Apply(name) => self.apply(at, name),
            Action::Outgoing { deny } => self.outgoing(at, *deny),
            Action::RemoveImage => self.remove_image(at.image),
            Action::TimePasses(seconds) => {
                self.now += seconds;
                Some(())
            }
            Action::GuestWorks { disk } => self.guests_work(at, *disk),
            Action::GuestPowersOff => self.power_off(at),
            Action::MachineCrashes => {
                self.with(at, |vm| vm.end_machine());
                Some(())
            }
            Action::PowerFails => {
                self.all_vms().for_each(Vm::end_machine);
                Some(())
            }
            Action::StoreIsLost => {
                self.forget_ids();
                Some(())
            }
        };
        self.end_what_is_over();
        // What has to run and has no memory to begin from boots.
        for vm in self.all_vms().filter(|vm| has_machine(vm.goal)) {
            vm.now.memory.get_or_insert(0);
        }
        accepted.is_some()
    }

    /// What a member should be.
    ///
    /// # Panics
    /// If the model has no such member.
    pub fn of(&self, vm: &tt_model::Vm) -> &Vm {
        &self.envs[&vm.env_name].vms[&vm.id]
    }

    fn create(&mut self, name: &str, spec: &EnvSpec) -> Option<()> {
        if self.envs.contains_key(name) {
            return None;
        }
        let life = spec.life_time.unwrap_or(DAY);
        let mut env = Env {
            id: EnvId(self.take_id()),
            end: self.now + life,
            at_end: spec.at_end,
            is_stopped: false,
            denies: spec.deny_outgoing,
            vms: BTreeMap::new(),
        };
        for vm in &spec.vms {
            let new = self.member(vm, env.denies, &spec.net_blacklist);
            env.vms.insert(VmId(self.take_id()), new);
        }
        self.envs.insert(name.to_owned(), env);
        Some(())
    }

    fn member(&self, spec: &VmSpec, denies: bool, blacklist: &[IpAddr]) -> Vm {
        let image = spec.image.and_then(|id| self.images.get(&id));
        let machine = MachineSize { cpu_num: 1, mem_size: 128 };
        let now = Moment {
            disk: image.map_or(0, |image| image.disk),
            memory: None,
            machine,
            size: machine,
            disk_mb: image.map_or(TEMPLATE_MB, |image| image.disk_mb),
            disk_limit: (0, 0),
            ports: spec.ports.iter().copied().collect(),
            blacklist: spec.net_blacklist.iter().chain(blacklist).copied().collect(),
            denies,
            keeps: spec.keep_image,
        };
        let (name, base) = (spec.name.clone().must("a name"), spec.image);
        Vm { name, goal: Goal::Running, now, grace_end: 0, base, snapshots: BTreeMap::new() }
    }

    fn destroy(&mut self, env: &str) -> Option<()> {
        let env = self.envs.remove(env)?;
        env.vms.into_iter().for_each(|(id, vm)| self.gone(id, vm));
        Some(())
    }

    fn extend(&mut self, env: &str, more: u64) -> Option<()> {
        let now = self.now;
        let env = self.envs.get_mut(env)?;
        let end = env.end.max(now) + more;
        if more > LIFE_MAX || end - now > LIFE_MAX {
            return None;
        }
        env.end = end;
        Some(())
    }

    fn add(&mut self, name: &str, spec: &VmSpec) -> Option<()> {
        let env = self.envs.get(name)?;
        let is_taken = env.vms.values().any(|vm| Some(&vm.name) == spec.name.as_ref());
        if is_taken || env.end <= self.now {
            return None;
        }
        let new = self.member(spec, env.denies, &[]);
        let id = VmId(self.take_id());
        self.envs.get_mut(name)?.vms.insert(id, new);
        Some(())
    }

    fn rm(&mut self, at: &Target) -> Option<()> {
        let env = self.envs.get_mut(&at.env)?;
        let id = env.find(at)?;
        if env.vms.len() == 1 {
            return None;
        }
        let vm = env.vms.remove(&id)?;
        self.gone(id, vm);
        Some(())
    }

    fn end_what_is_over(&mut self) {
        let (now, grace) = (self.now, self.limits.grace);
        for (name, env) in self.envs.clone() {
            if env.end > now {
                continue;
            }
            if env.at_end == AtEnd::Destroy {
                self.destroy(&name);
                continue;
            }
            let Some(env) = self.envs.get_mut(&name) else { continue };
            for vm in env.vms.values_mut().filter(|vm| has_machine(vm.goal)) {
                vm.stop(None, now, grace);
                env.is_stopped = true;
            }
        }
        for vm in self.all_vms() {
            vm.snapshots.retain(|_, snapshot| snapshot.end.is_none_or(|end| end > now));
        }
    }

    /// A rebuilt store knows the ids of what there is, and of nothing that has gone.
    fn forget_ids(&mut self) {
        let vms = self.envs.values().flat_map(|env| env.vms.keys().map(|id| id.0));
        let envs = self.envs.values().map(|env| env.id.0);
        let largest = vms.chain(envs).chain(self.images.keys().map(|id| id.0)).max();
        // The host has an id as well.
        self.next_id = largest.unwrap_or(0).max(1) + 1;
    }

    fn gone(&mut self, id: VmId, vm: Vm) {
        if vm.now.keeps {
            let Moment { disk, disk_mb, .. } = vm.now;
            self.images.insert(id, Image { disk, disk_mb, base: vm.base });
        }
    }

    pub(super) fn living(&mut self, at: &Target) -> Option<&mut Env> {
        let now = self.now;
        self.envs.get_mut(&at.env).filter(|env| env.end > now)
    }

    pub(super) fn with(&mut self, at: &Target, act: impl Fn(&mut Vm)) {
        if let Some(env) = self.envs.get_mut(&at.env) {
            let ids = env.ids(at);
            env.vms.iter_mut().filter(|(id, _)| ids.contains(id)).for_each(|(_, vm)| act(vm));
        }
    }

    pub(super) fn all_vms(&mut self) -> impl Iterator<Item = &mut Vm> {
        self.envs.values_mut().flat_map(|env| env.vms.values_mut())
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }
}

impl Env {
    pub(super) fn find(&self, at: &Target) -> Option<VmId> {
        let name = at.vm.as_ref()?;
        self.vms.iter().find(|(_, vm)| vm.name == *name).map(|(id, _)| *id)
    }

    /// The members that a step is about.
    pub fn ids(&self, at: &Target) -> Vec<VmId> {
        match &at.vm {
            None => self.vms.keys().copied().collect(),
            Some(_) => self.find(at).into_iter().collect(),
        }
    }
}

impl Vm {
    pub(super) fn stop(&mut self, mode: Option<StopMode>, now: u64, grace: u64) {
        let mode = mode.unwrap_or(StopMode::Suspend);
        if mode == StopMode::Suspend && self.goal == Goal::Stopped {
            return;
        }
        self.goal = mode.goal();
        self.grace_end = if mode == StopMode::Shutdown { now + grace } else { 0 };
        if self.goal == Goal::Stopped {
            self.now.memory = None;
        }
    }

    /// The machine is gone, and with it its memory; what lies on disk stays.
    pub(super) fn end_machine(&mut self) {
        if has_machine(self.goal) {
            self.now.memory = None;
        }
    }
}

/// Which kept image a new member is made from, if it wants one and there is one.
fn choose(spec: &mut VmSpec, image: Option<VmId>) {
    spec.image = spec.image.and(image);
}
