//! The list of hostile frames.

use super::frame::{BROADCAST, arp, ether, packet, syn, tagged, udp, udp_fragment};
use super::{Case, EDGE_END, METADATA, Scene, Stop, TUNNEL_PORT, mark};
use Stop::{Edge, Host, Kernel, Port};
use std::net::Ipv4Addr;
use tt_model::MacAddr;

const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
/// A hardware address of the kind that members have, of none of them.
const STRANGER: MacAddr = MacAddr([0x82, 0x17, 0x0d, 7, 7, 7]);
const ICMP: u8 = 1;
const GRE: u8 = 47;
/// Says that TCP may go on at an address that another packet is to say (RFC 792).
const REDIRECT: [u8; 4] = [5, 1, 0, 0];

/// All of it.
pub fn cases(scene: &Scene) -> Vec<Case> {
    let mut cases = wrong_frames(scene);
    cases.extend(wrong_arp(scene));
    cases.extend(wrong_addresses(scene));
    cases.extend(wrong_dhcp(scene));
    cases.extend(super::six::cases(scene));
    cases.extend(other_envs(scene));
    cases.extend(hosts_services(scene));
    cases.extend(in_parts(scene));
    cases
}

/// A frame that holds a mark.
type Marked<'a> = &'a dyn Fn(&str) -> Vec<u8>;

/// Makes cases of one kind: from what it is, what stops it, and its frame.
fn of(kind: &'static str) -> impl Fn(&'static str, Stop, Marked<'_>) -> Case {
    move |what, stop, frame| Case { kind, what, frames: vec![frame(&mark(kind, what))], stop }
}

fn wrong_frames(scene: &Scene) -> Vec<Case> {
    let Scene { me, victim, .. } = *scene;
    let from = |mac, n: &str| udp((mac, victim.mac), (me.addr, 9), (victim.addr, 9), n.as_bytes());
    let group = |last| MacAddr([0x01, 0x80, 0xc2, 0, 0, last]);
    let kind = |to, kind: u16, n: &str| ether(to, me.mac, kind, n.as_bytes());
    let case = of("frames");
    vec![
        case("from the hardware address of a neighbour", Port, &|n| from(victim.mac, n)),
        case("from the hardware address of the gateway", Port, &|n| from(scene.gateway.mac, n)),
        case("from a hardware address of nobody", Port, &|n| from(STRANGER, n)),
        case("from the hardware address of a group", Kernel, &|n| {
            from(MacAddr([0x83, 0x17, 0x0d, 0, 1, 2]), n)
        }),
        case("with the tag of a virtual LAN", Port, &|n| tagged(&scene.honest(n))),
        case("with two tags", Port, &|n| tagged(&tagged(&scene.honest(n)))),
        case("with the tag of a provider", Port, &|n| {
            let honest = scene.honest(n);
            [&honest[..12], &[0x88, 0xa8, 0, 1], &honest[12..]].concat()
        }),
        case("of an unknown kind, to all", Port, &|n| kind(BROADCAST, 0x88b5, n)),
        case("LLDP, as a switch", Kernel, &|n| kind(group(0x0e), 0x88cc, n)),
        case("of a spanning tree", Port, &|n| kind(group(0), 38, n)),
        case("that ask for a pause", Kernel, &|n| kind(group(1), 0x8808, n)),
        case("that bundle links", Port, &|n| kind(group(2), 0x8809, n)),
        case("that authenticate a port", Port, &|n| kind(group(3), 0x888e, n)),
        case("that look for a PPPoE server", Port, &|n| kind(BROADCAST, 0x8863, n)),
        case("with MPLS labels", Port, &|n| kind(victim.mac, 0x8847, n)),
    ]
}

fn wrong_arp(scene: &Scene) -> Vec<Case> {
    let Scene { me, victim, gateway, .. } = *scene;
    let arp = |on, sender, n: &str| arp(on, sender, victim.addr, n.as_bytes());
    let reply = |addr, n: &str| {
        let mut frame = arp(me.mac, (me.mac, addr), n);
        frame[..6].copy_from_slice(&victim.mac.0);
        frame[21] = 2;
        frame
    };
    let case = of("ARP");
    vec![
        case("asks as the gateway", Port, &|n| arp(me.mac, (me.mac, gateway.addr), n)),
        case("answers as the gateway", Port, &|n| reply(gateway.addr, n)),
        case("answers as a neighbour", Port, &|n| reply(victim.addr, n)),
        case("asks with a neighbour's hardware address in it", Port, &|n| {
            arp(me.mac, (victim.mac, me.addr), n)
        }),
        case("asks from a neighbour's hardware address", Port, &|n| {
            arp(victim.mac, (me.mac, me.addr), n)
        }),
        case("probes with a neighbour's hardware address", Port, &|n| {
            arp(me.mac, (victim.mac, NOBODY), n)
        }),
        case("asks as a member of another Env", Port, &|n| arp(me.mac, (me.mac, scene.other), n)),
        case("the other way round: RARP", Port, &|n| {
            ether(BROADCAST, me.mac, 0x8035, n.as_bytes())
        }),
    ]
}

