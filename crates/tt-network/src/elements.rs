//! Elements of sets and maps of rules, read and changed by netlink in the namespace where the
//! socket was opened. One change is one batch: all of it happens, or nothing.

use crate::wire::{Wire, emit};
use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_CREATE, NLMSG_NOOP, NetlinkDeserializable, NetlinkHeader,
    NetlinkPayload, NetlinkSerializable, NlaBuffer, NlasIterator,
};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
    SetElementMessage, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use std::collections::BTreeSet;
use std::io;

/// Which subsystem a batch is for (`NFNL_SUBSYS_NFTABLES` of linux/netfilter/nfnetlink.h).
const NFTABLES: u16 = 10;
/// A list of elements is one attribute of at most 64 KiB; the largest element takes 100 bytes.
const ELEMENTS_PER_MESSAGE: usize = 256;
/// Length of `struct nfgenmsg`, which precedes the attributes.
const NETFILTER_HEADER_BYTES: usize = 4;
/// Type of a comment in an element's user data (`NFTNL_UDATA_SET_ELEM_COMMENT` of libnftnl).
const COMMENT: u8 = 0;

// Attributes of linux/netfilter/nf_tables.h.
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_USERDATA: u16 = 6;
const NFTA_DATA_VALUE: u16 = 1;

/// What goes out is typed. What comes in is read by hand: the crate's reader prints the whole
/// answer for each element in it, which takes two minutes for 60,000 elements.
#[derive(Debug)]
enum Message {
    Ask(NetfilterMessage),
    Answer(Vec<u8>),
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        match self {
            Self::Ask(message) => NetlinkSerializable::message_type(message),
            Self::Answer(_) => NLMSG_NOOP,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Ask(message) => NetlinkSerializable::buffer_len(message),
            Self::Answer(bytes) => bytes.len(),
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::Ask(message) => message.serialize(buffer),
            Self::Answer(bytes) => buffer.copy_from_slice(bytes),
        }
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self::Answer(payload.to_vec()))
    }
}

impl Message {
    /// The values of all attributes of that kind.
    fn attributes(&self, kind: u16) -> io::Result<Vec<Vec<u8>>> {
        let Self::Answer(bytes) = self else {
            return Ok(Vec::new());
        };
        let body = bytes.get(NETFILTER_HEADER_BYTES..).unwrap_or_default();
        let found = parse(body)?.into_iter().filter(|a| a.kind() == kind);
        Ok(found.map(|attribute| attribute.value().to_vec()).collect())
    }
}

/// A set or map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set<'a> {
    pub(crate) family: NetfilterProtoFamily,
    pub(crate) table: &'a str,
    pub(crate) name: &'static str,
}

/// One element. Ordered by its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    /// Fields in a row, each filled up to a multiple of four bytes.
    pub(crate) key: Vec<u8>,
    /// What a map leads to.
    pub(crate) data: Option<Vec<u8>>,
    /// As `nft` shows it.
    pub(crate) comment: Option<String>,
}

impl Element {
    /// An element of a set.
    pub(crate) fn of_key(key: Vec<u8>) -> Self {
        Self { key, data: None, comment: None }
    }
}

/// What is to become of a set.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    pub(crate) set: Set<'a>,
    pub(crate) remove: Vec<Element>,
    pub(crate) add: Vec<Element>,
}

/// A socket for elements in one namespace.
#[derive(Debug)]
pub(crate) struct Elements {
    wire: Wire,
}

