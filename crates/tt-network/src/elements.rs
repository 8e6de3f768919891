//! Elements of sets and maps of rules, read and changed by netlink in the namespace where the
//! socket was opened. It never knows what they mean.

pub(crate) use crate::element::Element;
use crate::element::{Count, emit_element, read_count, read_element, text};
use crate::limit::{self, Limit};

use crate::nfnetlink::{Message, ask, attribute, parse, raw};
use crate::wire::{Wire, emit};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NetlinkPayload};
use netlink_packet_netfilter::nftables::{
    NfTablesMessage, SetElementList, SetElementMessage, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// Which subsystem a batch is for (`NFNL_SUBSYS_NFTABLES` of linux/netfilter/nfnetlink.h).
const NFTABLES: u8 = 10;
/// A list of elements is one attribute of at most 64 KiB; the largest element takes 100 bytes.
const ELEMENTS_PER_MESSAGE: usize = 256;
/// Removed and added at once. A batch is one datagram, which must fit the socket's buffer: 208 KiB,
/// if nobody chose less.
const ELEMENTS_PER_BATCH: usize = 1024;
// Messages and attributes of linux/netfilter/nf_tables.h.
const GET_RULE: u8 = 7;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;

/// A set or map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set<'a> {
    pub(crate) family: NetfilterProtoFamily,
    pub(crate) table: &'a str,
    pub(crate) name: &'static str,
}

/// What is to become of a set.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    pub(crate) set: Set<'a>,
    pub(crate) remove: Vec<Element>,
    pub(crate) add: Vec<Element>,
}

impl<'a> Change<'a> {
    fn nothing(set: Set<'a>) -> Self {
        Self { set, remove: Vec::new(), add: Vec::new() }
    }

