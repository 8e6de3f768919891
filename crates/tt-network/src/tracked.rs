//! Connections that the kernel tracks: those that came in through a public port are ended once it
//! leads elsewhere. It ends no others, and knows no rules.

use crate::nfnetlink::{Message, attribute, parse, raw};
use crate::wire::Wire;
use netlink_packet_core::{NLA_F_NESTED, NlaBuffer};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_sys::protocols::NETLINK_NETFILTER;
use std::io;
use std::net::Ipv4Addr;

/// The subsystem (`NFNL_SUBSYS_CTNETLINK` of linux/netfilter/nfnetlink.h).
const CONNECTIONS: u8 = 1;
// Messages and attributes of linux/netfilter/nfnetlink_conntrack.h.
const GET: u8 = 1;
const DELETE: u8 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// A filter by the source address (`CTA_FILTER_F_CTA_IP_SRC` of the kernel).
const FILTER_IP_SRC: u32 = 1;
/// The destination was rewritten (`IPS_DST_NAT` of linux/netfilter/nf_conntrack_common.h).
const IPS_DST_NAT: u32 = 1 << 5;

/// A connection whose destination was rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tracked {
    /// Number of its protocol.
    pub(crate) protocol: u8,
    /// The port that its client connected to.
    pub(crate) public: u16,
    /// Where that led.
    pub(crate) to: (Ipv4Addr, u16),
    /// What names it to the kernel.
    name: Vec<Vec<u8>>,
}

/// A socket for connections in one namespace.
#[derive(Debug)]
pub(crate) struct Connections {
    wire: Wire,
}

impl Connections {
    /// In the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        Wire::open(NETLINK_NETFILTER).map(|wire| Self { wire })
    }

    /// Ends the connections that `is_over` names: with their next packet they are new ones. `to`:
    /// only those that lead to that address are looked at.
    pub(crate) fn end(
        &mut self,
        to: Option<Ipv4Addr>,
        is_over: impl Fn(&Tracked) -> bool,
    ) -> io::Result<()> {
        let mut over = Vec::new();
        for answer in self.wire.dump(message(GET, &to.map(filter).unwrap_or_default()))? {
            over.extend(read(&answer)?.filter(&is_over));
        }
        for tracked in over {
            match self.wire.ask(message(DELETE, &tracked.name), 0) {
                // It ended by itself.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => drop(result?),
            }
        }
        Ok(())
    }
}

/// Replies come from `from`. Kernels before 5.8 take no notice and list all.
fn filter(from: Ipv4Addr) -> Vec<Vec<u8>> {
    let addr = attribute(CTA_IP_V4_SRC, &from.octets());
    let tuple = attribute(CTA_TUPLE_IP | NLA_F_NESTED, &addr);
    let flags = attribute(CTA_FILTER_REPLY_FLAGS, &FILTER_IP_SRC.to_ne_bytes());
    [(CTA_TUPLE_REPLY, tuple), (CTA_FILTER, flags)]
        .map(|(kind, value)| attribute(kind | NLA_F_NESTED, &value))
        .into()
}

fn message(kind: u8, attributes: &[Vec<u8>]) -> Message {
    raw([CONNECTIONS, kind], NetfilterProtoFamily::IPv4, attributes)
}

/// A connection with a rewritten destination and ports.
fn read(answer: &Message) -> io::Result<Option<Tracked>> {
    let attributes = answer.all()?;
    let Some(status) = value(&attributes, CTA_STATUS).and_then(|b| <[u8; 4]>::try_from(b).ok())
    else {
        return Ok(None);
    };
    if u32::from_be_bytes(status) & IPS_DST_NAT == 0 {
        return Ok(None);
    }
    let (Some(origin), Some(reply)) =
        (value(&attributes, CTA_TUPLE_ORIG), value(&attributes, CTA_TUPLE_REPLY))
    else {
        return Ok(None);
    };
    let name = [CTA_TUPLE_ORIG | NLA_F_NESTED, CTA_ID].into_iter();
    let name =
        name.filter_map(|kind| Some(attribute(kind, value(&attributes, kind & !NLA_F_NESTED)?)));
    let name = name.collect();
    let (origin, reply) = (parse(origin)?, parse(reply)?);
    let found = || {
        let number = field(&origin, CTA_TUPLE_PROTO, CTA_PROTO_NUM)?;
        let addr = field(&reply, CTA_TUPLE_IP, CTA_IP_V4_SRC)?;
        let port = |tuple, kind| {
            let bytes = field(tuple, CTA_TUPLE_PROTO, kind)?;
            Some(u16::from_be_bytes(bytes.try_into().ok()?))
        };
        Some(Tracked {
            protocol: *number.first()?,
            public: port(&origin, CTA_PROTO_DST_PORT)?,
            to: (<[u8; 4]>::try_from(addr).ok()?.into(), port(&reply, CTA_PROTO_SRC_PORT)?),
            name,
        })
    };
    Ok(found())
}

/// An attribute of an attribute of a tuple.
fn field(tuple: &[NlaBuffer<&[u8]>], part: u16, kind: u16) -> Option<Vec<u8>> {
    let part = parse(value(tuple, part)?).ok()?;
    value(&part, kind).map(<[u8]>::to_vec)
}

fn value<'a>(attributes: &'a [NlaBuffer<&[u8]>], kind: u16) -> Option<&'a [u8]> {
    attributes.iter().find(|attribute| attribute.kind() == kind).map(NlaBuffer::value)
}
