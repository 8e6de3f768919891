//! Changed records on live guests: what changes, changes at once and for open connections too;
//! what stays the same is not interrupted; and the next daemon finds it so.

use crate::lab::{CLIENT, Echo, Guest, HOST, Lab, Space, echoes, is_cut, run};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;
use tt_model::{EnvId, InnerPort, Protocol, Vm};
use tt_network::Network;
use tt_network::conformance::sample_vm;

fn tcp(port: u16) -> InnerPort {
    InnerPort { port, protocol: Protocol::Tcp }
}

/// The next daemon on the same host, and the same record once more.
fn restart(lab: &mut Lab, vm: &Vm) {
    lab.restart();
    lab.net.set_net(vm).unwrap();
}

/// Who answers on a UDP socket that always has the same port.
fn answers(socket: &UdpSocket, public: u16) -> bool {
    let mut answer = [0; 16];
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    while socket.recv(&mut answer).is_ok() {}
    socket.send_to(b"echo", (HOST, public)).unwrap();
    socket.recv(&mut answer).is_ok()
}

#[test]
fn a_port_is_added_and_nothing_else_notices() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let mut guest = lab.guest(EnvId(1), 0);
        let (_first, _second) = (Echo::new(&guest.space, 80), Echo::new(&guest.space, 81));
        let mut open = lab.client.open((HOST, guest.tcp()));
        assert!(echoes(&mut open) && lab.client.misses((HOST, 30_000)));
        guest.vm.resource.port_map.insert(tcp(81), 30_000);
        lab.net.set_net(&guest.vm).unwrap();
        for _ in 0..2 {
            assert!(lab.client.reaches((HOST, 30_000)));
            assert!(echoes(&mut open));
            restart(lab, &guest.vm);
        }
    });
}

#[test]
fn connections_through_a_removed_port_end_and_others_go_on() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let mut guest = lab.guest(EnvId(1), 0);
        let public = guest.tcp();
        guest.vm.resource.port_map.insert(tcp(81), 30_000);
        lab.net.set_net(&guest.vm).unwrap();
        let (_first, _second) = (Echo::new(&guest.space, 80), Echo::new(&guest.space, 81));
        let _outer = Echo::new(&lab.client, 7);
        let mut removed = [
            lab.client.open((HOST, public)),
            lab.host.open((HOST, public)),
            lab.host.open((Ipv4Addr::LOCALHOST, public)),
        ];
        let mut kept = [lab.client.open((HOST, 30_000)), guest.space.open((CLIENT, 7))];
        assert!(removed.iter_mut().chain(&mut kept).all(echoes));
        guest.vm.resource.port_map.remove(&tcp(80));
        lab.net.set_net(&guest.vm).unwrap();
        assert!(removed.iter_mut().all(is_cut));
        assert!(lab.client.misses((HOST, public)));
        assert!(kept.iter_mut().all(echoes));
        restart(lab, &guest.vm);
        assert!(lab.client.misses((HOST, public)));
        assert!(kept.iter_mut().all(echoes));
    });
}

#[test]
fn a_daemon_that_died_while_it_removed_a_port_leaves_no_connection() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let _echo = Echo::new(&guest.space, 80);
        let mut removed = lab.client.open((HOST, guest.tcp()));
        assert!(echoes(&mut removed));
        let table = lab.layout.nft_table();
        run("nft", &format!("delete element inet {table} ports {{ tcp . {} }}", guest.tcp()));
        assert!(echoes(&mut removed), "nobody has ended it yet");
        lab.restart();
        assert!(is_cut(&mut removed));
    });
}

#[test]
fn a_port_moves_to_another_vm_with_all_that_comes_to_it() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (mut old, mut new) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(2), 0));
        let (of_old, of_new) = (Echo::new(&old.space, 80), Echo::new(&new.space, 80));
        let (_old_udp, new_udp) = (Echo::new(&old.space, 53), Echo::new(&new.space, 53));
        let (public, udp) = (old.tcp(), old.udp());
        let mut open = lab.client.open((HOST, public));
        let socket = lab.client.udp(([0, 0, 0, 0], 4000));
        assert!(echoes(&mut open) && answers(&socket, udp));
        let moved = std::mem::take(&mut old.vm.resource.port_map);
        new.vm.resource.port_map = moved;
        lab.net.set_net(&old.vm).unwrap();
        lab.net.set_net(&new.vm).unwrap();
        assert!(is_cut(&mut open));
        assert!(of_old.last().is_some() && of_new.last().is_none());
        assert!(lab.client.reaches((HOST, public)));
        assert!(of_new.last().is_some());
        // A client that never changes its own port is no exception.
        assert!(answers(&socket, udp) && new_udp.last().is_some());
        restart(lab, &new.vm);
        assert!(lab.client.reaches((HOST, public)) && answers(&socket, udp));
    });
}

/// Away and back with a record, and what is to hold meanwhile.
fn denied(lab: &Lab, guest: &Guest, friend: &Guest) {
    assert!(guest.space.misses((CLIENT, 7)) && guest.space.misses_udp((CLIENT, 7)));
    assert!(lab.client.reaches((HOST, guest.tcp())), "replies pass");
    assert!(guest.space.reaches((friend.addr(), 80)), "members stay reachable");
}

