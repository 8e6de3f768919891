//! IPv6 inside an Env's namespace: the gateway's addresses, the way out, and each member's neighbour and route.

use super::{BRIDGE, EDGE, Inside, PLUGGED, Plan};
use crate::NetworkError;
use crate::link::Links;
use crate::member::Member;
use crate::sysctl::{self, Folder};
use ipnet::Ipv6Net;
use std::net::{Ipv4Addr, Ipv6Addr};
use tt_model::six;

/// Where an Env's packets go to. The link asks for no neighbours, so nobody needs to have it.
const NEXT_HOP: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Bits of the network of a link.
const LINK_PREFIX: u8 = 64;

/// Switches. Bridge and edge have the addresses which they are given, and no others; ports of the bridge have none at all.
const SYSCTLS: [(&str, &str); 6] = [
    ("conf/all/forwarding", "1"),
    ("conf/lo/disable_ipv6", "0"),
    ("conf/br0/addr_gen_mode", "1"),
    ("conf/br0/disable_ipv6", "0"),
    ("conf/edge0/addr_gen_mode", "1"),
    ("conf/edge0/disable_ipv6", "0"),
];

impl Inside {
    /// Makes what is missing of IPv6 at bridge and edge. Where the kernel has none, nothing is. `six`: its switches, if they
    /// are open.
    pub(super) fn ensure_six(
        &mut self,
        plan: &Plan<'_>,
        six: Option<Folder>,
    ) -> Result<(), NetworkError> {
        let found = six.map_or_else(|| Folder::find("ipv6"), |six| Ok(Some(six)))?;
        let Some(switches) = found else { return Ok(()) };
        switches.set(&SYSCTLS)?;
        let (bridge, edge) = (self.links.index(BRIDGE)?, self.links.index(EDGE)?);
        let of_link = Ipv6Net::new_assert(six::link_local(plan.gateway), LINK_PREFIX);
        self.links.add_address_six(bridge, of_link)?;
        self.links.add_address_six(bridge, six::address(plan.gateway).into())?;
        self.links.set_route_six(Ipv6Net::default(), edge, Some(NEXT_HOP))
    }

    /// Lets the gateway find a member without asking, and whatever the kernel's table of neighbours holds beside it.
    pub(super) fn set_port_six(
        &mut self,
        member: &Member,
        bridge: u32,
    ) -> Result<(), NetworkError> {
        if !sysctl::has_six() {
            return Ok(());
        }
        for addr in addresses(member.ip) {
            self.links.set_neighbour(bridge, addr.into(), member.mac)?;
        }
        self.links.set_route_six(six::address(member.ip).into(), bridge, None)
    }

    /// Takes [`set_port_six`](Self::set_port_six) back.
    pub(super) fn unset_port_six(
        &mut self,
        member: &Member,
        bridge: u32,
    ) -> Result<(), NetworkError> {
        if !sysctl::has_six() {
            return Ok(());
        }
        for addr in addresses(member.ip) {
            self.links.remove_neighbour(bridge, addr.into())?;
        }
        self.links.remove_route_six(six::address(member.ip).into(), bridge)
    }
}

/// Both addresses of the member that has `ip`.
pub(crate) fn addresses(ip: Ipv4Addr) -> [Ipv6Addr; 2] {
    [six::address(ip), six::link_local(ip)]
}

/// Lets the calling thread's namespace have IPv6 on what was plugged into it, before that is up.
pub(super) fn allow_plugged() -> Result<(), NetworkError> {
    sysctl::set_if_there(&format!("ipv6/conf/{PLUGGED}/disable_ipv6"), "0")
}

/// Gives what was plugged in its address and the way out.
pub(super) fn set_up_plugged(
    links: &mut Links,
    link: u32,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
) -> Result<(), NetworkError> {
    if !sysctl::has_six() {
        return Ok(());
    }
    let own = Ipv6Net::new_assert(six::address(address), LINK_PREFIX);
    links.add_address_six(link, own)?;
    links.set_route_six(Ipv6Net::default(), link, Some(six::link_local(gateway)))
}
