//! The resolver, asked by guests.

use crate::lab::{GATEWAY, Lab, Space, UPSTREAM};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use tt_model::EnvId;
use tt_network::{EnvNames, Network};

pub type Reply = Option<(ResponseCode, Vec<String>)>;

pub fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn ask_from(socket: &UdpSocket, name: &str, kind: RecordType) -> Reply {
    let question = question(name, kind);
    socket.send_to(&question, (GATEWAY, 53)).unwrap();
    let mut answer = [0; 2048];
    let (length, from) = socket.recv_from(&mut answer).ok()?;
    assert_eq!(from, SocketAddr::from((GATEWAY, 53)));
    let answer = Message::from_vec(&answer[..length]).unwrap();
    assert_eq!(answer.metadata.id.to_be_bytes(), question[..2], "the guest's own id");
    let data = answer.answers.iter().map(|record| record.data.to_string());
    Some((answer.metadata.response_code, data.collect()))
}

pub fn ask(space: &Space, name: &str, kind: RecordType) -> Reply {
    let socket = space.udp(([0, 0, 0, 0], 0));
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    ask_from(&socket, name, kind)
}

/// Answers every question for an address with 203.0.113.5, after a forged answer with another id.
/// Ends with the message `end`.
fn upstream(host: &Space) -> (thread::JoinHandle<()>, Arc<AtomicUsize>) {
    let socket = host.udp(UPSTREAM.parse::<SocketAddr>().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let thread = thread::spawn(move || {
        let mut data = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut data) {
            if &data[..length] == b"end" {
                return;
            }
            count.fetch_add(1, Ordering::SeqCst);
            let mut message = Message::from_vec(&data[..length]).unwrap().into_response();
            let name = message.queries[0].name().clone();
            let answer =
                |last| Record::from_rdata(name.clone(), 60, RData::A(A::new(203, 0, 113, last)));
            let mut forged = message.clone();
            forged.metadata.id = message.metadata.id.wrapping_add(1);
            forged.add_answer(answer(66));
            message.add_answer(answer(5));
            for message in [forged, message] {
                socket.send_to(&message.to_vec().unwrap(), from).unwrap();
            }
        }
    });
    (thread, asked)
}

fn names() -> EnvNames {
    EnvNames {
        env_name: "shop".into(),
        members: vec![
            ("web".into(), Ipv4Addr::new(10, 0, 1, 2)),
            ("db".into(), Ipv4Addr::new(10, 0, 1, 3)),
        ],
        ..EnvNames::default()
    }
}

pub fn data(text: &str) -> Reply {
    Some((ResponseCode::NoError, vec![text.to_owned()]))
}

#[test]
fn members_find_each_other_and_the_world() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        lab.net.set_names(EnvId(1), &names()).unwrap();
        let (guest, stranger) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(2), 0));
        let nothing = |code| Some((code, vec![]));
        assert_eq!(ask(&guest.space, "db.", RecordType::A), data("10.0.1.3"), "before it is up");
        assert_eq!(ask(&guest.space, "DB.shop.", RecordType::A), data("10.0.1.3"));
        let six = data("fd74:7465:6e76:0:8017:dff:fe00:103");
        assert_eq!(ask(&guest.space, "db.", RecordType::AAAA), six);
        assert_eq!(ask(&guest.space, "cache.", RecordType::A), nothing(ResponseCode::NXDomain));
        assert_eq!(ask(&stranger.space, "db.", RecordType::A), nothing(ResponseCode::NXDomain));
        assert_eq!(
            ask(&guest.space, "example.com.", RecordType::A),
            nothing(ResponseCode::ServFail),
            "nobody listens upstream"
        );
        let (thread, asked) = upstream(&lab.host);
        assert_eq!(ask(&guest.space, "example.com.", RecordType::A), data("203.0.113.5"));
        lab.net.deny_outgoing(&guest.vm).unwrap();
        let before = asked.load(Ordering::SeqCst);
        assert_eq!(
            ask(&guest.space, "example.com.", RecordType::A),
            nothing(ResponseCode::Refused)
        );
        assert_eq!(asked.load(Ordering::SeqCst), before, "no way out through names");
        lab.restart();
        assert_eq!(
            ask(&guest.space, "example.com.", RecordType::A),
            nothing(ResponseCode::Refused)
        );
        lab.net.set_names(EnvId(1), &names()).unwrap();
        assert_eq!(ask(&guest.space, "db.", RecordType::A), data("10.0.1.3"));
        lab.net.allow_outgoing(&guest.vm).unwrap();
        assert_eq!(ask(&guest.space, "example.com.", RecordType::A), data("203.0.113.5"));
        lab.host.udp(([127, 0, 0, 1], 0)).send_to(b"end", UPSTREAM).unwrap();
        thread.join().unwrap();
    });
}

