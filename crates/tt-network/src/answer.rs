//! What the resolver says to one message from a guest. Pure: bytes in, bytes out. It never trusts a
//! length in the message and never answers with more than a few times the question.

use crate::EnvNames;
use crate::named::Bounds;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use tt_model::six;

/// Largest message over UDP that meets no fragmentation (the value of DNS Flag Day 2020).
pub(crate) const MESSAGE_BYTES_MAX: usize = 1232;
/// A member keeps its address, but a fork or a new Env may follow soon under the same name.
const TTL_SECONDS: u32 = 10;
/// Length of a header (RFC 1035 4.1.1).
pub(crate) const HEADER_BYTES: usize = 12;
/// What a client without EDNS takes over UDP (RFC 1035 2.3.4).
const PLAIN_BYTES_MAX: usize = 512;
/// Names that mean the same in every Env; no member can have them.
const GATEWAY_NAME: &str = "gateway";
const LOCALHOST_NAME: &str = "localhost";

/// Bit of the third byte of a header: the answer is cut (`TC`).
pub(crate) const TRUNCATED: u8 = 2;

/// What becomes of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was no question: silence.
    Drop,
    /// The answer.
    Answer(Vec<u8>),
    /// Others may know.
    Forward,
}

/// The names inside one Env.
#[derive(Debug, Default)]
pub(crate) struct Zone {
    by_name: BTreeMap<String, Ipv4Addr>,
    by_addr: BTreeMap<Ipv4Addr, String>,
    /// Whether they have IPv6 addresses, too, ...
    has_six: bool,
    /// ... but these.
    without_six: BTreeSet<Ipv4Addr>,
}

impl Zone {
    /// The names of an Env whose members reach this host at `gateway`.
    pub(crate) fn new(names: &EnvNames, gateway: Ipv4Addr, has_six: bool) -> Self {
        let without_six = names.without_six.clone();
        let mut zone = Self { has_six, without_six, ..Self::default() };
        zone.by_name.insert(GATEWAY_NAME.to_owned(), gateway);
        for (name, addr) in &names.members {
            let name = name.to_ascii_lowercase();
            let full = format!("{name}.{}", names.env_name.to_ascii_lowercase());
            zone.by_addr.insert(*addr, full.clone());
            zone.by_name.extend([(full, *addr), (name, *addr)]);
        }
        zone
    }

    /// The name of the member with that address, without its Env's.
    pub(crate) fn name_of(&self, addr: Ipv4Addr) -> Option<String> {
        let (name, _) = self.by_addr.get(&addr)?.split_once('.')?;
        Some(name.to_owned())
    }

    /// Decides about `message`. `range`: where inner addresses come from; names for them are known
    /// here or nowhere. `bounds`: what the guest may ask the outside.
    pub(crate) fn decide(&self, message: &[u8], range: Ipv4Net, bounds: &Bounds) -> Verdict {
        if message.len() > MESSAGE_BYTES_MAX {
            return Verdict::Drop;
        }
        let Ok(message) = Message::from_vec(message) else {
            return Verdict::Drop;
        };
        let is_question = message.metadata.message_type == MessageType::Query
            && message.metadata.op_code == OpCode::Query;
        let [query] = message.queries.as_slice() else {
            return Verdict::Drop;
        };
        if !is_question {
            return Verdict::Drop;
        }
        let (code, records) = match self.look_up(query, range) {
            Some(Some(records)) => (ResponseCode::NoError, records),
            Some(None) => (ResponseCode::NXDomain, Vec::new()),
            None if bounds.let_out(&text(query)) => return Verdict::Forward,
            None if bounds.is_denied => (ResponseCode::Refused, Vec::new()),
            // Some guests wait after a refusal, and none do after this one.
            None => (ResponseCode::NXDomain, Vec::new()),
        };
        reply(&message, code, records).map_or(Verdict::Drop, Verdict::Answer)
    }

