//! IPv6 inside Envs: which addresses follow from a member's IPv4 address. Values only; no record holds them.

use crate::MacAddr;
use ipnet::Ipv6Net;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Where the members of every Env have their addresses: a unique local network (RFC 4193) whose global id is `ttenv`
/// in ASCII. It is the same everywhere, for no such address is ever seen outside of an Env and its host.
pub const NETWORK: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd74, 0x7465, 0x6e76, 0, 0, 0, 0, 0), 64);
/// All that TT has of unique local addresses: [`NETWORK`], and beside it the hosts' ends of edges.
pub const SITE: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd74, 0x7465, 0x6e76, 0, 0, 0, 0, 0), 48);
/// The host's end of every edge.
pub const HOST_END: Ipv6Addr = Ipv6Addr::new(0xfd74, 0x7465, 0x6e76, 1, 0, 0, 0, 1);

/// The address of the member, or gateway, that has `ip`: [`NETWORK`] and the interface id of its hardware address, so
/// that a guest that configures itself (RFC 4862) finds the same one.
pub fn address(ip: Ipv4Addr) -> Ipv6Addr {
    join(NETWORK.network(), ip)
}

/// What the one that has `ip` is called on its link alone.
pub fn link_local(ip: Ipv4Addr) -> Ipv6Addr {
    join(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), ip)
}

/// The member of a range that begins with `first` that has `address`, as [`address`] or [`link_local`] say; none if it
/// is of no member's form.
pub fn owner(address: Ipv6Addr, first: u8) -> Option<Ipv4Addr> {
    let [.., a, b, c] = address.octets();
    let ip = Ipv4Addr::new(first, a, b, c);
    (self::address(ip) == address || link_local(ip) == address).then_some(ip)
}

/// Network and modified EUI-64 of the hardware address (RFC 4291, appendix A).
fn join(network: Ipv6Addr, ip: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = MacAddr::of_ip(ip).0;
    let id = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from_bits(network.to_bits() | u128::from(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_follow_from_the_other_one() {
        let ip = Ipv4Addr::new(10, 1, 2, 3);
        assert_eq!(address(ip).to_string(), "fd74:7465:6e76:0:8017:dff:fe01:203");
        assert_eq!(link_local(ip).to_string(), "fe80::8017:dff:fe01:203");
        assert_eq!(&NETWORK.network().octets()[1..6], b"ttenv");
        assert!(NETWORK.contains(&address(ip)) && SITE.contains(&NETWORK));
        assert!(SITE.contains(&HOST_END) && !NETWORK.contains(&HOST_END));
        for address in [address(ip), link_local(ip)] {
            assert_eq!(owner(address, 10), Some(ip));
            assert_eq!(owner(address, 172), Some(Ipv4Addr::new(172, 1, 2, 3)));
        }
        for text in ["::", "fe80::1", "fd74:7465:6e76:1::1", "fd74:7465:6e76:0:8017:eff:fe01:203"] {
            assert_eq!(owner(text.parse().unwrap(), 10), None, "{text}");
        }
    }
}
