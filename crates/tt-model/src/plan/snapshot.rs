//! Planning snapshots: to want one, to take it, to apply it, to drop it.

use super::Policy;
use super::change::{check_living, check_manageable};
use super::merge::needs_merge;
use super::room::{can, check_memory, check_sizes, exhausted};
use crate::check::{SNAPSHOTS_PER_VM_MAX, check_name, quoted};
use crate::{
    Env, ErrorCode, Goal, Host, PortMap, Refusal, Snapshot, SnapshotSpec, SnapshotState, Trouble,
    Usage, Vm, feat, names,
};

/// Most disks that lie one on the other: each costs a guest's reads a little, and QEMU a file.
pub const LAYERS_MAX: usize = 64;

/// Notes that a snapshot of `vms` is wanted: members of `env`, at one point in time. Memory is kept of those that have some
/// and whose engine can; the others begin by booting when it is applied.
///
/// # Errors
/// A name that is taken or not allowed, too many snapshots or layers, an engine that can not, a
/// member that is going, an Env that is not created yet or was managed too short a time ago.
pub fn plan_snapshot(
    env: &mut Env,
    vms: &mut [Vm],
    spec: &SnapshotSpec,
    host: &Host,
    now: u64,
    policy: &Policy,
) -> Result<(), Refusal> {
    check_name("snapshot", &spec.name)?;
    if spec.life_time == Some(0) {
        return Err(Refusal::new(
            ErrorCode::Invalid,
            "life_time 0",
            "a snapshot must live",
            "give at least one second",
        ));
    }
    if let Some(life_time) = spec.life_time.filter(|life_time| *life_time > policy.life_time_max) {
        return Err(Refusal::new(
            ErrorCode::LifeTime,
            format!("lifetime of {life_time} seconds"),
            format!("the limit is {} seconds", policy.life_time_max),
            "ask for less, or for none: it then lives as long as its Vm",
        ));
    }
    check_manageable(env, now, policy)?;
    if !env.is_created {
        return Err(state(format!("env {}", quoted(&env.name)), "it is being created", "wait"));
    }
    vms.iter().try_for_each(|vm| check_snapshot(vm, spec, host))?;
    for vm in vms {
        let snapshot = Snapshot {
            name: spec.name.clone(),
            life_time: spec.life_time,
            with_memory: spec.with_memory && has_memory(vm) && can(vm, host, feat::MEMORY_SNAPSHOT),
            start_timestamp: now,
            ..Snapshot::default()
        };
        vm.snapshots.insert(spec.name.clone(), snapshot);
    }
    env.state.last_mgmt_timestamp = now;
    Ok(())
}

/// Names everything that taking the wanted snapshot `name` of `vm` makes. Each try gets new names:
/// what an interrupted one left belongs to no record.
///
/// A layered runtime image is frozen under its name and gets a layer on top; of another one the
/// snapshot is a clone.
pub fn plan_take(vm: &mut Vm, name: &str) {
    let Some(mut snapshot) = vm.snapshots.remove(name) else { return };
    let number = vm.take_epoch();
    if vm.storage.is_layered() {
        snapshot.epoch = Some(vm.epoch);
        snapshot.path = vm.runtime_image.clone();
        vm.turn_to_disk(number, Some(vm.epoch));
    } else {
        snapshot.epoch = Some(number);
        snapshot.path = names::runtime_image(vm.storage, vm.id, number);
        vm.disks.insert(number, crate::Disk::default());
    }
    snapshot.meta_path = names::meta(vm.id, number);
    snapshot.memory = snapshot.with_memory.then(|| names::memory(vm.id, number));
    vm.snapshots.insert(name.to_owned(), snapshot);
    vm.drop_disks();
}

/// Notes that the snapshot `name` of `vm` was taken at `now`. `engine_version`: who wrote its
/// memory, if it has any.
pub fn plan_taken(vm: &mut Vm, name: &str, engine_version: Option<String>, now: u64) {
    let Some(snapshot) = vm.snapshots.get_mut(name) else { return };
    if engine_version.is_none() {
        snapshot.memory = None;
    }
    snapshot.engine_version = engine_version;
    snapshot.start_timestamp = now;
    snapshot.state = SnapshotState::Ready;
}

/// Notes that the snapshot `name` of `vm` could not be taken, and gives up what it took.
pub fn plan_take_failed(vm: &mut Vm, name: &str, trouble: Trouble) {
    let Some(snapshot) = vm.snapshots.get_mut(name) else { return };
    *snapshot = Snapshot {
        name: name.to_owned(),
        life_time: snapshot.life_time,
        with_memory: snapshot.with_memory,
        start_timestamp: snapshot.start_timestamp,
        state: SnapshotState::Failed(trouble),
        ..Snapshot::default()
    };
    vm.drop_disks();
}

