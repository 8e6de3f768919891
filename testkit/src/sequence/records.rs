//! Compares records with the model: what both fakes and real hosts have.

use super::model::{self, Model};
use crate::Must;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::Ipv4Addr;
use tt_model::{Env, Goal, InnerPort, MacAddr, SnapshotState, Vm, VmId, VmState};

/// What the model leaves open and the records then keep to.
#[derive(Debug, Default)]
pub struct Chosen {
    identities: BTreeMap<VmId, (Ipv4Addr, MacAddr, Option<String>)>,
    ports: BTreeMap<VmId, BTreeMap<InnerPort, u16>>,
}

/// Says what of the records is not as in the model. `slack`: how far ends of lives may be from it, in seconds.
///
/// # Errors
/// The first thing that is not.
pub fn compare_records(
    model: &Model,
    envs: &[Env],
    vms: &[Vm],
    chosen: &mut Chosen,
    slack: u64,
) -> Result<(), String> {
    same(
        "envs",
        envs.iter().map(|env| &env.name).collect(),
        model.envs.keys().collect::<BTreeSet<_>>(),
    )?;
    chosen.identities.retain(|id, _| vms.iter().any(|vm| vm.id == *id));
    chosen.ports.retain(|id, _| vms.iter().any(|vm| vm.id == *id));
    for env in envs {
        let expected = &model.envs[&env.name];
        same("id of the env", env.id, expected.id)?;
        same("its members", env.vm_set.iter().collect(), expected.vms.keys().collect::<Vec<_>>())?;
        let state = (env.state.is_stopped, env.state.deny_outgoing);
        same("its state", state, (expected.is_stopped, expected.denies))?;
        if env.end_timestamp.abs_diff(expected.end) > slack {
            same("its end", env.end_timestamp, expected.end)?;
        }
        same("created, ending", (env.is_created, env.is_ending), (true, false))?;
    }
    let expected = model.envs.values().flat_map(|env| &env.vms);
    same(
        "vms",
        vms.iter().map(|vm| vm.id).collect(),
        expected.map(|(id, _)| *id).collect::<BTreeSet<_>>(),
    )?;
    for vm in vms {
        let compared = record(model.of(vm), vm, chosen, slack);
        compared.map_err(|problem| format!("{}: {problem}", vm.full_name()))?;
    }
    Ok(())
}

fn record(expected: &model::Vm, vm: &Vm, chosen: &mut Chosen, slack: u64) -> Result<(), String> {
    let now = &expected.now;
    same("name and goal", (&vm.name, vm.goal), (&expected.name, expected.goal))?;
    same("machine, size", (vm.machine, vm.resource.machine()), (now.machine, now.size))?;
    same("size of the disk", vm.resource.disk_size, now.disk_mb)?;
    let limit = [vm.resource.disk_kib, vm.resource.disk_ops].map(Option::unwrap_or_default);
    same("limit of the disk", limit.into(), now.disk_limit)?;
    let state = VmState {
        during_stop: expected.goal != Goal::Running,
        keep_image: now.keeps,
        rand_uuid: true,
        net_blacklist: now.blacklist.iter().copied().collect(),
        net_allowlist: Vec::new(),
    };
    same("state", &vm.state, &state)?;
    same("denied", vm.deny_outgoing, now.denies)?;
    let ports = &vm.resource.port_map;
    same("ports", ports.keys().copied().collect(), now.ports.clone())?;
    let before = chosen.ports.insert(vm.id, ports.clone()).unwrap_or_default();
    for (inner, public) in before.iter().filter(|(inner, _)| ports.contains_key(inner)) {
        same("public port that stays", ports[inner], *public)?;
    }
    let identity = (vm.resource.ip_addr, vm.resource.mac_addr, vm.machine_id.clone());
    same("identity", &identity, &*chosen.identities.entry(vm.id).or_insert(identity.clone()))?;
    let base = vm.base.as_ref().and_then(|base| base.split('/').nth(1));
    let base = base.map(|id| id.parse().must("the id of a kept image"));
    same("base", base, expected.base)?;
    let found = vm.snapshots.values().map(|s| (&s.name, &s.state, s.memory.is_some()));
    let wanted = expected
        .snapshots
        .iter()
        .map(|(name, frozen)| (name, &SnapshotState::Ready, frozen.moment.memory.is_some()));
    same("snapshots", found.collect::<Vec<_>>(), wanted.collect())?;
    for (name, frozen) in &expected.snapshots {
        let end = vm.snapshots[name].end_timestamp();
        let is_near =
            end.zip(frozen.end).is_some_and(|(end, wanted)| end.abs_diff(wanted) <= slack);
        if !is_near {
            same("its end", end, frozen.end)?;
        }
    }
    Ok(())
}

/// Says what is not as it should be.
///
/// # Errors
/// If the two are not equal.
pub fn same<T: Debug + PartialEq>(what: &str, found: T, expected: T) -> Result<(), String> {
    match found == expected {
        true => Ok(()),
        false => Err(format!("{what}: found {found:?}, expected {expected:?}")),
    }
}
