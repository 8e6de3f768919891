//! Links and what belongs to them, by netlink, in the namespace where the socket was opened:
//! `route.rs` has addresses and routes, `six.rs` those of IPv6, `neighbour.rs` neighbours. Making what exists and removing
//! what is absent succeed.

use crate::NetworkError;
use crate::wire::Wire;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind,
    InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};
use tt_model::MacAddr;

mod neighbour;
mod route;
mod six;

pub(crate) use route::{ROUTE_PROTOCOL, Route};

/// A link as it is now.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Index of the bridge it is a port of.
    pub(crate) bridge: Option<u32>,
    pub(crate) is_up: bool,
    /// Largest packet in bytes; 0 if the kernel does not say.
    pub(crate) mtu: u32,
}

/// What a tunnel is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tunnel {
    /// Of the packets' network (VNI): 24 bits.
    pub(crate) id: u32,
    pub(crate) port: u16,
    /// The host's address that it sends from.
    pub(crate) local: Ipv4Addr,
    pub(crate) mac: MacAddr,
    /// Largest packet inside, in bytes.
    pub(crate) mtu: u32,
}

/// A socket for links in one namespace.
#[derive(Debug)]
pub(crate) struct Links {
    wire: Wire,
}

impl Links {
    /// In the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, NetworkError> {
        let wire = Wire::open(NETLINK_ROUTE).map_err(|e| fail("open netlink for", "links", e))?;
        Ok(Self { wire })
    }

    /// All links.
    pub(crate) fn all(&mut self) -> Result<Vec<Link>, NetworkError> {
        let answers = self.wire.dump(Message::GetLink(LinkMessage::default()));
        let answers = answers.map_err(|e| fail("list", "links", e))?;
        Ok(answers.iter().filter_map(read_link).collect())
    }

    /// The link of that name.
    pub(crate) fn find(&mut self, name: &str) -> Result<Option<Link>, NetworkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.wire.ask(Message::GetLink(message), 0) {
            Err(error) if is(&error, Errno::NODEV) => Ok(None),
            Err(error) => Err(fail("look for", name, error)),
            Ok(answers) => Ok(answers.iter().find_map(read_link)),
        }
    }

    /// The index of a link that must be there.
    pub(crate) fn index(&mut self, name: &str) -> Result<u32, NetworkError> {
        let link = self.find(name)?;
        link.map(|link| link.index).ok_or_else(|| fail("find", name, Errno::NODEV.into()))
    }

    /// A bridge that forwards at once: no spanning tree, no multicast snooping, nothing handed to
    /// iptables.
    pub(crate) fn make_bridge(&mut self, name: &str, mac: MacAddr) -> Result<(), NetworkError> {
        let info = vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![
                InfoBridge::ForwardDelay(0),
                InfoBridge::StpState(BridgeStpState::Disabled),
                InfoBridge::MulticastSnooping(false),
                InfoBridge::NfCallIpTables(false),
                InfoBridge::NfCallIp6Tables(false),
                InfoBridge::NfCallArpTables(false),
            ])),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::LinkInfo(info),
        ];
        self.make_link("make bridge", name, message)
    }

    /// A veth pair: `name` here and `peer` in the namespace `peer_ns`. Both ends have `mac` and do
    /// no ARP: a link without ARP writes its own address on what it sends, so each end takes what
    /// the other sends, and no neighbour entry is ever needed.
    pub(crate) fn make_veth(
        &mut self,
        name: &str,
        peer: &str,
        peer_ns: BorrowedFd<'_>,
        mac: MacAddr,
    ) -> Result<(), NetworkError> {
        let mut other = LinkMessage::default();
        other.attributes = vec![
            LinkAttribute::IfName(peer.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::NetNsFd(peer_ns.as_raw_fd()),
        ];
        set_flags(&mut other, LinkFlags::Noarp);
        let info = vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::LinkInfo(info),
        ];
        set_flags(&mut message, LinkFlags::Noarp | LinkFlags::Up);
        self.make_link("make edge", peer, message)
    }

    /// A veth pair in this namespace. What comes out of `name` is what `peer`, which has `mac`, sends.
    pub(crate) fn make_pair(
        &mut self,
        name: &str,
        peer: &str,
        mac: MacAddr,
    ) -> Result<(), NetworkError> {
        let mut other = LinkMessage::default();
        other.attributes =
            vec![LinkAttribute::IfName(peer.to_owned()), LinkAttribute::Address(mac.0.to_vec())];
        let info = vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ];
        let mut message = LinkMessage::default();
        message.attributes =
            vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::LinkInfo(info)];
        self.make_link("make port", name, message)
    }

    /// Moves a link that is down into the namespace `into`, where it is called `as_name`.
    pub(crate) fn give_away(
        &mut self,
        name: &str,
        into: BorrowedFd<'_>,
        as_name: &str,
    ) -> Result<(), NetworkError> {
        let mut message = LinkMessage::default();
        message.header.index = self.index(name)?;
        message.attributes = vec![
            LinkAttribute::NetNsFd(into.as_raw_fd()),
            LinkAttribute::IfName(as_name.to_owned()),
        ];
        self.tell("plug in", name, Message::SetLink(message), 0)
    }

    /// A tunnel that sends in UDP datagrams from `tunnel.local`. It learns nothing and floods nothing:
    /// it knows its peers from forwarding entries.
    pub(crate) fn make_tunnel(&mut self, name: &str, tunnel: &Tunnel) -> Result<(), NetworkError> {
        let info = vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![
                InfoVxlan::Id(tunnel.id),
                InfoVxlan::Local(tunnel.local),
                InfoVxlan::Learning(false),
                InfoVxlan::Port(tunnel.port),
            ])),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(tunnel.mac.0.to_vec()),
            LinkAttribute::Mtu(tunnel.mtu),
            LinkAttribute::LinkInfo(info),
        ];
        self.make_link("make tunnel", name, message)
    }

    /// Id, port and local address of a tunnel; none if there is no such tunnel.
    pub(crate) fn tunnel(
        &mut self,
        name: &str,
    ) -> Result<Option<(u32, u16, Ipv4Addr)>, NetworkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.wire.ask(Message::GetLink(message), 0) {
            Err(error) if is(&error, Errno::NODEV) => Ok(None),
            Err(error) => Err(fail("look for", name, error)),
            Ok(answers) => Ok(answers.iter().find_map(read_tunnel)),
        }
    }

    /// Changes the largest packet of a link, in bytes.
    pub(crate) fn set_mtu(&mut self, link: &Link, mtu: u32) -> Result<(), NetworkError> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.attributes = vec![LinkAttribute::Mtu(mtu)];
        self.tell("set the mtu of", &link.name, Message::SetLink(message), 0)
    }

    /// Brings a link up.
    pub(crate) fn set_up(&mut self, link: u32, name: &str) -> Result<(), NetworkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        set_flags(&mut message, LinkFlags::Up);
        self.tell("bring up", name, Message::SetLink(message), 0)
    }

    /// Makes `port` a port of the bridge and brings it up.
    pub(crate) fn set_port(
        &mut self,
        port: &Link,
        bridge: u32,
        mac: MacAddr,
    ) -> Result<(), NetworkError> {
        if port.bridge != Some(bridge) || !port.is_up {
            let mut message = LinkMessage::default();
            message.header.index = port.index;
            message.attributes = vec![LinkAttribute::Controller(bridge)];
            set_flags(&mut message, LinkFlags::Up);
            self.tell("join bridge with", &port.name, Message::SetLink(message), 0)?;
        }
        let mut message = LinkMessage::default();
        message.header.index = port.index;
        message.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            // The bridge knows where each member is: a guest can not move an address to its port,
            // and sees no frames for addresses that nobody has.
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::Learning(false),
                InfoBridgePort::UnicastFlood(false),
            ])),
        ])];
        self.tell("harden port", &port.name, Message::NewLink(message), 0)?;
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = port.index;
        message.header.state = NeighbourState::Noarp;
        message.header.flags = NeighbourFlags::Controller;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let message = Message::NewNeighbour(message);
        self.tell("fix the address behind", &port.name, message, flags)
    }

    /// Removes a link, and with a veth its other end.
    pub(crate) fn remove(&mut self, name: &str) -> Result<(), NetworkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.wire.ask(Message::DelLink(message), 0) {
            Err(error) if !is(&error, Errno::NODEV) => Err(fail("remove", name, error)),
            _ => Ok(()),
        }
    }

    fn make_link(
        &mut self,
        action: &'static str,
        name: &str,
        message: LinkMessage,
    ) -> Result<(), NetworkError> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.tell(action, name, Message::NewLink(message), flags)
    }

    fn tell(
        &mut self,
        action: &'static str,
        name: impl ToString,
        message: Message,
        flags: u16,
    ) -> Result<(), NetworkError> {
        match self.wire.ask(message, flags) {
            Ok(_) => Ok(()),
            Err(source) => Err(fail(action, &name.to_string(), source)),
        }
    }
}