fn wrong_addresses(scene: &Scene) -> Vec<Case> {
    let Scene { victim, gateway, outside, .. } = *scene;
    let near = |addr, n: &str| udp(scene.macs(), (addr, 9), (victim.addr, 9), n.as_bytes());
    let out = |addr, n: &str| udp(scene.to_gateway(), (addr, 9), (outside, 9), n.as_bytes());
    let redirect = |from, macs, to, n: &str| {
        let body = [&REDIRECT, &[0; 4][..], n.as_bytes()].concat();
        packet(macs, (from, to), ICMP, &body)
    };
    let case = of("addresses");
    vec![
        case("to a neighbour, from its own address", Port, &|n| near(victim.addr, n)),
        case("to a neighbour, from the gateway's", Port, &|n| near(gateway.addr, n)),
        case("to a neighbour, from none", Port, &|n| near(NOBODY, n)),
        case("to a neighbour, from all", Port, &|n| near(Ipv4Addr::BROADCAST, n)),
        case("to a neighbour, from 127.0.0.1", Port, &|n| near(Ipv4Addr::LOCALHOST, n)),
        case("to a neighbour, from a group", Port, &|n| near(Ipv4Addr::new(224, 0, 0, 1), n)),
        case("out, from a neighbour's", Port, &|n| out(victim.addr, n)),
        case("out, from the host's", Port, &|n| out(scene.host, n)),
        case("out, from somebody's outside", Port, &|n| out(outside, n)),
        case("out, from that of another Env", Port, &|n| out(scene.other, n)),
        case("out, from nobody's", Port, &|n| out(Ipv4Addr::new(203, 0, 113, 7), n)),
        case("an answer to a name, as the gateway", Port, &|n| {
            udp(scene.macs(), (gateway.addr, 53), (victim.addr, 9), n.as_bytes())
        }),
        case("a redirection of a neighbour, as the gateway", Port, &|n| {
            redirect(gateway.addr, scene.macs(), victim.addr, n)
        }),
        case("a redirection of the gateway", Edge, &|n| {
            redirect(scene.me.addr, scene.to_gateway(), gateway.addr, n)
        }),
    ]
}

fn wrong_dhcp(scene: &Scene) -> Vec<Case> {
    let Scene { me, victim, .. } = *scene;
    let all = (me.mac, BROADCAST);
    let named = |n: &str, mac: MacAddr| {
        let mut body = vec![0; 240];
        body[28..34].copy_from_slice(&mac.0);
        [&body, n.as_bytes()].concat()
    };
    let ask = |mac, n: &str| udp(all, (NOBODY, 68), (Ipv4Addr::BROADCAST, 67), &named(n, mac));
    let case = of("DHCP");
    vec![
        case("offers, as a server", Port, &|n| {
            udp(all, (me.addr, 67), (Ipv4Addr::BROADCAST, 68), n.as_bytes())
        }),
        case("an answer to a neighbour", Port, &|n| {
            udp(scene.macs(), (me.addr, 67), (victim.addr, 68), n.as_bytes())
        }),
        case("questions to the neighbours", Port, &|n| ask(me.mac, n)),
        case("questions for a neighbour's address", Port, &|n| ask(victim.mac, n)),
    ]
}

fn other_envs(scene: &Scene) -> Vec<Case> {
    let Scene { me, other, host, gateway, .. } = *scene;
    let syn = |to, port, n: &str| syn(scene.to_gateway(), (me.addr, to), port, n.as_bytes());
    let tunnelled = |n: &str| {
        // RFC 7348, with the id of the tunnels between hosts.
        let head = [8, 0, 0, 0, 0, 0x74, 0x74, 0];
        let macs = (me.mac, MacAddr::of_ip(other));
        let inner = udp(macs, (me.addr, 9), (other, 53), n.as_bytes());
        let ports = (me.addr, 9);
        udp(scene.to_gateway(), ports, (host, TUNNEL_PORT), &[&head[..], &inner].concat())
    };
    let case = of("another Env");
    vec![
        case("its member, by UDP", Host, &|n| scene.beyond(other, 53, n)),
        case("its member, by TCP", Host, &|n| syn(other, 80, n)),
        case("its member, by GRE", Host, &|n| {
            packet(scene.to_gateway(), (me.addr, other), GRE, n.as_bytes())
        }),
        case("its public port at the host, by UDP", Host, &|n| {
            scene.beyond(host, scene.other_udp, n)
        }),
        case("its public port at the host, by TCP", Host, &|n| syn(host, scene.other_tcp, n)),
        case("its public port at the gateway", Edge, &|n| syn(gateway.addr, scene.other_tcp, n)),
        case("its public port at 127.0.0.1", Port, &|n| {
            syn(Ipv4Addr::LOCALHOST, scene.other_tcp, n)
        }),
        case("its member, in a packet of the tunnel between hosts", Host, &tunnelled),
    ]
}

