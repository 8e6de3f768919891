//! Who reaches whom across an Env's edge.

use std::net::{Ipv4Addr, SocketAddr};
use testkit::{CLIENT, Echo, HOST, Lab, Space};

/// Where the outside listens.
const OUTSIDE: u16 = 7000;
/// Where members listen that are reached at their own address.
const INNER: u16 = 7007;

/// From outside, from the host's own address, and through 127.0.0.1.
pub fn ports_are_published(lab: &Lab) {
    lab.serve_echo("shop/web", 53);
    lab.sh("shop/web", "mkdir -p /srv && echo hello >/srv/index.html && httpd -p 80 -h /srv");
    let (tcp, udp) = (lab.port("shop", "web", "80"), lab.port("shop", "web", "53/udp"));
    let ways: [(&Space, Ipv4Addr); 3] =
        [(&lab.client, HOST), (&lab.host, HOST), (&lab.host, Ipv4Addr::LOCALHOST)];
    for (space, addr) in ways {
        assert_eq!(fetch(space, (addr, tcp)), "hello\n", "from {addr}, TCP port {tcp}");
        assert!(space.reaches_udp((addr, udp)), "from {addr}, UDP port {udp}");
        // The other protocol's port of the same number is nobody's.
        assert!(space.misses_udp((addr, tcp)), "from {addr}, UDP port {tcp}");
        assert!(space.misses_tcp((addr, udp)), "from {addr}, TCP port {udp}");
    }
    let shown = lab.tt(&["env", "show", "shop"]).good();
    assert!(shown.contains(&format!("{HOST}:{tcp} -> 80")), "{shown}");
    // Members reach each other without any published port.
    assert_eq!(lab.sh("shop/db", "wget -qO- http://web/"), "hello");
}

/// The outside sees the host's address.
pub fn outgoing_traffic_is_masqueraded(lab: &Lab) {
    let outside = Echo::new(&lab.client, OUTSIDE);
    lab.bring_helper("shop/db");
    let (to, port) = (CLIENT.to_string(), OUTSIDE.to_string());
    lab.exec("shop/db", &["helper", "tcp", &to, &port]).good();
    lab.exec("shop/db", &["helper", "udp", "0.0.0.0", &to, &port]).good();
    let peers = outside.peers();
    assert!(peers.len() >= 2, "{peers:?}");
    let is_host = |peer: &SocketAddr| peer.ip() == HOST;
    assert!(peers.iter().all(is_host), "{peers:?}");
}

/// By its host, and by a client that routes the range there; its neighbour is not.
pub fn a_flat_member_is_reached_at_its_own_address(lab: &Lab) {
    let (flat, plain) = (lab.addr("shop", "db"), lab.addr("shop", "web"));
    lab.serve_echo("shop/db", INNER);
    lab.serve_echo("shop/web", INNER);
    lab.client.ip(&format!("route add 10.0.0.0/8 via {HOST}"));
    assert!(lab.host.reaches_tcp((flat, INNER)) && lab.host.reaches_udp((flat, INNER)));
    assert!(lab.client.reaches_tcp((flat, INNER)) && lab.client.reaches_udp((flat, INNER)));
    assert!(lab.client.misses_tcp((plain, INNER)) && lab.client.misses_udp((plain, INNER)));
    let record = lab.vm("shop", "db");
    assert_eq!(record["addr"], flat.to_string());
    assert_eq!(record["resource"]["port_map"], serde_json::json!({}));
    let shown = lab.tt(&["env", "show", "shop"]).good();
    assert!(shown.lines().any(|line| line.contains("db") && line.contains(&flat.to_string())));
}

/// The body of `/` on a web server.
fn fetch(space: &Space, to: (Ipv4Addr, u16)) -> String {
    use std::io::{Read, Write};
    let mut stream = space.connect(to).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}
