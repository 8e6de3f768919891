//! Elements of sets and maps of rules, read and changed by netlink in the namespace where the
//! socket was opened. One change is one batch: all of it happens, or nothing.

use crate::wire::{Wire, emit};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NetlinkPayload};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
    SetElementMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use std::collections::BTreeSet;
use std::io;

/// Which subsystem a batch is for (`NFNL_SUBSYS_NFTABLES` of linux/netfilter/nfnetlink.h).
const NFTABLES: u16 = 10;
/// A list of elements is one attribute of at most 64 KiB; the largest element takes 100 bytes.
const ELEMENTS_PER_MESSAGE: usize = 256;
/// Type of a comment in an element's user data (`NFTNL_UDATA_SET_ELEM_COMMENT` of libnftnl).
const COMMENT: u8 = 0;

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
        let answers = self.wire.dump(message_of(set.family, message))?;
        let mut elements = Vec::new();
        for answer in answers {
            let NetfilterMessageInner::NfTables(NfTablesMessage::NewSetElement(message)) =
                answer.inner
            else {
                continue;
            };
            for attribute in message.attributes {
                if let SetElementList::Elements(list) = attribute {
                    elements.extend(list.into_iter().filter_map(read_element));
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
        let answers = self.wire.dump(message_of(NetfilterProtoFamily::Inet, message))?;
        let mut names = Vec::new();
        for answer in answers {
            if let NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) = answer.inner
            {
                names.extend(table.attributes.into_iter().find_map(|a| match a {
                    TableAttribute::Name(name) => Some(name),
                    _ => None,
                }));
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
            self.wire.receive(|sequence, payload: NetlinkPayload<NetfilterMessage>| {
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

fn read_element(element: ListAttribute<SetElementAttribute>) -> Option<Element> {
    let ListAttribute::Element(attributes) = element else {
        return None;
    };
    let mut found = Element::of_key(Vec::new());
    for attribute in attributes {
        match attribute {
            SetElementAttribute::Key(DataAttribute::Value(key)) => found.key = key,
            SetElementAttribute::Data(DataAttribute::Value(data)) => found.data = Some(data),
            SetElementAttribute::UserData(bytes) => found.comment = read_comment(&bytes),
            _ => {}
        }
    }
    (!found.key.is_empty()).then_some(found)
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
