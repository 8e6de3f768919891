//! Everything that a guest with a raw socket may try, as a table: nothing of it arrives anywhere, what
//! it sent is counted as forbidden, and floods disturb nobody else.

use crate::frame::{self, BROADCAST, Frames, arp, ether, packet, syn, tagged, udp, udp_fragment};
use crate::lab::{CLIENT, Echo, GATEWAY, Guest, HOST, Lab, ip};
use std::net::Ipv4Addr;
use std::time::Duration;
use tt_model::{EnvId, MacAddr};
use tt_network::{EnvNames, Network};

const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const STRANGER: MacAddr = MacAddr([0x82, 0x17, 0x0d, 7, 7, 7]);
/// A second address of the host.
const SECOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Where the host's own services listen.
const SERVICE: u16 = 2222;
const IPV6: u16 = 0x86dd;

/// A frame, made from what marks it, and whether a counter must show it: some are dropped before any
/// rule of ours is asked.
struct Case {
    name: &'static str,
    frames: Vec<Vec<u8>>,
    is_counted: bool,
}

/// Who attacks whom.
struct Scene<'a> {
    me: &'a Guest,
    victim: &'a Guest,
    other: &'a Guest,
}

impl Scene<'_> {
    fn cases(&self) -> Vec<Case> {
        let mut cases = self.wrong_frames();
        cases.extend(self.wrong_arp());
        cases.extend(self.wrong_addresses());
        cases.extend(self.wrong_dhcp_and_ipv6());
        cases.extend(self.out_of_reach());
        cases.extend(self.in_parts());
        cases
    }

    fn macs(&self) -> (MacAddr, MacAddr) {
        (self.me.vm.resource.mac_addr, self.victim.vm.resource.mac_addr)
    }

    fn to_gateway(&self) -> (MacAddr, MacAddr) {
        (self.macs().0, MacAddr::of_ip(GATEWAY))
    }

    fn honest(&self, name: &str) -> Vec<u8> {
        udp(self.macs(), (self.me.addr(), 9), (self.victim.addr(), 9), name.as_bytes())
    }

    /// To somewhere beyond the gateway, from the guest's own address.
    fn beyond(&self, to: Ipv4Addr, port: u16, name: &str) -> Vec<u8> {
        udp(self.to_gateway(), (self.me.addr(), 9), (to, port), name.as_bytes())
    }

    fn wrong_frames(&self) -> Vec<Case> {
        let (mac, victim) = self.macs();
        let from = |mac, name: &str| {
            udp((mac, victim), (self.me.addr(), 9), (self.victim.addr(), 9), name.as_bytes())
        };
        let group = |last| MacAddr([0x01, 0x80, 0xc2, 0, 0, last]);
        let kind = |to, kind: u16, name: &str| ether(to, mac, kind, name.as_bytes());
        vec![
            one("the victim's hardware address", |n| from(victim, n)),
            one("the gateway's hardware address", |n| from(MacAddr::of_ip(GATEWAY), n)),
            one("nobody's hardware address", |n| from(STRANGER, n)),
            silent("a group's hardware address", |n| from(MacAddr([0x83, 0x17, 0x0d, 0, 1, 2]), n)),
            one("a tag of a virtual lan", |n| tagged(&self.honest(n))),
            one("two tags", |n| tagged(&tagged(&self.honest(n)))),
            one("a provider's tag", |n| {
                let honest = self.honest(n);
                [&honest[..12], &[0x88, 0xa8, 0, 1], &honest[12..]].concat()
            }),
            one("an unknown kind", |n| kind(BROADCAST, 0x88b5, n)),
            silent("a switch's neighbour", |n| kind(group(0x0e), 0x88cc, n)),
            one("a spanning tree", |n| kind(group(0), 38, n)),
            silent("a pause", |n| kind(group(1), 0x8808, n)),
            one("a bundle of links", |n| kind(group(2), 0x8809, n)),
            one("an authentication", |n| kind(group(3), 0x888e, n)),
            one("a modem's discovery", |n| kind(BROADCAST, 0x8863, n)),
            one("labels", |n| kind(victim, 0x8847, n)),
        ]
    }

    fn wrong_arp(&self) -> Vec<Case> {
        let (mac, victim) = self.macs();
        let (me, to) = (self.me.addr(), self.victim.addr());
        let arp = |on, sender, n: &str| arp(on, sender, to, n.as_bytes());
        let reply = |addr, n: &str| {
            let mut frame = arp(mac, (mac, addr), n);
            frame[..6].copy_from_slice(&victim.0);
            frame[21] = 2;
            frame
        };
        vec![
            one("arp: asks as the gateway", |n| arp(mac, (mac, GATEWAY), n)),
            one("arp: is the gateway", |n| reply(GATEWAY, n)),
            one("arp: is the victim", |n| reply(to, n)),
            one("arp: has the victim's hardware", |n| arp(mac, (victim, me), n)),
            one("arp: on the victim's hardware", |n| arp(victim, (mac, me), n)),
            one("arp: probes with the victim's", |n| arp(mac, (victim, NOBODY), n)),
            one("arp: an address of another env", |n| arp(mac, (mac, self.other.addr()), n)),
            one("rarp", |n| ether(BROADCAST, mac, 0x8035, n.as_bytes())),
        ]
    }

    fn wrong_addresses(&self) -> Vec<Case> {
        let from =
            |addr, n: &str| udp(self.macs(), (addr, 9), (self.victim.addr(), 9), n.as_bytes());
        let out = |addr, n: &str| udp(self.to_gateway(), (addr, 9), (CLIENT, 9), n.as_bytes());
        vec![
            one("from the victim", |n| from(self.victim.addr(), n)),
            one("from the gateway", |n| from(GATEWAY, n)),
            one("from nobody", |n| from(NOBODY, n)),
            one("from all", |n| from(Ipv4Addr::BROADCAST, n)),
            one("from itself at home", |n| from(Ipv4Addr::LOCALHOST, n)),
            one("from a group", |n| from(Ipv4Addr::new(224, 0, 0, 1), n)),
            one("out from the victim", |n| out(self.victim.addr(), n)),
            one("out from the host", |n| out(HOST, n)),
            one("out from the outside", |n| out(CLIENT, n)),
            one("out from another env", |n| out(self.other.addr(), n)),
            one("out from nowhere", |n| out(Ipv4Addr::new(203, 0, 113, 7), n)),
        ]
    }

    fn wrong_dhcp_and_ipv6(&self) -> Vec<Case> {
        let (mac, victim) = self.macs();
        let all = (mac, BROADCAST);
        let me = self.me.addr();
        let six = |to, next: u8, n: &str| {
            let mut body = vec![0x60, 0, 0, 0, 0, n.len() as u8, next, 255];
            body.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            body.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            ether(to, mac, IPV6, &[&body, n.as_bytes()].concat())
        };
        let named = |n: &str, mac: MacAddr| {
            let mut body = vec![0; 240];
            body[28..34].copy_from_slice(&mac.0);
            [&body, n.as_bytes()].concat()
        };
        vec![
            one("dhcp: offers", |n| udp(all, (me, 67), (Ipv4Addr::BROADCAST, 68), n.as_bytes())),
            one("dhcp: answers the victim", |n| {
                udp(self.macs(), (me, 67), (self.victim.addr(), 68), n.as_bytes())
            }),
            one("dhcp: asks the members", |n| {
                udp(all, (NOBODY, 68), (Ipv4Addr::BROADCAST, 67), &named(n, mac))
            }),
            one("dhcp: asks for the victim", |n| {
                udp(all, (NOBODY, 68), (Ipv4Addr::BROADCAST, 67), &named(n, victim))
            }),
            one("ipv6: a router", |n| six(BROADCAST, 58, n)),
            one("ipv6: to a group", |n| six(MacAddr([0x33, 0x33, 0, 0, 0, 1]), 58, n)),
            one("ipv6: a lease", |n| six(MacAddr([0x33, 0x33, 0, 1, 0, 2]), 17, n)),
            one("ipv6: to the victim", |n| six(victim, 17, n)),
            one("ipv6: hop by hop", |n| six(victim, 0, n)),
        ]
    }

    fn out_of_reach(&self) -> Vec<Case> {
        let (public_tcp, public_udp) = (self.other.tcp(), self.other.udp());
        let edge = Ipv4Addr::new(169, 254, 0, 1);
        let me = self.me.addr();
        let syn = |to, port, n: &str| syn(self.to_gateway(), (me, to), port, n.as_bytes());
        let raw =
            |to, protocol, n: &str| packet(self.to_gateway(), (me, to), protocol, n.as_bytes());
        vec![
            one("another env", |n| self.beyond(self.other.addr(), 53, n)),
            one("another env by tcp", |n| syn(self.other.addr(), 80, n)),
            one("another env by gre", |n| raw(self.other.addr(), 47, n)),
            one("a host's service", |n| self.beyond(HOST, SERVICE, n)),
            one("a host's service by tcp", |n| syn(HOST, SERVICE, n)),
            one("at its second address", |n| self.beyond(SECOND, SERVICE, n)),
            one("at its second address by tcp", |n| syn(SECOND, SERVICE, n)),
            one("at the end of the edge", |n| self.beyond(edge, SERVICE, n)),
            one("at the end of the edge by tcp", |n| syn(edge, SERVICE, n)),
            one("at the gateway", |n| self.beyond(GATEWAY, SERVICE, n)),
            one("at the gateway by tcp", |n| syn(GATEWAY, SERVICE, n)),
            one("at home", |n| self.beyond(Ipv4Addr::LOCALHOST, SERVICE, n)),
            one("at home by tcp", |n| syn(Ipv4Addr::LOCALHOST, SERVICE, n)),
            one("all of the host's link", |n| self.beyond(Ipv4Addr::new(192, 0, 2, 255), 9, n)),
            one("a published port", |n| self.beyond(HOST, public_udp, n)),
            one("a published port by tcp", |n| syn(HOST, public_tcp, n)),
            one("a published port at the gateway", |n| syn(GATEWAY, public_tcp, n)),
            one("the metadata of a cloud", |n| self.beyond(METADATA, 80, n)),
            one("the metadata by tcp", |n| syn(METADATA, 80, n)),
            one("the tunnel's port", |n| self.beyond(HOST, 4789, n)),
            one("another protocol to the host", |n| raw(HOST, 47, n)),
        ]
    }

    fn in_parts(&self) -> Vec<Case> {
        let me = self.me.addr();
        // What begins a datagram of `length` bytes.
        let head = |from: u16, to: u16, length: u16| {
            [from.to_be_bytes(), to.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat()
        };
        let parts = |macs, to, n: &str, ports: (u16, u16)| {
            let length = 8 + 8 + n.len() as u16;
            let first = [head(ports.0, ports.1, length), vec![b'-'; 8]].concat();
            let more = udp_fragment(macs, (me, to), [0x20, 0], &first);
            vec![more, udp_fragment(macs, (me, to), [0, 2], n.as_bytes())]
        };
        let several = |name: &'static str, frames: &dyn Fn(&str) -> Vec<Vec<u8>>| Case {
            name,
            frames: frames(&mark(name)),
            is_counted: true,
        };
        let broken = |n: &str| {
            let mut frame = self.beyond(CLIENT, 9, n);
            // A checksum that is none: nobody would translate such a packet.
            frame[14 + 20 + 6..14 + 20 + 8].copy_from_slice(&[0xde, 0xad]);
            frame
        };
        let route = |n: &str| {
            let mut frame = self.beyond(HOST, SERVICE, n);
            let options = [131, 7, 4, 192, 0, 2, 1, 0];
            frame.splice(34..34, options);
            frame[14] = 0x47;
            frame
        };
        vec![
            several("in parts to the host", &|n| parts(self.to_gateway(), HOST, n, (9, SERVICE))),
            several("in parts to another env", &|n| {
                parts(self.to_gateway(), self.other.addr(), n, (9, 53))
            }),
            several("in parts to a cloud", &|n| parts(self.to_gateway(), METADATA, n, (9, 80))),
            several("dhcp in parts", &|n| {
                let [first, _] = &parts(self.macs(), self.victim.addr(), n, (68, 67))[..] else {
                    panic!()
                };
                vec![first.clone()]
            }),
            one("a broken checksum", broken),
            silent("a route of its own", route),
        ]
    }
}