#[test]
fn renamed_added_and_removed_members_are_known_by_their_new_names_only() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let no_such = Some((ResponseCode::NXDomain, vec![]));
        lab.net.set_names(EnvId(1), &names()).unwrap();
        assert_eq!(ask(&guest.space, "web.", RecordType::A), data("10.0.1.2"));
        let mut changed = names();
        changed.members[0].0 = "www".into();
        changed.members.push(("cache".into(), Ipv4Addr::new(10, 0, 1, 4)));
        for _ in 0..2 {
            lab.net.set_names(EnvId(1), &changed).unwrap();
            for (name, addr) in [("www.", 2), ("www.shop.", 2), ("db.", 3), ("cache.shop.", 4)] {
                let addr = format!("10.0.1.{addr}");
                assert_eq!(ask(&guest.space, name, RecordType::A), data(&addr), "{name}");
            }
            let reverse = ask(&guest.space, "2.1.0.10.in-addr.arpa.", RecordType::PTR);
            assert_eq!(reverse, data("www.shop."));
            assert_eq!(ask(&guest.space, "web.", RecordType::A), no_such);
            // `web.shop` could be somebody's in the world outside; nobody is asked there here.
            let old = ask(&guest.space, "web.shop.", RecordType::A);
            assert_ne!(old, data("10.0.1.2"), "the old name");
            lab.restart();
        }
        changed.members.retain(|(name, _)| name != "db");
        lab.net.set_names(EnvId(1), &changed).unwrap();
        assert_eq!(ask(&guest.space, "db.", RecordType::A), no_such);
        let reverse = ask(&guest.space, "3.1.0.10.in-addr.arpa.", RecordType::PTR);
        assert_eq!(reverse, no_such);
        // One goes, and another one takes its name.
        changed.members[1].0 = "db".into();
        lab.net.set_names(EnvId(1), &changed).unwrap();
        assert_eq!(ask(&guest.space, "db.", RecordType::A), data("10.0.1.4"));
        assert_eq!(ask(&guest.space, "cache.", RecordType::A), no_such);
    });
}

#[test]
fn a_server_that_never_answers_is_asked_again_within_the_guests_patience() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let silent = lab.host.udp(UPSTREAM.parse::<SocketAddr>().unwrap());
        let start = std::time::Instant::now();
        let reply = ask(&guest.space, "example.com.", RecordType::A);
        assert_eq!(reply, Some((ResponseCode::ServFail, vec![])));
        let took = start.elapsed();
        assert!((3800..5000).contains(&took.as_millis()), "{took:?}");
        silent.set_nonblocking(true).unwrap();
        let asked = std::iter::from_fn(|| silent.recv(&mut [0; 512]).ok()).count();
        assert_eq!(asked, 3);
    });
}

#[test]
fn a_flood_of_questions_is_bounded_and_starves_nobody() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        lab.net.set_names(EnvId(2), &names()).unwrap();
        let (flooder, guest) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(2), 0));
        let _silent = lab.host.udp(UPSTREAM.parse::<SocketAddr>().unwrap());
        let socket = flooder.space.udp(([0, 0, 0, 0], 0));
        for number in 0..3000 {
            let name = format!("n{number}.example.com.");
            let _ = socket.send_to(&question(&name, RecordType::A), (GATEWAY, 53));
            let _ = socket.send_to(&[0xff; 40], (GATEWAY, 53));
        }
        assert_eq!(ask(&guest.space, "db.", RecordType::A), data("10.0.1.3"));
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
        assert!(open < 1500, "{open} descriptors are open");
    });
}
