//! Layers of snapshots that came and went are merged below a guest that goes on writing, whoever dies meanwhile.

use std::time::{Duration, Instant};
use testkit::{Lab, Setup, within};

const BLOCKS: &str = "/root/blocks";
/// Snapshots that come and go: more than a disk may have layers.
const ROUNDS: u32 = 66;
/// Layers that may be left: those that are never merged (`HIDDEN_MAX`), a kept snapshot, what the guest writes to, and
/// what is below each of these.
const LAYERS_MAX: usize = 4 + 4;
const PATIENCE: Duration = Duration::from_secs(30);
/// Where a daemon dies: when it has planned a merge, copied it, and given it its name.
const DEATHS: [&str; 3] = ["merge.copy.before", "merge.copy.after", "merge.finish.after"];

#[test]
fn snapshots_that_come_and_go_leave_few_layers_and_every_block() {
    let setup = Setup::new("snapshots_that_come_and_go_leave_few_layers_and_every_block");
    let Some(mut lab) = setup.top("storage = \"qcow2\"").start() else { return };
    lab.tt(&["env", "create", "inn", "--vm", "a=micro,disk=128M"]).good();
    lab.leave_helper("inn/a", &format!("write {BLOCKS}"));
    // Asked for the first time, a kernel makes one up.
    let boot = lab.boot_id("inn/a");
    lab.tt(&["snapshot", "create", "inn", "kept"]).good();
    lab.sh("inn/a", "echo later >/root/later; sync");
    let mut blocks = 0;
    come_and_go(&lab, ROUNDS);
    goes_on(&lab, &mut blocks);
    for death in DEATHS {
        dies_in_a_merge(&mut lab, death);
    }
    goes_on(&lab, &mut blocks);
    assert_eq!(lab.boot_id("inn/a"), boot, "a merge stopped its guest");
    // A suspended one has its layers merged, too, and a stopped one.
    for (mode, rounds) in [("suspend", 6), ("shutdown", ROUNDS)] {
        lab.tt(&["env", "stop", "inn", "--mode", mode]).good();
        come_and_go(&lab, rounds);
        lab.tt(&["env", "start", "inn"]).good();
        assert_eq!(lab.boot_id("inn/a") == boot, mode == "suspend");
        if mode == "suspend" {
            goes_on(&lab, &mut blocks);
        }
    }
    assert!(safe_blocks(&lab) >= blocks);
    assert_eq!(lab.sh("inn/a", "cat /root/later"), "later");
    lab.tt(&["snapshot", "apply", "inn", "kept"]).good();
    assert_eq!(lab.boot_id("inn/a"), boot, "memory was lost");
    assert_eq!(lab.exec("inn/a", &["test", "-e", "/root/later"]).code, Some(1));
    goes_on(&lab, &mut 0);
    lab.assert_clean();
    lab.tt(&["env", "destroy", "inn"]).good();
    lab.finish();
}

/// Takes snapshots and removes each; few layers are left.
#[track_caller]
fn come_and_go(lab: &Lab, rounds: u32) {
    let begin = Instant::now();
    for _ in 0..rounds {
        lab.tt(&["snapshot", "create", "inn", "passing", "--no-memory"]).good();
        lab.tt(&["snapshot", "rm", "inn", "passing"]).good();
    }
    let taken = begin.elapsed();
    is_short(lab);
    println!("{rounds} snapshots in {taken:?}, merged after {:?}", begin.elapsed());
}

#[track_caller]
fn is_short(lab: &Lab) {
    let is_short = || lab.tree("images").len() <= LAYERS_MAX;
    assert!(within(PATIENCE, is_short), "{:?}", lab.tree("images"));
}

/// A merge is begun, its daemon dies, and the next one makes it.
#[track_caller]
fn dies_in_a_merge(lab: &mut Lab, death: &str) {
    lab.restart_with(death);
    for _ in 0..LAYERS_MAX {
        // Whatever the daemon was asked when it died.
        lab.tt(&["snapshot", "create", "inn", "passing", "--no-memory"]);
        lab.tt(&["snapshot", "rm", "inn", "passing"]);
        if lab.dies(Duration::ZERO) {
            break;
        }
    }
    assert!(lab.dies(PATIENCE), "{death} was not reached");
    let images = lab.tree("images");
    lab.restart();
    println!("{death}: {images:?}");
    let is_gone = || {
        // Not while it is being taken.
        lab.tt(&["snapshot", "rm", "inn", "passing"]);
        !lab.json(&["snapshot", "ls", "inn"]).to_string().contains("passing")
    };
    assert!(within(PATIENCE, is_gone), "a snapshot stays");
    is_short(lab);
    lab.assert_clean();
}

/// The writer wrote more since, and every block is as it was written.
#[track_caller]
fn goes_on(lab: &Lab, blocks: &mut u64) {
    let mut now = 0;
    let is_more = within(PATIENCE, || {
        now = safe_blocks(lab);
        now > *blocks
    });
    assert!(is_more, "the writer stands still at {now}");
    *blocks = now;
}

/// How many blocks there are on the disk, each as it was written.
#[track_caller]
fn safe_blocks(lab: &Lab) -> u64 {
    let line = format!("sync; echo 3 >/proc/sys/vm/drop_caches; helper check {BLOCKS}");
    lab.sh("inn/a", &line).parse().unwrap()
}
