//! Planning changes of single members: added, removed, updated, denied.

use super::Policy;
use super::change::{check_living, check_manageable};
use super::create::{Builder, Family, World, member_names};
use super::room::{can, check_memory, check_sizes, exhausted};
use crate::check::{VMS_PER_ENV_MAX, check_request_key, check_update, check_vm, quoted};
use crate::{
    Env, ErrorCode, Goal, Host, NetKind, NetRule, PortMap, Refusal, Usage, Vm, VmSpec, VmUpdate,
    feat,
};
use std::collections::BTreeSet;

/// New members, and what is taken with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddPlan {
    /// The new members.
    pub vms: Vec<Vm>,
    /// The host's usage with them.
    pub usage: Usage,
    /// The next unused id after them.
    pub next_id: u64,
}

/// Plans members that join a living Env, which holds them afterwards. They remember `request_key`, if there is one.
///
/// # Errors
/// As [`plan_env`](super::plan_env), a name that is taken, an Env that is going or whose lifetime is
/// over. Into a stopped Env it comes running.
pub fn plan_add(
    env: &mut Env,
    members: &[Vm],
    request_key: Option<&str>,
    spec: &VmSpec,
    world: &World<'_>,
) -> Result<AddPlan, Refusal> {
    check_living(env)?;
    request_key.map_or(Ok(()), check_request_key)?;
    check_vm(spec)?;
    let what = || format!("env {}", quoted(&env.name));
    if env.is_expired(world.now) {
        return Err(refuse(ErrorCode::State, what(), "its lifetime is over", "extend it first"));
    }
    let number = members.len() + spec.count.unwrap_or(1) as usize;
    if number > VMS_PER_ENV_MAX {
        let problem = format!("it would have {number} Vms");
        return Err(refuse(
            ErrorCode::Invalid,
            what(),
            problem,
            format!("an Env has at most {VMS_PER_ENV_MAX}"),
        ));
    }
    let taken: BTreeSet<String> = members.iter().map(|vm| vm.name.clone()).collect();
    if let Some(name) = asked_names(spec).into_iter().find(|name| taken.contains(name)) {
        let what = format!("vm {} of env {}", quoted(&name), quoted(&env.name));
        return Err(refuse(ErrorCode::Exists, what, "the name is taken", "choose another one"));
    }
    let family = Family {
        env_id: env.id,
        env_name: &env.name,
        deny_outgoing: env.state.deny_outgoing,
        net_blacklist: &[],
        request_key,
        ssh_keys: &[],
        user_data: None,
    };
    let mut builder = Builder::new(world, family, world.next_id);
    let mut vms = Vec::new();
    for (name, spec) in member_names(std::slice::from_ref(spec), taken)? {
        vms.push(builder.vm(name, spec)?);
    }
    let (usage, next_id) = (builder.usage, builder.next_id);
    env.vm_set.extend(vms.iter().map(|vm| vm.id));
    Ok(AddPlan { vms, usage, next_id })
}

/// The names that `spec` gives; none if they are made from its template's.
fn asked_names(spec: &VmSpec) -> Vec<String> {
    let count = spec.count.unwrap_or(1);
    let name =
        |stem: &String, index| if count == 1 { stem.clone() } else { format!("{stem}-{index}") };
    let stem = spec.name.as_ref();
    stem.map(|stem| (1..=count).map(|index| name(stem, index)).collect()).unwrap_or_default()
}

/// Sends one member on its way out. Doing it again changes nothing.
///
/// # Errors
/// It is the last one.
pub fn plan_rm(env: &Env, members: &mut [Vm], name: &str) -> Result<(), Refusal> {
    check_living(env)?;
    let left = members.iter().filter(|vm| vm.goal != Goal::Gone && vm.name != name).count();
    if left == 0 {
        return Err(refuse(
            ErrorCode::State,
            format!("vm {} of env {}", quoted(name), quoted(&env.name)),
            "it is the last one",
            "destroy the Env",
        ));
    }
    for vm in members.iter_mut().filter(|vm| vm.name == name && vm.goal != Goal::Gone) {
        vm.set_goal(Goal::Gone, 0);
    }
    Ok(())
}

/// Lets members of an Env, all of it or those in `vms`, open connections to the outside or not.
/// `whole`: that they are all, so that later members follow.
pub fn plan_outgoing(
    env: &mut Env,
    vms: &mut [Vm],
    whole: bool,
    deny: bool,
) -> Result<(), Refusal> {
    check_living(env)?;
    for vm in vms.iter_mut().filter(|vm| vm.deny_outgoing != deny && vm.goal != Goal::Gone) {
        vm.deny_outgoing = deny;
        vm.generation += 1;
    }
    if whole {
        env.state.deny_outgoing = deny;
    }
    Ok(())
}

/// What an update depends on beside the Vm.
#[derive(Clone, Copy, Debug)]
pub struct UpdateWorld<'a> {
    /// Seconds since the epoch.
    pub now: u64,
    /// The administrator's choices.
    pub policy: &'a Policy,
    /// The host that carries it.
    pub host: &'a Host,
    /// Free public ports: as many as the update names.
    pub free_ports: &'a [u16],
}