/// Frames of a flood by their number.
type Flood<'a> = &'a (dyn Fn(u16) -> Vec<u8> + Sync);

/// What is looked for: long enough to be nothing else.
fn mark(name: &str) -> String {
    format!("<hostile: {name}>")
}

fn one(name: &'static str, frame: impl Fn(&str) -> Vec<u8>) -> Case {
    Case { name, frames: vec![frame(&mark(name))], is_counted: true }
}

#[test]
fn nothing_hostile_arrives_and_all_of_it_is_counted() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        ip(&format!("addr add {SECOND}/32 dev lo"));
        lab.client.ip(&format!("addr add {METADATA}/32 dev eth0"));
        ip(&format!("route add {METADATA} dev up0"));
        let [me, victim] = [0, 1].map(|index| lab.guest(EnvId(1), index));
        let other = lab.guest(EnvId(2), 0);
        let service = Echo::new(&lab.host, SERVICE);
        let inner = [Echo::new(&other.space, 80), Echo::new(&other.space, 53)];
        let out = Frames::new(&me.space, "eth0");
        let seen = [
            ("the victim", Frames::new(&victim.space, "eth0")),
            ("another env", Frames::new(&other.space, "eth0")),
            ("the outside", Frames::new(&lab.client, "eth0")),
        ];
        let scene = Scene { me: &me, victim: &victim, other: &other };
        out.send(&scene.honest("<honest>"));
        assert!(seen[0].1.sees(b"<honest>"), "the way as such is open");
        out.send(&scene.beyond(CLIENT, 9, "<honest>"));
        assert!(seen[2].1.sees(b"<honest>"), "the way as such is open");
        let cases = scene.cases();
        assert!(cases.len() >= 40, "{}", cases.len());
        let forbidden = || {
            let traffic = lab.net.traffic(&me.vm).unwrap();
            traffic.blocked_packets + traffic.slowed_packets
        };
        let mut uncounted = Vec::new();
        for case in &cases {
            let before = forbidden();
            case.frames.iter().for_each(|frame| out.send(frame));
            if case.is_counted && forbidden() == before {
                uncounted.push(case.name);
            }
        }
        std::thread::sleep(Duration::from_millis(300));
        for (who, frames) in &seen {
            let frames = frames.drain();
            for case in &cases {
                let mark = mark(case.name);
                let arrived =
                    frames.iter().any(|f| f.windows(mark.len()).any(|w| w == mark.as_bytes()));
                assert!(!arrived, "{}: arrived at {who}", case.name);
            }
        }
        assert_eq!(uncounted, Vec::<&str>::new(), "not counted");
        assert_eq!(service.last(), None, "a service of the host was reached");
        assert!(inner.iter().all(|echo| echo.last().is_none()), "another env was reached");
        assert!(lab.client.reaches((HOST, other.tcp())), "all go on");
        println!("{} hostile cases, all blocked", cases.len());
    });
}

