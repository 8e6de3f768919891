//! What a member has in the sets and maps of its Env's rules: made, changed, counted and removed.

use crate::element::{Count, Element};
use crate::elements::{Change, Set};
use crate::env::{Inside, six::addresses};
use crate::limit::Limit;
use crate::named::{self, Bounds};
use crate::nft::{
    ALLOWED, ALLOWED_SIX, ASKERS, BLACKLIST, BLOCKED, CURBED, DELIVERED, DENIED, DENY_OUT_SIX,
    ENV_TABLE, FREE, LIMITED, LIMITED_SIX, MEMBERS, MEMBERS_SIX, NAME_RULES, NAME_RULES_SIX, NAMED,
    NAMED_PORTS, NAMED_PORTS_SIX, NAMED_SIX, OUT, RATE_DOWN, RATE_UP, REACHABLE, REACHABLE_SIX,
    REFUSED, REFUSED_SIX, RULES, SLOWED, TAPS,
};
use crate::{NetworkError, rules};
use ipnet::{IpNet, Ipv4Net};
use netlink_packet_netfilter::NetfilterProtoFamily as Family;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use tt_model::{Destination, MacAddr, NetRule, Traffic, Vm, names};

mod known;
mod six;

pub(crate) use known::Known;

/// What the namespace knows of a member.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) tap: String,
    /// The other end of its port, where that is no tap.
    pub(crate) plug: Option<String>,
    pub(crate) ip: Ipv4Addr,
    /// Where all members have their addresses.
    pub(crate) range: Ipv4Net,
    pub(crate) mac: MacAddr,
    pub(crate) is_denied: bool,
    pub(crate) blacklist: BTreeSet<IpAddr>,
    pub(crate) allowlist: BTreeSet<NetRule>,
    pub(crate) up_kbit: Option<u32>,
    pub(crate) down_kbit: Option<u32>,
}

impl Member {
    /// Of that record, in a range of inner addresses.
    pub(crate) fn new(vm: &Vm, range: Ipv4Net) -> Self {
        Self {
            range,
            tap: names::tap(vm.id),
            plug: vm.is_container().then(|| names::plug(vm.id)),
            ip: vm.resource.ip_addr,
            mac: vm.resource.mac_addr,
            is_denied: vm.deny_outgoing,
            blacklist: vm.state.net_blacklist.iter().copied().collect(),
            allowlist: vm.state.net_allowlist.iter().cloned().collect(),
            up_kbit: vm.resource.up_kbit,
            down_kbit: vm.resource.down_kbit,
        }
    }

    /// The member that has one of these addresses, whether there is one or not.
    fn listed_member(&self, addr: IpAddr) -> Option<Ipv4Addr> {
        let [first, ..] = self.range.network().octets();
        let ip = match addr {
            IpAddr::V4(addr) => Some(addr),
            IpAddr::V6(addr) => tt_model::six::owner(addr, first),
        };
        ip.filter(|ip| self.range.contains(ip))
    }

    /// What the resolver does for it.
    pub(crate) fn bounds(&self) -> Bounds {
        let rules = self.allowlist.iter().filter(|rule| rule.name().is_some());
        Bounds { is_denied: self.is_denied, names: rules.cloned().collect() }
    }
}

