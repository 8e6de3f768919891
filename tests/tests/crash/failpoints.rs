//! The crash sweep on the real host: for each operation on an Env of two guests, the daemon dies at each layer, before and
//! after the layer's work.

use super::bystander::Bystander;
use super::requests::Ask;
use std::time::{Duration, Instant};
use testkit::{Lab, Must};

/// How long a daemon may take to get to a failpoint.
const REACHED: Duration = Duration::from_secs(60);
const ENSURED: [&str; 8] = [
    "image.ensure.before",
    "image.ensure.after",
    "net.ensure.before",
    "net.ensure.after",
    "machine.ensure.before",
    "machine.ensure.after",
    "ready.ensure.before",
    "ready.ensure.after",
];
/// What a stop removes.
const STOPPED: [&str; 4] = [
    "ready.remove.before",
    "ready.remove.after",
    "machine.remove.before",
    "machine.remove.after#2",
];
const REMOVED: [&str; 8] = [
    "ready.remove.before#2",
    "ready.remove.after",
    "machine.remove.before",
    "machine.remove.after",
    "net.remove.before#2",
    "net.remove.after",
    "image.remove.before",
    "image.remove.after",
];
const ERASED: [&str; 3] = ["erase.before", "erase.after", "erase.after#2"];

#[test]
fn the_daemon_may_die_at_every_layer() {
    let Some(mut lab) = Lab::new("the_daemon_may_die_at_every_layer") else { return };
    let mut bystander = Bystander::new(&lab);
    for (index, ensured) in ENSURED.into_iter().enumerate() {
        // A daemon looks at the bystander first, up to two times, and later at both members.
        dies_at(&mut lab, &mut bystander, &format!("{ensured}#4"), Ask::Create(2));
        match STOPPED.get(index) {
            Some(stopped) => dies_at(&mut lab, &mut bystander, stopped, Ask::Stop),
            None => {
                assert!(Ask::Stop.send(&lab, ""));
                Ask::Stop.converges(&lab);
            }
        }
        // Stopped members are looked at too, as far as their image and network.
        let seen = if index < 4 { 5 } else { 3 };
        dies_at(&mut lab, &mut bystander, &format!("{ensured}#{seen}"), Ask::Start);
        dies_at(&mut lab, &mut bystander, REMOVED[index], Ask::Destroy);
    }
    for erased in ERASED {
        // What never came up goes as well.
        assert!(Ask::Create(2).send(&lab, erased.replace(['.', '#'], "-").as_str()));
        dies_at(&mut lab, &mut bystander, erased, Ask::Destroy);
    }
    lab.tt(&["env", "destroy", "by"]).good();
    lab.finish();
}

#[track_caller]
fn dies_at(lab: &mut Lab, bystander: &mut Bystander, failpoint: &str, ask: Ask) {
    let begin = Instant::now();
    let key = format!("{ask:?}-{failpoint}").replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    lab.restart_with(failpoint);
    let was_answered = ask.send(lab, &key);
    assert!(lab.dies(REACHED), "{ask:?} does not get to {failpoint}");
    // Without any daemon.
    bystander.is_connected();
    lab.restart();
    if !was_answered {
        Some(ask.send(lab, &key)).filter(|sent| *sent).must("an answer");
    }
    ask.converges(lab);
    bystander.runs_on(lab);
    println!("{ask:?} through {failpoint}: {:?}", begin.elapsed());
}
