//! What root can do with routes and addresses of the guest's own network, and what it then tries to reach.

use std::net::Ipv4Addr;
use testkit::hostile::{EDGE_END, METADATA, Scene, Stop};

/// Where the outside listens.
pub const OUTSIDE: u16 = 7000;
/// Where members listen.
pub const INNER: u16 = 7;

/// A trick.
pub struct Trick {
    pub what: &'static str,
    /// A line for a shell that plays it, and one that takes it back.
    set: String,
    undo: String,
    /// What must come to nothing, as `helper tries` takes it.
    tries: Vec<String>,
    /// Who must not answer.
    pings: Vec<Ipv4Addr>,
    pub stop: Stop,
}

impl Trick {
    /// A line for a shell that plays it, tries all at once, and takes it back. It says `set`, what came back, and `undone`.
    pub fn line(&self, mark: &str) -> String {
        let Self { set, undo, tries, pings, .. } = self;
        let tries: Vec<_> = tries.iter().map(|attempt| format!("'{attempt}'")).collect();
        let ping =
            |to| format!("(ping -c 1 -W 1 -s 4000 {to} >/dev/null 2>&1 && echo ping {to})& ");
        let pings: String = pings.iter().map(ping).collect();
        let tries = tries.join(" ");
        format!(
            "{{ {set}; }} && echo set; {pings} helper tries '{mark}' {tries}; wait; {{ {undo}; }} && echo undone"
        )
    }
}

fn tcp(to: Ipv4Addr, port: u16) -> String {
    format!("tcp {to}:{port}")
}

fn udp(from: Ipv4Addr, to: Ipv4Addr, port: u16) -> String {
    format!("udp {from}:0 {to}:{port}")
}

/// All tricks; `prefix` is how long the guest's own one is, `mac` is its hardware address.
pub fn tricks(scene: &Scene, prefix: u8, mac: &str) -> Vec<Trick> {
    let mut tricks = routes(scene);
    tricks.extend(addresses(scene));
    tricks.extend(identities(scene, prefix, mac));
    tricks
}

/// By TCP and UDP.
fn both(to: Ipv4Addr, port: u16) -> Vec<String> {
    vec![tcp(to, port), udp(Ipv4Addr::UNSPECIFIED, to, port)]
}

/// What the host serves at its own addresses.
fn services(scene: &Scene) -> Vec<String> {
    let Scene { host, second, service, other_tcp, other_udp, .. } = *scene;
    let public = vec![tcp(host, other_tcp), udp(Ipv4Addr::UNSPECIFIED, host, other_udp)];
    [both(host, service), both(second, service), public].concat()
}

fn routes(scene: &Scene) -> Vec<Trick> {
    let Scene { gateway, other, host, service, .. } = *scene;
    let route = |what, to: Ipv4Addr, way: &str, tries| Trick {
        what,
        set: format!("ip route add {to}/32 {way}"),
        undo: format!("ip route del {to}/32"),
        tries,
        pings: vec![to],
        stop: Stop::Host,
    };
    let (on_link, through) = ("dev eth0", &*format!("via {}", gateway.addr));
    let (inner, metadata) = (|| both(other, INNER), || both(METADATA, service));
    vec![
        route("leads another Env's member through the gateway", other, through, inner()),
        route("takes another Env's member for a neighbour", other, on_link, inner()),
        route("takes the host for a neighbour", host, on_link, services(scene)),
        route("leads a cloud's metadata through the gateway", METADATA, through, metadata()),
        route("takes a cloud's metadata for a neighbour", METADATA, on_link, metadata()),
        home_through_the_gateway(scene),
        Trick {
            what: "goes through the host's end of the edge, not the gateway",
            set: format!("ip route replace default via {EDGE_END} dev eth0 onlink"),
            undo: format!("ip route replace default via {} dev eth0 onlink", gateway.addr),
            tries: [services(scene), both(EDGE_END, service), inner()].concat(),
            pings: vec![host, other],
            stop: Stop::Host,
        },
    ]
}

