//! Where a member may connect to, how much it sends and receives, how many connections it opens, and
//! what is counted of it.

use crate::lab::{CLIENT, Echo, GATEWAY, Guest, HOST, Lab, Space, echoes, is_cut, run};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};
use testkit::hostile::frame;
use tt_model::{EnvId, MacAddr};
use tt_network::Network;

/// A second address of the client's, in the same network.
const SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);

fn allow(lab: &Lab, guest: &mut Guest, rules: &[&str]) {
    guest.vm.state.net_allowlist = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    lab.net.set_net(&guest.vm).unwrap();
}

#[test]
fn an_allow_list_opens_what_it_names_and_nothing_else() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        lab.client.ip(&format!("addr add {SECOND}/24 dev eth0"));
        let (mut guest, friend) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(1), 1));
        let (_near, _inner) = (Echo::new(&friend.space, 80), Echo::new(&guest.space, 80));
        let (_seven, _eight) = (Echo::new(&lab.client, 7), Echo::new(&lab.client, 8));
        let mut open = guest.space.open((CLIENT, 7));
        let mut inbound = lab.client.open((HOST, guest.tcp()));
        // Rules, what they open of (address, port, is TCP), and what they do not.
        let all = [(CLIENT, 7), (CLIENT, 8), (SECOND, 7), (SECOND, 8)];
        let seen = |space: &Space| {
            let tcp = all.map(|to| space.connect(to, Duration::from_millis(120)).is_ok());
            let udp = space.reaches_udp_soon((CLIENT, 7));
            (tcp, udp)
        };
        for (rules, tcp, udp) in [
            (&["192.0.2.2"][..], [true, true, false, false], true),
            (&["192.0.2.0/24:7"], [true, false, true, false], false),
            (&["192.0.2.2:7/udp", "192.0.2.3:8"], [false, false, false, true], true),
            (&["192.0.2.0/24", "192.0.2.2:7"], [true; 4], true),
            (&["198.51.100.0/24"], [false; 4], false),
        ] {
            allow(lab, &mut guest, rules);
            assert_eq!(seen(&guest.space), (tcp, udp), "{rules:?}");
            assert!(lab.client.reaches((HOST, guest.tcp())), "replies pass");
            assert!(guest.space.reaches((friend.addr(), 80)), "members stay reachable");
            assert_eq!(seen(&friend.space), ([true; 4], true), "others are not limited");
        }
        assert!(is_cut(&mut open), "an open connection to where it may not go");
        assert!(echoes(&mut inbound));
        lab.restart();
        lab.net.set_net(&guest.vm).unwrap();
        assert_eq!(seen(&guest.space), ([false; 4], false));
        // What is blocked stays so, and who is denied everything is.
        guest.vm.state.net_blacklist = vec![SECOND.into()];
        allow(lab, &mut guest, &["192.0.2.0/24"]);
        assert_eq!(seen(&guest.space), ([true, true, false, false], true));
        lab.net.deny_outgoing(&guest.vm).unwrap();
        assert_eq!(seen(&guest.space), ([false; 4], false));
        guest.vm.state.net_blacklist.clear();
        allow(lab, &mut guest, &[]);
        assert_eq!(seen(&guest.space), ([true; 4], true));
    });
}

/// Bytes that come through in that time, after what may come at once.
fn throughput(from: &Space, to: &Space, addr: (Ipv4Addr, u16), time: Duration) -> f64 {
    let listener = to.run(|| TcpListener::bind(("0.0.0.0", addr.1)).unwrap());
    let mut sender = from.open(addr);
    let (mut receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let data = [0; 16_384];
            while sender.write_all(&data).is_ok() {}
        });
        let mut buffer = [0; 16_384];
        // The burst, and TCP's search for the rate.
        let settled = Instant::now() + Duration::from_millis(2500);
        while Instant::now() < settled {
            assert!(receiver.read(&mut buffer).unwrap() > 0);
        }
        let (begin, mut bytes) = (Instant::now(), 0);
        while begin.elapsed() < time {
            bytes += receiver.read(&mut buffer).unwrap();
        }
        let rate = bytes as f64 / begin.elapsed().as_secs_f64();
        drop(receiver);
        drop(listener);
        writer.join().unwrap();
        rate
    })
}

