//! What every [`Network`] keeps, as one call for a new driver's tests. It panics at the first
//! promise that is broken, and leaves nothing on the host if none is.

use crate::{EnvNames, Found, Network, NetworkError, Peer};
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tt_model::{
    EnvId, InnerPort, MacAddr, NetKind, PortMap, Protocol, StorageKind, Vm, VmResource, sample,
};

/// Runs all checks on a network that is not initialised and on whose host nothing is set.
///
/// `vm_of(env, index)` makes the `index`-th member (from 0) of an Env: the same for the same
/// arguments, with ids, addresses and public ports of its own, at least one port, kind `Nat`.
///
/// # Panics
/// If the network breaks a promise.
pub fn run(net: &dyn Network, vm_of: &dyn Fn(EnvId, usize) -> Vm) {
    uninitialised(net, &vm_of(EnvId(1), 0));
    ok("init", net.init());
    ok("init again", net.init());
    expect(net, &[]);
    set_and_unset(net, vm_of);
    changed_record(net, vm_of);
    limits(net, vm_of);
    flat(net, vm_of);
    peers(net);
    refusals(net);
    side_by_side(net, vm_of);
    strays(net, vm_of);
    ends(net, vm_of);
}

/// A member as [`run`] wants it: in 10.0.0.0/16, with a TCP and a UDP port from 20,000 on.
pub fn sample_vm(env: EnvId, index: usize) -> Vm {
    let number = env.0 as u8 * 8 + index as u8;
    let ip_addr = Ipv4Addr::new(10, 0, env.0 as u8, 2 + index as u8);
    let port = |port, protocol| InnerPort { port, protocol };
    let public = 20_000 + 2 * u16::from(number);
    let sample = sample::vm(100 + u64::from(number), "fake", StorageKind::File);
    Vm {
        env_id: env,
        env_name: format!("env{env}"),
        name: format!("vm{index}"),
        resource: VmResource {
            ip_addr,
            mac_addr: MacAddr::of_ip(ip_addr),
            port_map: PortMap::from([
                (port(80, Protocol::Tcp), public),
                (port(53, Protocol::Udp), public + 1),
            ]),
            ..sample.resource
        },
        ..sample
    }
}

fn uninitialised(net: &dyn Network, vm: &Vm) {
    assert!(matches!(net.set_net(vm), Err(NetworkError::NotInit)));
    assert!(matches!(net.unset_net(vm), Err(NetworkError::NotInit)));
    assert!(matches!(net.found(), Err(NetworkError::NotInit)));
}

fn set_and_unset(net: &dyn Network, vm_of: &dyn Fn(EnvId, usize) -> Vm) {
    let (env, other) = (EnvId(1), EnvId(2));
    let vms: Vec<Vm> = (0..3).map(|index| vm_of(env, index)).collect();
    let alone = vm_of(other, 0);
    let members = vms.iter().map(|vm| (vm.name.clone(), vm.resource.ip_addr));
    let (env_name, members) = (alone.env_name.clone(), members.collect());
    let names = EnvNames { env_name, members, ..EnvNames::default() };
    ok("names before anything is set", net.set_names(env, &names));
    ok("names again", net.set_names(env, &names));
    ok("unset of an absent vm", net.unset_net(&vms[0]));
    expect(net, &[]);
    for vm in &vms {
        ok("set", net.set_net(vm));
        ok("set again", net.set_net(vm));
    }
    ok("set in another env", net.set_net(&alone));
    expect(net, &[&vms[0], &vms[1], &vms[2], &alone]);
    ok("unset of one", net.unset_net(&vms[1]));
    ok("unset of the same", net.unset_net(&vms[1]));
    expect(net, &[&vms[0], &vms[2], &alone]);
    ok("set of what was unset", net.set_net(&vms[1]));
    expect(net, &[&vms[0], &vms[1], &vms[2], &alone]);
    for vm in vms.iter().chain([&alone]) {
        ok("unset", net.unset_net(vm));
    }
    ok("unset after the last", net.unset_net(&vms[0]));
    expect(net, &[]);
}