#[test]
fn floods_disturb_nobody_else() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let names = |vm: &Guest| EnvNames {
            env_name: "e".into(),
            members: vec![("web".into(), vm.addr())],
        };
        let [me, victim] = [0, 1].map(|index| lab.guest(EnvId(1), index));
        let other = lab.guest(EnvId(2), 0);
        lab.net.set_names(EnvId(1), &names(&victim)).unwrap();
        let (_inner, _near) = (Echo::new(&other.space, 80), Echo::new(&victim.space, 80));
        let _outer = Echo::new(&lab.client, 7);
        let out = Frames::new(&me.space, "eth0");
        let scene = Scene { me: &me, victim: &victim, other: &other };
        let (mac, _) = scene.macs();
        let all = (mac, BROADCAST);
        let question = crate::names::question("web.", hickory_proto::rr::RecordType::A);
        let floods: [(&str, Flood<'_>); 6] = [
            ("arp", &|n| {
                arp(mac, (mac, me.addr()), Ipv4Addr::from(0x0a09_0000 + u32::from(n)), b"")
            }),
            ("broadcasts", &|_| udp(all, (me.addr(), 9), (Ipv4Addr::BROADCAST, 9), b"flood")),
            ("dhcp", &|_| udp(all, (NOBODY, 68), (Ipv4Addr::BROADCAST, 67), &[0; 240])),
            ("dns", &|n| udp(scene.to_gateway(), (me.addr(), n), (GATEWAY, 53), &question)),
            ("syn", &|n| syn(scene.to_gateway(), (me.addr(), CLIENT), n, b"")),
            ("pings", &|_| frame::ping(scene.to_gateway(), me.addr(), GATEWAY, b"flood")),
        ];
        for (name, flood) in floods {
            std::thread::scope(|scope| {
                let flooding = scope.spawn(|| {
                    (1..=6000u16).for_each(|number| {
                        // A full queue of the stand-in's link is no failure of the flood.
                        out.try_send(&flood(number));
                    });
                });
                assert!(lab.client.reaches((HOST, other.tcp())), "{name}: another env answers");
                assert!(victim.space.reaches((CLIENT, 7)), "{name}: a neighbour reaches out");
                let reply =
                    crate::names::ask(&victim.space, "web.", hickory_proto::rr::RecordType::A);
                assert_eq!(reply, crate::names::data(&victim.addr().to_string()), "{name}: names");
                flooding.join().unwrap();
            });
        }
        let traffic = lab.net.traffic(&me.vm).unwrap();
        assert!(traffic.slowed_packets > 5000, "{traffic:?}");
        assert!(other.space.reaches((CLIENT, 7)));
    });
}

/// What the kernel drops before any rule is asked.
fn silent(name: &'static str, frame: impl Fn(&str) -> Vec<u8>) -> Case {
    Case { is_counted: false, ..one(name, frame) }
}
