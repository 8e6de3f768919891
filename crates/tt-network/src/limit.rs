//! Limits as objects of a table: what a map leads to, so that a rule holds for any number of members
//! with a rate of each. Messages only.

use crate::nfnetlink::{Message, attribute, raw};
use netlink_packet_core::NLA_F_NESTED;
use netlink_packet_netfilter::NetfilterProtoFamily;

/// The subsystem (`NFNL_SUBSYS_NFTABLES` of linux/netfilter/nfnetlink.h).
const NFTABLES: u8 = 10;
// Messages and attributes of linux/netfilter/nf_tables.h.
const NEW_OBJECT: u8 = 18;
const DELETE_OBJECT: u8 = 20;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const OBJECT_LIMIT: u32 = 4;
const NFTA_LIMIT_RATE: u16 = 1;
const NFTA_LIMIT_UNIT: u16 = 2;
const NFTA_LIMIT_BURST: u16 = 3;
const NFTA_LIMIT_TYPE: u16 = 4;
const NFTA_LIMIT_FLAGS: u16 = 5;
const BYTES: u32 = 1;
/// The rule takes what is over the rate.
const OVER: u32 = 1;

/// Bytes of a kbit.
const BYTES_PER_KBIT: u64 = 125;
/// What passes at once after a pause, beside a second's worth that the kernel adds: one of the largest
/// packets that it hands on as one.
const BURST_BYTES: u32 = 64 << 10;

/// A bound of a member's traffic in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// Says whose it is and how much: another rate is another object.
    pub(crate) name: String,
    kbit: u32,
}

impl Limit {
    /// `direction`: `up` or `down`.
    pub(crate) fn new(tap: &str, direction: &str, kbit: u32) -> Self {
        Self { name: format!("{tap}-{direction}-{kbit}"), kbit }
    }
}

/// Makes it.
pub(crate) fn make(family: NetfilterProtoFamily, table: &str, limit: &Limit) -> Message {
    let rate = u64::from(limit.kbit) * BYTES_PER_KBIT;
    let data = [
        attribute(NFTA_LIMIT_RATE, &rate.to_be_bytes()),
        attribute(NFTA_LIMIT_UNIT, &1u64.to_be_bytes()),
        attribute(NFTA_LIMIT_BURST, &BURST_BYTES.to_be_bytes()),
        attribute(NFTA_LIMIT_TYPE, &BYTES.to_be_bytes()),
        attribute(NFTA_LIMIT_FLAGS, &OVER.to_be_bytes()),
    ];
    let mut attributes = named(table, &limit.name);
    attributes.push(attribute(NFTA_OBJ_DATA | NLA_F_NESTED, &data.concat()));
    raw([NFTABLES, NEW_OBJECT], family, &attributes)
}

/// Removes the one of that name.
pub(crate) fn remove(family: NetfilterProtoFamily, table: &str, name: &str) -> Message {
    raw([NFTABLES, DELETE_OBJECT], family, &named(table, name))
}

fn named(table: &str, name: &str) -> Vec<Vec<u8>> {
    let text = |text: &str| [text.as_bytes(), &[0]].concat();
    vec![
        attribute(NFTA_OBJ_TABLE, &text(table)),
        attribute(NFTA_OBJ_NAME, &text(name)),
        attribute(NFTA_OBJ_TYPE, &OBJECT_LIMIT.to_be_bytes()),
    ]
}
