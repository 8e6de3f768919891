//! What a member has in a [`FakeNetwork`], a side effect each.

use super::world::{ports_of, wanted_ports};
use super::{FakeNetwork, lock};
use crate::NetworkError;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tt_model::{EnvId, NetKind, NetRule, Vm};

impl FakeNetwork {
    pub(super) fn set_denied(&self, vm: &Vm, denied: bool) -> Result<(), NetworkError> {
        self.act(
            if denied { "net.deny" } else { "net.allow" },
            |world| world.denied.contains(&vm.id) != denied,
            |world| {
                if denied {
                    world.denied.insert(vm.id);
                } else {
                    world.denied.remove(&vm.id);
                }
            },
        )
    }

    pub(super) fn set_listed(
        &self,
        vm: &Vm,
        listed: &BTreeSet<IpAddr>,
    ) -> Result<(), NetworkError> {
        self.act(
            "net.blacklist",
            |world| {
                let now = world.blacklists.get(&vm.id);
                now.map_or(!listed.is_empty(), |now| now != listed)
            },
            |world| {
                if listed.is_empty() {
                    world.blacklists.remove(&vm.id);
                } else {
                    world.blacklists.insert(vm.id, listed.clone());
                }
            },
        )
    }

    pub(super) fn set_allowed(&self, vm: &Vm) -> Result<(), NetworkError> {
        let wanted: BTreeSet<NetRule> = vm.state.net_allowlist.iter().cloned().collect();
        self.act(
            "net.allowlist",
            |world| world.allowlists.get(&vm.id).cloned().unwrap_or_default() != wanted,
            |world| match wanted.is_empty() {
                true => drop(world.allowlists.remove(&vm.id)),
                false => drop(world.allowlists.insert(vm.id, wanted.clone())),
            },
        )?;
        let wanted = [vm.resource.up_kbit, vm.resource.down_kbit];
        self.act(
            "net.rates",
            |world| world.rates.get(&vm.id).copied().unwrap_or_default() != wanted,
            |world| match wanted {
                [None, None] => drop(world.rates.remove(&vm.id)),
                _ => drop(world.rates.insert(vm.id, wanted)),
            },
        )
    }

    pub(super) fn set_ports(&self, vm: &Vm) -> Result<(), NetworkError> {
        let wanted = wanted_ports(vm);
        for (&(protocol, port), target) in &lock(&self.world).ports {
            if target.vm != vm.id && wanted.contains_key(&(protocol, port)) {
                return Err(NetworkError::PortTaken {
                    port,
                    protocol,
                    env: target.env,
                    vm: target.vm,
                });
            }
        }
        self.act(
            "net.ports",
            |world| ports_of(world, vm.id) != wanted,
            |world| {
                world.ports.retain(|_, target| target.vm != vm.id);
                world.ports.extend(wanted.clone());
            },
        )
    }

    pub(super) fn set_flat(&self, vm: &Vm) -> Result<(), NetworkError> {
        let is_flat = vm.net_kind == NetKind::Flatten;
        self.act(
            "net.flat",
            |world| world.flat.contains_key(&vm.id) != is_flat,
            |world| {
                if is_flat {
                    world.flat.insert(vm.id, vm.env_id);
                } else {
                    world.flat.remove(&vm.id);
                }
            },
        )
    }

    pub(super) fn remove_namespace(&self, env: EnvId) -> Result<(), NetworkError> {
        self.act(
            "net.edge.remove",
            |world| world.edges.contains(&env),
            |world| {
                world.edges.remove(&env);
                world.routes.retain(|_, of| *of != env);
            },
        )?;
        self.act(
            "net.namespace.remove",
            |world| world.namespaces.contains_key(&env),
            |world| {
                for vm in world.namespaces.remove(&env).into_iter().flatten() {
                    world.forget_limits(vm);
                }
            },
        )
    }
}
