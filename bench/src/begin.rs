//! Beginning from memory, against booting: the same guest, until it is ready.

use crate::table::{Row, median};
use std::time::{Duration, Instant};
use testkit::{Lab, Setup};

/// Interleaved rounds.
const ROUNDS: usize = 7;
/// How much of a boot the start of a suspended guest may take.
const START_RATIO_MAX: f64 = 0.15;

/// `tt env start` of a suspended guest, and `tt snapshot apply` with memory to a guest that runs,
/// over `tt env start` of the same guest when it was killed.
pub fn from_memory() -> Vec<Row> {
    let Some(lab) = Setup::new("bench").start() else { return Vec::new() };
    lab.tt(&["env", "create", "begin", "--vm", "micro"]).good();
    lab.tt(&["snapshot", "create", "begin", "memory"]).good();
    let (mut boots, mut starts, mut applies) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        lab.tt(&["env", "stop", "begin", "--mode", "kill"]).good();
        boots.push(timed(&lab, &["env", "start", "begin"]));
        lab.tt(&["env", "stop", "begin", "--mode", "suspend"]).good();
        starts.push(timed(&lab, &["env", "start", "begin"]));
        applies.push(timed(&lab, &["snapshot", "apply", "begin", "memory"]));
    }
    lab.tt(&["env", "destroy", "begin"]).good();
    lab.finish();
    let boot = median(boots);
    let what = "tt env start of a suspended guest over one that boots";
    let apply = "tt snapshot apply with memory to a guest that runs, over a boot (aim: 0.25)";
    vec![
        Row::ratio(what, median(starts), boot, Some(START_RATIO_MAX)),
        Row::ratio(apply, median(applies), boot, None),
    ]
}

/// The time of a command that ends when the guest is ready.
fn timed(lab: &Lab, args: &[&str]) -> Duration {
    let begin = Instant::now();
    lab.tt(args).good();
    begin.elapsed()
}