/// A changed record frees what it no longer says, and a taken port stays with its owner.
fn changed_record(net: &dyn Network, vm_of: &dyn Fn(EnvId, usize) -> Vm) {
    let (env, other) = (EnvId(1), EnvId(2));
    let first = vm_of(env, 0);
    let mut thief = vm_of(other, 0);
    thief.resource.port_map = first.resource.port_map.clone();
    ok("set", net.set_net(&first));
    let taken = net.set_net(&thief);
    assert!(
        matches!(&taken, Err(NetworkError::PortTaken { vm, env: of, .. }) if *vm == first.id && *of == env),
        "a port of another vm: {taken:?}"
    );
    let mut changed = first.clone();
    changed.resource.port_map.clear();
    ok("set without ports", net.set_net(&changed));
    ok("set with the freed port", net.set_net(&thief));
    assert!(matches!(net.set_net(&first), Err(NetworkError::PortTaken { .. })));
    ok("unset of the one that took it", net.unset_net(&thief));
    ok("set with ports", net.set_net(&first));
    ok("unset", net.unset_net(&first));
    expect(net, &[]);
}

fn limits(net: &dyn Network, vm_of: &dyn Fn(EnvId, usize) -> Vm) {
    let mut vm = vm_of(EnvId(1), 0);
    let missing = vm_of(EnvId(1), 1);
    let not_set = |result| matches!(result, Err(NetworkError::NotSet { .. }));
    assert!(not_set(net.deny_outgoing(&vm)), "no namespace");
    ok("set", net.set_net(&vm));
    assert!(not_set(net.allow_outgoing(&missing)), "no tap");
    assert!(not_set(net.set_blacklist(&missing)), "no tap");
    for _ in 0..2 {
        ok("deny", net.deny_outgoing(&vm));
    }
    for _ in 0..2 {
        ok("allow", net.allow_outgoing(&vm));
    }
    let lists = [&[1, 2, 3][..], &[2, 3, 4], &[], &[]];
    for list in lists {
        let both = |last: &u8| {
            let six = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(*last));
            [IpAddr::from([192, 0, 2, *last]), six.into()]
        };
        vm.state.net_blacklist = list.iter().flat_map(both).collect();
        ok("blacklist", net.set_blacklist(&vm));
    }
    let rules = |list: &[&str]| list.iter().filter_map(|rule| rule.parse().ok()).collect();
    for (list, rates) in [
        (&["192.0.2.0/24", "192.0.2.7", "192.0.2.7:443", "0.0.0.0/0:53/udp"][..], [None, None]),
        (&["192.0.2.0/24:443", "192.0.0.0/16:443", "192.0.2.0/24"], [Some(1000), None]),
        (&["192.0.2.0/24:443"], [Some(2000), Some(100_000_000)]),
        (&[], [None, Some(64)]),
        (&[], [None, None]),
    ] {
        vm.state.net_allowlist = rules(list);
        [vm.resource.up_kbit, vm.resource.down_kbit] = rates;
        ok("set with an allow list and rates", net.set_net(&vm));
    }
    assert!(matches!(net.traffic(&missing), Err(NetworkError::NotSet { .. })), "no tap");
    let traffic = net.traffic(&vm);
    assert!(traffic.is_ok_and(|traffic| traffic.blocked_packets == 0), "nobody sent anything");
    vm.state.net_allowlist = rules(&["192.0.2.0/24"]);
    vm.resource.up_kbit = Some(1000);
    vm.deny_outgoing = true;
    vm.state.net_blacklist = vec![[192, 0, 2, 1].into(); 2];
    ok("set with limits", net.set_net(&vm));
    ok("set with limits again", net.set_net(&vm));
    ok("unset", net.unset_net(&vm));
    expect(net, &[]);
}

/// A member with a flat address, beside one without.
fn flat(net: &dyn Network, vm_of: &dyn Fn(EnvId, usize) -> Vm) {
    let plain = vm_of(EnvId(1), 0);
    let flat = |env, index| {
        let mut vm = vm_of(env, index);
        vm.net_kind = NetKind::Flatten;
        vm.resource.port_map.clear();
        vm
    };
    let (mut member, stray) = (flat(EnvId(1), 1), flat(EnvId(2), 0));
    for vm in [&plain, &member, &stray, &member] {
        ok("set beside a flat one", net.set_net(vm));
    }
    expect(net, &[&plain, &member, &stray]);
    member.deny_outgoing = true;
    member.state.net_blacklist = vec![[192, 0, 2, 1].into()];
    ok("limits of a flat one", net.set_net(&member));
    ok("remove of a flat stray", net.remove_stray(stray.env_id));
    expect(net, &[&plain, &member]);
    ok("unset of a flat one", net.unset_net(&member));
    ok("unset of the same", net.unset_net(&member));
    expect(net, &[&plain]);
    ok("unset", net.unset_net(&plain));
    expect(net, &[]);
}