impl Inside {
    /// Applies what the record says to the sets. A mark on the member's element tells what was
    /// applied last, so that a record that is applied already costs one question.
    ///
    /// All of it happens at once, but for a blacklist of more changes than fit one batch: its
    /// addresses change in parts, those that stay are never let through, and a new member sends
    /// nothing before it is complete.
    pub(crate) fn set_elements(&mut self, member: &Member) -> Result<(), NetworkError> {
        let marked = marked(member);
        let now = self.elements.find(set(MEMBERS), &marked.key);
        let now = now.map_err(|e| fail("read", MEMBERS, e))?;
        if now.as_ref() == Some(&marked) {
            return Ok(());
        }
        self.set_limit(RATE_UP, member, "up", member.up_kbit)?;
        self.set_limit(RATE_DOWN, member, "down", member.down_kbit)?;
        let blacklist = self.difference(BLACKLIST, &member.ip.octets(), listed(member))?;
        if !blacklist.is_one_batch() {
            // From here to the end the set answers neither the old record nor the new one.
            let count = self.sent(member)?;
            let unmarked =
                now.iter().map(|now| Element { comment: None, count, ..now.clone() }).collect();
            let unmark =
                Change { set: set(MEMBERS), remove: now.into_iter().collect(), add: unmarked };
            self.change(vec![unmark])?;
            self.change(vec![blacklist])?;
            return self.set_elements(member);
        }
        let mut changes = vec![blacklist];
        for (set, owner, wanted) in wanted(member) {
            changes.push(self.difference(set, &owner, wanted)?);
        }
        // Last, so that a new member sends nothing before the rest is there.
        let six = six::member_elements(member);
        changes.push(self.difference(MEMBERS_SIX, &tap_key(member), six)?);
        let mut last = self.difference(MEMBERS, &tap_key(member), BTreeSet::from([marked]))?;
        if now.is_some() {
            // It takes the place of one that has counted; what passes in between is not.
            let count = self.sent(member)?;
            last.add = last.add.into_iter().map(|new| Element { count, ..new }).collect();
        }
        changes.push(last);
        self.change(changes)
    }

    /// What its element has counted.
    fn sent(&mut self, member: &Member) -> Result<Option<Count>, NetworkError> {
        let count = self.elements.count(set(MEMBERS), &member_key(member));
        count.map(Some).map_err(|e| fail("read", MEMBERS, e))
    }

    /// Whether a member has its place in the rules, whatever became of its port.
    pub(crate) fn knows(&mut self, member: &Member) -> Result<bool, NetworkError> {
        let found = self.elements.find(set(MEMBERS), &member_key(member));
        Ok(found.map_err(|e| fail("read", MEMBERS, e))?.is_some())
    }

    /// Removes what a member has in the sets.
    pub(crate) fn remove_elements(&mut self, member: &Member) -> Result<(), NetworkError> {
        let mut changes = vec![
            self.difference(MEMBERS, &tap_key(member), BTreeSet::new())?,
            self.difference(MEMBERS_SIX, &tap_key(member), BTreeSet::new())?,
            self.difference(BLACKLIST, &member.ip.octets(), BTreeSet::new())?,
        ];
        for (set, owner, _) in wanted(member) {
            changes.push(self.difference(set, &owner, BTreeSet::new())?);
        }
        self.change(changes)?;
        self.set_limit(RATE_UP, member, "up", None)?;
        self.set_limit(RATE_DOWN, member, "down", None)
    }

    /// What a member's elements have counted.
    pub(crate) fn traffic(&mut self, member: &Member) -> Result<Traffic, NetworkError> {
        let (tap, ip) = (tap_key(member), member.ip.octets());
        let mut count = |name, key: &[u8]| {
            self.elements.count(set(name), key).map_err(|e| fail("read", name, e))
        };
        let mut sent = count(MEMBERS, &member_key(member))?;
        for key in six::member_keys(member) {
            sent += count(MEMBERS_SIX, &key)?;
        }
        let received = count(DELIVERED, &tap)?;
        let (blocked, mut refused) = (count(BLOCKED, &tap)?, count(REFUSED, &ip)?);
        for addr in addresses(member.ip) {
            refused += count(REFUSED_SIX, &addr.octets())?;
        }
        Ok(Traffic {
            sent_packets: sent.packets,
            sent_bytes: sent.bytes,
            received_packets: received.packets,
            received_bytes: received.bytes,
            blocked_packets: blocked.packets + refused.packets,
            slowed_packets: count(SLOWED, &tap)?.packets,
        })
    }