#[test]
fn a_denied_guests_connections_stand_still_and_go_on_when_it_is_allowed() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (mut guest, friend) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(1), 1));
        let (_inner, _near) = (Echo::new(&guest.space, 80), Echo::new(&friend.space, 80));
        let _outer = Echo::new(&lab.client, 7);
        let mut inbound = lab.client.open((HOST, guest.tcp()));
        let mut outbound = guest.space.open((CLIENT, 7));
        assert!(echoes(&mut inbound) && echoes(&mut outbound));
        guest.vm.deny_outgoing = true;
        lab.net.set_net(&guest.vm).unwrap();
        assert!(is_cut(&mut outbound));
        for _ in 0..2 {
            denied(lab, &guest, &friend);
            assert!(echoes(&mut inbound));
            restart(lab, &guest.vm);
        }
        lab.plug(&guest);
        denied(lab, &guest, &friend);
        guest.vm.deny_outgoing = false;
        lab.net.set_net(&guest.vm).unwrap();
        assert!(guest.space.reaches((CLIENT, 7)) && echoes(&mut inbound));
        // What was sent meanwhile is sent again by TCP.
        outbound.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert!(echoes(&mut outbound), "it goes on");
        restart(lab, &guest.vm);
        assert!(guest.space.reaches((CLIENT, 7)));
    });
}

#[test]
fn a_changed_blacklist_holds_for_open_connections() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let second = Ipv4Addr::new(192, 0, 2, 3);
        lab.client.ip(&format!("addr add {second}/24 dev eth0"));
        let mut guest = lab.guest(EnvId(1), 0);
        let _outer = Echo::new(&lab.client, 7);
        let mut first_open = guest.space.open((CLIENT, 7));
        let mut second_open = guest.space.open((second, 7));
        assert!(echoes(&mut first_open) && echoes(&mut second_open));
        guest.vm.state.net_blacklist = vec![CLIENT.into()];
        lab.net.set_net(&guest.vm).unwrap();
        for _ in 0..2 {
            assert!(guest.space.misses((CLIENT, 7)) && guest.space.misses_udp((CLIENT, 7)));
            assert!(is_cut(&mut first_open) && guest.space.reaches((second, 7)));
            restart(lab, &guest.vm);
        }
        lab.plug(&guest);
        assert!(guest.space.misses((CLIENT, 7)) && guest.space.reaches((second, 7)));
        assert!(echoes(&mut second_open), "it was never listed");
        guest.vm.state.net_blacklist = vec![second.into()];
        lab.net.set_net(&guest.vm).unwrap();
        assert!(is_cut(&mut second_open));
        assert!(guest.space.misses((second, 7)) && guest.space.reaches((CLIENT, 7)));
        guest.vm.state.net_blacklist.clear();
        lab.net.set_net(&guest.vm).unwrap();
        assert!(guest.space.reaches((second, 7)) && guest.space.reaches((CLIENT, 7)));
        restart(lab, &guest.vm);
        assert!(guest.space.reaches((second, 7)));
    });
}

#[test]
fn thousands_of_ports_and_addresses_are_set_changed_and_removed() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let (_echo, _outer) = (Echo::new(&guest.space, 80), Echo::new(&lab.client, 7));
        let mut vm = guest.vm.clone();
        vm.resource.port_map = (0..3000).map(|n| (tcp(80 + n), 30_000 + n)).collect();
        let listed =
            |first: u16| (0..1024).map(move |n| Ipv4Addr::from(0xc633_6400 + u32::from(first + n)));
        vm.state.net_blacklist = listed(0).chain([CLIENT]).map(IpAddr::from).collect();
        lab.net.set_net(&vm).unwrap();
        assert!(lab.host.reaches((HOST, 30_000)));
        assert!(guest.space.misses((CLIENT, 7)));
        let inside = lab.env(EnvId(1));
        let count = |space: &Space, set: &str, mark: &str| {
            space.run(|| run("nft", &format!("list {set}")).matches(mark).count())
        };
        let ports = format!("map inet {} ports", lab.layout.nft_table());
        let blacklist = "set bridge tt blacklist";
        let own = format!("{} . ", guest.addr());
        assert_eq!(count(&lab.host, &ports, "comment"), 3000);
        assert_eq!(count(&inside, blacklist, &own), 1025);
        // Nearly all are others; one stays.
        vm.resource.port_map = (0..3000).map(|n| (tcp(80 + n), 30_000 + 3 * n)).collect();
        vm.state.net_blacklist = listed(2000).chain([CLIENT]).map(IpAddr::from).collect();
        lab.net.set_net(&vm).unwrap();
        assert!(lab.host.reaches((HOST, 30_000)));
        assert!(guest.space.misses((CLIENT, 7)));
        assert_eq!(count(&lab.host, &ports, "comment"), 3000);
        assert_eq!(count(&inside, blacklist, &own), 1025);
        restart(lab, &vm);
        assert_eq!(count(&inside, blacklist, &own), 1025);
        let other = sample_vm(EnvId(1), 1);
        lab.net.set_net(&other).unwrap();
        lab.net.unset_net(&vm).unwrap();
        assert_eq!(count(&inside, blacklist, &own), 0);
        assert_eq!(count(&lab.host, &ports, "comment"), 2, "those of the other one");
        lab.net.set_net(&vm).unwrap();
        lab.net.remove_stray(EnvId(1)).unwrap();
        assert_eq!(count(&lab.host, &ports, "comment"), 0);
        assert_eq!(lab.net.found().unwrap().envs.keys().collect::<BTreeSet<_>>(), BTreeSet::new());
    });
}
