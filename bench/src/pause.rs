//! How long a guest stands still while a snapshot with its memory is taken: it must not grow with the
//! memory. Guests of both generations are asked: those that booted, and those that began from a
//! snapshot, whose memory is a mapping of a file that they share.

use crate::pulse::longest_silence;
use crate::table::{Row, median, millis};
use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;
use testkit::{HOST, Lab, Setup};

/// Memory of the guests, in MB: the one that grows, and what it is compared with.
const MEM_MB: [u32; 2] = [256, 2048];
/// Interleaved rounds: a copy of 2 GiB takes its time under emulation.
const ROUNDS: usize = 3;
/// How often the silence of a grown guest may be that of a small one. The memory is eight times as
/// much: whatever is done to each page while the guest stands still breaks it.
const RATIO_MAX: f64 = 3.0;
/// Guests are listened to for so long while nothing happens to them.
const QUIET: Duration = Duration::from_secs(3);
/// A guest writes this part of its memory: pages that nobody wrote need not be copied.
const FILLED_PART: u32 = 4;
/// What it is filled with comes in pieces of so many MB.
const PIECE_MB: u32 = 16;
/// Where they lie in the guest.
const FILLED: &str = "/run/fill";

/// The longest silence of a guest of 2 GiB while its snapshot is taken, over that of one of 256 MiB.
///
/// The noise floor is the longest silence of the same guests while nothing happens: what is shorter
/// counts as the floor.
pub fn silence_by_memory() -> Vec<Row> {
    let Some(lab) = Setup::new("bench").start() else { return Vec::new() };
    for mem_mb in MEM_MB {
        let spec = format!("vm=micro,mem={mem_mb}M,port=7/udp");
        lab.tt(&["env", "create", &env(mem_mb), "--vm", &spec]).good();
        fill(&lab, mem_mb);
        lab.serve_echo(&member(mem_mb), 7);
    }
    let mut rows = measure(&lab, "booted guests");
    for mem_mb in MEM_MB {
        lab.tt(&["snapshot", "create", &env(mem_mb), "origin"]).good();
        lab.tt(&["snapshot", "apply", &env(mem_mb), "origin"]).good();
    }
    rows.extend(measure(&lab, "guests begun from a snapshot"));
    for mem_mb in MEM_MB {
        lab.tt(&["env", "destroy", &env(mem_mb)]).good();
    }
    lab.finish();
    rows
}

fn env(mem_mb: u32) -> String {
    format!("pause-{mem_mb}")
}

fn member(mem_mb: u32) -> String {
    format!("{}/vm", env(mem_mb))
}

/// Lets a guest write its memory, in commands of some seconds each.
fn fill(lab: &Lab, mem_mb: u32) {
    let run = |command: &[&str]| drop(lab.exec(&member(mem_mb), command).good());
    run(&["mkdir", FILLED]);
    run(&["mount", "-t", "tmpfs", "-o", "size=100%", "fill", FILLED]);
    let first = format!("{FILLED}/1");
    let count = format!("count={PIECE_MB}");
    run(&["dd", "if=/dev/urandom", &format!("of={first}"), "bs=1M", &count]);
    for piece in 2..=mem_mb / FILLED_PART / PIECE_MB {
        run(&["cp", &first, &format!("{FILLED}/{piece}")]);
    }
}

fn measure(lab: &Lab, which: &str) -> Vec<Row> {
    let mut quiet = Vec::new();
    let mut silences: BTreeMap<u32, Vec<Duration>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for mem_mb in MEM_MB {
            quiet.push(silence(lab, mem_mb, || thread::sleep(QUIET)));
            let env = env(mem_mb);
            let take = || drop(lab.tt(&["snapshot", "create", &env, "round"]).good());
            silences.entry(mem_mb).or_default().push(silence(lab, mem_mb, take));
            lab.tt(&["snapshot", "rm", &env, "round"]).good();
        }
    }
    let floor = median(quiet);
    let [small, large] = MEM_MB.map(|mem_mb| median(silences.remove(&mem_mb).unwrap_or_default()));
    let what = format!(
        "silence in a snapshot with memory, {} MB over {} MB, {which}",
        MEM_MB[1], MEM_MB[0]
    );
    vec![
        Row::ratio(what, large.max(floor), small.max(floor), Some(RATIO_MAX)),
        Row::figure("  noise floor: silence while nothing happens", millis(floor)),
    ]
}

fn silence(lab: &Lab, mem_mb: u32, action: impl FnOnce()) -> Duration {
    let port = lab.port(&env(mem_mb), "vm", "7/udp");
    longest_silence(&lab.client, (HOST, port), action)
}
