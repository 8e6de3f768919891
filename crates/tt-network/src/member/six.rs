//! What a member has in the sets for IPv6: what follows from its record as the elements for IPv4 do.

use super::{Member, name_bytes, name_rules, port_key, ranges};
use crate::element::Element;
use crate::env::six::addresses;
use crate::nft::{
    ALLOWED_SIX, BLACKLIST_SIX, DENY_OUT_SIX, LIMITED_SIX, NAME_RULES_SIX, REACHABLE_SIX,
    REFUSED_SIX, TARGETS,
};
use std::collections::BTreeSet;
use std::net::IpAddr;
use tt_model::six;

/// Set, how a member's keys begin there, elements.
type Wanted = (&'static str, Vec<u8>, BTreeSet<Element>);

/// All that a member has in sets but `members6`.
pub(super) fn wanted(member: &Member) -> Vec<Wanted> {
    let tap = name_bytes(&member.tap);
    let targets =
        addresses(member.ip).map(|addr| Element::of_key([&tap[..], &addr.octets()].concat()));
    let mut all = vec![
        (TARGETS, tap.clone(), targets.into()),
        (BLACKLIST_SIX, tap.clone(), listed(member, &tap)),
    ];
    let own = six::address(member.ip);
    for (set, with_port) in [(ALLOWED_SIX, true), (REACHABLE_SIX, false)] {
        let ranges = ranges(member, own.into(), with_port);
        all.push((set, own.octets().to_vec(), ranges));
    }
    all.push((NAME_RULES_SIX, own.octets().to_vec(), name_rules(member, own.into())));
    for addr in addresses(member.ip) {
        let own = addr.octets().to_vec();
        let own_if = |is: bool| match is {
            true => BTreeSet::from([Element::of_key(own.clone())]),
            false => BTreeSet::new(),
        };
        all.extend([
            (REFUSED_SIX, own.clone(), own_if(true)),
            (DENY_OUT_SIX, own.clone(), own_if(member.is_denied)),
            (LIMITED_SIX, own.clone(), own_if(!member.allowlist.is_empty())),
        ]);
    }
    all
}

/// What it sends is counted at these.
pub(super) fn member_elements(member: &Member) -> BTreeSet<Element> {
    member_keys(member).map(Element::of_key).into()
}

/// Their keys.
pub(super) fn member_keys(member: &Member) -> [Vec<u8>; 2] {
    let port = port_key(member);
    addresses(member.ip).map(|addr| [&port[..], &addr.octets()].concat())
}

/// The addresses of what is listed: a member that is listed by one address is not reached by its others.
fn listed(member: &Member, tap: &[u8]) -> BTreeSet<Element> {
    let of_one = |addr: &IpAddr| match (member.listed_member(*addr), addr) {
        (Some(ip), _) => addresses(ip).to_vec(),
        (None, IpAddr::V6(addr)) => vec![*addr],
        (None, IpAddr::V4(_)) => Vec::new(),
    };
    let all = member.blacklist.iter().flat_map(of_one);
    all.map(|addr| Element::of_key([tap, &addr.octets()].concat())).collect()
}
