//! Messages as clients and attackers write them.

use super::*;

const ADDR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 8);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn terms() -> Terms {
    Terms { range: "10.0.0.0/8".parse().unwrap(), mtu: 1500 }
}

/// A question of the member [`ADDR`].
fn question(kind: u8, has: Ipv4Addr, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut message = vec![0; HEAD_BYTES];
    message[..4].copy_from_slice(&[REQUEST, 1, 6, 0]);
    message[4..8].copy_from_slice(b"xidx");
    message[12..16].copy_from_slice(&has.octets());
    message[28..34].copy_from_slice(&MacAddr::of_ip(ADDR).0);
    message[236..240].copy_from_slice(&MAGIC);
    option(&mut message, KIND, &[kind]);
    for (code, value) in options {
        option(&mut message, *code, value);
    }
    message.push(END);
    message
}

fn answer(message: &[u8], from: Ipv4Addr) -> Option<Answer> {
    terms().answer(message, from, |_| Some("web".into()))
}

/// Kind, the lent address, the options and where it goes.
type Told = (u8, Ipv4Addr, Vec<(u8, Vec<u8>)>, Ipv4Addr);

fn told(message: &[u8], from: Ipv4Addr) -> Option<Told> {
    let Answer { message, to, member } = answer(message, from)?;
    assert_eq!(member, ADDR);
    assert_eq!(&message[4..8], b"xidx");
    assert_eq!(message[28..34], MacAddr::of_ip(ADDR).0);
    let options = read_options(&message[HEAD_BYTES..]).unwrap();
    let options: Vec<_> = options.into_iter().map(|(code, value)| (code, value.to_vec())).collect();
    let kind = options.iter().find(|(code, _)| *code == KIND).unwrap().1[0];
    Some((kind, address(&message[16..20]).unwrap(), options, to))
}

fn kind_of(message: &[u8], from: Ipv4Addr) -> Option<(u8, Ipv4Addr, Ipv4Addr)> {
    told(message, from).map(|(kind, addr, _, to)| (kind, addr, to))
}

#[test]
fn a_guest_gets_what_follows_from_its_hardware_address() {
    let (kind, addr, options, to) = told(&question(DISCOVER, NOBODY, &[]), NOBODY).unwrap();
    assert_eq!((kind, addr, to), (OFFER, ADDR, ADDR));
    for (code, value) in [
        (SUBNET_MASK, vec![255, 0, 0, 0]),
        (ROUTER, vec![10, 0, 0, 1]),
        (DNS, vec![10, 0, 0, 1]),
        (SERVER, vec![10, 0, 0, 1]),
        (MTU, vec![5, 220]),
        (LEASE, 86_400u32.to_be_bytes().to_vec()),
        (HOST_NAME, b"web".to_vec()),
    ] {
        assert!(options.contains(&(code, value)), "{code}: {options:?}");
    }
    let ours: (u8, &[u8]) = (SERVER, &GATEWAY.octets());
    let wanted: (u8, &[u8]) = (ADDRESS_WANTED, &ADDR.octets());
    let selecting = question(ASK, NOBODY, &[ours, wanted]);
    assert_eq!(kind_of(&selecting, NOBODY), Some((ACK, ADDR, ADDR)));
    let rebooting = question(ASK, NOBODY, &[wanted]);
    assert_eq!(kind_of(&rebooting, NOBODY), Some((ACK, ADDR, ADDR)));
    let renewing = question(ASK, ADDR, &[]);
    assert_eq!(kind_of(&renewing, ADDR), Some((ACK, ADDR, ADDR)));
}

#[test]
fn who_can_hear_only_broadcasts_gets_one() {
    let mut discover = question(DISCOVER, NOBODY, &[]);
    discover[10] = BROADCAST_FLAG;
    assert_eq!(kind_of(&discover, NOBODY), Some((OFFER, ADDR, Ipv4Addr::BROADCAST)));
    let mut renewing = question(ASK, ADDR, &[]);
    renewing[10] = BROADCAST_FLAG;
    assert_eq!(kind_of(&renewing, ADDR), Some((ACK, ADDR, ADDR)));
}