/// Drops the snapshot `name` of `vms`, of those that have it; one that is wanted is not taken any more. What others are
/// layered on stays until they go.
///
/// # Errors
/// No member has it.
pub fn plan_drop_snapshot(env: &Env, vms: &mut [Vm], name: &str) -> Result<(), Refusal> {
    check_living(env)?;
    if !vms.iter().any(|vm| vm.snapshots.contains_key(name)) {
        let what = format!("snapshot {} of env {}", quoted(name), quoted(&env.name));
        return Err(no_snapshot(what));
    }
    for vm in vms.iter_mut() {
        vm.snapshots.remove(name);
        vm.drop_disks();
    }
    Ok(())
}

/// Drops the snapshots of `vm` whose life is over at `now`, but those that are held: a template is being published from them.
/// Returns whether there were any.
pub fn plan_drop_expired(vm: &mut Vm, now: u64, is_held: impl Fn(&str) -> bool) -> bool {
    let before = vm.snapshots.len();
    vm.snapshots.retain(|name, snapshot| !snapshot.is_expired(now) || is_held(name));
    vm.drop_disks();
    vm.snapshots.len() < before
}

/// What an apply depends on beside the Env.
#[derive(Clone, Copy, Debug)]
pub struct ApplyWorld<'a> {
    /// Seconds since the epoch.
    pub now: u64,
    /// The administrator's choices.
    pub policy: &'a Policy,
    /// The host that carries the Env.
    pub host: &'a Host,
    /// Free public ports: as many as the metas name ports.
    pub free_ports: &'a [u16],
}

/// Brings `vms` back to their snapshot `name`: disk, sizes, ports, policies and, where it was
/// kept, memory. Identity stays: id, name, addresses. `frozen` are the Vms of the snapshots' metas,
/// in the order of `vms`. Changes `usage` to what is then taken.
///
/// # Errors
/// A member without the snapshot, one whose snapshot is not ready, memory of another version of
/// the engine, sizes that the host has not.
pub fn plan_apply(
    env: &mut Env,
    vms: &mut [Vm],
    frozen: &[Vm],
    name: &str,
    usage: &mut Usage,
    world: &ApplyWorld<'_>,
) -> Result<(), Refusal> {
    check_manageable(env, world.now, world.policy)?;
    if env.is_expired(world.now) {
        let what = format!("env {}", quoted(&env.name));
        return Err(state(what, "its lifetime is over", "extend it first"));
    }
    for vm in vms.iter() {
        check_apply(vm, name, world.host)?;
    }
    let mut ports = world.free_ports.iter();
    for (vm, frozen) in vms.iter_mut().zip(frozen) {
        apply(vm, frozen, name, &mut ports, usage, world.host)?;
    }
    env.state.last_mgmt_timestamp = world.now;
    env.state.is_stopped = false;
    Ok(())
}

/// Notes that the runtime image of `vm` is made and needs the disk that it is a clone of no more.
/// Returns whether that is news.
pub fn plan_detach(vm: &mut Vm) -> bool {
    let detached = !vm.storage.is_layered()
        && vm.disks.get_mut(&vm.epoch).is_some_and(|disk| disk.parent.take().is_some());
    if detached {
        vm.drop_disks();
    }
    detached
}

/// Notes that the runtime image of `vm`, which has settled, is there. Returns whether that is news.
pub fn plan_made(vm: &mut Vm) -> bool {
    vm.goal != Goal::Gone && vm.made_epoch.replace(vm.epoch) != Some(vm.epoch)
}

/// Notes that no machine writes to what the runtime image of `vm` lies on: it has settled, so its machine, if it has
/// one, writes to the runtime image. Returns whether that is news.
pub fn plan_frozen(vm: &mut Vm) -> bool {
    let below = vm.chain(vm.epoch).get(1).copied();
    let Some(below) = below.filter(|epoch| vm.disks.get(epoch).is_some_and(|disk| !disk.is_frozen))
    else {
        return false;
    };
    vm.freeze_disks(below);
    true
}

fn check_snapshot(vm: &Vm, spec: &SnapshotSpec, host: &Host) -> Result<(), Refusal> {
    let what = || format!("snapshot {} of {}", quoted(&spec.name), vm.full_name());
    let is_taken = |s: &Snapshot| !matches!(s.state, SnapshotState::Failed(_));
    if vm.snapshots.get(&spec.name).is_some_and(is_taken) {
        let remedy = "choose another name, or remove it first";
        return Err(Refusal::new(ErrorCode::Exists, what(), "the name is taken", remedy));
    }
    if vm.goal == Goal::Gone {
        return Err(state(what(), "the Vm is being removed", "leave it out"));
    }
    let (too_many, remedy) = if vm.snapshots.len() >= SNAPSHOTS_PER_VM_MAX {
        (
            format!("the Vm has {SNAPSHOTS_PER_VM_MAX} snapshots"),
            "remove snapshots that are not needed",
        )
    } else if vm.storage.is_layered() && vm.disks.len() + vm.base_layers as usize >= LAYERS_MAX {
        let remedy = match needs_merge(vm) {
            true => "try again soon: layers of removed snapshots are being merged",
            false => "remove snapshots that are not needed",
        };
        (format!("the Vm's disk has {LAYERS_MAX} layers"), remedy)
    } else {
        return match can(vm, host, feat::SNAPSHOT) {
            true => Ok(()),
            false => Err(Refusal::new(
                ErrorCode::Unsupported,
                what(),
                format!("engine {} can not take one", vm.engine),
                "take snapshots of single members (ENV/VM) whose engines can, see `tt host show`",
            )),
        };
    };
    Err(Refusal::new(ErrorCode::InUse, what(), too_many, remedy))
}

