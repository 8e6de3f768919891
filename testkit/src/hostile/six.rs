//! The part of the list of hostile frames that is IPv6.

use super::frame::six::{HOPS, ICMP, icmp, packet, ping, syn, udp, udp_body};
use super::{Case, Scene, Stop, mark};
use Stop::{Edge, Host, Port};
use std::net::{Ipv4Addr, Ipv6Addr};
use tt_model::{MacAddr, six};

const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const DHCP_AGENTS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Where a cloud keeps what guests must not have.
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
const UDP: u8 = 17;
// Kinds of ICMP (RFC 4861).
const SOLICIT_ROUTER: u8 = 133;
const ADVERTISE_ROUTER: u8 = 134;
const SOLICIT: u8 = 135;
const ADVERTISE: u8 = 136;
const REDIRECT: u8 = 137;
// Options of it: whose hardware address it is.
const SOURCE: u8 = 1;
const TARGET: u8 = 2;

/// All of it.
pub fn cases(scene: &Scene) -> Vec<Case> {
    let mut cases = addresses(scene);
    cases.extend(neighbours(scene));
    cases.extend(routers(scene));
    cases.extend(headers(scene));
    cases.extend(places(scene));
    cases
}

/// Those of a member.
struct Six {
    addr: Ipv6Addr,
    link: Ipv6Addr,
}

impl Six {
    fn of(addr: Ipv4Addr) -> Self {
        Self { addr: six::address(addr), link: six::link_local(addr) }
    }
}

/// A frame that holds a mark.
type Marked<'a> = &'a dyn Fn(&str) -> Vec<u8>;

fn case(what: &'static str, stop: Stop, frame: Marked<'_>) -> Case {
    let kind = "IPv6";
    Case { kind, what, frames: vec![frame(&mark(kind, what))], stop }
}

/// With the mark behind the packet, where it changes nothing.
fn trailed(mut frame: Vec<u8>, mark: &str) -> Vec<u8> {
    frame.extend(mark.as_bytes());
    frame
}

/// A neighbour's word: kind, whom it is about, and an option.
fn word(kind: u8, about: Ipv6Addr, option: Option<(u8, MacAddr)>) -> Vec<u8> {
    let flags = if kind == ADVERTISE { 0x60 } else { 0 };
    let mut body = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    body.extend(about.octets());
    if let Some((option, mac)) = option {
        body.extend([option, 1]);
        body.extend(mac.0);
    }
    body
}

fn addresses(scene: &Scene) -> Vec<Case> {
    let (victim, gateway) = (Six::of(scene.victim.addr), Six::of(scene.gateway.addr));
    let near = |from, n: &str| udp(scene.macs(), (from, 9), (victim.addr, 9), n.as_bytes());
    let out =
        |from, n: &str| udp(scene.to_gateway(), (from, 9), (scene.outside_six, 9), n.as_bytes());
    vec![
        case("to a neighbour, from its own address", Port, &|n| near(victim.addr, n)),
        case("to a neighbour, from its own on the link", Port, &|n| near(victim.link, n)),
        case("to a neighbour, from the gateway's", Port, &|n| near(gateway.addr, n)),
        case("to a neighbour, from the gateway's on the link", Port, &|n| near(gateway.link, n)),
        case("to a neighbour, from none", Port, &|n| near(NOBODY, n)),
        case("to a neighbour, from a group", Port, &|n| near(ALL_NODES, n)),
        case("to a neighbour, from ::1", Port, &|n| near(Ipv6Addr::LOCALHOST, n)),
        case("asks a neighbour for an echo, as the gateway", Port, &|n| {
            ping(scene.macs(), (gateway.link, victim.addr), n.as_bytes())
        }),
        case("out, from a neighbour's", Port, &|n| out(victim.addr, n)),
        case("out, from the host's", Port, &|n| out(scene.host_six, n)),
        case("out, from somebody's outside", Port, &|n| out(scene.outside_six, n)),
        case("out, from that of another Env", Port, &|n| out(six::address(scene.other), n)),
    ]
}