    /// Bounds what a member sends or receives.
    fn set_limit(
        &mut self,
        map: &'static str,
        member: &Member,
        direction: &str,
        kbit: Option<u32>,
    ) -> Result<(), NetworkError> {
        let key = tap_key(member);
        let now = self.elements.find(set(map), &key).map_err(|e| fail("read", map, e))?;
        let now = now.and_then(|element| element.object);
        let wanted = kbit.map(|kbit| Limit::new(&member.tap, direction, kbit));
        if now.as_ref() == wanted.as_ref().map(|limit| &limit.name) {
            return Ok(());
        }
        let changed = self.elements.set_limit(set(map), &key, now.as_deref(), wanted.as_ref());
        changed.map_err(|e| fail("change", map, e))
    }

    /// Whether the rules are those of this version; somebody may have flushed them.
    pub(crate) fn has_rules(&mut self, range: Ipv4Net) -> Result<bool, NetworkError> {
        let version = rules::version(range).to_ne_bytes();
        match self.elements.find(set(RULES), &version) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(fail("read", RULES, error)),
            Ok(found) => Ok(found.is_some()),
        }
    }

    /// From the elements whose key begins with `owner` to `wanted`.
    fn difference(
        &mut self,
        name: &'static str,
        owner: &[u8],
        wanted: BTreeSet<Element>,
    ) -> Result<Change<'static>, NetworkError> {
        let now = match self.elements.read(set(name)) {
            // Rules of an earlier version have no such set, and a member that goes has nothing in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && wanted.is_empty() => {
                Vec::new()
            }
            now => now.map_err(|e| fail("read", name, e))?,
        };
        let now: BTreeSet<_> = now.into_iter().filter(|e| e.key.starts_with(owner)).collect();
        Ok(Change {
            set: set(name),
            remove: now.difference(&wanted).cloned().collect(),
            add: wanted.difference(&now).cloned().collect(),
        })
    }

    fn change(&mut self, changes: Vec<Change<'_>>) -> Result<(), NetworkError> {
        let result = self.elements.change(changes);
        result.map_err(|e| fail("change", MEMBERS, e))
    }
}

/// Sets of the table that stands between members and the rest of the world.
const EDGE_SETS: [&str; 15] = [
    OUT,
    ALLOWED,
    REACHABLE,
    REFUSED,
    NAMED,
    NAMED_PORTS,
    NAME_RULES,
    DENY_OUT_SIX,
    LIMITED_SIX,
    ALLOWED_SIX,
    REACHABLE_SIX,
    NAMED_SIX,
    NAMED_PORTS_SIX,
    NAME_RULES_SIX,
    REFUSED_SIX,
];