/// Not one that was shut down.
fn has_memory(vm: &Vm) -> bool {
    matches!(vm.goal, Goal::Running | Goal::Paused | Goal::Suspended)
}

fn check_apply(vm: &Vm, name: &str, host: &Host) -> Result<(), Refusal> {
    let what = || format!("snapshot {} of {}", quoted(name), vm.full_name());
    if vm.goal == Goal::Gone {
        return Err(state(what(), "the Vm is being removed", "leave it out"));
    }
    let snapshot = vm.snapshots.get(name).ok_or_else(|| no_snapshot(what()))?;
    if let Some(wanted) = vm.wanted_snapshots().next() {
        let problem = format!("snapshot {} is being taken", quoted(&wanted.name));
        return Err(state(what(), problem, "wait until it is, or remove that one"));
    }
    if let SnapshotState::Failed(trouble) = &snapshot.state {
        let problem = format!("it could not be taken: {}", trouble.why);
        return Err(state(what(), problem, "choose another one"));
    }
    let engine = host.engine(&vm.engine);
    let version = engine.map(|engine| format!("{} {}", engine.name, engine.version));
    if snapshot.memory.is_some() && snapshot.engine_version != version {
        return Err(Refusal::new(
            ErrorCode::Unsupported,
            what(),
            format!(
                "its memory was written by {}, this host has {}",
                snapshot.engine_version.as_deref().unwrap_or("another engine"),
                version.as_deref().unwrap_or("none"),
            ),
            "use the version that wrote it",
        ));
    }
    Ok(())
}

fn apply(
    vm: &mut Vm,
    frozen: &Vm,
    name: &str,
    free_ports: &mut std::slice::Iter<'_, u16>,
    usage: &mut Usage,
    host: &Host,
) -> Result<(), Refusal> {
    let Some(snapshot) = vm.snapshots.get(name).cloned() else { return Ok(()) };
    let wanted = &frozen.resource;
    check_sizes(host, wanted.cpu_num, wanted.mem_size, wanted.disk_size)?;
    usage.mem_size = usage.mem_size.saturating_sub(u64::from(vm.resource.mem_size));
    let machine =
        if snapshot.memory.is_some() { frozen.machine } else { frozen.resource.machine() };
    check_memory(host, usage, wanted.mem_size)?;
    let mut port_map = PortMap::new();
    for inner in wanted.port_map.keys() {
        let public = match vm.resource.port_map.get(inner) {
            Some(public) => *public,
            None => *free_ports.next().ok_or_else(|| exhausted(host, "public ports"))?,
        };
        port_map.insert(*inner, public);
    }
    vm.resource.cpu_num = wanted.cpu_num;
    vm.resource.mem_size = wanted.mem_size;
    vm.resource.disk_size = wanted.disk_size;
    vm.resource.port_map = port_map;
    vm.resource.up_kbit = wanted.up_kbit;
    vm.resource.down_kbit = wanted.down_kbit;
    vm.resource.disk_kib = wanted.disk_kib;
    vm.resource.disk_ops = wanted.disk_ops;
    vm.state.net_blacklist = frozen.state.net_blacklist.clone();
    vm.state.net_allowlist = frozen.state.net_allowlist.clone();
    vm.state.keep_image = frozen.state.keep_image;
    vm.state.rand_uuid = frozen.state.rand_uuid;
    vm.machine_id = frozen.machine_id.clone();
    vm.deny_outgoing = frozen.deny_outgoing;
    let epoch = vm.take_epoch();
    vm.turn_to_disk(epoch, snapshot.epoch);
    vm.drop_disks();
    vm.set_goal(Goal::Running, 0);
    vm.incarnation += 1;
    vm.memory = snapshot.memory;
    vm.machine = machine;
    usage.mem_size += u64::from(vm.resource.mem_size);
    Ok(())
}

fn no_snapshot(what: String) -> Refusal {
    Refusal::new(ErrorCode::NotFound, what, "there is none", "see `tt snapshot ls`")
}

fn state(what: String, problem: impl Into<String>, remedy: &str) -> Refusal {
    Refusal::new(ErrorCode::State, what, problem, remedy)
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