fn home_through_the_gateway(scene: &Scene) -> Trick {
    let Scene { me, gateway, service, other_tcp, other_udp, .. } = *scene;
    let home = Ipv4Addr::LOCALHOST;
    let switch = "/proc/sys/net/ipv4/conf/all/route_localnet";
    Trick {
        what: "leads 127.0.0.1 through the gateway",
        set: format!(
            "echo 1 >{switch} && ip addr del 127.0.0.1/8 dev lo && ip route add 127.0.0.0/8 via {}",
            gateway.addr
        ),
        undo: format!(
            "ip route del 127.0.0.0/8 && ip addr add 127.0.0.1/8 dev lo && echo 0 >{switch}"
        ),
        tries: vec![
            tcp(home, service),
            udp(me.addr, home, service),
            tcp(home, other_tcp),
            udp(me.addr, home, other_udp),
        ],
        pings: vec![home],
        stop: Stop::Port,
    }
}

fn addresses(scene: &Scene) -> Vec<Trick> {
    let Scene { victim, gateway, other, host, outside, service, .. } = *scene;
    let (gateway, victim) = (gateway.addr, victim.addr);
    let takes = |what, taken: Ipv4Addr, tries, undo: String| Trick {
        what,
        set: format!("ip addr add {taken}/32 dev eth0"),
        undo: format!("ip addr del {taken}/32 dev eth0{undo}"),
        tries,
        pings: Vec::new(),
        stop: Stop::Port,
    };
    let as_it = |from| vec![udp(from, outside, OUTSIDE), udp(from, victim, INNER)];
    let stranger = Ipv4Addr::new(10, 77, 7, 7);
    let link_local = Ipv4Addr::new(169, 254, 7, 7);
    let again = format!("; ip route replace default via {gateway} dev eth0 onlink");
    vec![
        takes("takes the address of another Env's member", other, as_it(other), String::new()),
        takes("takes the host's address", host, as_it(host), String::new()),
        takes("takes an address of nobody", stranger, as_it(stranger), String::new()),
        takes(
            "takes a link-local address, for a cloud's metadata",
            link_local,
            vec![udp(link_local, METADATA, service)],
            String::new(),
        ),
        takes("takes the gateway's address", gateway, vec![udp(gateway, victim, INNER)], again),
        Trick {
            what: "takes a neighbour's address and tells all by ARP",
            set: format!(
                "ip addr add {victim}/32 dev eth0 && arping -c 2 -w 3 -U -I eth0 {victim} >/dev/null; true"
            ),
            undo: format!("ip addr del {victim}/32 dev eth0"),
            tries: Vec::new(),
            pings: Vec::new(),
            stop: Stop::Port,
        },
    ]
}

fn identities(scene: &Scene, prefix: u8, mac: &str) -> Vec<Trick> {
    let Scene { me, victim, gateway, other, host, outside, service, .. } = *scene;
    let (own, gateway) = (me.addr, gateway.addr);
    let takes = |mac: &str| {
        format!(
            "ip link set eth0 down && ip link set eth0 address {mac} && ip link set eth0 up && \
             ip route replace default via {gateway} dev eth0 onlink"
        )
    };
    let is =
        |addr: Ipv4Addr| format!("ip addr flush dev eth0; ip addr add {addr}/{prefix} dev eth0");
    let everywhere = || {
        vec![
            tcp(outside, OUTSIDE),
            udp(Ipv4Addr::UNSPECIFIED, outside, OUTSIDE),
            tcp(host, service),
            tcp(other, INNER),
            udp(Ipv4Addr::UNSPECIFIED, other, INNER),
        ]
    };
    let trick = |what, set, undo, pings| {
        let tries = everywhere();
        Trick { what, set, undo, tries, pings, stop: Stop::Port }
    };
    let neighbour = victim.mac.to_string();
    vec![
        trick("takes a neighbour's hardware address", takes(&neighbour), takes(mac), vec![gateway]),
        trick(
            "takes a hardware address of nobody",
            takes("02:00:00:00:00:01"),
            takes(mac),
            vec![gateway],
        ),
        trick(
            "takes both addresses of a neighbour",
            format!("{}; {}", is(victim.addr), takes(&neighbour)),
            format!("{}; {}", is(own), takes(mac)),
            vec![gateway],
        ),
    ]
}