pub(crate) fn set(name: &'static str) -> Set<'static> {
    let family = if EDGE_SETS.contains(&name) { Family::Inet } else { Family::Bridge };
    Set { family, table: ENV_TABLE, name }
}

/// An interface name as the kernel compares it: `IFNAMSIZ` bytes, filled with zeros.
pub(crate) fn name_bytes(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(libc::IFNAMSIZ, 0);
    bytes
}

/// How the keys of a port of the bridge begin.
fn tap_key(member: &Member) -> Vec<u8> {
    name_bytes(&member.tap)
}

fn port_key(member: &Member) -> Vec<u8> {
    let mut key = name_bytes(&member.tap);
    key.extend(member.mac.0);
    key.extend([0, 0]);
    key
}

fn member_key(member: &Member) -> Vec<u8> {
    let mut key = port_key(member);
    key.extend(member.ip.octets());
    key
}

/// The element without which it sends nothing.
fn marked(member: &Member) -> Element {
    let is_curbed = member.up_kbit.is_some() || !member.blacklist.is_empty();
    let chain = if is_curbed { CURBED } else { FREE };
    Element {
        chain: Some(chain.to_owned()),
        comment: Some(mark(member)),
        ..Element::of_key(member_key(member))
    }
}

/// What its connections meet, if they may not lead to everywhere.
fn out_rule(member: &Member) -> Option<Element> {
    let chain = match member {
        Member { is_denied: true, .. } => DENIED,
        Member { allowlist, .. } if allowlist.is_empty() => return None,
        _ => LIMITED,
    };
    let key = member.ip.octets().to_vec();
    Some(Element { chain: Some(chain.to_owned()), ..Element::of_key(key) })
}

/// Tells two records of a member apart, and two versions of the rules. Its owner alone chooses what
/// is in it, and another version of the hash only makes the sets be read.
fn mark(member: &Member) -> String {
    let mut hasher = DefaultHasher::new();
    rules::version(member.range).hash(&mut hasher);
    let Member { is_denied, blacklist, allowlist, up_kbit, down_kbit, .. } = member;
    (is_denied, blacklist, allowlist, up_kbit, down_kbit).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// All that a member has in sets but its blacklist and [`MEMBERS`]: set, how its keys begin, elements.
fn wanted(member: &Member) -> Vec<(&'static str, Vec<u8>, BTreeSet<Element>)> {
    let (tap, ip) = (tap_key(member), member.ip.octets().to_vec());
    let one = |key: &[u8]| BTreeSet::from([Element::of_key(key.to_vec())]);
    let port = one(&port_key(member));
    let mut all = vec![
        (TAPS, tap.clone(), port.clone()),
        (ASKERS, tap.clone(), port),
        (DELIVERED, tap.clone(), one(&tap)),
        (BLOCKED, tap.clone(), one(&tap)),
        (SLOWED, tap.clone(), one(&tap)),
        (REFUSED, ip.clone(), one(&ip)),
        (OUT, ip.clone(), out_rule(member).into_iter().collect()),
        (ALLOWED, ip.clone(), ranges(member, member.ip.into(), true)),
        (REACHABLE, ip.clone(), ranges(member, member.ip.into(), false)),
        (NAME_RULES, ip, name_rules(member, member.ip.into())),
    ];
    all.extend(six::wanted(member));
    all
}

/// Ranges of member, which has `own` among such addresses, and destination, with protocol and port where a rule names one.
fn ranges(member: &Member, own: IpAddr, with_port: bool) -> BTreeSet<Element> {
    let key = |addr: IpAddr, rule: &NetRule| {
        let port = rule.port.map(named::port_bytes);
        [bytes(own), bytes(addr), port.unwrap_or_default()].concat()
    };
    let nets = || {
        member.allowlist.iter().filter_map(|rule| match rule.to {
            Destination::Net(net)
                if rule.port.is_some() == with_port && net.addr().is_ipv4() == own.is_ipv4() =>
            {
                Some((net, rule))
            }
            _ => None,
        })
    };
    // A set of ranges takes none that lies in another one.
    let is_covered = |net: &IpNet, rule: &NetRule| {
        nets().any(|(of, other)| other != rule && other.port == rule.port && of.contains(net))
    };
    let alone = nets().filter(|(net, rule)| !is_covered(net, rule));
    alone
        .map(|(net, rule)| Element::of_range(key(net.network(), rule), key(net.broadcast(), rule)))
        .collect()
}

fn bytes(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// The rules with names of member, which has `own` among such addresses, as the next daemon reads them.
fn name_rules(member: &Member, own: IpAddr) -> BTreeSet<Element> {
    let element = |rule: &NetRule| {
        let key = [&bytes(own)[..], &named::mark(rule).to_ne_bytes()].concat();
        Element { comment: Some(rule.to_string()), ..Element::of_key(key) }
    };
    let rules = member.allowlist.iter().filter(|rule| rule.name().is_some());
    rules.map(element).collect()
}

fn listed(member: &Member) -> BTreeSet<Element> {
    let key = |to: Ipv4Addr| [member.ip.octets(), to.octets()].concat();
    let listed = member.blacklist.iter().filter_map(|addr| match addr {
        IpAddr::V4(addr) => Some(*addr),
        IpAddr::V6(_) => member.listed_member(*addr),
    });
    listed.map(|to| Element::of_key(key(to))).collect()
}

pub(crate) fn fail(action: &'static str, set: &'static str, source: io::Error) -> NetworkError {
    NetworkError::ChangeElements { action, set, source }
}