/// Changes the member `vms[at]` of an Env. Ports, disk growth, names and policies reach a running
/// guest; CPUs and memory take effect with its next start ([`Vm::needs_restart`]). Changes `usage`
/// to what is then taken.
///
/// # Errors
/// A value that is not allowed, a disk that would shrink, sizes that the host has not, a name that
/// is taken; nothing is changed then.
pub fn plan_update(
    env: &mut Env,
    vms: &mut [Vm],
    at: usize,
    update: &VmUpdate,
    usage: &mut Usage,
    world: &UpdateWorld<'_>,
) -> Result<(), Refusal> {
    check_update(update)?;
    check_manageable(env, world.now, world.policy)?;
    let mut names = vms.iter().enumerate().filter(|(index, _)| *index != at);
    let wanted = update.name.as_ref();
    if let Some(name) = wanted.filter(|name| names.any(|(_, vm)| vm.name == **name)) {
        let what = format!("vm {} of env {}", quoted(name), quoted(&env.name));
        return Err(refuse(ErrorCode::Exists, what, "the name is taken", "choose another one"));
    }
    let Some(vm) = vms.get_mut(at) else { return Ok(()) };
    let updated = updated(vm, update, usage, world)?;
    env.state.last_mgmt_timestamp = world.now;
    *vm = updated;
    Ok(())
}

fn updated(
    vm: &Vm,
    update: &VmUpdate,
    usage: &mut Usage,
    world: &UpdateWorld<'_>,
) -> Result<Vm, Refusal> {
    if vm.goal == Goal::Gone {
        let problem = "it is being removed";
        return Err(refuse(ErrorCode::State, vm.full_name(), problem, "leave it alone"));
    }
    let mut new = vm.clone();
    let resource = &mut new.resource;
    resource.cpu_num = update.cpu_num.unwrap_or(resource.cpu_num);
    resource.mem_size = update.mem_size.unwrap_or(resource.mem_size);
    let disk_size = update.disk_size.unwrap_or(resource.disk_size);
    if disk_size < resource.disk_size {
        return Err(refuse(
            ErrorCode::Invalid,
            format!("disk_size {disk_size}"),
            format!("{} has {} MB, and a disk only grows", vm.full_name(), resource.disk_size),
            "ask for at least as much",
        ));
    }
    if disk_size > resource.disk_size && vm.is_container() {
        return Err(refuse(
            ErrorCode::Unsupported,
            format!("disk_size {disk_size}"),
            "the disk of a container keeps the size that it was made with",
            "leave it out",
        ));
    }
    resource.disk_size = disk_size;
    check_sizes(world.host, resource.cpu_num, resource.mem_size, disk_size)?;
    if vm.is_container() {
        // Its limits change while it runs.
        new.machine = resource.machine();
    }
    if let Some(ports) = &update.ports {
        resource.port_map = port_map(vm, ports, world)?;
    }
    if let Some(list) = &update.net_blacklist {
        let unique: BTreeSet<_> = list.iter().copied().collect();
        new.state.net_blacklist = unique.into_iter().collect();
    }
    if let Some(rules) = &update.net_allowlist {
        new.state.net_allowlist = unique(rules);
    }
    change_rates(&mut new, update, world.host)?;
    new.state.keep_image = update.keep_image.unwrap_or(new.state.keep_image);
    new.deny_outgoing = update.deny_outgoing.unwrap_or(new.deny_outgoing);
    new.name = update.name.clone().unwrap_or(new.name);
    if new.goal == Goal::Stopped && new.machine != new.resource.machine() {
        // A machine that is still on its way down has the old sizes, so it must not go on.
        new.machine = new.resource.machine();
        new.incarnation += 1;
    }
    let before = usage.mem_size.saturating_sub(u64::from(vm.resource.mem_size));
    let without = Usage { mem_size: before, ..usage.clone() };
    check_memory(world.host, &without, new.resource.mem_size)?;
    usage.mem_size = before + u64::from(new.resource.mem_size);
    if new != *vm {
        new.generation += 1;
    }
    Ok(new)
}

/// What it may do in a second; 0 takes a bound away.
fn change_rates(new: &mut Vm, update: &VmUpdate, host: &Host) -> Result<(), Refusal> {
    let disk = [update.disk_kib, update.disk_ops].into_iter().flatten();
    if disk.max().is_some_and(|most| most > 0) && !can(new, host, feat::DISK_LIMIT) {
        return Err(refuse(
            ErrorCode::Unsupported,
            format!("a limit for the disk of {}", new.full_name()),
            format!("engine {} can not do: disk_limit", new.engine),
            "leave it out",
        ));
    }
    let resource = &mut new.resource;
    for (wanted, rate) in [
        (update.up_kbit, &mut resource.up_kbit),
        (update.down_kbit, &mut resource.down_kbit),
        (update.disk_kib, &mut resource.disk_kib),
        (update.disk_ops, &mut resource.disk_ops),
    ] {
        *rate = wanted.map_or(*rate, |wanted| Some(wanted).filter(|wanted| *wanted > 0));
    }
    Ok(())
}

fn port_map(
    vm: &Vm,
    ports: &[crate::InnerPort],
    world: &UpdateWorld<'_>,
) -> Result<PortMap, Refusal> {
    if vm.net_kind == NetKind::Flatten && !ports.is_empty() {
        return Err(refuse(
            ErrorCode::Invalid,
            format!("ports of {}", vm.full_name()),
            "a Vm with a flat address has all its ports open",
            "leave the ports out",
        ));
    }
    let mut free = world.free_ports.iter();
    let mut map = PortMap::new();
    for inner in ports {
        let public = match vm.resource.port_map.get(inner) {
            Some(public) => *public,
            None => *free.next().ok_or_else(|| exhausted(world.host, "public ports"))?,
        };
        map.insert(*inner, public);
    }
    Ok(map)
}

/// Each destination once, in one order.
pub(super) fn unique(rules: &[NetRule]) -> Vec<NetRule> {
    rules.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect()
}

fn refuse(
    code: ErrorCode,
    what: String,
    problem: impl Into<String>,
    remedy: impl Into<String>,
) -> Refusal {
    Refusal::new(code, what, problem, remedy)
}

#[cfg(test)]
#[path = "member_tests.rs"]
mod tests;
