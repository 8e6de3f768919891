//! What must be reachable: members, published ports, the outside.

use crate::lab::{CLIENT, Echo, GATEWAY, HOST, Lab, echoes, is_cut, run};
use std::net::Ipv4Addr;
use testkit::hostile::frame;
use tt_model::{EnvId, MacAddr};
use tt_network::Network;

#[test]
fn members_reach_each_other_and_the_gateway_answers_ping() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (a, b) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(1), 1));
        let _echo = Echo::new(&b.space, 80);
        assert!(a.space.reaches((b.addr(), 80)));
        assert!(a.space.reaches_udp((b.addr(), 80)));
        let frames = a.space.frames();
        let macs = (a.vm.resource.mac_addr, MacAddr::of_ip(GATEWAY));
        frames.send(&frame::ping(macs, a.addr(), GATEWAY, b"are you there"));
        assert!(frames.sees(b"are you there"));
    });
}

#[test]
fn the_host_reaches_members_from_inside_and_is_not_reached_there() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let mut guest = lab.guest(EnvId(1), 0);
        let inside = lab.env(EnvId(1));
        let _servers = [22, 53].map(|port| Echo::new(&guest.space, port));
        let own = Echo::new(&inside, 2222);
        let mut open = inside.open((guest.addr(), 22));
        for is_denied in [false, true] {
            guest.vm.deny_outgoing = is_denied;
            lab.net.set_net(&guest.vm).unwrap();
            assert!(echoes(&mut open), "denied: {is_denied}");
            assert!(inside.reaches((guest.addr(), 22)) && inside.reaches((guest.addr(), 53)));
            assert!(!guest.space.reaches((GATEWAY, 2222)));
        }
        assert_eq!(own.last(), None);
    });
}

#[test]
fn published_ports_are_reached_from_everywhere() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let tcp = Echo::new(&guest.space, 80);
        let udp = Echo::new(&guest.space, 53);
        assert!(lab.client.reaches((HOST, guest.tcp())));
        assert_eq!(tcp.last().unwrap().ip(), CLIENT, "the client's own address is seen");
        assert!(lab.client.reaches_udp((HOST, guest.udp())));
        assert_eq!(udp.last().unwrap().ip(), CLIENT);
        for addr in [HOST, Ipv4Addr::LOCALHOST] {
            assert!(lab.host.reaches((addr, guest.tcp())), "{addr}");
            assert!(lab.host.reaches_udp((addr, guest.udp())), "{addr}");
        }
        assert!(lab.client.misses((HOST, guest.udp())), "protocols are apart");
        assert!(lab.host.reaches((guest.addr(), 80)), "the host itself reaches members");
    });
}

#[test]
fn guests_reach_the_outside_with_the_hosts_address() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let echo = Echo::new(&lab.client, 7);
        assert!(guest.space.reaches((CLIENT, 7)));
        assert_eq!(echo.last().unwrap().ip(), HOST);
        assert!(guest.space.reaches_udp((CLIENT, 7)));
        assert_eq!(echo.last().unwrap().ip(), HOST);
    });
}

#[test]
fn a_forward_chain_that_drops_is_passed() {
    Lab::run(|lab| {
        run("nft", "add table ip filter");
        run(
            "nft",
            "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
        );
        lab.net.init().unwrap();
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let _inner = Echo::new(&guest.space, 80);
        let _outer = Echo::new(&lab.client, 7);
        assert!(guest.space.reaches((CLIENT, 7)));
        assert!(lab.client.reaches((HOST, guest.tcp())));
        let rules = || run("nft", "list chain ip filter FORWARD");
        assert_eq!(rules().matches("accept").count(), 2);
        lab.net.unset_net(&guest.vm).unwrap();
        lab.net.close().unwrap();
        assert_eq!(rules().matches("accept").count(), 0);
    });
}

#[test]
fn a_changed_record_moves_ports_on_a_live_guest() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let _echo = Echo::new(&guest.space, 80);
        let mut open = lab.client.open((HOST, guest.tcp()));
        assert!(echoes(&mut open));
        let mut vm = guest.vm.clone();
        vm.resource.port_map.insert("80".parse().unwrap(), 30_000);
        lab.net.set_net(&vm).unwrap();
        assert!(lab.client.reaches((HOST, 30_000)));
        assert!(lab.client.misses((HOST, guest.tcp())), "the old port is gone");
        assert!(is_cut(&mut open), "and with it what came through it");
    });
}