    /// Whether it happens at once, with a few others beside it.
    pub(crate) fn is_one_batch(&self) -> bool {
        self.remove.len() + self.add.len() <= ELEMENTS_PER_BATCH / 2
    }
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
        read_elements(&self.wire.dump(ask(set.family, message))?)
    }

    /// The element with that key, at a cost that does not depend on the others.
    pub(crate) fn find(&mut self, set: Set<'_>, key: &[u8]) -> io::Result<Option<Element>> {
        let message = list_of(set, vec![Element::of_key(key.to_owned())]);
        let message = ask(set.family, NfTablesMessage::GetSetElement(message));
        let found = absent_as_none(self.wire.ask(message, 0))?;
        Ok(found.map(|answers| read_elements(&answers)).transpose()?.and_then(|mut e| e.pop()))
    }

    /// What the element with that key has counted, in a set that counts; nothing if there is none.
    pub(crate) fn count(&mut self, set: Set<'_>, key: &[u8]) -> io::Result<Count> {
        let message = list_of(set, vec![Element::of_key(key.to_owned())]);
        let message = ask(set.family, NfTablesMessage::GetSetElement(message));
        let mut count = Count::default();
        for answer in absent_as_none(self.wire.ask(message, 0))?.into_iter().flatten() {
            for list in answer.attributes(NFTA_SET_ELEM_LIST_ELEMENTS)? {
                for element in parse(&list)? {
                    count += read_count(element.value())?;
                }
            }
        }
        Ok(count)
    }

    /// Lets `key` of a map lead to `wanted` in place of `now`, whose object goes with it, at once.
    pub(crate) fn set_limit(
        &mut self,
        map: Set<'_>,
        key: &[u8],
        now: Option<&str>,
        wanted: Option<&Limit>,
    ) -> io::Result<()> {
        let element = |object: Option<String>| {
            list_of(map, vec![Element { object, ..Element::of_key(key.to_owned()) }])
        };
        let mut messages = Vec::new();
        if let Some(now) = now {
            let message = NfTablesMessage::DeleteSetElement(element(None));
            messages.push((ask(map.family, message), 0));
            messages.push((limit::remove(map.family, map.table, now), 0));
        }
        if let Some(wanted) = wanted {
            messages.push((limit::make(map.family, map.table, wanted), NLM_F_CREATE));
            let message = NfTablesMessage::NewSetElement(element(Some(wanted.name.clone())));
            messages.push((ask(map.family, message), NLM_F_CREATE));
        }
        if messages.is_empty() { Ok(()) } else { self.batch(messages) }
    }

    /// Lets `element` take the place of what has its key, if anything has: at once, for whoever looks. Nobody
    /// else may add that key meanwhile; what is there may end by itself.
    pub(crate) fn replace(&mut self, set: Set<'_>, element: &Element) -> io::Result<()> {
        let add = || Change { add: vec![element.clone()], ..Change::nothing(set) };
        if self.find(set, &element.key)?.is_some() {
            let remove = vec![Element::of_key(element.key.clone())];
            match self.change_at_once(&[Change { remove, ..add() }]) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => return result,
            }
        }
        self.change_at_once(&[add()])
    }

    /// Removes what has that key, if anything has.
    pub(crate) fn discard(&mut self, set: Set<'_>, key: &[u8]) -> io::Result<()> {
        let remove = vec![Element::of_key(key.to_owned())];
        absent_as_none(self.change_at_once(&[Change { remove, ..Change::nothing(set) }])).map(drop)
    }

    /// Makes all changes, removals first. What is removed must be there; what is added may be there
    /// already, leading to the same.
    ///
    /// Up to [`ELEMENTS_PER_BATCH`] elements happen at once or not at all. More of them go in parts,
    /// in the order of `changes`: each part at once, and a key that is removed and added in one
    /// part, so that what stays is there all the time. An error leaves the parts before it done.
    pub(crate) fn change(&mut self, changes: Vec<Change<'_>>) -> io::Result<()> {
        parts(changes).iter().try_for_each(|part| self.change_at_once(part))
    }

    fn change_at_once(&mut self, changes: &[Change<'_>]) -> io::Result<()> {
        let mut messages = Vec::new();
        for Change { set, remove, add } in changes {
            for part in remove.chunks(ELEMENTS_PER_MESSAGE) {
                let keys = part.iter().map(|element| Element {
                    key_end: element.key_end.clone(),
                    ..Element::of_key(element.key.clone())
                });
                let message = NfTablesMessage::DeleteSetElement(list_of(*set, keys.collect()));
                messages.push((ask(set.family, message), 0));
            }
            for part in add.chunks(ELEMENTS_PER_MESSAGE) {
                let message = NfTablesMessage::NewSetElement(list_of(*set, part.to_vec()));
                messages.push((ask(set.family, message), NLM_F_CREATE));
            }
        }
        if messages.is_empty() { Ok(()) } else { self.batch(messages) }
    }

    /// The names of all tables of the `inet` family.
    pub(crate) fn tables(&mut self) -> io::Result<Vec<String>> {
        let message = NfTablesMessage::GetTable(TableMessage { attributes: vec![] });
        let mut names = Vec::new();
        for answer in self.wire.dump(ask(NetfilterProtoFamily::Inet, message))? {
            for name in answer.attributes(NFTA_TABLE_NAME)? {
                names.push(text(&name));
            }
        }
        Ok(names)
    }

    /// How many rules a table of the `inet` family has; none if it is not there.
    pub(crate) fn rule_num(&mut self, table: &str) -> io::Result<usize> {
        let of_table = attribute(NFTA_RULE_TABLE, &[table.as_bytes(), &[0]].concat());
        let message = raw([NFTABLES, GET_RULE], NetfilterProtoFamily::Inet, &[of_table]);
        let rules = absent_as_none(self.wire.dump(message))?;
        Ok(rules.map_or(0, |rules| rules.len()))
    }

    fn batch(&mut self, messages: Vec<(Message, u16)>) -> io::Result<()> {
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

/// The changes as batches that are not too large.
fn parts(changes: Vec<Change<'_>>) -> Vec<Vec<Change<'_>>> {
    let (mut parts, mut part) = (Vec::new(), Vec::new());
    let mut room = ELEMENTS_PER_BATCH;
    for Change { set, remove, add } in changes {
        let mut of_key: BTreeMap<Vec<u8>, [Vec<Element>; 2]> = BTreeMap::new();
        for (side, elements) in [remove, add].into_iter().enumerate() {
            for element in elements {
                of_key.entry(element.key.clone()).or_default()[side].push(element);
            }
        }
        let mut change = Change::nothing(set);
        for [mut remove, mut add] in of_key.into_values() {
            let number = remove.len() + add.len();
            if number > room {
                part.push(std::mem::replace(&mut change, Change::nothing(set)));
                parts.push(std::mem::take(&mut part));
                room = ELEMENTS_PER_BATCH;
            }
            room = room.saturating_sub(number);
            change.remove.append(&mut remove);
            change.add.append(&mut add);
        }
        part.push(change);
    }
    parts.push(part);
    parts
}

/// What is not there is no error.
fn absent_as_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

fn control(message: ControlMessage) -> Message {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES.into());
    Message::Ask(NetfilterMessage::new(header, message))
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

fn read_elements(answers: &[Message]) -> io::Result<Vec<Element>> {
    let mut elements = Vec::new();
    for answer in answers {
        for list in answer.attributes(NFTA_SET_ELEM_LIST_ELEMENTS)? {
            for element in parse(&list)? {
                elements.extend(read_element(element.value())?);
            }
        }
    }
    Ok(elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(remove: &[u16], add: &[u16]) -> Change<'static> {
        let set = Set { family: NetfilterProtoFamily::Inet, table: "t", name: "s" };
        let elements = |keys: &[u16]| {
            keys.iter().map(|key| Element::of_key(key.to_be_bytes().to_vec())).collect()
        };
        Change { set, remove: elements(remove), add: elements(add) }
    }

    #[test]
    fn large_changes_go_in_parts_that_fit_and_part_no_key() {
        let first: Vec<u16> = (0..3000).collect();
        let second: Vec<u16> = (1500..4500).collect();
        let parts = parts(vec![change(&[], &[7]), change(&first, &second), change(&[8], &[8])]);
        assert_eq!(parts.len(), 6);
        let mut total = 0;
        for part in &parts {
            let size: usize = part.iter().map(|c| c.remove.len() + c.add.len()).sum();
            assert!(size <= ELEMENTS_PER_BATCH, "{size}");
            total += size;
        }
        assert_eq!(total, 6003);
        for key in 1500..3000u16 {
            let element = Element::of_key(key.to_be_bytes().to_vec());
            let together = parts
                .iter()
                .flatten()
                .any(|change| change.remove.contains(&element) && change.add.contains(&element));
            assert!(together, "{key}");
        }
    }

    #[test]
    fn what_fits_is_one_part() {
        let keys: Vec<u16> = (0..ELEMENTS_PER_BATCH as u16 / 2).collect();
        assert_eq!(parts(vec![change(&keys, &keys)]).len(), 1);
        assert_eq!(parts(vec![]).len(), 1);
    }
}
