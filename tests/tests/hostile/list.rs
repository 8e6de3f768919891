//! All that is tried, in one list: `docs/hostile-guests.md` is made of it.

use super::scene::{CLIENT_SIX, HOST_SIX};
use super::tricks::tricks;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use testkit::hostile::{Scene, Station, cases, floods};

/// Fewer are too few.
const AT_LEAST: usize = 40;
const HEAD: &str = "# What hostile guests try\n\n\
    All that the test `a_guest_that_is_root_gets_nowhere` (`tests/tests/hostile/play.rs`) lets a real guest do, as root.\n\
    Frames and floods go out of a raw socket; tricks are played with the guest's own routes and addresses. Meanwhile the\n\
    links of a neighbour and of a member of another Env, the outside, and a service of the host are watched: nothing\n\
    arrives, all of them go on, and `tt vm show` counts it. That the part that is named here is the one that stops a frame\n\
    is what `nothing_hostile_arrives_and_what_is_said_to_stop_it_counts_it` tells from its counters\n\
    (`crates/tt-network/tests/real/hostile.rs`). The test `the_list_of_hostile_guests_is_the_one_that_is_checked_in` keeps\n\
    this page; `TT_BLESS=1` writes it anew.\n\n\
    | case | what the guest does | what stops it |\n|---|---|---|\n";

/// Case, what is done, what stops it.
fn list() -> Vec<(&'static str, &'static str, String)> {
    let addr = |last| Ipv4Addr::new(10, 0, 0, last);
    let [gateway, me, victim] = [1, 2, 3].map(|last| Station::at(addr(last)));
    let (host, outside) = (testkit::HOST, testkit::CLIENT);
    let (other, tunnel_end) = (addr(4), Some(Ipv4Addr::new(10, 0, 255, 254)));
    let (second, service) = (Ipv4Addr::new(198, 51, 100, 1), 1);
    let (other_tcp, other_udp) = (2, 3);
    let (host_six, outside_six) = (HOST_SIX, CLIENT_SIX);
    let scene = Scene {
        me,
        victim,
        gateway,
        other,
        other_tcp,
        other_udp,
        host,
        second,
        tunnel_end,
        outside,
        service,
        host_six,
        outside_six,
    };
    let frames =
        cases(&scene).into_iter().map(|case| (case.kind, case.what, case.stop.to_string()));
    let mut list: Vec<_> = frames.collect();
    list.extend(floods(&scene).into_iter().map(|flood| {
        let nothing = || "nothing: it costs nobody else anything".to_owned();
        ("a flood", flood.what, flood.stop.map_or_else(nothing, |stop| stop.to_string()))
    }));
    let tricks = tricks(&scene, 4, &me.mac.to_string());
    list.extend(tricks.into_iter().map(|trick| ("a trick", trick.what, trick.stop.to_string())));
    list
}

#[test]
fn the_list_of_hostile_guests_is_the_one_that_is_checked_in() {
    let list = list();
    let names: BTreeSet<_> = list.iter().map(|(kind, what, _)| (kind, what)).collect();
    assert_eq!(names.len(), list.len(), "two have one name");
    assert!(names.len() >= AT_LEAST, "only {}", names.len());
    let mut page = HEAD.to_owned();
    for (kind, what, stop) in list {
        writeln!(page, "| {kind} | {what} | {stop} |").unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/hostile-guests.md");
    if std::env::var_os("TT_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == page, "docs/hostile-guests.md is not what the tests play; see its head");
}
