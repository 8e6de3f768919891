//! What the sets say of all members: what the resolver finds of an earlier daemon's.

use super::{fail, set};
use crate::NetworkError;
use crate::element::Element;
use crate::env::Inside;
use crate::named::{self, Bounds, Entry};
use crate::nft::{DENIED, NAME_RULES, NAMED, NAMED_PORTS, NAMED_PORTS_SIX, NAMED_SIX, OUT};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use tt_model::NetRule;

/// What the resolver is to know of all members.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) bounds: BTreeMap<Ipv4Addr, Bounds>,
    pub(crate) opened: Vec<Entry>,
}

impl Inside {
    /// Reads it, of an Env whose members have their addresses in `range`.
    pub(crate) fn known(&mut self, range: Ipv4Net) -> Result<Known, NetworkError> {
        let mut known = Known::default();
        for element in self.read_if_there(OUT)? {
            let is_denied = element.chain.as_deref() == Some(DENIED);
            if let Some(member) = named::member_of(&element).filter(|_| is_denied) {
                known.bounds.entry(member).or_default().is_denied = true;
            }
        }
        for element in self.read_if_there(NAME_RULES)? {
            let rule = element.comment.as_deref().and_then(|text| text.parse::<NetRule>().ok());
            if let (Some(member), Some(rule)) = (named::member_of(&element), rule) {
                known.bounds.entry(member).or_default().names.push(rule);
            }
        }
        for set in [NAMED, NAMED_PORTS, NAMED_SIX, NAMED_PORTS_SIX] {
            let elements = self.read_if_there(set)?;
            known.opened.extend(elements.iter().filter_map(|of| Entry::read(of, range)));
        }
        Ok(known)
    }

    /// Rules of an earlier version may not have the set.
    fn read_if_there(&mut self, name: &'static str) -> Result<Vec<Element>, NetworkError> {
        match self.elements.read(set(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            result => result.map_err(|e| fail("read", name, e)),
        }
    }
}
