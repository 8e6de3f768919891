//! Addresses that are open to members under names: what the resolver told them, for as long as that is
//! true. Pure: it is told the time, and says what is to be written. That an address is open at all is decided by
//! the rules in the kernel (`rules/env.rs`), which know the names' rules themselves.

use crate::element::Element;
use crate::rules;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, RData};
use ipnet::{Ipv4Net, Ipv6Net};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};
use tt_model::{InnerPort, NetRule, Protocol, six};

/// Addresses that are open to one member; the one that ends first makes room.
pub(crate) const OPEN_PER_MEMBER_MAX: usize = 512;
/// Addresses that one answer opens.
const ADDRESSES_MAX: usize = 32;
/// Names that lead to one another in one answer.
const CHAIN_MAX: usize = 16;
/// An answer that lives shorter is for the connection that follows it.
const LIFE_MIN: Duration = Duration::from_secs(60);
/// The longest that an answer is believed, whatever it says; guests are told no more.
pub(crate) const LIFE_MAX_SECONDS: u32 = 3600;
/// Between an answer and the use that is made of it.
const GRACE: Duration = Duration::from_secs(5);

/// Where no name leads: what a hostile name server would have a member reach in its site, on this host, in
/// other Envs or in a cloud (RFC 6890, RFC 1918, RFC 6598). A network of these is opened as a network.
const NEAR: [(Ipv4Addr, u8); 9] = [
    (Ipv4Addr::UNSPECIFIED, 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];
/// The same by IPv6, beside where no guest gets at all: unique local addresses, site-local ones as they once were, groups
/// (RFC 4193, RFC 3879, RFC 4291).
const NEAR_SIX: [Ipv6Net; 3] = [
    Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
    Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// What the resolver does for a member beside its Env's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// It asks nobody.
    pub(crate) is_denied: bool,
    /// Rules with names; if there are any, it asks for these alone.
    pub(crate) names: Vec<NetRule>,
}

impl Bounds {
    /// Whether others may be asked for that name: in lower case, without a dot at its end.
    pub(crate) fn let_out(&self, name: &str) -> bool {
        !self.is_denied && (self.names.is_empty() || self.covering(name).next().is_some())
    }

    fn covering(&self, name: &str) -> impl Iterator<Item = &NetRule> {
        self.names.iter().filter(move |rule| rule.name().is_some_and(|of| of.covers(name)))
    }
}

/// What names a rule in the kernel: the mark of the connections that it lets out. Never 0.
pub(crate) fn mark(rule: &NetRule) -> u32 {
    rules::hash(&rule.to_string()).max(1)
}

/// How an element's key says protocol and port.
pub(crate) fn port_bytes(inner: InnerPort) -> Vec<u8> {
    let [high, low] = inner.port.to_be_bytes();
    vec![inner.protocol.number(), 0, 0, 0, high, low, 0, 0]
}

/// Whose element that is, in a set whose keys begin with a member's address.
pub(crate) fn member_of(element: &Element) -> Option<Ipv4Addr> {
    Some((*element.key.first_chunk::<4>()?).into())
}

/// An address, and a port of it if not all are meant.
pub(crate) type Place = (IpAddr, Option<InnerPort>);

/// A place that is open to a member, as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) member: Ipv4Addr,
    pub(crate) place: Place,
    /// Of the rule that opens it.
    pub(crate) mark: u32,
    pub(crate) life: Duration,
}

