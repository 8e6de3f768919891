//! Neighbours: which hardware address has an address, said instead of asked for.

use super::{Links, fail};
use crate::NetworkError;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use tt_model::MacAddr;

impl Links {
    /// Fixes which hardware address has `addr`, so that nobody is asked.
    pub(crate) fn set_neighbour(
        &mut self,
        link: u32,
        addr: IpAddr,
        mac: MacAddr,
    ) -> Result<(), NetworkError> {
        let mut message = neighbour_message(link, addr);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.tell("fix the neighbour", addr, Message::NewNeighbour(message), flags)
    }

    /// Fixes behind which host's address the end of a tunnel with that hardware address is.
    pub(crate) fn set_far_end(
        &mut self,
        tunnel: u32,
        mac: MacAddr,
        host: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let mut message = far_end_message(tunnel, mac);
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(host)));
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.tell("fix the far end", host, Message::NewNeighbour(message), flags)
    }

    /// Takes [`set_far_end`](Self::set_far_end) back.
    pub(crate) fn remove_far_end(&mut self, tunnel: u32, mac: MacAddr) -> Result<(), NetworkError> {
        match self.wire.ask(Message::DelNeighbour(far_end_message(tunnel, mac)), 0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(fail("remove far end", &mac.to_string(), error))
            }
            _ => Ok(()),
        }
    }

    /// Takes [`set_neighbour`](Self::set_neighbour) back.
    pub(crate) fn remove_neighbour(&mut self, link: u32, addr: IpAddr) -> Result<(), NetworkError> {
        match self.wire.ask(Message::DelNeighbour(neighbour_message(link, addr)), 0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(fail("remove neighbour", &addr.to_string(), error))
            }
            _ => Ok(()),
        }
    }
}

fn neighbour_message(link: u32, addr: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    let (family, addr) = match addr {
        IpAddr::V4(addr) => (AddressFamily::Inet, NeighbourAddress::Inet(addr)),
        IpAddr::V6(addr) => (AddressFamily::Inet6, NeighbourAddress::Inet6(addr)),
    };
    message.header.family = family;
    message.header.ifindex = link;
    message.attributes = vec![NeighbourAttribute::Destination(addr)];
    message
}

fn far_end_message(tunnel: u32, mac: MacAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = tunnel;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
    message
}