fn fail(action: &'static str, name: &str, source: io::Error) -> NetworkError {
    NetworkError::ChangeLink { action, name: name.to_owned(), source }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn set_flags(message: &mut LinkMessage, flags: LinkFlags) {
    message.header.flags = flags;
    message.header.change_mask = flags;
}

fn read_link(message: &Message) -> Option<Link> {
    let Message::NewLink(link) = message else {
        return None;
    };
    let mut name = None;
    let mut bridge = None;
    let mut mtu = 0;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Controller(index) => bridge = Some(*index),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            _ => {}
        }
    }
    Some(Link {
        index: link.header.index,
        name: name?,
        bridge,
        is_up: link.header.flags.contains(LinkFlags::Up),
        mtu,
    })
}

fn read_tunnel(message: &Message) -> Option<(u32, u16, Ipv4Addr)> {
    let Message::NewLink(link) = message else {
        return None;
    };
    let mut found = (None, None, None);
    for attribute in &link.attributes {
        let LinkAttribute::LinkInfo(infos) = attribute else { continue };
        for info in infos {
            let LinkInfo::Data(InfoData::Vxlan(vxlan)) = info else { continue };
            for value in vxlan {
                match value {
                    InfoVxlan::Id(id) => found.0 = Some(*id),
                    InfoVxlan::Port(port) => found.1 = Some(*port),
                    InfoVxlan::Local(local) => found.2 = Some(*local),
                    _ => {}
                }
            }
        }
    }
    Some((found.0?, found.1?, found.2?))
}
