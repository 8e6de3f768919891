//! What names open, and for how long. Nothing here asks a server or the kernel.

use super::*;
use hickory_proto::op::Query;
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, Record, RecordType};

const MEMBER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn a(owner: &str, age: u32, addr: [u8; 4]) -> Record {
    Record::from_rdata(name(owner), age, RData::A(A(addr.into())))
}

fn aaaa(owner: &str, age: u32, addr: &str) -> Record {
    Record::from_rdata(name(owner), age, RData::AAAA(AAAA(addr.parse().unwrap())))
}

fn alias(owner: &str, age: u32, to: &str) -> Record {
    Record::from_rdata(name(owner), age, RData::CNAME(CNAME(name(to))))
}

fn answer(asked: &str, records: Vec<Record>) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(name(asked), RecordType::A));
    let mut message = message.into_response();
    message.add_answers(records);
    message.to_vec().unwrap()
}

fn bounds(rules: &[&str]) -> Bounds {
    let names = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    Bounds { is_denied: false, names }
}

fn range() -> Ipv4Net {
    "10.0.0.0/8".parse().unwrap()
}

/// Addresses, ports and seconds that are written.
fn written(steps: &[Step]) -> Vec<(String, u64)> {
    let show = |step: &Step| match step {
        Step::Write(entry, _) => {
            let (addr, port) = entry.place;
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            Some((format!("{addr}{port}"), entry.life.as_secs()))
        }
        Step::Remove(..) => None,
    };
    steps.iter().filter_map(show).collect()
}

fn opens(rules: &[&str], answer: &[u8]) -> Vec<(String, u64)> {
    let mut opened = Opened::default();
    written(&opened.open(MEMBER, &bounds(rules), answer, range(), Instant::now()))
}

#[test]
fn an_answer_opens_its_addresses_for_its_life() {
    let told = answer("WWW.example.org.", vec![a("www.example.org.", 300, [192, 0, 2, 7])]);
    let is = |text: &str, seconds: u64| vec![(text.to_owned(), seconds + GRACE.as_secs())];
    assert_eq!(opens(&["www.example.org"], &told), is("192.0.2.7", 300));
    assert_eq!(opens(&["*.example.org:443"], &told), is("192.0.2.7:443", 300));
    assert!(opens(&["example.org"], &told).is_empty());
    assert!(opens(&["192.0.2.0/24"], &told).is_empty(), "no rule with a name");
    let told = answer("a.org.", vec![aaaa("a.org.", 300, "2001:db8::7")]);
    assert_eq!(opens(&["a.org"], &told), is("2001:db8::7", 300));
    for (age, life) in [(0, 60), (61, 61), (u32::MAX, LIFE_MAX_SECONDS.into())] {
        let told = answer("a.org.", vec![a("a.org.", age, [192, 0, 2, 7])]);
        assert_eq!(opens(&["a.org"], &told), is("192.0.2.7", life));
    }
}

#[test]
fn names_are_followed_and_what_does_not_belong_to_the_question_is_left() {
    let told = |records| answer("a.org.", records);
    let seconds = |life: u64| vec![("192.0.2.7".to_owned(), life + GRACE.as_secs())];
    let chain = vec![
        a("c.net.", 900, [192, 0, 2, 7]),
        alias("b.net.", 80, "C.net."),
        alias("a.org.", 700, "b.net."),
        a("other.org.", 900, [192, 0, 2, 8]),
        a("b.net.", 900, [192, 0, 2, 9]),
    ];
    assert_eq!(opens(&["a.org"], &told(chain.clone())), seconds(80));
    assert!(opens(&["b.net", "c.net"], &told(chain)).is_empty(), "nobody asked for these");
    let circle = vec![alias("a.org.", 70, "b.net."), alias("b.net.", 70, "a.org.")];
    assert!(opens(&["a.org"], &told(circle)).is_empty());
    let many = (0..200).map(|last| a("a.org.", 70, [192, 0, 2, last])).collect();
    assert_eq!(opens(&["a.org"], &told(many)).len(), ADDRESSES_MAX);
    let mut cut = told(vec![a("a.org.", 70, [192, 0, 2, 7])]);
    for length in 0..cut.len() {
        assert!(opens(&["a.org"], &cut[..length]).is_empty());
    }
    cut[2] |= 2;
    assert!(opens(&["a.org"], &cut).is_empty(), "it says that it is cut");
}

