//! The daemon dies at any moment, and the next one carries on.

use crate::rig::{Rig, remove, wait_until};
use crate::sample;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tt_engine::conformance::Fixture;
use tt_engine::{Machine, VmEngine};
use tt_model::{StopMode, Vm, names};

/// Environment variable that makes [`daemon`] the process that is killed: directory, instance, what it does.
const DAEMON: &str = "TT_TEST_DAEMON";
/// How long a daemon may take to begin.
const BEGUN_MAX: Duration = Duration::from_secs(60);

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
    thread::sleep(Duration::from_secs(60));
}

/// Starts a machine from another process, which is killed `after` its start began. True if it had finished.
fn start_and_die(rig: &Rig, after: Duration) -> bool {
    do_and_die(rig, "start", after)
}

/// As [`start_and_die`], for `start`, `suspend` or `hold`.
fn do_and_die(rig: &Rig, deed: &str, after: Duration) -> bool {
    let [begun, done] = ["begun", "done"].map(|name| rig.path().join(name));
    let mut daemon = do_in_another(rig, deed);
    let until = Instant::now() + BEGUN_MAX;
    while !begun.exists() && Instant::now() < until {
        thread::sleep(Duration::from_micros(50));
    }
    thread::sleep(after);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    done.exists()
}

/// Does it in another process, which dies when it has; answers how long it took.
fn do_to_the_end(rig: &Rig, deed: &str) -> Duration {
    let [begun, done] = ["begun", "done"].map(|name| rig.path().join(name));
    let mut daemon = do_in_another(rig, deed);
    wait_until("a daemon that begins", || begun.exists());
    let at = Instant::now();
    wait_until("a daemon that ends", || done.exists());
    let took = at.elapsed();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    took
}

fn do_in_another(rig: &Rig, deed: &str) -> std::process::Child {
    for mark in ["begun", "done"] {
        let _ = fs::remove_file(rig.path().join(mark));
    }
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::daemon"])
        .env(DAEMON, format!("{},{},{deed}", rig.path().display(), rig.layout.instance.0))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn whenever_the_daemon_dies_the_next_one_carries_on() {
    let rig = Rig::new();
    let vm = rig.vm();
    let (mut before, mut after) = (0, 0);
    for step in 0..20_u32 {
        let engine = rig.engine();
        engine.init(Arc::new(|_| {}));
        match start_and_die(&rig, Duration::from_micros(700) * step) {
            true => after += 1,
            false => before += 1,
        }
        let seen = engine.look(&vm).unwrap();
        assert!(!matches!(seen, Machine::Paused | Machine::Exited { clean: true, .. }), "{seen:?}");
        if seen != Machine::Absent {
            assert_eq!(engine.machines().unwrap(), [vm.id]);
        }
        // Either way must work from here.
        if step % 2 == 0 {
            // What was seen running may have been about to follow its daemon; then it is started again.
            wait_until("a running guest", || engine.start_vm(&vm).is_ok() && rig.beats(&vm));
            let group = rig.cgroups(vm.id).pop().unwrap();
            let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap();
            assert_eq!(crate::host::processes(&procs).len(), 1, "{procs}");
        }
        remove(&engine, &vm);
        assert_eq!(engine.machines().unwrap(), []);
    }
    assert!(before > 0, "no kill came before the end of the start");
    println!("killed before the end of the start: {before}, after it: {after}");
}

#[test]
fn a_machine_outlives_its_daemon() {
    let rig = Rig::new();
    let vm = rig.vm();
    do_to_the_end(&rig, "start");
    let (send, ends) = std::sync::mpsc::channel();
    let engine = rig.engine();
    let send = std::sync::Mutex::new(send);
    engine.init(Arc::new(move |id| send.lock().unwrap().send(id).unwrap()));
    assert_eq!(engine.look(&vm).unwrap(), Machine::Running);
    assert!(rig.beats(&vm));
    engine.stop_vm(&vm, StopMode::Pause).unwrap();
    engine.start_vm(&vm).unwrap();
    rig.power_off(&vm);
    assert_eq!(ends.recv_timeout(Duration::from_secs(20)), Ok(vm.id));
    assert!(matches!(engine.look(&vm).unwrap(), Machine::Exited { clean: true, .. }));
    remove(&engine, &vm);
}

/// Into how many moments a deed is divided, at least: a daemon dies at each.
const MOMENTS: u32 = 12;
/// What lies between two moments at least.
const MOMENT_MIN: Duration = Duration::from_millis(29);

/// Kills daemons that do `deed`, ever later, until they have done it, and calls `judge` with the next one.
fn die_doing(deed: &str, judge: impl Fn(&Rig, &dyn VmEngine, &Vm)) {
    let rig = Rig::new();
    let vm = rig.vm();
    let engine = rig.engine();
    engine.init(Arc::new(|_| {}));
    engine.start_vm(&vm).unwrap();
    let carry_on = |content: u64, after: Duration| {
        let next = rig.engine();
        next.init(Arc::new(|_| {}));
        judge(&rig, &next, &vm);
        wait_until("a running guest", || next.start_vm(&vm).is_ok() && rig.beats(&vm));
        assert_eq!(rig.content(&vm), content, "{deed} died after {after:?}");
    };
    let content = rig.tick(&vm);
    let whole = do_to_the_end(&rig, deed);
    carry_on(content, whole);
    let (mut before, mut after) = (0, Duration::ZERO);
    let mut moment = (whole / MOMENTS).max(MOMENT_MIN);
    loop {
        let content = rig.tick(&vm);
        let done = do_and_die(&rig, deed, after);
        carry_on(content, after);
        match (done, before) {
            // This machine was far busier at first.
            (true, 0..=2) => (before, after, moment) = (0, Duration::ZERO, moment / 2),
            (true, _) => break,
            (false, _) => (before, after) = (before + 1, after + moment),
        }
    }
    println!("{deed}: {before} daemons died before its end, which came within {after:?}");
    remove(&engine, &vm);
    engine.remove_stray_memory(vm.id).unwrap();
    assert_eq!(engine.memories().unwrap(), []);
    assert_eq!(engine.machines().unwrap(), []);
}

#[test]
fn whenever_the_daemon_dies_suspending_the_memory_is_not_lost() {
    die_doing("suspend", |rig, engine, vm| {
        engine.look(vm).unwrap();
        engine.remove_memory(vm).unwrap();
        let mut left = memory_names(rig, vm);
        left.retain(|name| name != "suspended-0");
        assert_eq!(left, Vec::<String>::new());
    });
}

#[test]
fn whenever_the_daemon_dies_holding_the_guest_goes_on_and_nothing_is_left() {
    die_doing("hold", |rig, engine, vm| {
        let seen = engine.look(vm).unwrap();
        assert!(matches!(seen, Machine::Running | Machine::Paused), "{seen:?}");
        engine.remove_memory(vm).unwrap();
        assert_eq!(memory_names(rig, vm), Vec::<String>::new());
    });
}

fn memory_names(rig: &Rig, vm: &Vm) -> Vec<String> {
    let entries = fs::read_dir(rig.layout.memory_of(vm.id)).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}