impl Entry {
    /// Of a member of `range`.
    pub(crate) fn read(element: &Element, range: Ipv4Net) -> Option<Self> {
        let (member, addr, port): (_, IpAddr, _) = match element.key.len() {
            8 | 16 => {
                let (addresses, port) = element.key.split_first_chunk::<8>()?;
                let [a, b, c, d, addr @ ..] = *addresses;
                (Ipv4Addr::new(a, b, c, d), addr.into(), port)
            }
            _ => {
                let (member, rest) = element.key.split_first_chunk::<16>()?;
                let (addr, port) = rest.split_first_chunk::<16>()?;
                let [first, ..] = range.addr().octets();
                (six::owner((*member).into(), first)?, (*addr).into(), port)
            }
        };
        let port = match port {
            [] => None,
            [protocol, _, _, _, high, low, _, _] => {
                let mut all = [Protocol::Tcp, Protocol::Udp].into_iter();
                let protocol = all.find(|of| of.number() == *protocol)?;
                Some(InnerPort { port: u16::from_be_bytes([*high, *low]), protocol })
            }
            _ => return None,
        };
        Some(Self {
            member,
            place: (addr, port),
            mark: u32::from_ne_bytes(*element.data.as_ref()?.first_chunk::<4>()?),
            life: Duration::from_millis(element.life_ms?),
        })
    }

    pub(crate) fn element(&self) -> Element {
        // None lives for ever.
        let life_ms = u64::try_from(self.life.as_millis()).unwrap_or(u64::MAX).max(1);
        Element {
            data: Some(self.mark.to_ne_bytes().to_vec()),
            life_ms: Some(life_ms),
            ..Element::of_key(key(self.member, self.place))
        }
    }
}

/// The key of the element for a place.
pub(crate) fn key(member: Ipv4Addr, (addr, port): Place) -> Vec<u8> {
    let port = port.map(port_bytes).unwrap_or_default();
    match addr {
        IpAddr::V4(addr) => [&member.octets()[..], &addr.octets(), &port].concat(),
        IpAddr::V6(addr) => [&six::address(member).octets()[..], &addr.octets(), &port].concat(),
    }
}

/// What is to become of the kernel's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Whether something is to be there already, and to be replaced.
    Write(Entry, bool),
    Remove(Ipv4Addr, Place),
}

/// All that is open to the members of an Env.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    of: BTreeMap<Ipv4Addr, BTreeMap<Place, Open>>,
}

/// Why a place is open.
#[derive(Debug)]
struct Open {
    /// Rules by their marks, and how long each opens it.
    until: BTreeMap<u32, Instant>,
    /// What the kernel has of it.
    written: (u32, Instant),
}

impl Open {
    fn best(&self) -> Option<(u32, Instant)> {
        let all = self.until.iter().map(|(mark, until)| (*mark, *until));
        all.max_by_key(|(_, until)| *until)
    }

    /// Whether the kernel has less than it should.
    fn is_behind(&self) -> bool {
        let best = self.best().map(|(_, until)| until);
        let is_known = self.until.contains_key(&self.written.0);
        !is_known || best.is_some_and(|best| best > self.written.1)
    }
}

impl Opened {
    /// Takes over what the kernel has.
    pub(crate) fn take(&mut self, entries: Vec<Entry>, now: Instant) {
        for Entry { member, place, mark, life } in entries {
            let written = (mark, now + life);
            let open = Open { until: BTreeMap::from([written]), written };
            self.of.entry(member).or_default().insert(place, open);
        }
    }

    /// Opens what `answer` says to `member`, as far as `bounds` do. `range`: of all Envs.
    pub(crate) fn open(
        &mut self,
        member: Ipv4Addr,
        bounds: &Bounds,
        answer: &[u8],
        range: Ipv4Net,
        now: Instant,
    ) -> Vec<Step> {
        let Some((name, told)) = told(answer).filter(|_| !bounds.names.is_empty()) else {
            return Vec::new();
        };
        let places = self.of.entry(member).or_default();
        places.retain(|_, open| open.written.1 > now);
        let mut steps = Vec::new();
        for (addr, life) in told.into_iter().filter(|(addr, _)| !is_near(*addr, range)) {
            let until = now + life;
            for rule in bounds.covering(&name) {
                let place = (addr, rule.port);
                if places.len() >= OPEN_PER_MEMBER_MAX && !places.contains_key(&place) {
                    let first = places.iter().min_by_key(|(_, open)| open.written.1);
                    let Some(first) = first.map(|(place, _)| *place) else { break };
                    places.remove(&first);
                    steps.push(Step::Remove(member, first));
                }
                let open = places
                    .entry(place)
                    .or_insert_with(|| Open { until: BTreeMap::new(), written: (0, now) });
                let known = open.until.entry(mark(rule)).or_insert(until);
                *known = until.max(*known);
                steps.extend(write(member, place, open, now));
            }
        }
        steps
    }