#[test]
fn rates_are_bounded_both_ways_each_for_itself() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (mut guest, friend) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(1), 1));
        (guest.vm.resource.up_kbit, guest.vm.resource.down_kbit) = (Some(8000), Some(16_000));
        lab.net.set_net(&guest.vm).unwrap();
        let time = Duration::from_secs(2);
        let up = throughput(&guest.space, &lab.client, (CLIENT, 9001), time);
        assert!((0.5e6..1.15e6).contains(&up), "{up} instead of 1 MB a second");
        let down = throughput(&friend.space, &guest.space, (guest.addr(), 9002), time);
        assert!((1.0e6..2.3e6).contains(&down), "{down} instead of 2 MB a second");
        let traffic = lab.net.traffic(&guest.vm).unwrap();
        assert!(traffic.slowed_packets > 0, "{traffic:?}");
        let other = throughput(&friend.space, &lab.client, (CLIENT, 9003), time);
        assert!(other > 10e6, "{other}: others are not bounded");
        // Changed, taken back, and nothing is left.
        let objects = || lab.env(EnvId(1)).run(|| run("nft", "list limits"));
        guest.vm.resource.up_kbit = Some(4000);
        lab.net.set_net(&guest.vm).unwrap();
        assert_eq!(objects().matches("rate over").count(), 2, "{}", objects());
        (guest.vm.resource.up_kbit, guest.vm.resource.down_kbit) = (None, None);
        lab.net.set_net(&guest.vm).unwrap();
        assert_eq!(objects().matches("rate over").count(), 0);
        guest.vm.resource.up_kbit = Some(4000);
        lab.net.set_net(&guest.vm).unwrap();
        lab.net.unset_net(&guest.vm).unwrap();
        assert_eq!(objects().matches("rate over").count(), 0);
    });
}

#[test]
fn a_member_that_opens_connections_without_end_stops_itself_alone() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (flooder, friend) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(1), 1));
        let _outer = Echo::new(&lab.client, 7);
        let socket = flooder.space.udp(([0, 0, 0, 0], 0));
        for port in 10_000..15_000 {
            let _ = socket.send_to(b"flood", (CLIENT, port));
        }
        assert!(flooder.space.misses((CLIENT, 7)));
        assert!(friend.space.reaches((CLIENT, 7)), "its neighbour is not bounded by it");
        // What it asks its gateway fills no table.
        for port in 10_000..30_000 {
            let _ = socket.send_to(b"flood", (GATEWAY, port));
        }
        let inside = lab.env(EnvId(1));
        let tracked = inside.run(|| {
            let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
            text.unwrap().trim().parse::<usize>().unwrap()
        });
        assert!(tracked < 4200, "{tracked}");
    });
}

#[test]
fn what_a_member_sends_gets_and_may_not_is_counted() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (guest, friend) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(1), 1));
        let other = lab.guest(EnvId(2), 0);
        let traffic = |guest: &Guest| lab.net.traffic(&guest.vm).unwrap();
        let frames = guest.space.frames();
        let macs = (guest.vm.resource.mac_addr, friend.vm.resource.mac_addr);
        let (before, at_friend) = (traffic(&guest), traffic(&friend));
        for _ in 0..50 {
            frames.send(&frame::udp(macs, (guest.addr(), 9), (friend.addr(), 9), &[0; 72]));
        }
        let (after, reached) = (traffic(&guest), traffic(&friend));
        // A stand-in answers ARP and looks for IPv6 by itself, which is counted, too.
        let own = |count: u64| count..count + 10;
        assert!(own(50).contains(&(after.sent_packets - before.sent_packets)), "{after:?}");
        let bytes = after.sent_bytes - before.sent_bytes;
        assert!((5000..6000).contains(&bytes), "{bytes} bytes of IPv4 packets");
        assert!(reached.received_packets - at_friend.received_packets >= 50);
        assert!(own(0).contains(&(after.blocked_packets - before.blocked_packets)));
        let gateway = (macs.0, MacAddr::of_ip(GATEWAY));
        let metadata = Ipv4Addr::new(169, 254, 169, 254);
        for (count, frame) in [
            (10, frame::udp(macs, (friend.addr(), 9), (friend.addr(), 9), b"forged")),
            (20, frame::udp(gateway, (guest.addr(), 9), (other.addr(), 9), b"another env")),
            (30, frame::udp(gateway, (guest.addr(), 9), (metadata, 9), b"metadata")),
            (40, frame::udp(gateway, (guest.addr(), 9), (HOST, 9), b"the host")),
            (50, frame::udp(gateway, (guest.addr(), 9), (GATEWAY, 9), b"the gateway")),
        ] {
            let before = traffic(&guest).blocked_packets;
            (0..count).for_each(|_| frames.send(&frame));
            let blocked = traffic(&guest).blocked_packets - before;
            assert!(own(count).contains(&blocked), "{blocked} instead of {count}");
        }
        assert!(own(0).contains(&traffic(&friend).blocked_packets));
        let sent = traffic(&guest);
        for (blacklist, up_kbit) in
            [(vec![HOST.into()], None), (vec![], Some(8000)), (vec![], None)]
        {
            let mut changed = guest.vm.clone();
            (changed.state.net_blacklist, changed.resource.up_kbit) = (blacklist, up_kbit);
            lab.net.set_net(&changed).unwrap();
            let now = traffic(&guest);
            assert!(now.sent_packets >= sent.sent_packets, "{now:?} after {sent:?}");
            assert!(now.sent_bytes >= sent.sent_bytes, "{now:?} after {sent:?}");
        }
        lab.restart();
        lab.net.set_net(&guest.vm).unwrap();
        let blocked = lab.net.traffic(&guest.vm).unwrap().blocked_packets;
        assert!(blocked >= 150, "{blocked}: a restart forgets nothing");
    });
}
