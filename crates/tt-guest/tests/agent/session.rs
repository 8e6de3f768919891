//! Sessions: takeover, damaged bytes, versions, and what is refused without changing anything.

use std::time::Duration;

use crate::client::{Agent, Client, exec, is_alive, wait_until};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tt_guest::flow::WINDOW;
use tt_guest::frame::{self, Kind};
use tt_guest::message::{FailureCode, GuestMessage, Hello, HostMessage, PROTOCOL_VERSION, Setup};

#[test]
fn a_new_session_ends_the_programs_of_the_old_one() {
    let agent = Agent::start();
    let mut first = agent.client();
    first.send(&HostMessage::Exec(exec(
        1,
        &["/bin/sh", "-c", "trap '' HUP; sleep 1000 & wait; sleep 1000"],
    )));
    let pid = first.wait_started(1);
    let mut second = agent.client();
    wait_until("the end of the old session's program", || !is_alive(pid));
    assert_eq!(second.shell(1, "echo new").text(), "new\n", "the numbers of its streams are free");
}

#[test]
fn a_new_session_is_heard_while_the_old_one_does_not_read() {
    let agent = Agent::start();
    let mut first = agent.client();
    for stream in 1..20 {
        first.send(&HostMessage::Exec(exec(stream, &["yes"])));
    }
    std::thread::sleep(Duration::from_millis(300));
    let mut second = agent.client();
    assert_eq!(second.shell(1, "echo new").text(), "new\n");
    drop(first);
}

#[test]
fn a_host_killed_inside_a_frame_does_no_harm() {
    let agent = Agent::start();
    let mut first = agent.client();
    first.send(&HostMessage::Exec(exec(1, &["cat"])));
    first.wait_started(1);
    let frame = frame::encode(1, Kind::Stdin, &[b'x'; 60_000]).unwrap();
    first.raw(&frame[..30_000]);
    // On a port the bytes of the next host follow on the same channel.
    first.hello();
    assert_eq!(first.shell(1, "echo alive").text(), "alive\n");
    drop(first);
    assert_eq!(agent.client().shell(1, "echo again").text(), "again\n");
}

#[test]
fn the_same_hello_twice_ends_nothing() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.send(&HostMessage::Exec(exec(1, &["cat"])));
    client.wait_started(1);
    let hello = Hello {
        version: PROTOCOL_VERSION,
        session: client.session,
        time_unix_ns: 0,
        entropy: None,
    };
    client.send(&HostMessage::Hello(hello));
    assert!(
        matches!(client.message(), GuestMessage::HelloAck { session, .. } if session == client.session)
    );
    assert_eq!(client.follow(1, b"kept\n").text(), "kept\n");
}

#[test]
fn another_version_is_answered_and_opens_nothing() {
    let agent = Agent::start();
    let mut client = Client::connect(&agent.socket());
    let hello = Hello { version: PROTOCOL_VERSION + 1, session: 5, time_unix_ns: 0, entropy: None };
    client.send(&HostMessage::Hello(hello));
    assert!(matches!(
        client.message(),
        GuestMessage::HelloAck { version: PROTOCOL_VERSION, session: 5, pid1: false, .. }
    ));
    client.send(&HostMessage::Ping { n: 1 });
    assert!(matches!(client.message(), GuestMessage::Ready { version: PROTOCOL_VERSION, .. }));
    client.send(&HostMessage::Ping { n: 2 });
    assert!(client.is_silent_for(Duration::from_millis(200)), "it asks once for a session");
}

#[test]
fn a_session_answers_pings_and_names_what_it_does_not_understand() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.send(&HostMessage::Ping { n: u64::MAX });
    assert_eq!(client.message(), GuestMessage::Pong { n: u64::MAX });
    let nonsense = frame::encode(0, Kind::Control, br#"{"type":"of_tomorrow"}"#).unwrap();
    client.raw(&nonsense);
    assert!(matches!(
        client.message(),
        GuestMessage::Failed { stream: 0, code: FailureCode::BadMessage, .. }
    ));
}

#[test]
fn a_machine_that_is_not_a_guest_is_left_alone() {
    let agent = Agent::start();
    let mut client = agent.client();
    let before = std::fs::read("/etc/hosts").ok();
    let setup = Setup {
        hostname: "changed".to_owned(),
        network: None,
        dns: vec![],
        hosts: vec![],
        machine_id: None,
        ssh_keys: vec![],
        entropy: None,
    };
    client.send(&HostMessage::Setup(setup));
    assert!(matches!(client.message(), GuestMessage::SetupFailed { what, .. } if what == "setup"));
    client.send(&HostMessage::Shutdown { reboot: false });
    assert!(matches!(
        client.message(),
        GuestMessage::Failed { stream: 0, code: FailureCode::Permission, .. }
    ));
    assert_eq!(std::fs::read("/etc/hosts").ok(), before);
    client.send(&HostMessage::Ping { n: 1 });
    assert_eq!(client.message(), GuestMessage::Pong { n: 1 });
}

#[test]
fn arbitrary_bytes_and_messages_leave_the_agent_serving() {
    let mut agent = Agent::start();
    let noise = proptest::collection::vec(any::<u8>(), 0..3000);
    let frames = proptest::collection::vec(
        (0u32..4, 0u8..8, proptest::collection::vec(any::<u8>(), 0..40)),
        0..30,
    );
    let mut runner =
        TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(30) });
    let done = runner.run(&(noise, frames), |(noise, frames)| {
        let mut client = agent.client();
        client.send(&HostMessage::Exec(exec(1, &["cat"])));
        client.send(&HostMessage::CopyIn {
            stream: 2,
            path: "/proc/no/such".to_owned(),
            mode: Some(u32::MAX),
        });
        for (stream, kind, payload) in frames {
            let frame = frame::encode(stream, Kind::from_number(kind).unwrap(), &payload).unwrap();
            client.raw(&frame);
        }
        client.raw(&noise);
        client.hello();
        prop_assert_eq!(client.shell(1, "echo fine").text(), "fine\n");
        Ok(())
    });
    done.unwrap();
    assert!(agent.is_running());
}

#[test]
fn a_host_that_asks_but_never_reads_does_not_fill_the_agent() {
    let mut agent = Agent::start();
    let mut flood = agent.client();
    flood.socket.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let ping = HostMessage::Ping { n: 1 }.encode().unwrap().repeat(1000);
    for _ in 0..200 {
        std::io::Write::write_all(&mut flood.socket, &ping).unwrap();
    }
    assert!(agent.is_running());
    assert!(agent.peak_kib() < 16 * 1024 + u64::from(WINDOW) / 1024, "{} KiB", agent.peak_kib());
    assert_eq!(agent.client().shell(1, "echo fine").text(), "fine\n");
}
