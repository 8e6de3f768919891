//! IPv6: members, the way out, and what is kept from them as it is by IPv4.

use crate::lab::{ARRIVES, CLIENT, Echo, GATEWAY, Guest, Lab, ip, is_cut, run};
use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr};
use testkit::hostile::frame;
use tt_model::{EnvId, MacAddr, six};
use tt_network::Network;

/// The host's and the client's on the link between them (RFC 3849).
pub const HOST_SIX: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub const CLIENT_SIX: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// Gives the host a way out by IPv6.
pub fn lead_out(lab: &Lab) {
    ip(&format!("addr add {HOST_SIX}/64 dev up0 nodad"));
    lab.client.ip(&format!("addr add {CLIENT_SIX}/64 dev eth0 nodad"));
    ip(&format!("-6 route add default via {CLIENT_SIX} dev up0"));
}

/// A member whose stand-in has its IPv6 address, too.
pub fn guest(lab: &Lab, env: EnvId, index: usize) -> Guest {
    let guest = lab.guest(env, index);
    let gateway = six::link_local(GATEWAY);
    guest.space.ip(&format!("addr add {}/64 dev eth0 nodad", addr(&guest)));
    guest.space.ip(&format!("-6 route add default via {gateway} dev eth0"));
    guest
}

pub fn addr(guest: &Guest) -> Ipv6Addr {
    six::address(guest.addr())
}

/// A server on IPv6.
pub fn echo(space: &crate::lab::Space, port: u16) -> Echo {
    Echo::at(space, (Ipv6Addr::UNSPECIFIED, port).into())
}

/// How a connection fails, which must be at once and not for want of an answer.
fn refusal(guest: &Guest, to: (Ipv6Addr, u16)) -> ErrorKind {
    guest.space.connect(to, ARRIVES).map(drop).unwrap_err().kind()
}

#[test]
fn members_and_their_gateway_reach_each_other_by_ipv6() {
    Lab::run(|lab| {
        lead_out(lab);
        lab.net.init().unwrap();
        let (a, b) = (guest(lab, EnvId(1), 0), guest(lab, EnvId(1), 1));
        let other = guest(lab, EnvId(2), 0);
        let (_near, far) = (echo(&b.space, 80), echo(&other.space, 80));
        assert!(a.space.reaches((addr(&b), 80)) && a.space.reaches_udp((addr(&b), 80)));
        let frames = a.space.frames();
        for gateway in [six::address(GATEWAY), six::link_local(GATEWAY)] {
            let macs = (a.vm.resource.mac_addr, MacAddr::of_ip(GATEWAY));
            let data = format!("are you there, {gateway}");
            frames.send(&frame::six::ping(macs, (addr(&a), gateway), data.as_bytes()));
            assert!(frames.sees(data.as_bytes()), "{data}");
        }
        let inside = lab.env(EnvId(1));
        assert!(inside.reaches((addr(&b), 80)), "as for a look at readiness");
        let gateway = six::link_local(GATEWAY);
        a.space.ip(&format!("-6 route add {} via {gateway} dev eth0", addr(&other)));
        assert!(a.space.misses((addr(&other), 80)) && a.space.misses_udp((addr(&other), 80)));
        assert!(lab.client.misses((addr(&b), 80)));
        assert_eq!(far.last(), None);
        let traffic = lab.net.traffic(&a.vm).unwrap();
        assert!(traffic.sent_packets > 10 && traffic.blocked_packets > 0, "{traffic:?}");
    });
}

#[test]
fn no_address_of_the_link_lets_a_member_fill_a_table() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let member = guest(lab, EnvId(1), 0);
        let (frames, from) = (member.space.frames(), addr(&member));
        let macs = (member.vm.resource.mac_addr, MacAddr::of_ip(GATEWAY));
        for number in 0..200_u16 {
            // Nobody is there; and all routers of the link have that one (RFC 4291 2.6.1).
            let nobody = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 7, number);
            let anycast = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
            for (to, port) in [(nobody, 9), (anycast, 53), (anycast, 67)] {
                frames.send(&frame::six::udp(macs, (from, 9000 + number), (to, port), b"x"));
            }
        }
        frames.send(&frame::six::ping(macs, (from, six::address(GATEWAY)), b"they have arrived"));
        assert!(frames.sees(b"they have arrived"));
        let inside = lab.env(EnvId(1));
        let neighbours = inside.run(|| run("ip", "-6 neigh show dev br0"));
        assert!(!neighbours.contains("fe80::7:"), "{neighbours}");
        let tracked = inside
            .run(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"))
            .unwrap();
        assert!(tracked.trim().parse::<u32>().unwrap() < 20, "{tracked}");
    });
}

#[test]
fn members_leave_by_ipv6_with_the_hosts_address() {
    Lab::run(|lab| {
        lead_out(lab);
        lab.net.init().unwrap();
        let guest = guest(lab, EnvId(1), 0);
        let outer = echo(&lab.client, 7);
        assert!(guest.space.reaches((CLIENT_SIX, 7)) && guest.space.reaches_udp((CLIENT_SIX, 7)));
        assert_eq!(outer.last().unwrap().ip(), HOST_SIX);
        let mut inner = guest.vm.clone();
        inner.deny_outgoing = true;
        let mut open = guest.space.open((CLIENT_SIX, 7));
        lab.net.set_net(&inner).unwrap();
        assert!(is_cut(&mut open));
        assert_eq!(refusal(&guest, (CLIENT_SIX, 7)), ErrorKind::PermissionDenied);
        inner.deny_outgoing = false;
        inner.state.net_allowlist = vec!["192.0.2.2:7".parse().unwrap()];
        lab.net.set_net(&inner).unwrap();
        assert_eq!(refusal(&guest, (CLIENT_SIX, 7)), ErrorKind::PermissionDenied);
        for (rule, is_open) in [
            ("[2001:db8::2]:7", true),
            ("[2001:db8::/64]:7/udp", false),
            ("2001:db8::/32", true),
            ("2001:db8::3", false),
        ] {
            inner.state.net_allowlist = vec![rule.parse().unwrap()];
            lab.net.set_net(&inner).unwrap();
            let reached = guest.space.connect((CLIENT_SIX, 7), ARRIVES);
            assert_eq!(reached.is_ok(), is_open, "{rule}");
        }
        inner.state.net_allowlist.clear();
        inner.state.net_blacklist = vec![CLIENT_SIX.into()];
        lab.net.set_net(&inner).unwrap();
        assert!(guest.space.misses((CLIENT_SIX, 7)));
        inner.state.net_blacklist.clear();
        lab.net.set_net(&inner).unwrap();
        assert!(guest.space.reaches((CLIENT_SIX, 7)));
        assert!(lab.net.traffic(&guest.vm).unwrap().blocked_packets >= 2);
    });
}

