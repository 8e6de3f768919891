//! What is asked of members that exist, and what happens to them. `None` is a refusal, which has
//! changed nothing.

use super::action::{Target, has_machine};
use super::model::{Frozen, Model, Moment};
use tt_model::{Goal, MachineSize, SnapshotSpec, StopMode, VmId, VmUpdate};

impl Model {
    pub(super) fn update(&mut self, at: &Target, update: &VmUpdate) -> Option<()> {
        let limits = self.limits;
        let env = self.envs.get_mut(&at.env)?;
        let id = env.find(at)?;
        let others = env.vms.iter().filter(|(other, _)| **other != id);
        let is_taken = others.into_iter().any(|(_, vm)| Some(&vm.name) == update.name.as_ref());
        let vm = env.vms.get_mut(&id)?;
        let cpu_num = update.cpu_num.unwrap_or(vm.now.size.cpu_num);
        let mem_size = update.mem_size.unwrap_or(vm.now.size.mem_size);
        let disk_mb = update.disk_size.unwrap_or(vm.now.disk_mb);
        if is_taken
            || cpu_num > limits.cpu_max
            || mem_size < limits.mem_min
            || disk_mb < vm.now.disk_mb
        {
            return None;
        }
        vm.name = update.name.clone().unwrap_or(vm.name.clone());
        vm.now.size = MachineSize { cpu_num, mem_size };
        vm.now.disk_mb = disk_mb;
        let (kib, ops) = vm.now.disk_limit;
        vm.now.disk_limit = (update.disk_kib.unwrap_or(kib), update.disk_ops.unwrap_or(ops));
        if let Some(ports) = &update.ports {
            vm.now.ports = ports.iter().copied().collect();
        }
        if let Some(list) = &update.net_blacklist {
            vm.now.blacklist = list.iter().copied().collect();
        }
        vm.now.keeps = update.keep_image.unwrap_or(vm.now.keeps);
        vm.now.denies = update.deny_outgoing.unwrap_or(vm.now.denies);
        if vm.goal == Goal::Stopped {
            vm.now.machine = vm.now.size;
        }
        Some(())
    }

    pub(super) fn stop(&mut self, at: &Target, mode: Option<StopMode>) -> Option<()> {
        let (now, grace) = (self.now, self.limits.grace);
        let env = self.envs.get_mut(&at.env)?;
        let ids = env.ids(at);
        let is_whole = ids.len() == env.vms.len();
        if mode == Some(StopMode::Pause) && !ids.iter().all(|id| has_machine(env.vms[id].goal)) {
            return None;
        }
        let vms = env.vms.iter_mut().filter(|(id, _)| ids.contains(id));
        vms.for_each(|(_, vm)| vm.stop(mode, now, grace));
        env.is_stopped |= is_whole;
        Some(())
    }

    pub(super) fn start(&mut self, at: &Target) -> Option<()> {
        let env = self.living(at)?;
        for id in env.ids(at) {
            let vm = env.vms.get_mut(&id)?;
            if vm.goal == Goal::Stopped {
                vm.now.machine = vm.now.size;
            }
            vm.goal = Goal::Running;
        }
        env.is_stopped = false;
        Some(())
    }

    pub(super) fn snapshot(&mut self, at: &Target, spec: &SnapshotSpec) -> Option<()> {
        let end = spec.life_time.map(|life| self.now + life);
        let env = self.envs.get_mut(&at.env)?;
        let ids = env.ids(at);
        if ids.iter().any(|id| env.vms[id].snapshots.contains_key(&spec.name)) {
            return None;
        }
        for id in ids {
            let vm = env.vms.get_mut(&id)?;
            let memory = vm.now.memory.filter(|_| spec.with_memory);
            let moment = Moment { memory, ..vm.now.clone() };
            vm.snapshots.insert(spec.name.clone(), Frozen { moment, end });
        }
        Some(())
    }

    pub(super) fn drop_snapshot(&mut self, at: &Target, name: &str) -> Option<()> {
        let env = self.envs.get_mut(&at.env)?;
        let dropped: Vec<_> =
            env.ids(at).iter().map(|id| env.vms.get_mut(id)?.snapshots.remove(name)).collect();
        dropped.iter().any(Option::is_some).then_some(())
    }

    pub(super) fn apply(&mut self, at: &Target, name: &str) -> Option<()> {
        let env = self.living(at)?;
        let ids = env.ids(at);
        if !ids.iter().all(|id| env.vms[id].snapshots.contains_key(name)) {
            return None;
        }
        for id in ids {
            let vm = env.vms.get_mut(&id)?;
            let moment = vm.snapshots[name].moment.clone();
            // Without memory it boots, and what boots has the sizes that are wanted.
            let machine = if moment.memory.is_some() { moment.machine } else { moment.size };
            vm.now = Moment { machine, ..moment };
            vm.goal = Goal::Running;
            vm.grace_end = 0;
        }
        env.is_stopped = false;
        Some(())
    }

    pub(super) fn outgoing(&mut self, at: &Target, deny: bool) -> Option<()> {
        let env = self.envs.get_mut(&at.env)?;
        for id in env.ids(at) {
            env.vms.get_mut(&id)?.now.denies = deny;
        }
        if at.vm.is_none() {
            env.denies = deny;
        }
        Some(())
    }

    pub(super) fn remove_image(&mut self, id: VmId) -> Option<()> {
        let lies_on = |base: Option<VmId>| base == Some(id);
        let mut vms = self.envs.values().flat_map(|env| env.vms.values());
        if vms.any(|vm| lies_on(vm.base)) || self.images.values().any(|i| lies_on(i.base)) {
            return None;
        }
        self.images.remove(&id).map(drop)
    }

    pub(super) fn guests_work(&mut self, at: &Target, disk: bool) -> Option<()> {
        let env = self.envs.get_mut(&at.env)?;
        for id in env.ids(at) {
            let vm = env.vms.get_mut(&id)?;
            if vm.goal == Goal::Running {
                self.ticks += 1;
                vm.now.memory = Some(self.ticks);
                if disk {
                    self.writes += 1;
                    vm.now.disk = self.writes;
                }
            }
        }
        Some(())
    }

    pub(super) fn power_off(&mut self, at: &Target) -> Option<()> {
        let (now, grace) = (self.now, self.limits.grace);
        self.with(at, |vm| {
            if vm.goal != Goal::Running {
                return;
            }
            vm.end_machine();
            // Otherwise it obeys an order that was taken back meanwhile, and is started again.
            if now > vm.grace_end {
                vm.stop(Some(StopMode::Kill), now, grace);
            }
        });
        Some(())
    }
}
