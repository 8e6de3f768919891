//! Connections that the kernel tracks: those that came in through a public port are ended once it
//! leads elsewhere. It ends no others, and knows no rules.

use crate::nfnetlink::{Message, attribute, parse, raw};
use crate::wire::Wire;
use netlink_packet_core::{NLA_F_NESTED, NlaBuffer};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_sys::protocols::NETLINK_NETFILTER;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The subsystem (`NFNL_SUBSYS_CTNETLINK` of linux/netfilter/nfnetlink.h).
const CONNECTIONS: u8 = 1;
// Messages and attributes of linux/netfilter/nfnetlink_conntrack.h.
const GET: u8 = 1;
const DELETE: u8 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
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

/// Ends connections for who removes ports. A pass goes through all connections of the host, for
/// 16 ms with a usual table, so those who wait at the same time share one.
#[derive(Debug)]
pub(crate) struct Connections {
    /// How often ports were removed.
    asked: AtomicU64,
    /// A pass is owed.
    has_failed: AtomicBool,
    pass: Mutex<Pass>,
}

#[derive(Debug)]
struct Pass {
    wire: Wire,
    /// How many of `asked` were answered.
    answered: u64,
}

impl Connections {
    /// In the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let pass = Mutex::new(Pass { wire: Wire::open(NETLINK_NETFILTER)?, answered: 0 });
        Ok(Self { asked: AtomicU64::new(0), has_failed: AtomicBool::new(false), pass })
    }

    /// Ends the connections that `retain` leaves, if `has_removed` or an earlier pass failed: with
    /// their next packet they are new ones. To be called after ports were removed.
    pub(crate) fn end(
        &self,
        has_removed: bool,
        retain: impl FnOnce(&mut Vec<Tracked>),
    ) -> io::Result<()> {
        if !has_removed && !self.has_failed.load(Ordering::SeqCst) {
            return Ok(());
        }
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut pass = self.pass.lock().unwrap_or_else(PoisonError::into_inner);
        if pass.answered >= ticket {
            return Ok(());
        }
        let asked = self.asked.load(Ordering::SeqCst);
        let result = pass.run(retain);
        self.has_failed.store(result.is_err(), Ordering::SeqCst);
        result?;
        pass.answered = asked;
        Ok(())
    }
}

impl Pass {
    fn run(&mut self, retain: impl FnOnce(&mut Vec<Tracked>)) -> io::Result<()> {
        // Kernels before 5.15 take no notice and list all.
        let filter = attribute(CTA_STATUS, &IPS_DST_NAT.to_be_bytes());
        let mut over = Vec::new();
        for answer in self.wire.dump(message(GET, &[filter]))? {
            over.extend(read(&answer)?);
        }
        retain(&mut over);
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
