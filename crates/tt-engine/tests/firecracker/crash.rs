//! The daemon dies at any moment, and the next one carries on.

use crate::host::{remove, wait_until};
use crate::rig::Rig;
use crate::sample;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tt_engine::conformance::Fixture;
use tt_engine::{Machine, VmEngine};
use tt_model::{StopMode, Vm, names};

/// Environment variable that makes [`daemon`] the process that is killed: directory, instance, what it does.
const DAEMON: &str = "TT_TEST_DAEMON";
/// How much later each daemon dies than the last one.
const STEP: Duration = Duration::from_millis(1);
/// How often the first kill may come too late.
const LATE_MAX: u32 = 20;

/// No test of its own: does something to a machine and waits to be killed.
#[test]
fn daemon() {
    let Ok(value) = std::env::var(DAEMON) else {
        return;
    };
    let (dir, rest) = value.split_once(',').unwrap();
    let (instance, deed) = rest.split_once(',').unwrap();
    let rig = Rig::at(Path::new(dir), instance.parse().unwrap());
    let engine = rig.engine();
    engine.init(Arc::new(|_| {}));
    fs::write(Path::new(dir).join("begun"), b"").unwrap();
    let vm = sample::vm(1);
    // What the stand-in does takes less time than somebody who polls needs to see it begin.
    std::io::stdin().read_exact(&mut [0]).unwrap();
    match deed {
        "start" => engine.start_vm(&vm).unwrap(),
        "suspend" => engine.stop_vm(&vm, StopMode::Suspend).unwrap(),
        _ => {
            let mut hold = engine.prepare_hold(&vm, Some(&names::memory(vm.id, 1))).unwrap();
            hold.pause().unwrap();
            hold.release().unwrap();
            assert!(hold.finish().unwrap());
        }
    }
    fs::write(Path::new(dir).join("done"), b"").unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

/// Does `deed` in another process, which is killed `after` it began. True if it had finished.
fn do_and_die(rig: &Rig, deed: &str, after: Duration) -> bool {
    let [begun, done] = ["begun", "done"].map(|name| rig.path().join(name));
    let _ = fs::remove_file(&begun);
    let _ = fs::remove_file(&done);
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::daemon"])
        .env(DAEMON, format!("{},{},{deed}", rig.path().display(), rig.layout.instance.0))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the daemon", || begun.exists());
    let mut start = daemon.stdin.take().unwrap();
    start.write_all(b"s").unwrap();
    let at = Instant::now() + after;
    while Instant::now() < at {
        std::hint::spin_loop();
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    done.exists()
}

/// Kills daemons that do `deed`, ever later, until they have done it, and calls `judge` with the next one. `prepare` makes
/// what the deed begins from.
fn die_doing(
    deed: &str,
    prepare: impl Fn(&Rig, &dyn VmEngine, &Vm),
    judge: impl Fn(&Rig, &dyn VmEngine, &Vm),
) {
    let rig = Rig::new();
    let vm = rig.vm();
    let (mut before, mut late, mut after) = (0, 0, Duration::ZERO);
    loop {
        let engine = rig.engine();
        assert_eq!(engine.init(Arc::new(|_| {})).unusable, None);
        prepare(&rig, &engine, &vm);
        let done = do_and_die(&rig, deed, after);
        judge(&rig, &engine, &vm);
        match done {
            true if before > 0 => break,
            // This process did not run for a moment.
            true => late += 1,
            false => (before, after) = (before + 1, after + STEP),
        }
        assert!(late < LATE_MAX, "no kill came before the end");
    }
    println!("{deed}: {before} daemons died before its end, which came within {after:?}");
    let engine = rig.engine();
    engine.init(Arc::new(|_| {}));
    remove(&engine, &vm);
    engine.remove_stray_memory(vm.id).unwrap();
    assert_eq!((engine.memories().unwrap(), engine.machines().unwrap()), (vec![], vec![]));
}

/// Lets it run, whatever it is, and tells what its memory holds.
fn run(rig: &Rig, engine: &dyn VmEngine, vm: &Vm) -> u64 {
    wait_until("a running guest", || engine.start_vm(vm).is_ok() && rig.beats(vm));
    rig.content(vm)
}

#[test]
fn whenever_the_daemon_dies_starting_the_next_one_carries_on() {
    let absent = |_: &Rig, engine: &dyn VmEngine, vm: &Vm| remove(engine, vm);
    die_doing("start", absent, |rig, engine, vm| {
        let seen = engine.look(vm).unwrap();
        assert!(!matches!(seen, Machine::Exited { clean: true, .. }), "{seen:?}");
        run(rig, engine, vm);
        let group = rig.cgroups(vm.id).pop().unwrap();
        let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert_eq!(crate::host::processes(&procs).len(), 1, "{procs}");
    });
}

/// Its memory is begun from once, and is not lost.
#[test]
fn whenever_the_daemon_dies_resuming_the_memory_is_there_once() {
    let suspended = |rig: &Rig, engine: &dyn VmEngine, vm: &Vm| {
        remove(engine, vm);
        engine.start_vm(vm).unwrap();
        assert_eq!(rig.tick(vm), 1);
        engine.stop_vm(vm, StopMode::Suspend).unwrap();
        remove(engine, vm);
    };
    die_doing("start", suspended, |rig, engine, vm| {
        assert_eq!(run(rig, engine, vm), 1);
        assert!(!rig.has_memory(&names::suspended(vm.id, vm.incarnation)));
    });
}

fn running(rig: &Rig, engine: &dyn VmEngine, vm: &Vm) {
    remove(engine, vm);
    engine.start_vm(vm).unwrap();
    assert_eq!(rig.tick(vm), 1);
}

#[test]
fn whenever_the_daemon_dies_suspending_the_memory_is_not_lost() {
    die_doing("suspend", running, |rig, engine, vm| {
        engine.look(vm).unwrap();
        engine.remove_memory(vm).unwrap();
        let mut left = memory_names(rig, vm);
        left.retain(|name| name != "suspended-0");
        assert_eq!(left, Vec::<String>::new());
        assert_eq!(run(rig, engine, vm), 1);
    });
}

#[test]
fn whenever_the_daemon_dies_holding_the_guest_goes_on_and_nothing_is_left() {
    die_doing("hold", running, |rig, engine, vm| {
        let seen = engine.look(vm).unwrap();
        assert!(matches!(seen, Machine::Running | Machine::Paused), "{seen:?}");
        engine.remove_memory(vm).unwrap();
        assert_eq!(memory_names(rig, vm), Vec::<String>::new());
        assert_eq!(run(rig, engine, vm), 1);
    });
}

fn memory_names(rig: &Rig, vm: &Vm) -> Vec<String> {
    let entries = fs::read_dir(rig.layout.memory_of(vm.id)).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}