    /// None: not ours. Some(None): ours, and there is no such name.
    fn look_up(&self, query: &Query, range: Ipv4Net) -> Option<Option<Vec<Record>>> {
        if query.query_class() != DNSClass::IN {
            return None;
        }
        let text = text(query);
        let text = text.as_str();
        let record = |data| Record::from_rdata(query.name().clone(), TTL_SECONDS, data);
        if let Some(addr) = reverse(text, range) {
            let Some(name) = addr.and_then(|addr| self.by_addr.get(&addr)) else {
                return Some(None);
            };
            let is_wanted = matches!(query.query_type(), RecordType::PTR | RecordType::ANY);
            let name = Name::from_ascii(format!("{name}.")).ok().filter(|_| is_wanted);
            let data = name.map(|name| RData::PTR(PTR(name)));
            return Some(Some(data.map(record).into_iter().collect()));
        }
        if text == LOCALHOST_NAME || text.ends_with(".localhost") {
            // RFC 6761 6.3: it never leaves this machine.
            let data = match query.query_type() {
                RecordType::A => Some(RData::A(A(Ipv4Addr::LOCALHOST))),
                RecordType::AAAA => Some(RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))),
                _ => None,
            };
            return Some(Some(data.map(record).into_iter().collect()));
        }
        match self.by_name.get(text) {
            Some(addr) => {
                let data = match query.query_type() {
                    // Of all kinds, one is enough (RFC 8482).
                    RecordType::A | RecordType::ANY => Some(RData::A(A(*addr))),
                    RecordType::AAAA if self.has_six && !self.without_six.contains(addr) => {
                        Some(RData::AAAA(AAAA(six::address(*addr))))
                    }
                    _ => None,
                };
                Some(Some(data.map(record).into_iter().collect()))
            }
            None if !text.is_empty() && !text.contains('.') => Some(None),
            None => None,
        }
    }
}

