//! What a [`FakeNetwork`](super::FakeNetwork) has made, as values.

use crate::{Peer, Reached};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use tt_model::{EnvId, NetRule, Protocol, Vm, VmId};

/// Where a public port of a [`FakeWorld`] leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakePort {
    /// Env of the member.
    pub env: EnvId,
    /// The member.
    pub vm: VmId,
    /// Its address.
    pub addr: Ipv4Addr,
    /// Its inner port.
    pub port: u16,
}

/// The host of a [`FakeNetwork`](super::FakeNetwork): what outlives the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeWorld {
    /// Whether the host's table, forwarding and the reservation are there.
    pub host: bool,
    /// Whether somebody has flushed that table since.
    pub is_flushed: bool,
    /// Namespaces with their members' taps.
    pub namespaces: BTreeMap<EnvId, BTreeSet<VmId>>,
    /// Host ends of edges.
    pub edges: BTreeSet<EnvId>,
    /// Host routes to members.
    pub routes: BTreeMap<Ipv4Addr, EnvId>,
    /// Published ports.
    pub ports: BTreeMap<(Protocol, u16), FakePort>,
    /// Members that are reached at their own address, with their Envs.
    pub flat: BTreeMap<VmId, EnvId>,
    /// The other hosts that are reached.
    pub peers: BTreeSet<Peer>,
    /// Where the host is reached, as a test says.
    pub reached: Reached,
    /// Members that may open no connection to the outside.
    pub denied: BTreeSet<VmId>,
    /// Where alone members can connect to; no entry for an empty list.
    pub allowlists: BTreeMap<VmId, BTreeSet<NetRule>>,
    /// Most that members send and receive; no entry if there is no bound.
    pub rates: BTreeMap<VmId, [Option<u32>; 2]>,
    /// Addresses that members can not reach; no entry for an empty list.
    pub blacklists: BTreeMap<VmId, BTreeSet<IpAddr>>,
}

impl FakeWorld {
    pub(super) fn forget_limits(&mut self, vm: VmId) {
        self.denied.remove(&vm);
        self.blacklists.remove(&vm);
        self.allowlists.remove(&vm);
        self.rates.remove(&vm);
    }
}

pub(super) fn wanted_ports(vm: &Vm) -> BTreeMap<(Protocol, u16), FakePort> {
    let target =
        |inner: u16| FakePort { env: vm.env_id, vm: vm.id, addr: vm.resource.ip_addr, port: inner };
    let ports = vm.resource.port_map.iter();
    ports.map(|(inner, public)| ((inner.protocol, *public), target(inner.port))).collect()
}

pub(super) fn ports_of(world: &FakeWorld, vm: VmId) -> BTreeMap<(Protocol, u16), FakePort> {
    let ports = world.ports.iter();
    ports.filter(|(_, target)| target.vm == vm).map(|(key, target)| (*key, *target)).collect()
}