fn neighbours(scene: &Scene) -> Vec<Case> {
    let [me, victim, gateway] =
        [scene.me, scene.victim, scene.gateway].map(|station| Six::of(station.addr));
    let (own, its) = (scene.me.mac, scene.victim.mac);
    let say = |from, hops, body: &[u8], n: &str| {
        trailed(icmp(scene.macs(), (from, victim.link), hops, body), n)
    };
    let is = |about, option, n: &str| say(me.link, HOPS, &word(ADVERTISE, about, option), n);
    let asks = |from, option, n: &str| say(from, HOPS, &word(SOLICIT, victim.addr, option), n);
    vec![
        case("answers as a neighbour", Port, &|n| is(victim.addr, Some((TARGET, own)), n)),
        case("answers as a neighbour on the link", Port, &|n| {
            is(victim.link, Some((TARGET, own)), n)
        }),
        case("answers as a neighbour, without a word of hardware", Port, &|n| {
            is(victim.addr, None, n)
        }),
        case("answers as the gateway", Port, &|n| is(gateway.link, Some((TARGET, own)), n)),
        case("answers as the gateway's other address", Port, &|n| {
            is(gateway.addr, Some((TARGET, own)), n)
        }),
        case("answers with a neighbour's hardware address", Port, &|n| {
            is(me.addr, Some((TARGET, its)), n)
        }),
        case("answers from afar", Port, &|n| {
            say(me.link, 64, &word(ADVERTISE, me.addr, Some((TARGET, own))), n)
        }),
        case("answers with several options", Port, &|n| {
            let word = word(ADVERTISE, me.addr, Some((TARGET, own)));
            say(me.link, HOPS, &[&word[..], &[TARGET, 1], &its.0].concat(), n)
        }),
        case("asks as the gateway", Port, &|n| asks(gateway.link, Some((SOURCE, own)), n)),
        case("asks with a neighbour's hardware address in it", Port, &|n| {
            asks(me.link, Some((SOURCE, its)), n)
        }),
        case("claims a neighbour's address", Port, &|n| asks(NOBODY, None, n)),
        case("asks a neighbour who it is", Port, &|n| {
            say(me.link, HOPS, &[139, 0, 0, 0, 0, 2, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8], n)
        }),
        case("asks who is in a group, as a router", Port, &|n| {
            say(me.link, 1, &word(130, ALL_NODES, None), n)
        }),
    ]
}

