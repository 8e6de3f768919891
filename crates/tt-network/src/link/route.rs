//! Addresses, and routes of the main table.

use super::{Links, fail, is};
use crate::NetworkError;
use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use rustix::io::Errno;
use std::net::Ipv4Addr;

/// Marks the routes that we made, among the numbers that iproute2 leaves to others.
pub(crate) const ROUTE_PROTOCOL: u8 = 84;

/// An IPv4 route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: Ipv4Net,
    /// Index of the link it leaves by; none for a blackhole.
    pub(crate) link: Option<u32>,
    pub(crate) source: Option<Ipv4Addr>,
    /// The next hop, of a route that was read.
    pub(crate) via: Option<Ipv4Addr>,
    pub(crate) metric: u32,
    /// Made by us.
    pub(crate) is_ours: bool,
}

impl Route {
    /// A route of ours.
    pub(crate) fn to(to: Ipv4Net, link: Option<u32>) -> Self {
        Self { to, link, source: None, via: None, metric: 0, is_ours: true }
    }
}

impl Links {
    /// Gives a link an address.
    pub(crate) fn add_address(&mut self, link: u32, addr: Ipv4Net) -> Result<(), NetworkError> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = addr.prefix_len();
        message.header.index = link;
        message.attributes = vec![
            AddressAttribute::Local(addr.addr().into()),
            AddressAttribute::Address(addr.addr().into()),
        ];
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.tell("add address", addr, Message::NewAddress(message), flags)
    }

    /// All IPv4 addresses, with the index of their link.
    pub(crate) fn addresses(&mut self) -> Result<Vec<(u32, Ipv4Net)>, NetworkError> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        let answers = self.wire.dump(Message::GetAddress(message));
        let answers = answers.map_err(|e| fail("list", "addresses", e))?;
        Ok(answers.iter().filter_map(read_address).collect())
    }

    /// A route to `to` by `link` (none: a blackhole), over an unchecked next hop if `via` is one.
    /// Takes the place of another one with the same metric.
    pub(crate) fn set_route(
        &mut self,
        route: &Route,
        via: Option<Ipv4Addr>,
    ) -> Result<(), NetworkError> {
        let mut message = route_message(route);
        if let Some(via) = via {
            message.header.flags = netlink_packet_route::route::RouteFlags::Onlink;
            message.header.scope = RouteScope::Universe;
            let via = RouteAttribute::Gateway(RouteAddress::Inet(via));
            message.attributes.push(via);
        }
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.tell("set route to", route.to, Message::NewRoute(message), flags)
    }

    /// Removes a route.
    pub(crate) fn remove_route(&mut self, route: &Route) -> Result<(), NetworkError> {
        let message = Message::DelRoute(route_message(route));
        match self.wire.ask(message, 0) {
            Err(error) if !is(&error, Errno::SRCH) => {
                Err(fail("remove route to", &route.to.to_string(), error))
            }
            _ => Ok(()),
        }
    }

    /// The IPv4 routes of the main table.
    pub(crate) fn routes(&mut self) -> Result<Vec<Route>, NetworkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let answers = self.wire.dump(Message::GetRoute(message));
        let answers = answers.map_err(|e| fail("list", "routes", e))?;
        Ok(answers.iter().filter_map(read_route).collect())
    }
}

fn read_address(message: &Message) -> Option<(u32, Ipv4Net)> {
    let Message::NewAddress(address) = message else {
        return None;
    };
    let local = address.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(std::net::IpAddr::V4(addr)) => Some(*addr),
        _ => None,
    })?;
    let net = Ipv4Net::new(local, address.header.prefix_len).ok()?;
    Some((address.header.index, net))
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.destination_prefix_length = route.to.prefix_len();
    if route.to.prefix_len() > 0 {
        let to = RouteAddress::Inet(route.to.network());
        message.attributes.push(RouteAttribute::Destination(to));
    }
    (message.header.kind, message.header.scope) = match route.link {
        Some(_) => (RouteType::Unicast, RouteScope::Link),
        None => (RouteType::BlackHole, RouteScope::Universe),
    };
    message.attributes.extend(route.link.map(RouteAttribute::Oif));
    if route.metric > 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}

fn read_route(message: &Message) -> Option<Route> {
    let Message::NewRoute(message) = message else {
        return None;
    };
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let mut route = Route {
        to: Ipv4Net::default(),
        link: None,
        source: None,
        via: None,
        metric: 0,
        is_ours: header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(addr)) => {
                route.to = Ipv4Net::new(*addr, header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Oif(index) => route.link = Some(*index),
            RouteAttribute::PrefSource(RouteAddress::Inet(addr)) => route.source = Some(*addr),
            RouteAttribute::Gateway(RouteAddress::Inet(addr)) => route.via = Some(*addr),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            _ => {}
        }
    }
    Some(route)
}
