//! What lies inside an Env's network namespace: bridge, inner end of the edge, rules, and a port for
//! each member. Everything here runs on a thread inside that namespace and touches nothing outside,
//! except that a new edge has its other end on the host.

use crate::advert::Routers;
use crate::dhcp::SERVER_PORT;
use crate::door::Sockets;
use crate::elements::Elements;
use crate::link::{Link, Links, Route};
use crate::member::{Member, fail};
use crate::nft::{self, BRIDGE, EDGE, ENV_TABLE};
use crate::sysctl::{self, Folder};
use crate::{NetworkError, rules, tap};
use ipnet::Ipv4Net;
use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use tt_model::{MacAddr, VmId, names};

pub(crate) mod six;

/// The host's end of every edge. Guests never see it; it is link-local, so it is routed nowhere.
pub(crate) const HOST_END: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
/// Of both ends of every edge, see [`Links::make_veth`]. Outside the members' `82:17:0d`.
const EDGE_MAC: MacAddr = MacAddr([0x82, 0x17, 0x0e, 0, 0, 1]);
/// Where resolvers listen (IANA).
const DNS_PORT: u16 = 53;
/// Largest packet between members, in bytes: what a new bridge and new taps have.
pub(crate) const BRIDGE_MTU: u16 = 1500;

/// What a container calls its end of its port.
const PLUGGED: &str = "eth0";

/// Sysctls of a new namespace, before it has any link.
const SYSCTLS: [(&str, &str); 6] = [
    ("ip_forward", "1"),
    // Inherited from the host otherwise, in whatever state that is.
    ("conf/all/rp_filter", "1"),
    ("conf/all/accept_redirects", "0"),
    ("conf/all/send_redirects", "0"),
    ("conf/default/send_redirects", "0"),
    ("conf/default/accept_source_route", "0"),
];
/// Sysctls of a new bridge. Guests take the whole range for their neighbourhood; the gateway answers
/// for all of it that has no port here, so that members of other hosts are reached through it.
const BRIDGE_SYSCTLS: [(&str, &str); 2] =
    [("conf/br0/proxy_arp", "1"), ("neigh/br0/proxy_delay", "0")];
/// Only where the kernel can hand bridged frames to iptables: it must not, for what passes the bridge is no matter of the
/// tables for what is routed.
const SYSCTLS_BRIDGE: [(&str, &str); 3] = [
    ("bridge-nf-call-iptables", "0"),
    ("bridge-nf-call-ip6tables", "0"),
    ("bridge-nf-call-arptables", "0"),
];

/// What all members of an Env share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<'a> {
    /// The gateway's address.
    pub(crate) gateway: Ipv4Addr,
    /// Where all members have their addresses.
    pub(crate) range: Ipv4Net,
    /// Name of the host's end of the edge.
    pub(crate) edge: &'a str,
    /// The host's namespace.
    pub(crate) host: BorrowedFd<'a>,
}

/// The namespace that the calling thread is in.
#[derive(Debug)]
pub(crate) struct Inside {
    links: Links,
    pub(crate) elements: Elements,
    /// Whether nothing is in it yet.
    is_new: bool,
}

impl Inside {
    pub(crate) fn open() -> Result<Self, NetworkError> {
        let elements = Elements::open().map_err(|e| fail("open netlink for", "sets", e))?;
        Ok(Self { links: Links::open()?, elements, is_new: false })
    }

    /// Of a thread that has just made it.
    pub(crate) fn open_new() -> Result<Self, NetworkError> {
        Ok(Self { is_new: true, ..Self::open()? })
    }

    /// Makes what is missing of bridge, edge and rules, and of a member, and takes away what the
    /// member's record no longer says. Without its elements, nothing leaves a tap. True if the rules were
    /// loaded, so that nothing else is in their sets.
    pub(crate) fn set(&mut self, plan: &Plan<'_>, member: &Member) -> Result<bool, NetworkError> {
        let loading = self.ensure(plan)?;
        let is_new = loading.is_some();
        self.set_port(member)?;
        loading.map_or(Ok(()), nft::Loading::finish)?;
        self.set_elements(member)?;
        Ok(is_new)
    }

