//! Hundreds of Envs at once: the network of each costs what the first one's does, and nothing is left.

use crate::plane::{Plane, member};
use crate::table::{Row, millis};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use testkit::{Must, Space};
use tt_model::Vm;
use tt_network::Network;

const ENVS: u16 = 300;
/// Members of each.
const MEMBERS: u16 = 2;
/// Envs between two looks at the clock.
const PART: usize = 75;
/// As many as a host's workers, or so.
const THREADS: usize = 8;
/// How much more the last ones may take than the first ones. It is 1.0 to 1.2: a program that is run gets all open files of
/// this one first, and the kernel looks for some names below `/proc/sys` among those of all namespaces.
const LAST_RATIO_MAX: f64 = 1.35;
/// What times in `/proc` are told in: `USER_HZ` of the kernel's interface.
const TICK: Duration = Duration::from_millis(10);

/// The CPU time for an Env of two members, with what is run for it, by eight at once: the last 75 of 300 over the first 75.
/// Time of the clock would tell of what else runs on the machine.
pub fn three_hundred_envs() -> Vec<Row> {
    let plane = Plane::new(&Space::new().must("a namespace"), 1);
    let envs: Vec<Vec<Vm>> =
        (0..ENVS).map(|env| (0..MEMBERS).map(|index| member(env, index, &[])).collect()).collect();
    let set = |vms: &[Vm]| vms.iter().for_each(|vm| plane.network().set_net(vm).must("set"));
    let unset = |vms: &[Vm]| vms.iter().for_each(|vm| plane.network().unset_net(vm).must("unset"));
    let ups: Vec<_> = envs.chunks(PART).map(|part| at_once(&plane, part, &set)).collect();
    let downs: Vec<_> = envs.chunks(PART).map(|part| at_once(&plane, part, &unset)).collect();
    plane.close();
    let [up, down] = [ups, downs].map(|times| (times[0], times[times.len() - 1]));
    let an_env = |spent: Spent| {
        let [cpu, clock] = [spent.cpu, spent.clock].map(|time| millis(time / PART as u32));
        Row::figure("  an Env of them", format!("{cpu} of the CPU, one each {clock}"))
    };
    let (set, taken) = (
        "set up 75 more of 300 Envs at once, over the first 75",
        "take down the last 75 of 300 Envs, over the first 75",
    );
    vec![
        Row::ratio(set, up.1.cpu, up.0.cpu, Some(LAST_RATIO_MAX)),
        an_env(up.1),
        Row::ratio(taken, down.1.cpu, down.0.cpu, Some(LAST_RATIO_MAX)),
        an_env(down.1),
    ]
}

/// What something took.
#[derive(Clone, Copy)]
struct Spent {
    cpu: Duration,
    clock: Duration,
}

/// What all Envs take on some threads.
fn at_once(plane: &Plane, envs: &[Vec<Vm>], action: &(dyn Fn(&[Vm]) + Sync)) -> Spent {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(vms) = envs.get(next.fetch_add(1, Ordering::Relaxed)) {
            action(vms);
        }
    };
    let (begin, before) = (Instant::now(), cpu());
    std::thread::scope(|scope| {
        (0..THREADS).for_each(|_| drop(scope.spawn(|| plane.host.run(work))));
    });
    Spent { cpu: cpu() - before, clock: begin.elapsed() }
}

/// The CPU time of this process and of those that it waited for, see proc_pid_stat(5).
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").must("read the own times");
    let (_, fields) = stat.rsplit_once(')').must("fields after the name");
    // The state is the third one of all.
    let times = fields.split_whitespace().skip(14 - 3).take(4);
    TICK * times.map(|ticks| ticks.parse::<u32>().must("a number of ticks")).sum()
}