fn hosts_services(scene: &Scene) -> Vec<Case> {
    let Scene { me, host, second, gateway, service, .. } = *scene;
    let syn = |to, port, n: &str| syn(scene.to_gateway(), (me.addr, to), port, n.as_bytes());
    let [a, b, c, _] = host.octets();
    let case = of("the host");
    let mut cases = vec![
        case("a service at its address, by UDP", Host, &|n| scene.beyond(host, service, n)),
        case("a service at its address, by TCP", Host, &|n| syn(host, service, n)),
        case("a service at its second address, by UDP", Host, &|n| {
            scene.beyond(second, service, n)
        }),
        case("a service at its second address, by TCP", Host, &|n| syn(second, service, n)),
        case("a service at its end of the edge, by UDP", Host, &|n| {
            scene.beyond(EDGE_END, service, n)
        }),
        case("a service at its end of the edge, by TCP", Host, &|n| syn(EDGE_END, service, n)),
        case("a service at the gateway, by UDP", Edge, &|n| scene.beyond(gateway.addr, service, n)),
        case("a service at the gateway, by TCP", Edge, &|n| syn(gateway.addr, service, n)),
        case("a service at 127.0.0.1, by UDP", Port, &|n| {
            scene.beyond(Ipv4Addr::LOCALHOST, service, n)
        }),
        case("a service at 127.0.0.1, by TCP", Port, &|n| syn(Ipv4Addr::LOCALHOST, service, n)),
        case("all on its link", Host, &|n| scene.beyond(Ipv4Addr::new(a, b, c, 255), 9, n)),
        case("the port of the tunnel between hosts", Host, &|n| scene.beyond(host, TUNNEL_PORT, n)),
        case("another protocol than TCP and UDP", Host, &|n| {
            packet(scene.to_gateway(), (me.addr, host), GRE, n.as_bytes())
        }),
        case("metadata of a cloud, by UDP", Host, &|n| scene.beyond(METADATA, 80, n)),
        case("metadata of a cloud, by TCP", Host, &|n| syn(METADATA, 80, n)),
    ];
    if let Some(end) = scene.tunnel_end {
        cases.push(case("a service at its end of the tunnel, by UDP", Host, &|n| {
            scene.beyond(end, service, n)
        }));
        cases.push(case("a service at its end of the tunnel, by TCP", Host, &|n| {
            syn(end, service, n)
        }));
    }
    cases
}

fn in_parts(scene: &Scene) -> Vec<Case> {
    let Scene { me, victim, other, host, outside, service, .. } = *scene;
    let parts = |macs, to, ports: (u16, u16), n: &str| {
        let length = 8 + 8 + n.len() as u16;
        let head = [ports.0, ports.1, length, 0].map(u16::to_be_bytes).concat();
        let first = [head, vec![b'-'; 8]].concat();
        // "More fragments", and an offset of 16 bytes.
        let more = udp_fragment(macs, (me.addr, to), [0x20, 0], &first);
        vec![more, udp_fragment(macs, (me.addr, to), [0, 2], n.as_bytes())]
    };
    let several = |what, stop, frames: &dyn Fn(&str) -> Vec<Vec<u8>>| {
        let kind = "fragments";
        Case { kind, what, frames: frames(&mark(kind, what)), stop }
    };
    let broken = |n: &str| {
        let mut frame = scene.beyond(outside, 9, n);
        // A checksum that is none: nobody would translate such a packet.
        frame[14 + 20 + 6..14 + 20 + 8].copy_from_slice(&[0xde, 0xad]);
        frame
    };
    let route = |n: &str| {
        let mut frame = scene.beyond(host, service, n);
        frame.splice(34..34, [131, 7, 4, 192, 0, 2, 1, 0]);
        frame[14] = 0x47;
        frame
    };
    let to_gateway = scene.to_gateway();
    let odd = of("odd packets");
    vec![
        several("of a datagram to the host", Host, &|n| parts(to_gateway, host, (9, service), n)),
        several("of a datagram to another Env", Host, &|n| parts(to_gateway, other, (9, 53), n)),
        several("of a datagram to a cloud's metadata", Host, &|n| {
            parts(to_gateway, METADATA, (9, 80), n)
        }),
        several("the first one of DHCP to a neighbour", Port, &|n| {
            let head = [68, 67, 1000, 0].map(u16::to_be_bytes).concat();
            let mut body = [&head, n.as_bytes()].concat();
            // All but the last part are multiples of 8 bytes.
            body.resize(body.len().next_multiple_of(8), 0);
            vec![udp_fragment(scene.macs(), (me.addr, victim.addr), [0x20, 0], &body)]
        }),
        odd("with a broken checksum", Edge, &broken),
        odd("with a route of its own", Kernel, &route),
    ]
}