/// Other hosts come and go. The network under test may have no underlay, so that nothing is made.
fn peers(net: &dyn Network) {
    let peer = |second: u8| Peer {
        block: Ipv4Net::new_assert(Ipv4Addr::new(10, second, 0, 0), 16),
        underlay: Ipv4Addr::new(192, 0, 2, 100 + second),
    };
    for peers in [&[][..], &[peer(1)], &[peer(1), peer(2)], &[peer(2), peer(3)], &[]] {
        for _ in 0..2 {
            ok("peers", net.set_peers(peers));
        }
    }
    let twice = [peer(1), Peer { block: peer(1).block, ..peer(2) }];
    assert!(matches!(net.set_peers(&twice), Err(NetworkError::PlacePeer { .. })));
    ok("no peers", net.set_peers(&[]));
}

fn refusals(net: &dyn Network) {
    let names = EnvNames {
        env_name: "many".into(),
        members: vec![("a".into(), Ipv4Addr::LOCALHOST); crate::MEMBERS_MAX + 1],
        ..EnvNames::default()
    };
    let refused = net.set_names(EnvId(1), &names);
    assert!(matches!(refused, Err(NetworkError::SetNames { .. })));
}

/// Members of one Env and of several at once.
fn side_by_side(net: &dyn Network, vm_of: &dyn Fn(EnvId, usize) -> Vm) {
    let ids = (0..9).map(|number| (EnvId(1 + number / 3), (number % 3) as usize));
    let vms: Vec<Vm> = ids.map(|(env, index)| vm_of(env, index)).collect();
    let at_once = |action: &'static str, act: &(dyn Fn(&Vm) -> Result<(), NetworkError> + Sync)| {
        std::thread::scope(|scope| {
            for vm in &vms {
                scope.spawn(move || ok(action, act(vm)));
            }
        });
    };
    at_once("set at once", &|vm| net.set_net(vm));
    expect(net, &vms.iter().collect::<Vec<_>>());
    at_once("unset at once", &|vm| net.unset_net(vm));
    expect(net, &[]);
}

fn strays(net: &dyn Network, vm_of: &dyn Fn(EnvId, usize) -> Vm) {
    let (stray, kept) = (vm_of(EnvId(1), 0), vm_of(EnvId(2), 0));
    ok("set", net.set_net(&stray));
    ok("set", net.set_net(&kept));
    ok("remove of a stray", net.remove_stray(stray.env_id));
    ok("remove of an absent stray", net.remove_stray(stray.env_id));
    expect(net, &[&kept]);
    let mut heir = vm_of(EnvId(3), 0);
    heir.resource.port_map = stray.resource.port_map.clone();
    ok("set with the ports of a removed stray", net.set_net(&heir));
    ok("unset", net.unset_net(&heir));
    ok("unset", net.unset_net(&kept));
    expect(net, &[]);
}

/// The network does not close under a guest, and closes when the last one is gone.
fn ends(net: &dyn Network, vm_of: &dyn Fn(EnvId, usize) -> Vm) {
    let vm = vm_of(EnvId(1), 0);
    ok("set", net.set_net(&vm));
    ok("close with a member", net.close());
    expect(net, &[&vm]);
    ok("unset", net.unset_net(&vm));
    ok("close", net.close());
    assert!(matches!(net.found(), Err(NetworkError::NotInit)));
    ok("init after close", net.init());
    expect(net, &[]);
    ok("close again", net.close());
}

fn expect(net: &dyn Network, vms: &[&Vm]) {
    let mut envs: BTreeMap<EnvId, BTreeSet<_>> = BTreeMap::new();
    for vm in vms {
        envs.entry(vm.env_id).or_default().insert(vm.id);
    }
    let wanted = Found { envs, leftovers: BTreeSet::new() };
    match net.found() {
        Ok(found) => assert_eq!(found, wanted),
        Err(error) => panic!("found: {error:?}"),
    }
}

fn ok(action: &str, result: Result<(), NetworkError>) {
    if let Err(error) = result {
        panic!("{action}: {error:?}");
    }
}
