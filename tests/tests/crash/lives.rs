//! The crash sweep over the rest of a life: snapshot, apply, suspend, the start after it, update. The daemon dies at each
//! layer, before and after its work; what the guests had in memory and on disk tells that nothing was lost or done twice.

use super::bystander::Bystander;
use super::requests::Ask;
use std::time::{Duration, Instant};
use testkit::{HOST, Lab, Must};

/// How long a daemon may take to get to a failpoint.
const REACHED: Duration = Duration::from_secs(60);
const SNAPSHOT: [&str; 4] =
    ["snapshot.take.before", "snapshot.hold.before", "snapshot.hold.after", "snapshot.take.after"];
const SUSPEND: [&str; 3] =
    ["machine.remove.before", "machine.remove.after", "machine.remove.after#2"];
/// What a start, an apply and an update go through; what is behind one layer is before the next.
const ENSURED: [&str; 4] =
    ["image.ensure.after", "net.ensure.after", "machine.ensure.after", "ready.ensure.after"];

#[test]
fn the_daemon_may_die_at_every_layer_of_a_life() {
    let Some(mut lab) = Lab::new("the_daemon_may_die_at_every_layer_of_a_life") else { return };
    let mut bystander = Bystander::new(&lab);
    assert!(Ask::Create(2).send(&lab, "x"));
    Ask::Create(2).converges(&lab);
    let mut guests = Guests::new(&lab);
    for failpoint in SNAPSHOT {
        guests.write(&lab);
        dies_at(&mut lab, &mut bystander, failpoint, Ask::Snapshot);
        guests.went_on(&lab);
        if failpoint != SNAPSHOT[SNAPSHOT.len() - 1] {
            lab.tt(&["snapshot", "rm", "x", "frozen"]).good();
        }
    }
    let frozen = (guests.count, guests.written);
    for failpoint in SUSPEND {
        guests.write(&lab);
        dies_at(&mut lab, &mut bystander, failpoint, Ask::Suspend);
        lab.tt(&["env", "start", "x"]).good();
        guests.went_on(&lab);
    }
    for failpoint in ENSURED {
        guests.write(&lab);
        lab.tt(&["env", "stop", "x", "--mode", "suspend"]).good();
        dies_at(&mut lab, &mut bystander, failpoint, Ask::Start);
        guests.went_on(&lab);
        guests.write(&lab);
        dies_at(&mut lab, &mut bystander, failpoint, Ask::Apply);
        // It was counted once after the snapshot had been taken.
        (guests.count, guests.written) = (frozen.0 - 1, frozen.1);
        guests.went_on(&lab);
    }
    for (failpoint, mb) in ENSURED.into_iter().zip((128..).step_by(8)) {
        guests.write(&lab);
        dies_at(&mut lab, &mut bystander, failpoint, Ask::Update(mb));
        guests.went_on(&lab);
        assert!(lab.client.reaches_tcp((HOST, lab.port("x", "m-1", "7"))), "{failpoint}");
    }
    lab.tt(&["env", "destroy", "x", "by"]).good();
    lab.finish();
}

#[track_caller]
fn dies_at(lab: &mut Lab, bystander: &mut Bystander, failpoint: &str, ask: Ask) {
    let begin = Instant::now();
    lab.restart_disarmed(failpoint);
    bystander.is_connected();
    lab.arm();
    let was_answered = ask.send(lab, "");
    assert!(lab.dies(REACHED), "{ask:?} does not get to {failpoint}");
    bystander.is_connected();
    lab.restart();
    if !was_answered {
        Some(ask.send(lab, "")).filter(|sent| *sent).must("an answer");
    }
    ask.converges(lab);
    bystander.runs_on(lab);
    println!("{ask:?} through {failpoint}: {:?}", begin.elapsed());
}

/// What is in the memory and on the disk of the members.
struct Guests {
    boots: [String; 2],
    /// The last number that the counter in the memory of `m-1` told.
    count: u64,
    /// What was last written to both disks.
    written: u64,
}

const NAMES: [&str; 2] = ["x/m-1", "x/m-2"];

impl Guests {
    fn new(lab: &Lab) -> Self {
        lab.serve_count(NAMES[0], 80);
        lab.serve_echo(NAMES[0], 7);
        Self { boots: NAMES.map(|name| lab.boot_id(name)), count: 0, written: 0 }
    }

    fn write(&mut self, lab: &Lab) {
        self.written += 1;
        for name in NAMES {
            lab.sh(name, &format!("echo {} >/root/written", self.written));
        }
    }

    /// They were not booted again, and are where they were.
    #[track_caller]
    fn went_on(&mut self, lab: &Lab) {
        self.count += 1;
        assert_eq!(lab.count(lab.port("x", "m-1", "80")), self.count, "memory of another moment");
        for (name, boot) in NAMES.iter().zip(&self.boots) {
            let found = lab.sh(name, "cat /root/written /proc/sys/kernel/random/boot_id");
            assert_eq!(
                found,
                format!("{}\n{boot}", self.written),
                "{name}: its disk, and its boot"
            );
        }
    }
}
