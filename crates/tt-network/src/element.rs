//! One element of a set or map, as bytes and back. It never knows what it means.

use crate::nfnetlink::{attribute, parse};
use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, SetElementAttribute, Verdict, VerdictAttribute,
};
use std::io;
use std::ops::AddAssign;

/// Type of a comment in an element's user data (`NFTNL_UDATA_SET_ELEM_COMMENT` of libnftnl).
const COMMENT: u8 = 0;

// Attributes of linux/netfilter/nf_tables.h.
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
const NFTA_SET_ELEM_USERDATA: u16 = 6;
const NFTA_SET_ELEM_EXPR: u16 = 7;
const NFTA_SET_ELEM_OBJREF: u16 = 9;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CHAIN: u16 = 2;

/// One element. Ordered by its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    /// Fields in a row, each filled up to a multiple of four bytes.
    pub(crate) key: Vec<u8>,
    /// What a map leads to.
    pub(crate) data: Option<Vec<u8>>,
    /// As `nft` shows it.
    pub(crate) comment: Option<String>,
    /// The last key that it stands for, in a set of ranges.
    pub(crate) key_end: Option<Vec<u8>>,
    /// The object that a map leads to.
    pub(crate) object: Option<String>,
    /// The chain that a map goes to.
    pub(crate) chain: Option<String>,
    /// How long it stays, for ever if missing; of one that was read, what is left of that.
    pub(crate) life_ms: Option<u64>,
    /// What it begins to count from; of one that was read, nothing.
    pub(crate) count: Option<Count>,
}

impl Element {
    /// An element of a set.
    pub(crate) fn of_key(key: Vec<u8>) -> Self {
        Self {
            key,
            data: None,
            comment: None,
            key_end: None,
            object: None,
            chain: None,
            life_ms: None,
            count: None,
        }
    }

    /// An element of a set of ranges.
    pub(crate) fn of_range(key: Vec<u8>, key_end: Vec<u8>) -> Self {
        Self { key_end: Some(key_end), ..Self::of_key(key) }
    }
}

/// Packets that passed an element, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Count {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

pub(crate) fn emit_element(element: Element) -> ListAttribute<SetElementAttribute> {
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(element.key))];
    if let Some(end) = element.key_end {
        attributes.push(SetElementAttribute::KeyEnd(vec![DefaultNla::new(NFTA_DATA_VALUE, end)]));
    }
    if let Some(life_ms) = element.life_ms {
        attributes.push(SetElementAttribute::Timeout(life_ms));
    }
    if let Some(name) = element.object {
        attributes.push(SetElementAttribute::ObjectRefrence(name));
    }
    if let Some(data) = element.data {
        attributes.push(SetElementAttribute::Data(DataAttribute::Value(data)));
    }
    if let Some(chain) = element.chain {
        let verdict = vec![VerdictAttribute::Code(Verdict::Goto), VerdictAttribute::Chain(chain)];
        attributes.push(SetElementAttribute::Data(DataAttribute::Verdict(verdict)));
    }
    if let Some(count) = element.count {
        let expression = DefaultNla::new(NFTA_SET_ELEM_EXPR | NLA_F_NESTED, counter(count));
        attributes.push(SetElementAttribute::Other(expression));
    }
    if let Some(comment) = element.comment {
        let mut text = comment.into_bytes();
        text.push(0);
        // Comments are two ids or a rule: below the 255 bytes that the length can say.
        let mut bytes = vec![COMMENT, text.len() as u8];
        bytes.append(&mut text);
        attributes.push(SetElementAttribute::UserData(bytes));
    }
    ListAttribute::Element(attributes)
}

/// The expression of a counter that has counted so much.
fn counter(count: Count) -> Vec<u8> {
    let data = [
        attribute(NFTA_COUNTER_BYTES, &count.bytes.to_be_bytes()),
        attribute(NFTA_COUNTER_PACKETS, &count.packets.to_be_bytes()),
    ];
    let name = attribute(NFTA_EXPR_NAME, b"counter\0");
    [name, attribute(NFTA_EXPR_DATA | NLA_F_NESTED, &data.concat())].concat()
}

pub(crate) fn read_element(bytes: &[u8]) -> io::Result<Option<Element>> {
    let mut found = Element::of_key(Vec::new());
    for attribute in parse(bytes)? {
        match attribute.kind() {
            NFTA_SET_ELEM_KEY => found.key = read_value(attribute.value())?,
            NFTA_SET_ELEM_KEY_END => found.key_end = Some(read_value(attribute.value())?),
            NFTA_SET_ELEM_OBJREF => found.object = Some(text(attribute.value())),
            NFTA_SET_ELEM_DATA => (found.data, found.chain) = read_data(attribute.value())?,
            NFTA_SET_ELEM_EXPIRATION => {
                found.life_ms = attribute.value().try_into().map(u64::from_be_bytes).ok();
            }
            NFTA_SET_ELEM_USERDATA => found.comment = read_comment(attribute.value()),
            _ => {}
        }
    }
    Ok(Some(found).filter(|found| !found.key.is_empty()))
}

pub(crate) fn read_count(bytes: &[u8]) -> io::Result<Count> {
    let mut count = Count::default();
    for expression in parse(bytes)?.iter().filter(|a| a.kind() == NFTA_SET_ELEM_EXPR) {
        for data in parse(expression.value())?.iter().filter(|a| a.kind() == NFTA_EXPR_DATA) {
            for attribute in parse(data.value())? {
                let value = attribute.value().try_into().map(u64::from_be_bytes);
                match (attribute.kind(), value) {
                    (NFTA_COUNTER_BYTES, Ok(bytes)) => count.bytes += bytes,
                    (NFTA_COUNTER_PACKETS, Ok(packets)) => count.packets += packets,
                    _ => {}
                }
            }
        }
    }
    Ok(count)
}

fn read_value(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let values = parse(bytes)?;
    let value = values.iter().find(|value| value.kind() == NFTA_DATA_VALUE);
    Ok(value.map(|value| value.value().to_vec()).unwrap_or_default())
}

/// What a map leads to: a value, or a chain.
fn read_data(bytes: &[u8]) -> io::Result<(Option<Vec<u8>>, Option<String>)> {
    let (mut value, mut chain) = (None, None);
    for data in parse(bytes)? {
        match data.kind() {
            NFTA_DATA_VALUE => value = Some(data.value().to_vec()),
            NFTA_DATA_VERDICT => {
                let verdict = parse(data.value())?;
                let name = verdict.iter().find(|part| part.kind() == NFTA_VERDICT_CHAIN);
                chain = name.map(|name| text(name.value()));
            }
            _ => {}
        }
    }
    Ok((value, chain))
}

/// A string of the kernel's, up to its zero.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}

fn read_comment(mut bytes: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = bytes {
        let (text, rest) = rest.split_at_checked(usize::from(*length))?;
        if *kind == COMMENT {
            let text = text.strip_suffix(b"\0").unwrap_or(text);
            return String::from_utf8(text.to_vec()).ok();
        }
        bytes = rest;
    }
    None
}
