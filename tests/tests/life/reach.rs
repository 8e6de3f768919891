//! Who reaches whom across an Env's edge.

use std::net::{Ipv4Addr, SocketAddr};
use testkit::{CLIENT, Echo, HOST, Lab, Space};

/// Where the outside listens.
const OUTSIDE: u16 = 7000;

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

/// The body of `/` on a web server.
fn fetch(space: &Space, to: (Ipv4Addr, u16)) -> String {
    use std::io::{Read, Write};
    let mut stream = space.connect(to).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}