    fn ensure(&mut self, plan: &Plan<'_>) -> Result<Option<nft::Loading>, NetworkError> {
        // All questions name one thing: their cost must not grow with the number of members.
        // `nft` starts a process, which takes as long as all the rest: both at once.
        let loading = if self.is_new {
            Some(nft::load(ENV_TABLE, &rules::env_rules(plan.range))?)
        } else if self.has_rules(plan.range)? {
            None
        } else {
            Some(nft::load(ENV_TABLE, &rules::env_rules_anew(plan.range))?)
        };
        let bridge = self.links.find(BRIDGE)?;
        let mut six = None;
        if bridge.is_none() {
            let four = Folder::open("ipv4")?;
            four.set(&SYSCTLS)?;
            // Ports of the bridge need no addresses; bridge and edge are switched on (`env/six.rs`).
            six = Folder::find("ipv6")?;
            six.iter().try_for_each(|six| six.set(&[("conf/default/disable_ipv6", "1")]))?;
            Folder::find("bridge")?.map_or(Ok(()), |switches| switches.set(&SYSCTLS_BRIDGE))?;
            let mac = MacAddr::of_ip(plan.gateway);
            self.links.make_bridge(BRIDGE, mac)?;
            four.set(&BRIDGE_SYSCTLS)?;
        }
        let was_up = bridge.is_some_and(|bridge| bridge.is_up);
        if !was_up {
            let bridge = self.links.index(BRIDGE)?;
            self.links.add_address(bridge, plan.gateway.into())?;
            self.links.set_up(bridge, BRIDGE)?;
        }
        let has_edge = self.links.find(EDGE)?.is_some();
        if !has_edge {
            self.links.make_veth(EDGE, plan.edge, plan.host, EDGE_MAC)?;
        }
        if !has_edge || !self.links.routes()?.iter().any(|r| r.to.prefix_len() == 0) {
            let edge = self.links.index(EDGE)?;
            self.links.set_route(&Route::to(Ipv4Net::default(), Some(edge)), Some(HOST_END))?;
        }
        // What an earlier version left has other rules, and no IPv6; a bridge that is set up anew has lost it.
        if !has_edge || loading.is_some() || !was_up {
            self.ensure_six(plan, six)?;
        }
        Ok(loading)
    }

    fn set_port(&mut self, member: &Member) -> Result<(), NetworkError> {
        let bridge = self.links.index(BRIDGE)?;
        let link = match self.links.find(&member.tap)? {
            Some(link) => link,
            None => self.make_port(member)?,
        };
        self.links.set_port(&link, bridge, member.mac)?;
        // The gateway finds each member without asking: also one that has no address yet, and
        // whatever the kernel's table of neighbours holds beside it.
        self.links.set_neighbour(bridge, member.ip.into(), member.mac)?;
        self.links.set_route(&Route::to(member.ip.into(), Some(bridge)), None)?;
        self.set_port_six(member, bridge)
    }

    /// Removes a member. The link goes last, so that what remains of an attempt is found.
    pub(crate) fn unset_member(&mut self, member: &Member) -> Result<(), NetworkError> {
        self.remove_elements(member)?;
        if let Some(bridge) = self.links.find(BRIDGE)? {
            self.unset_port_six(member, bridge.index)?;
            self.links.remove_neighbour(bridge.index, member.ip.into())?;
            self.links.remove_route(&Route::to(member.ip.into(), Some(bridge.index)))?;
        }
        self.links.remove(&member.tap)
    }

    /// Whether the member has a tap.
    pub(crate) fn has_member(&mut self, member: &Member) -> Result<bool, NetworkError> {
        Ok(self.links.find(&member.tap)?.is_some())
    }