fn routers(scene: &Scene) -> Vec<Case> {
    let [me, victim, gateway] =
        [scene.me, scene.victim, scene.gateway].map(|station| Six::of(station.addr));
    let to_all = (scene.me.mac, MacAddr([0x33, 0x33, 0, 0, 0, 1]));
    let to_routers = (scene.me.mac, MacAddr([0x33, 0x33, 0, 0, 0, 2]));
    let advertisement = [ADVERTISE_ROUTER, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let network = [&[3, 4, 64, 0xc0][..], &[0xff; 8], &[0; 4], &METADATA.octets()].concat();
    let advertises = |macs, from, to, n: &str| {
        let body = [&advertisement[..], &network].concat();
        trailed(icmp(macs, (from, to), HOPS, &body), n)
    };
    let redirect = |from, n: &str| {
        let body = [&word(REDIRECT, me.link, None)[..], &scene.outside_six.octets()].concat();
        trailed(icmp(scene.macs(), (from, victim.addr), HOPS, &body), n)
    };
    let leases = |macs, to, ports, n: &str| {
        let body = udp_body((me.link, to), ports, n.as_bytes());
        packet(macs, (me.link, to), (UDP, 64), &body)
    };
    let asks = |macs, to, mac: MacAddr, n: &str| {
        let body = [&[SOLICIT_ROUTER, 0, 0, 0, 0, 0, 0, 0, SOURCE, 1][..], &mac.0].concat();
        trailed(icmp(macs, (me.link, to), HOPS, &body), n)
    };
    vec![
        case("advertises itself as a router to all", Port, &|n| {
            advertises(to_all, me.link, ALL_NODES, n)
        }),
        case("advertises itself as a router to a neighbour", Port, &|n| {
            advertises(scene.macs(), me.link, victim.link, n)
        }),
        case("advertises as the gateway", Port, &|n| {
            advertises(to_all, gateway.link, ALL_NODES, n)
        }),
        case("ends the gateway's time as a router", Port, &|n| {
            let mut body = advertisement;
            body[6..8].fill(0);
            trailed(icmp(to_all, (gateway.link, ALL_NODES), HOPS, &body), n)
        }),
        case("redirects a neighbour, as the gateway", Port, &|n| redirect(gateway.link, n)),
        case("redirects a neighbour, as itself", Port, &|n| redirect(me.link, n)),
        case("asks for a router with a neighbour's hardware address", Port, &|n| {
            asks(to_routers, ALL_ROUTERS, scene.victim.mac, n)
        }),
        case("asks a neighbour for a router", Port, &|n| {
            asks(scene.macs(), victim.link, scene.me.mac, n)
        }),
        case("a lease for a neighbour, as a server of DHCPv6", Port, &|n| {
            leases(scene.macs(), victim.link, (547, 546), n)
        }),
        case("a question to all servers of DHCPv6", Port, &|n| {
            let macs = (scene.me.mac, MacAddr([0x33, 0x33, 0, 1, 0, 2]));
            leases(macs, DHCP_AGENTS, (546, 547), n)
        }),
    ]
}

fn headers(scene: &Scene) -> Vec<Case> {
    let (me, victim) = (Six::of(scene.me.addr), Six::of(scene.victim.addr));
    let addrs = (me.addr, victim.addr);
    let behind = |next: u8, head: [u8; 8], n: &str| {
        let body = [&head[..], &udp_body(addrs, (9, 9), n.as_bytes())].concat();
        packet(scene.macs(), addrs, (next, 64), &body)
    };
    let options = [UDP, 0, 1, 4, 0, 0, 0, 0];
    vec![
        case("with options for every hop", Port, &|n| behind(0, options, n)),
        case("with options for its end", Port, &|n| behind(60, options, n)),
        case("with a route of its own", Port, &|n| behind(43, [UDP, 0, 0, 1, 0, 0, 0, 0], n)),
        case("the first one of several parts", Port, &|n| {
            behind(44, [UDP, 0, 0, 1, 0, 0, 0, 7], n)
        }),
        case("a later one of several parts", Port, &|n| behind(44, [UDP, 0, 0, 8, 0, 0, 0, 7], n)),
        case("a part that is all", Port, &|n| behind(44, [UDP, 0, 0, 0, 0, 0, 0, 7], n)),
        case("with a seal", Port, &|n| behind(51, [UDP, 0, 0, 0, 0, 0, 0, 7], n)),
        case("a router's word behind options", Port, &|n| {
            let body = [&[ICMP, 0, 1, 4, 0, 0, 0, 0], &[ADVERTISE_ROUTER; 16][..]].concat();
            trailed(packet(scene.macs(), (me.link, ALL_NODES), (60, HOPS), &body), n)
        }),
        case("of another protocol than TCP, UDP and ICMP", Port, &|n| {
            packet(scene.macs(), addrs, (47, 64), n.as_bytes())
        }),
        case("of no protocol", Port, &|n| packet(scene.macs(), addrs, (59, 64), n.as_bytes())),
    ]
}

fn places(scene: &Scene) -> Vec<Case> {
    let (me, gateway) = (Six::of(scene.me.addr), Six::of(scene.gateway.addr));
    let (other, service) = (Six::of(scene.other), scene.service);
    let to = |to, port, n: &str| udp(scene.to_gateway(), (me.addr, 9), (to, port), n.as_bytes());
    let syn = |to, port, n: &str| syn(scene.to_gateway(), (me.addr, to), port, n.as_bytes());
    let [a, b, c, d] = scene.host.octets().map(u16::from);
    let (high, low) = (a << 8 | b, c << 8 | d);
    vec![
        case("another Env's member, by UDP", Edge, &|n| to(other.addr, 53, n)),
        case("another Env's member, by TCP", Edge, &|n| syn(other.addr, 80, n)),
        case("another Env's member, by an echo", Edge, &|n| {
            ping(scene.to_gateway(), (me.addr, other.addr), n.as_bytes())
        }),
        case("another Env's member, on the link", Edge, &|n| to(other.link, 53, n)),
        case("a service of the host at its address, by UDP", Host, &|n| {
            to(scene.host_six, service, n)
        }),
        case("a service of the host at its address, by TCP", Host, &|n| {
            syn(scene.host_six, service, n)
        }),
        case("a service at the host's end of the edge", Edge, &|n| to(six::HOST_END, service, n)),
        case("a service at the host's end of the edge, by its link", Edge, &|n| {
            to(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), service, n)
        }),
        case("a service at the gateway, by UDP", Edge, &|n| to(gateway.addr, service, n)),
        case("a service at the gateway, by TCP", Edge, &|n| syn(gateway.addr, service, n)),
        case("a service at the gateway, on the link", Edge, &|n| syn(gateway.link, service, n)),
        case("a service at ::1", Port, &|n| to(Ipv6Addr::LOCALHOST, service, n)),
        case("the host's IPv4 address as one of IPv6", Port, &|n| {
            to(scene.host.to_ipv6_mapped(), service, n)
        }),
        case("the host's IPv4 address, by a translator", Edge, &|n| {
            to(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low), service, n)
        }),
        case("the host's IPv4 address, by 6to4", Edge, &|n| {
            to(Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1), service, n)
        }),
        case("metadata of a cloud", Edge, &|n| syn(METADATA, 80, n)),
    ]
}