/// The name that is asked for, in lower case, without a dot at its end.
pub(crate) fn text(query: &Query) -> String {
    let mut text = query.name().to_ascii().to_ascii_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

/// The answer to `message` when nobody else gave one.
pub(crate) fn give_up(message: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_vec(message).ok()?;
    reply(&message, ResponseCode::ServFail, Vec::new())
}

/// The answer to `message` for whom the whole one is too long: to be asked for again over TCP.
pub(crate) fn truncated(message: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_vec(message).ok()?;
    let mut bytes = reply(&message, ResponseCode::NoError, Vec::new())?;
    *bytes.get_mut(2)? |= TRUNCATED;
    Some(bytes)
}

/// How long an answer to `message` over UDP may be.
pub(crate) fn room(message: &[u8]) -> usize {
    let message = Message::from_vec(message).ok();
    let offered = message.and_then(|message| Some(message.edns?.max_payload()));
    usize::from(offered.unwrap_or_default()).clamp(PLAIN_BYTES_MAX, MESSAGE_BYTES_MAX)
}

/// Whether `answer` answers `question`: same question, and an answer at all. The id is the caller's
/// to compare.
pub(crate) fn is_answer(question: &[u8], answer: &[u8]) -> bool {
    let section = |message: &[u8]| Some(HEADER_BYTES..question_end(message)?);
    let asked = section(question).and_then(|range| question.get(range));
    let answered = section(answer).and_then(|range| answer.get(range));
    let is_response = answer.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let has_one = answer.get(4..6) == Some(&[0, 1]);
    match (asked, answered) {
        (Some(asked), Some(answered)) => {
            is_response && has_one && asked.eq_ignore_ascii_case(answered)
        }
        _ => false,
    }
}

/// Where the first question of a message ends.
pub(crate) fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER_BYTES;
    loop {
        match *message.get(at)? {
            // Type and class follow the root label.
            0 => return Some(at + 5).filter(|end| *end <= message.len()),
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

fn reply(question: &Message, code: ResponseCode, records: Vec<Record>) -> Option<Vec<u8>> {
    let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = !records.is_empty();
    reply.metadata.response_code = code;
    reply.add_queries(question.queries.iter().cloned());
    reply.add_answers(records);
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MESSAGE_BYTES_MAX as u16);
        reply.set_edns(edns);
    }
    reply.to_vec().ok()
}

/// The address that a name of the reverse tree stands for, if it is one that only members can have; none within for one
/// that no member has.
fn reverse(name: &str, range: Ipv4Net) -> Option<Option<Ipv4Addr>> {
    if let Some(name) = name.strip_suffix(".in-addr.arpa") {
        let mut parts = name.split('.');
        let mut octets = [0; 4];
        for octet in octets.iter_mut().rev() {
            *octet = parts.next()?.parse().ok()?;
        }
        let addr = Ipv4Addr::from(octets);
        return (parts.next().is_none() && range.contains(&addr)).then_some(Some(addr));
    }
    let [first, ..] = range.network().octets();
    let addr = reverse_six(name).filter(|addr| six::SITE.contains(addr))?;
    Some(six::owner(addr, first).filter(|addr| range.contains(addr)))
}

/// Sixteen bytes, the last one first, as two digits each (RFC 3596 2.5).
fn reverse_six(name: &str) -> Option<Ipv6Addr> {
    let mut digits = name.strip_suffix(".ip6.arpa")?.split('.');
    let mut bits = 0;
    for place in 0..32 {
        let digit = digits.next().filter(|digit| digit.len() == 1)?;
        bits |= u128::from_str_radix(digit, 16).ok()? << (4 * place);
    }
    digits.next().is_none().then_some(Ipv6Addr::from_bits(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> Zone {
        let names = EnvNames {
            env_name: "shop".into(),
            members: vec![
                ("web".into(), Ipv4Addr::new(10, 0, 0, 2)),
                ("db".into(), Ipv4Addr::new(10, 0, 0, 3)),
                ("old".into(), Ipv4Addr::new(10, 0, 0, 4)),
            ],
            without_six: BTreeSet::from([Ipv4Addr::new(10, 0, 0, 4)]),
        };
        Zone::new(&names, Ipv4Addr::new(10, 0, 0, 1), true)
    }

    fn question(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 7;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn ask(name: &str, kind: RecordType) -> Verdict {
        let range = "10.0.0.0/8".parse().unwrap();
        zone().decide(&question(name, kind), range, &Bounds::default())
    }

    fn answer(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let Verdict::Answer(bytes) = ask(name, kind) else {
            panic!("{name} was not answered");
        };
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!(message.metadata.id, 7);
        let data = message.answers.iter().map(|r| r.data.to_string());
        (message.metadata.response_code, data.collect())
    }

    #[test]
    fn members_are_known_by_both_names() {
        let db = (ResponseCode::NoError, vec!["10.0.0.3".to_owned()]);
        for name in ["db.", "DB.", "db.shop.", "Db.Shop."] {
            assert_eq!(answer(name, RecordType::A), db, "{name}");
        }
        let six = "fd74:7465:6e76:0:8017:dff:fe00:3";
        assert_eq!(answer("db.", RecordType::AAAA), (ResponseCode::NoError, vec![six.to_owned()]));
        assert_eq!(answer("old.", RecordType::AAAA), (ResponseCode::NoError, Vec::new()));
        assert_eq!(answer("db.", RecordType::MX), (ResponseCode::NoError, vec![]));
        let name = (ResponseCode::NoError, vec!["db.shop.".to_owned()]);
        assert_eq!(answer("3.0.0.10.in-addr.arpa.", RecordType::PTR), name);
        let of_six = six.parse::<Ipv6Addr>().unwrap().to_bits();
        let digits: Vec<_> = (0..32).map(|n| format!("{:x}.", of_six >> (4 * n) & 15)).collect();
        assert_eq!(answer(&format!("{}ip6.arpa.", digits.concat()), RecordType::PTR), name);
        let nobody = format!("9.{}ip6.arpa.", digits[1..].concat());
        assert_eq!(answer(&nobody, RecordType::PTR), (ResponseCode::NXDomain, vec![]));
    }

    #[test]
    fn names_that_mean_the_same_everywhere_are_known() {
        let data = |text: &str| (ResponseCode::NoError, vec![text.to_owned()]);
        assert_eq!(answer("gateway.", RecordType::A), data("10.0.0.1"));
        for name in ["localhost.", "LocalHost.", "a.localhost."] {
            assert_eq!(answer(name, RecordType::A), data("127.0.0.1"));
            assert_eq!(answer(name, RecordType::AAAA), data("::1"));
        }
        assert_eq!(answer("localhost.", RecordType::MX), (ResponseCode::NoError, vec![]));
        assert_eq!(zone().name_of(Ipv4Addr::new(10, 0, 0, 3)).as_deref(), Some("db"));
        assert_eq!(zone().name_of(Ipv4Addr::new(10, 0, 0, 1)), None);
    }

    #[test]
    fn who_can_not_take_a_long_answer_is_told_so() {
        let plain = question("example.com.", RecordType::TXT);
        assert_eq!(room(&plain), PLAIN_BYTES_MAX);
        for (offered, taken) in [(0, 512), (1000, 1000), (65_535, MESSAGE_BYTES_MAX)] {
            let mut message = Message::from_vec(&plain).unwrap();
            let mut edns = Edns::new();
            edns.set_max_payload(offered);
            message.set_edns(edns);
            assert_eq!(room(&message.to_vec().unwrap()), taken, "{offered}");
        }
        let short = truncated(&plain).unwrap();
        assert!(is_answer(&plain, &short));
        assert!(Message::from_vec(&short).unwrap().metadata.truncation);
    }

    #[test]
    fn what_can_only_be_ours_is_never_forwarded() {
        let no_such = (ResponseCode::NXDomain, vec![]);
        assert_eq!(answer("cache.", RecordType::A), no_such);
        assert_eq!(answer("9.0.0.10.in-addr.arpa.", RecordType::PTR), no_such);
        for name in ["example.com.", "web.other.", "1.2.0.192.in-addr.arpa.", "."] {
            assert_eq!(ask(name, RecordType::A), Verdict::Forward, "{name}");
        }
    }

    #[test]
    fn who_may_not_ask_the_outside_is_refused() {
        let range = "10.0.0.0/8".parse().unwrap();
        let question = question("example.com.", RecordType::A);
        let code = |bounds: &Bounds| match zone().decide(&question, range, bounds) {
            Verdict::Answer(bytes) => {
                Some(Message::from_vec(&bytes).unwrap().metadata.response_code)
            }
            _ => None,
        };
        let names = |name: &str| Bounds { is_denied: false, names: vec![name.parse().unwrap()] };
        let denied = Bounds { is_denied: true, ..names("example.com") };
        assert_eq!(code(&denied), Some(ResponseCode::Refused));
        assert_eq!(code(&names("example.org")), Some(ResponseCode::NXDomain));
        assert_eq!(code(&names("example.com")), None);
    }

    #[test]
    fn noise_gets_silence() {
        let range = "10.0.0.0/8".parse().unwrap();
        let good = question("db.", RecordType::A);
        for length in 0..good.len() {
            assert_eq!(zone().decide(&good[..length], range, &Bounds::default()), Verdict::Drop);
        }
        for at in 0..good.len() {
            for byte in 0..=255 {
                let mut bad = good.clone();
                bad[at] = byte;
                if let Verdict::Answer(bytes) = zone().decide(&bad, range, &Bounds::default()) {
                    assert!(bytes.len() <= bad.len() + 32, "amplifies");
                }
                assert!(!is_answer(&good, &bad[..at]));
            }
        }
        let mut response = good.clone();
        response[2] |= 0x80;
        assert_eq!(zone().decide(&response, range, &Bounds::default()), Verdict::Drop);
        assert_eq!(zone().decide(&[0xff; 5000], range, &Bounds::default()), Verdict::Drop);
    }

    #[test]
    fn only_an_answer_to_the_same_question_counts() {
        let asked = question("example.com.", RecordType::A);
        let refused = give_up(&asked).unwrap();
        assert!(is_answer(&asked, &refused));
        assert!(!is_answer(&asked, &asked));
        let other = give_up(&question("example.org.", RecordType::A)).unwrap();
        assert!(!is_answer(&asked, &other));
    }
}