    /// The members that have a tap.
    pub(crate) fn members(&mut self) -> Result<BTreeSet<VmId>, NetworkError> {
        let links = self.links.all()?;
        Ok(links.iter().filter_map(|link| vm_of_tap(&link.name)).collect())
    }

    /// Sockets for the gate. The rules let only members reach them.
    pub(crate) fn open_gate(&mut self, gateway: Ipv4Addr) -> Result<Sockets, NetworkError> {
        let bridge = self.links.index(BRIDGE)?;
        let open = || {
            let dns = SocketAddrV4::new(gateway, DNS_PORT);
            let names = UdpSocket::bind(dns)?;
            let listener = TcpListener::bind(dns)?;
            // Who asks for an address has none to be answered from another one than the gateway.
            let leases = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, SERVER_PORT))?;
            bind_to_link(&leases, BRIDGE)?;
            leases.set_broadcast(true)?;
            names.set_nonblocking(true)?;
            listener.set_nonblocking(true)?;
            leases.set_nonblocking(true)?;
            let has_six = sysctl::has_six();
            let routers = has_six.then(|| Routers::open(BRIDGE, bridge)).transpose()?;
            Ok(Sockets { names, listener, leases, routers, elements: Elements::open()? })
        };
        open().map_err(|source| NetworkError::Resolve { action: "open sockets for", source })
    }

    /// Hands the other end of a container's port to the namespace `into`, unless it is there. It ended with the container
    /// before, and the port with it; or the port was left by one that is just ending.
    pub(crate) fn plug(
        &mut self,
        member: &Member,
        plug: &str,
        into: BorrowedFd<'_>,
    ) -> Result<(), NetworkError> {
        self.unplug(member, plug)?;
        self.links.give_away(plug, into, PLUGGED)
    }

    /// Makes a container's port whole again.
    pub(crate) fn unplug(&mut self, member: &Member, plug: &str) -> Result<(), NetworkError> {
        if self.links.find(plug)?.is_none() {
            self.links.remove(&member.tap)?;
            self.set_port(member)?;
        }
        Ok(())
    }

    fn make_port(&mut self, member: &Member) -> Result<Link, NetworkError> {
        let name = &member.tap;
        match &member.plug {
            Some(plug) => self.links.make_pair(name, plug, member.mac)?,
            None => tap::make(name).map_err(|source| NetworkError::ChangeLink {
                action: "make",
                name: name.to_owned(),
                source,
            })?,
        }
        Ok(Link {
            index: self.links.index(name)?,
            name: name.to_owned(),
            bridge: None,
            is_up: false,
            mtu: BRIDGE_MTU.into(),
        })
    }
}

/// Sets up what was plugged into the calling thread's namespace. False if nothing was yet.
pub(crate) fn set_up_plugged(address: Ipv4Net, gateway: Ipv4Addr) -> Result<bool, NetworkError> {
    let mut links = Links::open()?;
    let Some(link) = links.find(PLUGGED)? else { return Ok(false) };
    six::allow_plugged()?;
    for name in ["lo", PLUGGED] {
        let index = links.index(name)?;
        links.set_up(index, name)?;
    }
    links.add_address(link.index, address)?;
    links.set_route(&Route::to(Ipv4Net::default(), Some(link.index)), Some(gateway))?;
    six::set_up_plugged(&mut links, link.index, address.addr(), gateway)?;
    Ok(true)
}

/// Lets a socket send to and hear from one link only (socket(7)).
pub(crate) fn bind_to_link(socket: &impl AsRawFd, link: &str) -> io::Result<()> {
    let length = link.len() as libc::socklen_t;
    // SAFETY: the option reads `length` bytes, which are the name's, and keeps no pointer.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            link.as_ptr().cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whose tap that is.
pub(crate) fn vm_of_tap(name: &str) -> Option<VmId> {
    let id = u64::from_str_radix(name.strip_prefix("tap")?, 16).ok()?;
    (names::tap(VmId(id)) == name).then_some(VmId(id))
}
