//! Files copied in and out through the agent.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::client::{Agent, pack};
use tt_guest::flow::WINDOW;
use tt_guest::message::{FailureCode, HostMessage};
use tt_guest::tar::{Limits, Unpacker};

fn text(path: &std::path::Path) -> String {
    path.to_str().unwrap_or_default().to_owned()
}

#[test]
fn a_tree_goes_in_and_comes_out() {
    let agent = Agent::start();
    let mut client = agent.client();
    let at = |name: &str| agent.scratch().join(name);
    fs::create_dir_all(at("source/deep")).unwrap();
    let large: Vec<u8> = (0..6 * WINDOW).map(|byte| (byte % 253) as u8).collect();
    fs::write(at("source/deep/large"), &large).unwrap();
    fs::set_permissions(at("source/deep/large"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("deep/large", at("source/link")).unwrap();

    client.send(&HostMessage::CopyIn { stream: 1, path: text(&at("inside")), mode: None });
    assert_eq!(client.follow(1, &pack(&at("source"))).code, Some(0));
    assert!(fs::read(at("inside/link")).unwrap() == large);
    assert_eq!(fs::metadata(at("inside/deep/large")).unwrap().permissions().mode() & 0o777, 0o640);

    client.send(&HostMessage::CopyOut { stream: 2, path: text(&at("inside")) });
    let out = client.follow(2, &[]);
    assert_eq!(out.code, Some(0));
    let mut unpacker = Unpacker::new(&at("back"), None, None, Limits::NONE).unwrap();
    unpacker.push(&out.stdout).unwrap();
    unpacker.finish().unwrap();
    assert!(fs::read(at("back/deep/large")).unwrap() == large);
    assert_eq!(fs::read_link(at("back/link")).unwrap().to_str(), Some("deep/large"));
}

#[test]
fn one_file_takes_the_mode_that_was_asked_for() {
    let agent = Agent::start();
    let mut client = agent.client();
    let (from, to) = (agent.scratch().join("from"), agent.scratch().join("to"));
    fs::write(&from, "x").unwrap();
    client.send(&HostMessage::CopyIn { stream: 1, path: text(&to), mode: Some(0o500) });
    assert_eq!(client.follow(1, &pack(&from)).code, Some(0));
    assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o7777, 0o500);
}

#[test]
fn failed_copies_say_why_and_the_session_goes_on() {
    let agent = Agent::start();
    let mut client = agent.client();
    let from = agent.scratch().join("from");
    fs::write(&from, vec![1; 3 * WINDOW as usize]).unwrap();
    let archive = pack(&from);
    let mut copy_in = |stream, path: &str, bytes: &[u8]| {
        client.send(&HostMessage::CopyIn { stream, path: path.to_owned(), mode: None });
        client.follow(stream, bytes).failed
    };
    let inside = text(&agent.scratch().join("to"));
    // Less than a window of input, since nobody consumes it once the copy has failed.
    assert_eq!(copy_in(1, "relative", &archive[..1024]), Some(FailureCode::BadPath));
    assert_eq!(
        copy_in(2, "/no/such/directory/file", &archive[..1024]),
        Some(FailureCode::NotFound)
    );
    assert_eq!(copy_in(3, &inside, b"no archive"), Some(FailureCode::BadArchive));
    assert_eq!(copy_in(4, &inside, &archive[..70_000]), Some(FailureCode::BadArchive));
    assert!(!agent.scratch().join("to").exists(), "half a file is none");
    assert_eq!(copy_in(5, &inside, &archive), None);
    let mut copy_out = |stream, path: &str| {
        client.send(&HostMessage::CopyOut { stream, path: path.to_owned() });
        client.follow(stream, &[]).failed
    };
    assert_eq!(copy_out(6, "/no/such/file"), Some(FailureCode::NotFound));
    assert_eq!(copy_out(7, "relative"), Some(FailureCode::BadPath));
    assert_eq!(copy_out(8, "/dev/null"), Some(FailureCode::BadPath));
    client.send(&HostMessage::CopyOut { stream: 9, path: text(&from) });
    client.send(&HostMessage::Cancel { stream: 9 });
    let ended = client.follow(9, &[]);
    assert!(ended.failed == Some(FailureCode::Cancelled) || ended.code == Some(0));
    client.send(&HostMessage::CopyIn { stream: 10, path: inside, mode: None });
    client.send(&HostMessage::Cancel { stream: 10 });
    assert_eq!(client.follow(10, &archive[..512]).failed, Some(FailureCode::Cancelled));
}
