//! Where an address is, as far as it matters for whom a server may lead where: what only this host or its neighbours reach
//! must not be asked because a stranger says so. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What reaches an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Everybody.
    Open,
    /// Those of the same site.
    Site,
    /// Those on the same link; clouds keep secrets of a host there.
    Link,
    /// This host.
    Host,
}

/// A server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    /// Where it is asked.
    pub(super) address: SocketAddr,
    /// Whether this host has the address, whatever network that is of.
    pub(super) is_own: bool,
}

impl Peer {
    fn place(self) -> Place {
        if self.is_own { Place::Host } else { place(self.address.ip()) }
    }
}

/// Whether a server at `home` may lead to `to`: to the open network, or to where it is itself. Of this host that is its own
/// port alone: another one may be a service that trusts whoever is here, and who leads there may be a guest, whose ports
/// are published on this host.
pub(super) fn may_lead(home: Peer, to: Peer) -> bool {
    match (home.place(), to.place()) {
        (_, Place::Open) => true,
        (Place::Host, Place::Host) => home.address.port() == to.address.port(),
        (_, Place::Link) => home.address.ip() == to.address.ip(),
        (here, there) => here == there,
    }
}

fn place(address: IpAddr) -> Place {
    match address.to_canonical() {
        IpAddr::V4(address) => place_v4(address),
        IpAddr::V6(address) => place_v6(address),
    }
}

/// IANA's registry of special-purpose addresses; what is not for the open network counts as of the site.
fn place_v4(address: Ipv4Addr) -> Place {
    match address.octets() {
        // 0.0.0.0 is this host, too.
        [0 | 127, ..] => Place::Host,
        [169, 254, ..] => Place::Link,
        [10, ..]
        | [100, 64..=127, ..]
        | [172, 16..=31, ..]
        | [192, 0, 0 | 2, _]
        | [192, 168, ..]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [224..=255, ..] => Place::Site,
        _ => Place::Open,
    }
}

fn place_v6(address: Ipv6Addr) -> Place {
    let [.., high, low] = address.segments();
    let [a, b] = high.to_be_bytes();
    let [c, d] = low.to_be_bytes();
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Place::Host,
        // Translated to IPv4 on the way (RFC 6052), and compatible with it in the old form.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0, 0, ..] => {
            place_v4(Ipv4Addr::new(a, b, c, d))
        }
        [0xfe80..=0xfebf, ..] => Place::Link,
        // What is handed out to everybody begins with the bits 001, but for tunnels (6to4, Teredo) and documentation.
        [0x2002, ..] | [0x2001, 0 | 0xdb8, ..] => Place::Site,
        [0x2000..=0x3fff, ..] => Place::Open,
        _ => Place::Site,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_lead_to_the_open_network_only() {
        let at = |text: &str, port| SocketAddr::new(text.parse().unwrap(), port);
        let of = |text: &str| Peer { address: at(text, 443), is_own: false };
        let (open, site, host) = ("93.184.216.34", "10.1.2.3", "127.0.0.1");
        for to in ["1.1.1.1", "2606:4700::1111", "100.128.0.1", "172.32.0.1", "::ffff:8.8.8.8"] {
            for home in [open, site, host, "::1", "fd00::1"] {
                assert!(may_lead(of(home), of(to)), "{home} to {to}");
            }
        }
        let inner = [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "::1",
            "::",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "192.0.2.1",
            "224.0.0.1",
            "255.255.255.255",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "::7f00:1",
        ];
        for to in inner {
            assert!(!may_lead(of(open), of(to)), "{to}");
        }
        assert!(may_lead(of(host), of("::1")) && may_lead(of(site), of("192.168.7.7")));
        assert!(!may_lead(of(site), of(host)) && !may_lead(of(host), of(site)));
        let (link, other) = (of("169.254.1.1"), of("169.254.169.254"));
        let here = |text: &str, port| Peer { address: at(text, port), is_own: true };
        // The host's own addresses are the host, of whatever network they are, and each of its ports is somebody else.
        for own in [here(open, 443), here(site, 443), here(host, 443)] {
            assert!(!may_lead(of(open), own) && !may_lead(of(site), own));
            assert!(may_lead(own, of(open)) && !may_lead(own, of(site)) && !may_lead(own, link));
            assert!(may_lead(own, here(site, 443)) && may_lead(own, of("::1")));
            assert!(!may_lead(own, here(open, 444)) && !may_lead(own, here(host, 80)));
        }
        assert!(may_lead(link, link) && !may_lead(link, other) && !may_lead(of(host), other));
    }
}