#[test]
fn no_name_leads_near() {
    for addr in [
        [0, 0, 0, 0],
        [10, 0, 0, 1],
        [10, 200, 0, 1],
        [100, 64, 0, 1],
        [127, 0, 0, 1],
        [169, 254, 169, 254],
        [172, 31, 0, 1],
        [192, 0, 0, 9],
        [192, 168, 1, 1],
        [224, 0, 0, 1],
        [255, 255, 255, 255],
    ] {
        let told = answer("a.org.", vec![a("a.org.", 70, addr)]);
        assert!(opens(&["a.org"], &told).is_empty(), "{addr:?}");
    }
    for addr in [
        "::",
        "::1",
        "::ffff:192.0.2.7",
        "64:ff9b::c000:207",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "fd00:ec2::254",
        "fd12:3456::1",
        "fd74:7465:6e76:0:8017:dff:fe01:203",
    ] {
        let told = answer("a.org.", vec![aaaa("a.org.", 70, addr)]);
        assert!(opens(&["a.org"], &told).is_empty(), "{addr}");
    }
    let other: Ipv4Net = "198.18.0.0/16".parse().unwrap();
    let told = answer("a.org.", vec![a("a.org.", 70, [198, 18, 0, 1])]);
    let mut opened = Opened::default();
    assert!(opened.open(MEMBER, &bounds(&["a.org"]), &told, other, Instant::now()).is_empty());
}

#[test]
fn what_is_open_is_written_again_only_when_it_lives_longer() {
    let (mut opened, now) = (Opened::default(), Instant::now());
    let told = answer("a.org.", vec![a("a.org.", 300, [192, 0, 2, 7])]);
    let bounds = bounds(&["a.org"]);
    let mut open = |at: u64| {
        let now = now + Duration::from_secs(at);
        written(&opened.open(MEMBER, &bounds, &told, range(), now)).len()
    };
    assert_eq!([0, 1, 5, 6, 7, 12, 400].map(&mut open), [1, 0, 0, 1, 0, 1, 1]);
}

#[test]
fn an_address_of_two_names_stays_open_when_one_of_them_is_removed() {
    let (mut opened, now) = (Opened::default(), Instant::now());
    let both = bounds(&["a.org", "*.b.org:443", "c.b.org"]);
    for (asked, age) in [("a.org.", 300), ("c.b.org.", 200)] {
        let told = answer(asked, vec![a(asked, age, [192, 0, 2, 7])]);
        opened.open(MEMBER, &both, &told, range(), now);
    }
    let rest = bounds(&["c.b.org"]);
    let place = ([192, 0, 2, 7].into(), None);
    let mut steps = opened.bound(MEMBER, &rest, now);
    steps.sort_by_key(|step| matches!(step, Step::Remove(..)));
    let entry =
        Entry { member: MEMBER, place, mark: mark(&rest.names[0]), life: Duration::from_secs(205) };
    let port = Some("443".parse().unwrap());
    assert_eq!(steps, [Step::Write(entry, true), Step::Remove(MEMBER, (place.0, port))]);
    assert_eq!(opened.again(now), [Step::Write(entry, false)]);
    let closed = opened.bound(MEMBER, &Bounds::default(), now);
    assert_eq!(closed, [Step::Remove(MEMBER, place)]);
    assert!(opened.of.is_empty());
}

#[test]
fn what_is_open_is_bounded_and_the_oldest_makes_room() {
    let (mut opened, now) = (Opened::default(), Instant::now());
    let bounds = bounds(&["*.a.org"]);
    let mut steps = Vec::new();
    for number in 0..OPEN_PER_MEMBER_MAX as u16 + 10 {
        let [high, low] = number.to_be_bytes();
        let asked = format!("n{number}.a.org.");
        let told = answer(&asked, vec![a(&asked, 100 + u32::from(number), [192, 1, high, low])]);
        steps.extend(opened.open(MEMBER, &bounds, &told, range(), now));
    }
    assert_eq!(opened.of[&MEMBER].len(), OPEN_PER_MEMBER_MAX);
    let removed = steps.iter().filter_map(|step| match step {
        Step::Remove(_, (IpAddr::V4(addr), _)) => Some(addr.octets()[3]),
        Step::Remove(..) => panic!("{step:?}"),
        Step::Write(..) => None,
    });
    assert_eq!(removed.collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
}

#[test]
fn elements_are_read_as_they_were_written() {
    let addrs = ["192.0.2.7", "2001:db8::7"].map(|text| text.parse::<IpAddr>().unwrap());
    for port in [None, Some("443".parse().unwrap()), Some("53/udp".parse().unwrap())] {
        for place in addrs.map(|addr| (addr, port)) {
            let entry = Entry { member: MEMBER, place, mark: 7, life: Duration::from_millis(1500) };
            assert_eq!(Entry::read(&entry.element(), range()), Some(entry));
        }
    }
    for length in [7, 15, 31, 33, 41] {
        assert_eq!(Entry::read(&Element::of_key(vec![1; length]), range()), None);
    }
}

#[test]
fn only_listed_names_are_let_out() {
    let open = Bounds::default();
    let listed = bounds(&["a.org:443", "*.b.org"]);
    assert!(open.let_out("c.org") && listed.let_out("a.org") && listed.let_out("x.b.org"));
    assert!(!listed.let_out("c.org") && !listed.let_out("b.org"));
    let denied = Bounds { is_denied: true, ..listed };
    assert!(!denied.let_out("a.org"));
}
