//! What must not be reachable, with hostile guests.

use crate::lab::{CLIENT, Echo, GATEWAY, Guest, HOST, Lab, Space, echoes, ip, is_cut};
use std::net::Ipv4Addr;
use testkit::hostile::frame::{self, BROADCAST};
use tt_model::{EnvId, MacAddr};
use tt_network::Network;

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn identity(guest: &Guest) -> (MacAddr, Ipv4Addr) {
    (guest.vm.resource.mac_addr, guest.addr())
}

#[test]
fn no_frame_leaves_under_another_name() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let [attacker, victim, other] = [0, 1, 2].map(|index| lab.guest(EnvId(1), index));
        let (out, seen) = (attacker.space.frames(), victim.space.frames());
        let ((mac, addr), (to_mac, to)) = (identity(&attacker), identity(&victim));
        let (other_mac, other_addr) = identity(&other);
        let gateway_mac = MacAddr::of_ip(GATEWAY);
        let udp =
            |mac, addr, mark: &str| frame::udp((mac, to_mac), (addr, 9), (to, 9), mark.as_bytes());
        let arp = |on, sender, mark: &str| frame::arp(on, sender, to, mark.as_bytes());
        for (mark, frame) in [
            ("honest data", udp(mac, addr, "honest data")),
            ("honest arp", arp(mac, (mac, addr), "honest arp")),
            ("honest probe", arp(mac, (mac, ANY), "honest probe")),
        ] {
            out.send(&frame);
            assert!(seen.sees(mark.as_bytes()), "{mark}");
        }
        for (mark, frame) in [
            ("forged mac", udp(other_mac, addr, "forged mac")),
            ("forged ip", udp(mac, other_addr, "forged ip")),
            ("forged both", udp(other_mac, other_addr, "forged both")),
            ("forged gateway", udp(gateway_mac, GATEWAY, "forged gateway")),
            ("nobody's ip", udp(mac, ANY, "nobody's ip")),
            ("tagged", frame::tagged(&udp(mac, addr, "tagged"))),
            ("tagged forged", frame::tagged(&udp(mac, other_addr, "tagged forged"))),
            ("arp for gateway", arp(mac, (mac, GATEWAY), "arp for gateway")),
            ("arp for other", arp(mac, (mac, other_addr), "arp for other")),
            ("arp with mac", arp(mac, (other_mac, addr), "arp with mac")),
            ("arp on mac", arp(other_mac, (mac, addr), "arp on mac")),
            ("probe with mac", arp(mac, (other_mac, ANY), "probe with mac")),
            ("ipv6", frame::ether(BROADCAST, mac, 0x86dd, b"`ipv6")),
            ("unknown kind", frame::ether(BROADCAST, mac, 0x88b5, b"unknown kind")),
            (
                "discover",
                frame::udp((mac, BROADCAST), (ANY, 68), (Ipv4Addr::BROADCAST, 67), b"discover"),
            ),
            (
                "offer",
                frame::udp((mac, BROADCAST), (addr, 67), (Ipv4Addr::BROADCAST, 68), b"offer"),
            ),
        ] {
            out.send(&frame);
            assert!(seen.sees_not(mark.as_bytes()), "{mark}");
        }
    });
}

#[test]
fn no_frame_gets_in_beside_the_bridge() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let frames = guest.space.frames();
        let (mac, addr) = identity(&guest);
        let ping = |to: MacAddr, from: Ipv4Addr, mark: &str| {
            frame::ping((mac, to), from, GATEWAY, mark.as_bytes())
        };
        frames.send(&ping(MacAddr::of_ip(GATEWAY), addr, "honest"));
        assert!(frames.sees(b"honest"));
        for last in [0, 1, 3, 0x0e, 0x0f] {
            let group = MacAddr([0x01, 0x80, 0xc2, 0, 0, last]);
            frames.send(&ping(group, addr, "beside"));
            assert!(frames.sees_not(b"beside"), "{group}");
        }
    });
}

#[test]
fn envs_are_apart() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (a, b) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(2), 0));
        let tcp = Echo::new(&b.space, 80);
        let _udp = Echo::new(&b.space, 53);
        assert!(lab.client.reaches((HOST, b.tcp())));
        assert!(a.space.misses((b.addr(), 80)));
        for addr in [HOST, Ipv4Addr::new(169, 254, 0, 1), GATEWAY] {
            assert!(a.space.misses((addr, b.tcp())), "{addr}");
            assert!(a.space.misses_udp((addr, b.udp())), "{addr}");
        }
        assert_eq!(tcp.last().unwrap().ip(), CLIENT, "nobody else came");
    });
}

/// As if a guest had broken the bridge's rules: the host's own must hold all the same.
#[test]
fn envs_are_apart_even_when_a_namespace_lets_everything_out() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (a, b) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(2), 0));
        let inner = Echo::new(&b.space, 80);
        let outer = Echo::new(&lab.client, 7);
        let inside = lab.env(EnvId(1));
        let edge = "via 169.254.0.1 dev edge0 onlink";
        inside.ip(&format!("route add {} {edge}", b.addr()));
        let forged = [b.addr(), Ipv4Addr::new(10, 0, 9, 9), HOST, Ipv4Addr::new(8, 8, 8, 8)];
        for from in forged {
            inside.ip(&format!("addr add {from}/32 dev lo"));
        }
        inside.ip(&format!("addr add {}/32 dev lo", a.addr()));
        for from in forged.into_iter().chain([a.addr()]) {
            let socket = inside.udp((from, 0));
            socket.send_to(b"forged", (b.addr(), 80)).unwrap();
            if from != a.addr() {
                socket.send_to(b"forged", (CLIENT, 7)).unwrap();
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(inner.last(), None);
        assert_eq!(outer.last(), None);
        let honest = inside.udp((a.addr(), 0));
        honest.send_to(b"honest", (CLIENT, 7)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(outer.last().unwrap().ip(), HOST, "the way as such is open");
    });
}