#[test]
fn a_foreign_address_is_refused_to_all_ears() {
    let refused = Some((NAK, NOBODY, Ipv4Addr::BROADCAST));
    let foreign: (u8, &[u8]) = (ADDRESS_WANTED, &OTHER.octets());
    assert_eq!(kind_of(&question(ASK, NOBODY, &[foreign]), NOBODY), refused);
    let ours: (u8, &[u8]) = (SERVER, &GATEWAY.octets());
    assert_eq!(kind_of(&question(ASK, NOBODY, &[ours, foreign]), NOBODY), refused);
    assert_eq!(kind_of(&question(ASK, OTHER, &[]), NOBODY), refused);
    let (_, _, options, _) = told(&question(ASK, OTHER, &[]), NOBODY).unwrap();
    assert!(!options.iter().any(|(code, _)| [LEASE, ROUTER, DNS].contains(code)));
}

#[test]
fn who_only_wants_to_know_gets_no_lease() {
    let (kind, addr, options, to) = told(&question(INFORM, ADDR, &[]), ADDR).unwrap();
    assert_eq!((kind, addr, to), (ACK, NOBODY, ADDR));
    assert!(!options.iter().any(|(code, _)| *code == LEASE));
    assert_eq!(kind_of(&question(INFORM, OTHER, &[]), NOBODY), None);
}

#[test]
fn what_is_not_for_this_server_gets_silence() {
    let other: (u8, &[u8]) = (SERVER, &OTHER.octets());
    let wanted: (u8, &[u8]) = (ADDRESS_WANTED, &ADDR.octets());
    assert_eq!(answer(&question(ASK, NOBODY, &[other, wanted]), NOBODY), None, "another server");
    assert_eq!(answer(&question(ASK, NOBODY, &[]), NOBODY), None, "no address");
    assert_eq!(answer(&question(DISCOVER, NOBODY, &[]), OTHER), None, "from another member");
    for kind in [0, OFFER, 4, ACK, NAK, 7, 9, 255] {
        assert_eq!(answer(&question(kind, ADDR, &[]), ADDR), None, "{kind}");
    }
    let good = question(DISCOVER, NOBODY, &[]);
    for (at, value) in [(0, REPLY), (1, 6), (2, 8), (24, 10), (28, 0x02), (236, 0), (33, 1)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(answer(&bad, NOBODY), None, "byte {at}");
    }
    let long = vec![PAD; MESSAGE_BYTES_MAX];
    assert_eq!(answer(&[&good[..], &long].concat(), NOBODY), None);
}

#[test]
fn noise_gets_at_most_a_few_times_its_length() {
    let good = question(ASK, NOBODY, &[(ADDRESS_WANTED, &ADDR.octets()), (HOST_NAME, b"any")]);
    for length in 0..HEAD_BYTES + 3 {
        assert_eq!(answer(&good[..length], NOBODY), None, "{length}");
    }
    for at in 0..good.len() {
        for byte in 0..=255 {
            let mut bad = good.clone();
            bad[at] = byte;
            if let Some(answer) = answer(&bad, NOBODY) {
                assert!(answer.message.len() <= 2 * bad.len());
                assert!([ADDR, Ipv4Addr::BROADCAST].contains(&answer.to));
            }
        }
    }
    let many = vec![(HOST_NAME, &b""[..]); OPTIONS_MAX + 1];
    assert_eq!(answer(&question(DISCOVER, NOBODY, &many), NOBODY), None);
}

#[test]
fn only_addresses_that_members_can_have_are_lent() {
    let terms = Terms { range: "172.16.0.0/12".parse().unwrap(), mtu: 1500 };
    for (addr, lent) in [
        ([172, 16, 0, 2], true),
        ([172, 31, 255, 254], true),
        ([172, 16, 0, 0], false),
        ([172, 16, 0, 1], false),
        ([172, 31, 255, 255], false),
        ([172, 32, 0, 2], false),
        ([172, 15, 0, 2], false),
    ] {
        let addr = Ipv4Addr::from(addr);
        assert_eq!(terms.address_of(MacAddr::of_ip(addr)), lent.then_some(addr), "{addr}");
    }
    assert_eq!(terms.address_of(MacAddr([0x82, 0x17, 0x0e, 16, 0, 2])), None);
}