    /// What is left of a member's under other bounds.
    pub(crate) fn bound(&mut self, member: Ipv4Addr, bounds: &Bounds, now: Instant) -> Vec<Step> {
        let marks: Vec<u32> = bounds.names.iter().map(mark).collect();
        let Some(places) = self.of.get_mut(&member) else { return Vec::new() };
        let mut steps = Vec::new();
        places.retain(|place, open| {
            open.until.retain(|mark, until| marks.contains(mark) && *until > now);
            if open.until.is_empty() {
                steps.push(Step::Remove(member, *place));
            } else {
                steps.extend(write(member, *place, open, now));
            }
            !open.until.is_empty()
        });
        if places.is_empty() {
            self.of.remove(&member);
        }
        steps
    }

    /// Writes all again, to where nothing of it is.
    pub(crate) fn again(&mut self, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        for (member, places) in &mut self.of {
            for (place, open) in places {
                open.written = (0, now);
                steps.extend(write(*member, *place, open, now));
            }
        }
        steps
    }
}

/// Brings the kernel's element up to date.
fn write(member: Ipv4Addr, place: Place, open: &mut Open, now: Instant) -> Option<Step> {
    let (mark, until) = open.best().filter(|_| open.is_behind())?;
    // What is written lives a little longer, so that the same answer again is no reason to write again.
    let is_there = open.written.1 > now;
    open.written = (mark, until + GRACE);
    let life = open.written.1.saturating_duration_since(now);
    Some(Step::Write(Entry { member, place, mark, life }, is_there))
}

/// The name that was asked for, in lower case, and the addresses that an answer says it has, through
/// whatever other names.
fn told(answer: &[u8]) -> Option<(String, Vec<(IpAddr, Duration)>)> {
    let message = Message::from_vec(answer).ok()?;
    let [query] = message.queries.as_slice() else { return None };
    let is_whole = message.metadata.response_code == ResponseCode::NoError
        && !message.metadata.truncation
        && query.query_class() == DNSClass::IN;
    if !is_whole {
        return None;
    }
    let records = || message.answers.iter().filter(|record| record.dns_class == DNSClass::IN);
    let (mut owner, mut age) = (query.name(), LIFE_MAX_SECONDS);
    for _ in 0..CHAIN_MAX {
        let next = records().find_map(|record| match &record.data {
            RData::CNAME(to) if record.name == *owner => Some((&to.0, record.ttl)),
            _ => None,
        });
        let Some((to, of_link)) = next else { break };
        (owner, age) = (to, age.min(of_link));
    }
    let addresses = records().filter(|record| record.name == *owner).filter_map(|record| {
        let addr: IpAddr = match record.data {
            RData::A(addr) => addr.0.into(),
            RData::AAAA(addr) => addr.0.into(),
            _ => return None,
        };
        let life = Duration::from_secs(age.min(record.ttl).into());
        Some((addr, life.max(LIFE_MIN)))
    });
    let addresses = addresses.take(ADDRESSES_MAX).collect();
    Some((crate::answer::text(query), addresses))
}

fn is_near(addr: IpAddr, range: Ipv4Net) -> bool {
    let addr = match addr {
        IpAddr::V4(addr) => addr,
        IpAddr::V6(addr) => {
            let mut never = rules::NEVER_SIX.split(", ").map(str::parse::<Ipv6Net>);
            // The rules are none if one of these were no network.
            return NEAR_SIX.iter().any(|net| net.contains(&addr))
                || never.any(|net| net.is_ok_and(|net| net.contains(&addr)));
        }
    };
    let is_in = |(net, length): &(Ipv4Addr, u8)| {
        Ipv4Net::new(*net, *length).is_ok_and(|net| net.contains(&addr))
    };
    range.contains(&addr) || NEAR.iter().any(is_in)
}

#[cfg(test)]
#[path = "named_tests.rs"]
mod tests;