#[test]
fn guests_reach_no_service_of_the_host() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        ip("addr add 198.51.100.1/32 dev lo");
        let guest = lab.guest(EnvId(1), 0);
        let _service = Echo::new(&lab.host, 2222);
        assert!(lab.client.reaches((HOST, 2222)));
        let addresses = ["192.0.2.1", "198.51.100.1", "169.254.0.1", "10.0.0.1", "127.0.0.1"];
        for addr in addresses.map(|addr| addr.parse::<Ipv4Addr>().unwrap()) {
            assert!(guest.space.misses((addr, 2222)), "{addr}");
            assert!(guest.space.misses_udp((addr, 2222)), "{addr}");
            assert!(guest.space.misses((addr, guest.tcp())), "{addr}");
        }
        let _inner = Echo::new(&guest.space, 80);
        assert!(lab.host.reaches((guest.addr(), 80)), "the host may ask, and gets its answer");
    });
}

#[test]
fn clouds_keep_their_secrets_and_strangers_stay_out() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let secrets = Ipv4Addr::new(169, 254, 169, 254);
        lab.client.ip(&format!("addr add {secrets}/32 dev eth0"));
        ip(&format!("route add {secrets} dev up0"));
        let _metadata = Echo::new(&lab.client, 8080);
        assert!(lab.host.reaches((secrets, 8080)));
        assert!(guest.space.misses((secrets, 8080)));
        lab.client.ip(&format!("route add 10.0.0.0/16 via {HOST}"));
        let _inner = Echo::new(&guest.space, 80);
        assert!(lab.client.misses((guest.addr(), 80)));
        assert!(lab.client.misses_udp((guest.addr(), 80)));
        assert!(lab.client.reaches((HOST, guest.tcp())));
    });
}

#[test]
fn denied_guests_answer_and_ask_nobody() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (mut guest, friend) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(1), 1));
        let _inner = Echo::new(&guest.space, 80);
        let _near = Echo::new(&friend.space, 80);
        let _outer = Echo::new(&lab.client, 7);
        let mut inbound = lab.client.open((HOST, guest.tcp()));
        let mut outbound = guest.space.open((CLIENT, 7));
        assert!(echoes(&mut inbound) && echoes(&mut outbound));
        lab.net.deny_outgoing(&guest.vm).unwrap();
        let denied = |lab: &Lab, guest: &Guest| {
            assert!(guest.space.misses((CLIENT, 7)));
            assert!(guest.space.misses_udp((CLIENT, 7)));
            assert!(lab.client.reaches((HOST, guest.tcp())), "replies pass");
            assert!(guest.space.reaches((friend.addr(), 80)), "members stay reachable");
            assert!(friend.space.reaches((CLIENT, 7)), "others are not denied");
        };
        denied(lab, &guest);
        assert!(echoes(&mut inbound));
        assert!(is_cut(&mut outbound));
        guest.vm.deny_outgoing = true;
        lab.restart();
        denied(lab, &guest);
        lab.net.set_net(&guest.vm).unwrap();
        denied(lab, &guest);
        assert!(echoes(&mut inbound));
        lab.net.allow_outgoing(&guest.vm).unwrap();
        assert!(guest.space.reaches((CLIENT, 7)));
        lab.net.set_net(&guest.vm).unwrap();
        assert!(guest.space.misses((CLIENT, 7)), "the record says so");
    });
}

#[test]
fn the_blacklist_holds_for_open_connections_too() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let second = Ipv4Addr::new(192, 0, 2, 3);
        lab.client.ip(&format!("addr add {second}/24 dev eth0"));
        let (mut guest, friend) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(1), 1));
        let _near = Echo::new(&friend.space, 80);
        let _outer = Echo::new(&lab.client, 7);
        let reaches =
            |space: &Space, addr| space.reaches((addr, 7)) && space.reaches_udp((addr, 7));
        let mut open = guest.space.open((CLIENT, 7));
        let mut near = guest.space.open((friend.addr(), 80));
        assert!(echoes(&mut open) && echoes(&mut near));
        guest.vm.state.net_blacklist = vec![CLIENT.into(), friend.addr().into()];
        lab.net.set_blacklist(&guest.vm).unwrap();
        assert!(is_cut(&mut open) && is_cut(&mut near));
        assert!(guest.space.misses((CLIENT, 7)) && guest.space.misses_udp((CLIENT, 7)));
        assert!(guest.space.misses((friend.addr(), 80)));
        assert!(guest.space.reaches((second, 7)));
        assert!(reaches(&friend.space, CLIENT));
        guest.vm.state.net_blacklist = vec![second.into()];
        lab.net.set_net(&guest.vm).unwrap();
        assert!(reaches(&guest.space, CLIENT));
        assert!(guest.space.misses((second, 7)));
    });
}

#[test]
fn a_guest_can_not_fill_the_hosts_table_of_connections() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (flooder, guest) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(2), 0));
        let _inner = Echo::new(&flooder.space, 80);
        let _outer = Echo::new(&lab.client, 7);
        let socket = flooder.space.udp(([0, 0, 0, 0], 0));
        for port in 10_000..30_000 {
            let _ = socket.send_to(b"flood", (CLIENT, port));
        }
        assert!(flooder.space.misses((CLIENT, 7)));
        assert!(guest.space.reaches((CLIENT, 7)));
        assert!(lab.client.reaches((HOST, flooder.tcp())));
    });
}
