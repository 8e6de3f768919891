//! `tt env create` against the same guest started by hand, and ten guests against one.

use crate::by_hand::Recipe;
use crate::table::{Row, median, millis};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use testkit::{Lab, Setup};

/// Interleaved rounds: what disturbs the machine disturbs both sides.
const ROUNDS: usize = 7;
/// Rounds of ten guests.
const ROUNDS_OF_TEN: usize = 3;

/// One guest until its agent has set it up, over QEMU started by hand until the same point.
pub fn one_guest() -> Vec<Row> {
    let Some(lab) = lab() else { return Vec::new() };
    create(&lab, 1);
    let recipe = Recipe::of(&lab, "bench", "micro");
    destroy(&lab);
    recipe.run(&lab);
    let (mut by_tt, mut by_hand) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        by_hand.push(recipe.run(&lab));
        by_tt.push(create(&lab, 1));
        destroy(&lab);
    }
    let (by_tt, by_hand) = (median(by_tt), median(by_hand));
    let what = "tt env create of one guest over QEMU by hand";
    let mut rows = vec![Row::ratio(what, by_tt, by_hand, Some(1.05))];
    rows.extend(breakdown(&lab.log()));
    lab.finish();
    rows
}

/// Ten guests in one Env over one.
pub fn ten_guests() -> Vec<Row> {
    let Some(lab) = lab() else { return Vec::new() };
    let (mut one, mut ten) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS_OF_TEN {
        one.push(create(&lab, 1));
        destroy(&lab);
        ten.push(create(&lab, 10));
        destroy(&lab);
    }
    lab.finish();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let what = format!("ten guests in one Env over one, {cpus} CPUs");
    vec![Row::ratio(what, median(ten), median(one), None)]
}

fn lab() -> Option<Lab> {
    Setup::new("bench").log("info,tt_host=debug").start()
}

fn create(lab: &Lab, count: u32) -> Duration {
    let spec = format!("micro,count={count}");
    let begin = Instant::now();
    lab.tt(&["env", "create", "bench", "--vm", &spec]).good();
    begin.elapsed()
}

fn destroy(lab: &Lab) {
    lab.tt(&["env", "destroy", "bench"]).good();
}

/// Where the time goes that TT adds: the first pass over each layer, from the daemon's log.
pub fn breakdown(log: &str) -> Vec<Row> {
    let mut firsts: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for line in log.lines().filter(|line| line.contains("verb=\"ensure\"")) {
        let field = |name: &str| {
            let at = line.find(name)? + name.len();
            line[at..].split(['"', ' ', '}']).find(|part| !part.is_empty() && *part != "=")
        };
        let (Some(layer), Some(vm), Some(took)) =
            (field("layer=\""), field("id="), field("took_us="))
        else {
            continue;
        };
        if seen.contains(&(layer, vm)) {
            continue;
        }
        seen.push((layer, vm));
        let took = took.parse().map_or(Duration::ZERO, Duration::from_micros);
        firsts.entry(layer).or_default().push(took);
    }
    let row =
        |(layer, times)| Row::figure(format!("  of it, layer {layer}"), millis(median(times)));
    firsts.into_iter().map(row).collect()
}