#[test]
fn the_hosts_services_are_not_reached_by_ipv6() {
    Lab::run(|lab| {
        lead_out(lab);
        lab.net.init().unwrap();
        let guest = guest(lab, EnvId(1), 0);
        let inside = lab.env(EnvId(1));
        let services = [echo(&lab.host, 22), echo(&inside, 22)];
        for to in [HOST_SIX, six::HOST_END, six::address(GATEWAY)] {
            assert!(guest.space.misses((to, 22)) && guest.space.misses_udp((to, 22)), "{to}");
        }
        let gateway: SocketAddr = format!("[{}%2]:22", six::link_local(GATEWAY)).parse().unwrap();
        assert!(guest.space.misses(gateway));
        assert!(services.iter().all(|service| service.last().is_none()));
        assert!(lab.net.traffic(&guest.vm).unwrap().blocked_packets >= 7);
    });
}

#[test]
fn who_has_no_way_out_by_ipv6_is_told_so_until_the_host_has_one() {
    Lab::run(|lab| {
        let forwards = || run("sysctl", "-n net.ipv6.conf.all.forwarding").trim().to_owned();
        let listens = |link: &str| run("sysctl", &format!("-n net.ipv6.conf.{link}.accept_ra"));
        lab.net.init().unwrap();
        let guest = guest(lab, EnvId(1), 0);
        let _outer = echo(&lab.client, 7);
        assert_eq!(refusal(&guest, (CLIENT_SIX, 7)), ErrorKind::NetworkUnreachable);
        assert_eq!(forwards(), "0", "the host is as it was");
        lead_out(lab);
        assert!(!lab.net.mend().unwrap(), "no rules were put back");
        assert!(guest.space.reaches((CLIENT_SIX, 7)));
        assert_eq!((forwards().as_str(), listens("up0").trim()), ("1", "2"), "routers are heard");
        // As Docker does when it starts.
        run("nft", "add table ip6 filter");
        let chain =
            "add chain ip6 filter FORWARD { type filter hook forward priority 0; policy drop; }";
        run("nft", chain);
        assert!(guest.space.misses((CLIENT_SIX, 7)));
        lab.net.mend().unwrap();
        assert!(guest.space.reaches((CLIENT_SIX, 7)), "let through");
        lab.net.unset_net(&guest.vm).unwrap();
        lab.net.close().unwrap();
        assert_eq!((forwards().as_str(), listens("up0").trim()), ("0", "1"), "taken back");
    });
}

#[test]
fn a_blacklisted_member_is_not_reached_by_ipv6_either() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (mut me, friend) = (guest(lab, EnvId(1), 0), guest(lab, EnvId(1), 1));
        let _near = echo(&friend.space, 80);
        assert!(me.space.reaches((friend.addr(), 80)), "as IPv4 the server hears, too");
        assert!(me.space.reaches((addr(&friend), 80)));
        me.vm.state.net_blacklist = vec![friend.addr().into(), CLIENT.into()];
        lab.net.set_blacklist(&me.vm).unwrap();
        assert!(me.space.misses((addr(&friend), 80)));
        assert!(me.space.misses((friend.addr(), 80)));
        me.vm.state.net_blacklist = vec![addr(&friend).into()];
        lab.net.set_blacklist(&me.vm).unwrap();
        assert!(me.space.misses((addr(&friend), 80)) && me.space.misses((friend.addr(), 80)));
        me.vm.state.net_blacklist.clear();
        lab.net.set_blacklist(&me.vm).unwrap();
        assert!(me.space.reaches((addr(&friend), 80)));
    });
}

#[test]
fn a_guest_that_configures_itself_finds_the_address_that_is_its_own() {
    Lab::run(|lab| {
        lead_out(lab);
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let _outer = echo(&lab.client, 7);
        // It asks when its link comes up, as a guest's kernel does.
        guest.space.ip("link set eth0 down");
        guest.space.run(|| {
            std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0").unwrap();
        });
        guest.space.ip("link set eth0 up");
        let is_set =
            || guest.space.run(|| run("ip", "-6 addr show dev eth0")).contains("/64 scope global");
        assert!(testkit::within(ARRIVES, is_set));
        let shown = guest.space.run(|| run("ip", "-6 addr show dev eth0"));
        assert!(shown.contains(&format!("{}/64", addr(&guest))), "{shown}");
        let routes = guest.space.run(|| run("ip", "-6 route show default"));
        assert!(routes.contains(&format!("via {}", six::link_local(GATEWAY))), "{routes}");
        assert!(guest.space.reaches((CLIENT_SIX, 7)));
        assert_eq!(
            lab.net.traffic(&guest.vm).unwrap().blocked_packets,
            0,
            "nothing of it is an offence"
        );
    });
}
