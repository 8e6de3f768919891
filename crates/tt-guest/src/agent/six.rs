//! IPv6 of a guest's interface by ioctls. What is right already is left alone, and a guest that wants no IPv6 gets none.

use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::AsRawFd;

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketType};
use tt_guest::message::SixSetup;

/// Lines read of each of the kernel's tables at most.
const LINES_MAX: usize = 4096;

/// Says that nobody looks for a second owner of its address: the host lets nobody else have it. Before the interface is up,
/// so that its addresses are there at once. What cannot be said costs a second, no more.
pub fn prepare(name: &str) {
    let _ = fs::write(switch(name, "accept_dad"), "0");
}

/// Sets an interface that is up as wanted.
pub fn set(name: &str, wanted: &SixSetup) -> io::Result<()> {
    if !(1..=128).contains(&wanted.prefix_len) {
        let text = format!("a prefix of {} bits must be 1 to 128", wanted.prefix_len);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    // No such file: a kernel without IPv6.
    let is_off =
        fs::read_to_string(switch(name, "disable_ipv6")).map_or(true, |now| now.trim() != "0");
    if is_off {
        return Ok(());
    }
    let control = Control::open(name)?;
    let own = addresses(&fs::read_to_string("/proc/net/if_inet6")?, name);
    for (old, prefix_len) in own.iter().filter(|(old, _)| *old != wanted.address) {
        if is_same_network(*old, wanted) {
            control.address(libc::SIOCDIFADDR, *old, *prefix_len)?;
        }
    }
    if !own.iter().any(|(old, _)| *old == wanted.address) {
        control.address(libc::SIOCSIFADDR, wanted.address, wanted.prefix_len)?;
    }
    if !has_way_out(&fs::read_to_string("/proc/net/ipv6_route")?, name, wanted.gateway) {
        control.add_way_out(wanted.gateway)?;
    }
    Ok(())
}

fn switch(name: &str, what: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{name}/{what}")
}

fn is_same_network(address: Ipv6Addr, wanted: &SixSetup) -> bool {
    let beyond = 128 - u32::from(wanted.prefix_len);
    (address.to_bits() ^ wanted.address.to_bits()).checked_shr(beyond).is_some_and(|rest| rest == 0)
}

/// Addresses and lengths of prefixes of an interface, out of `/proc/net/if_inet6`.
fn addresses(table: &str, name: &str) -> Vec<(Ipv6Addr, u8)> {
    let address = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [bits, _, prefix_len, _, _, link] = fields[..] else { return None };
        let bits = u128::from_str_radix(bits, 16).ok().filter(|_| link == name)?;
        Some((Ipv6Addr::from_bits(bits), u8::from_str_radix(prefix_len, 16).ok()?))
    };
    table.lines().take(LINES_MAX).filter_map(address).collect()
}

/// Whether there is a default route over that gateway, in `/proc/net/ipv6_route`.
fn has_way_out(table: &str, name: &str, gateway: Ipv6Addr) -> bool {
    let gateway = format!("{:032x}", gateway.to_bits());
    table.lines().take(LINES_MAX).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [to, "00", _, _, via, .., link]
            if link == name && via == gateway && to.bytes().all(|digit| digit == b'0'))
    })
}

/// `struct in6_rtmsg` of linux/ipv6_route.h: without lengths, it is about the default route.
#[repr(C)]
struct RouteRequest {
    to: libc::in6_addr,
    from: libc::in6_addr,
    gateway: libc::in6_addr,
    kind: u32,
    to_len: u16,
    from_len: u16,
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    link: libc::c_int,
}

impl Default for RouteRequest {
    fn default() -> Self {
        let [to, from, gateway] = [bytes(Ipv6Addr::UNSPECIFIED); 3];
        let (kind, to_len, from_len, metric, info, flags, link) = (0, 0, 0, 0, 0, 0, 0);
        Self { to, from, gateway, kind, to_len, from_len, metric, info, flags, link }
    }
}

/// The socket on which that is set, and the interface's number.
struct Control(OwnedFd, u32);

impl Control {
    fn open(name: &str) -> io::Result<Self> {
        let index = fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?;
        let index =
            index.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self(rustix::net::socket(AddressFamily::INET6, SocketType::DGRAM, None)?, index))
    }

    fn address(&self, what: libc::c_ulong, address: Ipv6Addr, prefix_len: u8) -> io::Result<()> {
        self.ask(
            what,
            libc::in6_ifreq {
                ifr6_addr: bytes(address),
                ifr6_prefixlen: prefix_len.into(),
                ifr6_ifindex: self.1.cast_signed(),
            },
        )
    }

    fn add_way_out(&self, gateway: Ipv6Addr) -> io::Result<()> {
        let route = RouteRequest {
            gateway: bytes(gateway),
            flags: u32::from(libc::RTF_UP | libc::RTF_GATEWAY),
            link: self.1.cast_signed(),
            ..RouteRequest::default()
        };
        self.ask(libc::SIOCADDRT, route)
    }

    fn ask<T>(&self, what: libc::c_ulong, mut request: T) -> io::Result<()> {
        // SAFETY: every request in this file takes a pointer to the structure that its caller passes, which outlives it.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), what, &raw mut request) };
        let error = io::Error::last_os_error();
        // A router's word may have made it a moment ago.
        if done == 0 || error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
    }
}

fn bytes(address: Ipv6Addr) -> libc::in6_addr {
    libc::in6_addr { s6_addr: address.octets() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "fd7474656e7600000000000000000005 02 40 00 80     eth0\n\
        fe800000000000000000000000000005 02 40 20 80     eth0\n\
        00000000000000000000000000000001 01 80 10 80       lo\nbroken\n";

    fn wanted(address: &str) -> SixSetup {
        let gateway = "fe80::1".parse().unwrap();
        SixSetup { address: address.parse().unwrap(), prefix_len: 64, gateway }
    }

    #[test]
    fn addresses_of_one_interface_are_found() {
        let own = addresses(OWN, "eth0");
        assert_eq!(own[0], ("fd74:7465:6e76::5".parse().unwrap(), 64));
        assert_eq!(own.len(), 2);
        assert_eq!(addresses(OWN, "eth1"), []);
        let wanted = wanted("fd74:7465:6e76::7");
        assert!(is_same_network(own[0].0, &wanted) && !is_same_network(own[1].0, &wanted));
        let all = SixSetup { prefix_len: 128, ..wanted };
        assert!(is_same_network(all.address, &all) && !is_same_network(own[0].0, &all));
    }

    #[test]
    fn the_way_out_is_found() {
        let zeros = "0".repeat(32);
        let via = format!("fe80{}1", "0".repeat(27));
        let table = format!(
            "{zeros} 00 {zeros} 00 {via} 00000400 00000001 00000000 00000003     eth0\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo\nbroken\n"
        );
        let gateway = "fe80::1".parse().unwrap();
        assert!(has_way_out(&table, "eth0", gateway));
        assert!(!has_way_out(&table, "eth1", gateway) && !has_way_out(&table, "lo", gateway));
        assert!(!has_way_out(&table, "eth0", "fe80::2".parse().unwrap()));
    }
}