impl Elements {
    /// In the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        Wire::open(NETLINK_NETFILTER).map(|wire| Self { wire })
    }

    /// All elements; an error of kind `NotFound` if there is no such set.
    pub(crate) fn read(&mut self, set: Set<'_>) -> io::Result<Vec<Element>> {
        let attributes = vec![
            SetElementList::Table(set.table.to_owned()),
            SetElementList::Set(set.name.to_owned()),
        ];
        let message = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
        let mut elements = Vec::new();
        for answer in self.wire.dump(Message::Ask(message_of(set.family, message)))? {
            for list in answer.attributes(NFTA_SET_ELEM_LIST_ELEMENTS)? {
                for element in parse(&list)? {
                    elements.extend(read_element(element.value())?);
                }
            }
        }
        Ok(elements)
    }

    /// Makes all changes at once, removals first. What is removed must be there; what is added may
    /// be there already, leading to the same.
    pub(crate) fn change(&mut self, changes: &[Change<'_>]) -> io::Result<()> {
        let mut messages = Vec::new();
        for change in changes {
            for part in change.remove.chunks(ELEMENTS_PER_MESSAGE) {
                let keys = part.iter().map(|element| Element::of_key(element.key.clone()));
                let message = list_of(change.set, keys.collect());
                let message = NfTablesMessage::DeleteSetElement(message);
                messages.push((message_of(change.set.family, message), 0));
            }
            for part in change.add.chunks(ELEMENTS_PER_MESSAGE) {
                let message = list_of(change.set, part.to_vec());
                let message = NfTablesMessage::NewSetElement(message);
                messages.push((message_of(change.set.family, message), NLM_F_CREATE));
            }
        }
        if messages.is_empty() {
            return Ok(());
        }
        self.batch(messages)
    }

    /// The names of all tables of the `inet` family.
    pub(crate) fn tables(&mut self) -> io::Result<Vec<String>> {
        let message = NfTablesMessage::GetTable(TableMessage { attributes: vec![] });
        let message = message_of(NetfilterProtoFamily::Inet, message);
        let mut names = Vec::new();
        for answer in self.wire.dump(Message::Ask(message))? {
            for name in answer.attributes(NFTA_TABLE_NAME)? {
                names.push(text(&name));
            }
        }
        Ok(names)
    }

    fn batch(&mut self, messages: Vec<(NetfilterMessage, u16)>) -> io::Result<()> {
        let begin = self.wire.next();
        let mut bytes = emit(control(ControlMessage::BatchBegin), 0, begin);
        let mut waiting = BTreeSet::new();
        for (message, flags) in messages {
            let sequence = self.wire.next();
            bytes.extend(emit(message, flags | NLM_F_ACK, sequence));
            waiting.insert(sequence);
        }
        let end = self.wire.next();
        bytes.extend(emit(control(ControlMessage::BatchEnd), 0, end));
        self.wire.send(&bytes)?;
        let mut failure = None;
        while !waiting.is_empty() {
            self.wire.receive(|sequence, payload: NetlinkPayload<Message>| {
                let NetlinkPayload::Error(answer) = payload else {
                    return Ok(());
                };
                if answer.code.is_some() && (sequence == begin || waiting.contains(&sequence)) {
                    failure.get_or_insert_with(|| answer.to_io());
                }
                waiting.remove(&sequence);
                if sequence == begin {
                    // The batch as a whole was refused: no message of it is answered any more.
                    waiting.clear();
                }
                Ok(())
            })?;
        }
        failure.map_or(Ok(()), Err)
    }
}

fn message_of(family: NetfilterProtoFamily, message: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

fn control(message: ControlMessage) -> NetfilterMessage {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES);
    NetfilterMessage::new(header, message)
}

fn list_of(set: Set<'_>, elements: Vec<Element>) -> SetElementMessage {
    let elements = elements.into_iter().map(emit_element).collect();
    SetElementMessage {
        attributes: vec![
            SetElementList::Table(set.table.to_owned()),
            SetElementList::Set(set.name.to_owned()),
            SetElementList::Elements(elements),
        ],
    }
}

fn emit_element(element: Element) -> ListAttribute<SetElementAttribute> {
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(element.key))];
    if let Some(data) = element.data {
        attributes.push(SetElementAttribute::Data(DataAttribute::Value(data)));
    }
    if let Some(comment) = element.comment {
        let mut text = comment.into_bytes();
        text.push(0);
        // Comments are two ids: far below the 255 bytes that the length can say.
        let mut bytes = vec![COMMENT, text.len() as u8];
        bytes.append(&mut text);
        attributes.push(SetElementAttribute::UserData(bytes));
    }
    ListAttribute::Element(attributes)
}

fn read_element(bytes: &[u8]) -> io::Result<Option<Element>> {
    let mut found = Element::of_key(Vec::new());
    for attribute in parse(bytes)? {
        match attribute.kind() {
            NFTA_SET_ELEM_KEY => found.key = read_value(attribute.value())?,
            NFTA_SET_ELEM_DATA => found.data = Some(read_value(attribute.value())?),
            NFTA_SET_ELEM_USERDATA => found.comment = read_comment(attribute.value()),
            _ => {}
        }
    }
    Ok(Some(found).filter(|found| !found.key.is_empty()))
}

fn read_value(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let values = parse(bytes)?;
    let value = values.iter().find(|value| value.kind() == NFTA_DATA_VALUE);
    Ok(value.map(|value| value.value().to_vec()).unwrap_or_default())
}

fn parse(bytes: &[u8]) -> io::Result<Vec<NlaBuffer<&[u8]>>> {
    let attributes: Result<_, _> = NlasIterator::new(bytes).collect();
    attributes.map_err(|error: DecodeError| io::Error::other(error.to_string()))
}

/// A string of the kernel's, up to its zero.
fn text(bytes: &[u8]) -> String {
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
