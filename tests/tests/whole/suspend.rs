//! Suspend: guests leave the host's memory and go on where they were, however often, and whoever dies meanwhile.

use super::times::knows_the_time;
use std::time::{Duration, Instant};
use testkit::{HOST, Lab, is_alive, number};

/// How long the rounds go on; at least two are made. `TT_ROUNDS` says how many there are, however long they take.
const ROUNDS: Duration = Duration::from_secs(40);
const BLOCKS: &str = "/root/blocks";

#[test]
fn suspended_guests_lose_nothing() {
    let Some(mut lab) = Lab::new("suspended_guests_lose_nothing") else { return };
    lab.tt(&["env", "create", "inn", "--vm", "a=micro,port=7,port=8,disk=512M"]).good();
    lab.serve_echo("inn/a", 7);
    lab.serve_count("inn/a", 8);
    lab.leave_helper("inn/a", &format!("write {BLOCKS}"));
    let boot = lab.boot_id("inn/a");
    let mut stream = lab.client.connect((HOST, lab.port("inn", "a", "7"))).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(is_alive(&mut stream));
    let (begin, mut round, mut blocks) = (Instant::now(), 0, 0);
    let wanted = number("TT_ROUNDS");
    while round < wanted.unwrap_or(2) || wanted.is_none() && begin.elapsed() < ROUNDS {
        round += 1;
        is_suspended(&lab);
        if round % 2 == 0 {
            lab.restart();
            lab.reaches_phase("inn", "suspended", Duration::from_secs(20));
        }
        lab.tt(&["env", "start", "inn"]).good();
        knows_the_time(&lab, "inn/a");
        assert_eq!(lab.boot_id("inn/a"), boot, "round {round}: it was booted");
        assert!(is_alive(&mut stream), "round {round}: the connection is lost");
        assert_eq!(lab.count(lab.port("inn", "a", "8")), round);
        assert_eq!(lab.tree("memory").len(), 0, "{:?}", lab.tree("memory"));
        let now = safe_blocks(&lab);
        assert!(now > blocks, "round {round}: the writer stands still at {now}");
        blocks = now;
    }
    println!("{round} rounds, {blocks} blocks, in {:?}", begin.elapsed());
    a_suspended_one_boots_if_it_is_stopped_for_good(&lab, &boot);
    lab.tt(&["env", "stop", "inn"]).good();
    lab.tt(&["env", "destroy", "inn"]).good();
    lab.finish();
}

#[track_caller]
fn is_suspended(lab: &Lab) {
    // The default where an engine can.
    lab.tt(&["env", "stop", "inn"]).good();
    assert_eq!(lab.vm("inn", "a")["goal"], "suspended");
    lab.reaches_phase("inn", "suspended", Duration::ZERO);
    assert_eq!(lab.machines(), [], "a suspended guest has a process");
    let memory = lab.tree("memory");
    assert!(memory.iter().any(|path| path.contains("/suspended-")), "{memory:?}");
    lab.exec("inn/a", &["true"]).fails(125, "[ERR_TT_STATE]");
    lab.assert_clean();
}

/// How many blocks there are on the disk, each as it was written.
#[track_caller]
fn safe_blocks(lab: &Lab) -> u64 {
    let line = format!("sync; echo 3 >/proc/sys/vm/drop_caches; helper check {BLOCKS}");
    lab.sh("inn/a", &line).parse().unwrap()
}

fn a_suspended_one_boots_if_it_is_stopped_for_good(lab: &Lab, boot: &str) {
    is_suspended(lab);
    lab.tt(&["env", "stop", "inn", "--mode", "kill"]).good();
    let is_gone = || lab.tree("memory").is_empty();
    assert!(testkit::within(Duration::from_secs(20), is_gone), "{:?}", lab.tree("memory"));
    lab.tt(&["env", "start", "inn"]).good();
    assert_ne!(lab.boot_id("inn/a"), boot);
    // Its journal is replayed, as after a loss of power.
    assert!(safe_blocks(lab) > 0);
}
