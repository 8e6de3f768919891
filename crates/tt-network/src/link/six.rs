//! IPv6 addresses of links, and routes of the main table.

use super::{Links, ROUTE_PROTOCOL, fail, is};
use crate::NetworkError;
use ipnet::Ipv6Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use rustix::io::Errno;
use std::net::Ipv6Addr;

/// A route for what is handed out of all addresses, `2000::/3`, is a default route in disguise, as are those of half the
/// world that VPN programs set.
const WAY_OUT_PREFIX_MAX: u8 = 3;

impl Links {
    /// Gives a link an address that is there at once: that nobody else has it is known (RFC 4862 5.4).
    pub(crate) fn add_address_six(&mut self, link: u32, addr: Ipv6Net) -> Result<(), NetworkError> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.prefix_len = addr.prefix_len();
        message.header.index = link;
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes = vec![
            AddressAttribute::Local(addr.addr().into()),
            AddressAttribute::Address(addr.addr().into()),
        ];
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.tell("add address", addr, Message::NewAddress(message), flags)
    }

    /// A route to `to` by `link`, over `via` if it is one. Takes the place of another one.
    pub(crate) fn set_route_six(
        &mut self,
        to: Ipv6Net,
        link: u32,
        via: Option<Ipv6Addr>,
    ) -> Result<(), NetworkError> {
        let mut message = route_message(to, link);
        let via = via.map(|via| RouteAttribute::Gateway(RouteAddress::Inet6(via)));
        message.attributes.extend(via);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.tell("set route to", to, Message::NewRoute(message), flags)
    }

    /// Removes a route by that link.
    pub(crate) fn remove_route_six(&mut self, to: Ipv6Net, link: u32) -> Result<(), NetworkError> {
        match self.wire.ask(Message::DelRoute(route_message(to, link)), 0) {
            Err(error) if !is(&error, Errno::SRCH) => {
                Err(fail("remove route to", &to.to_string(), error))
            }
            _ => Ok(()),
        }
    }

    /// The links by which the default routes of the main table lead, best first; none if IPv6 has no way out.
    pub(crate) fn ways_out_six(&mut self) -> Result<Vec<u32>, NetworkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        let answers = self.wire.dump(Message::GetRoute(message));
        let answers = answers.map_err(|e| fail("list", "routes", e))?;
        let mut ways: Vec<(u32, u32)> = answers.iter().filter_map(read_way_out).collect();
        ways.sort_unstable();
        Ok(ways.into_iter().map(|(_, link)| link).collect())
    }
}

fn route_message(to: Ipv6Net, link: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    (message.header.kind, message.header.scope) = (RouteType::Unicast, RouteScope::Universe);
    message.header.destination_prefix_length = to.prefix_len();
    if to.prefix_len() > 0 {
        let to = RouteAddress::Inet6(to.network());
        message.attributes.push(RouteAttribute::Destination(to));
    }
    message.attributes.push(RouteAttribute::Oif(link));
    message
}

/// Metric and link of a default route of somebody's.
fn read_way_out(message: &Message) -> Option<(u32, u32)> {
    let Message::NewRoute(message) = message else {
        return None;
    };
    let header = &message.header;
    let is_way_out = header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast
        && header.destination_prefix_length <= WAY_OUT_PREFIX_MAX
        && header.protocol != RouteProtocol::Other(ROUTE_PROTOCOL);
    let attributes = message.attributes.iter();
    let metric = attributes.clone().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    let mut links = attributes.filter_map(|attribute| match attribute {
        RouteAttribute::Oif(link) => Some(*link),
        // Several ways at once: any of them tells that there is one.
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    });
    is_way_out.then(|| links.next().map(|link| (metric.unwrap_or_default(), link)))?
}
