//! The daemon dies whenever Docker has done what it was asked for, and before and after it has given a container its network.
//! The next one carries on from there.

use crate::rig::{self, Pairs, Rig, remove};
use rustix::process::{Pid, Signal, getpid, kill_process};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use testkit::{Cut, within};
use tt_engine::conformance::Fixture;
use tt_engine::docker::{DockerConfig, DockerEngine, Plug};
use tt_engine::{Machine, VmEngine};
use tt_model::{StopMode, Vm};

/// Environment variable that makes [`daemon`] the process that is killed: a directory, and what it does there.
const DAEMON: &str = "TT_TEST_DAEMON";
/// Where it finds Docker, in that directory.
const SOCKET: &str = "cut.sock";
/// How long anything may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// More calls than any deed makes.
const CALLS_MAX: u32 = 32;

/// No test of its own: does something to a machine and waits to be killed.
#[test]
fn daemon() {
    let Ok(value) = std::env::var(DAEMON) else { return };
    let (dir, deed) = value.split_once(',').unwrap();
    let dir = Path::new(dir);
    let config = rig::config(&rig::layout(dir), &dir.join(SOCKET));
    let engine = DockerEngine::new(match deed {
        "die before the plug" => dying(config, false),
        "die after the plug" => dying(config, true),
        _ => config,
    });
    engine.init(Arc::new(|_| {}));
    fs::write(dir.join("begun"), b"").unwrap();
    io::stdin().read_exact(&mut [0]).unwrap();
    let vm = rig::vm(1);
    match deed {
        "end" => {
            let is_over = || {
                engine.stop_vm(&vm, StopMode::Kill).unwrap();
                engine.look(&vm).unwrap() == Machine::Absent
            };
            assert!(within(PATIENCE, is_over));
        }
        "hold" => {
            let mut hold = engine.prepare_hold(&vm, None).unwrap();
            hold.pause().unwrap();
            hold.release().unwrap();
            assert!(!hold.finish().unwrap());
        }
        "update" => engine.update_vm(&larger(&vm)).unwrap(),
        _ => engine.start_vm(&vm).unwrap(),
    }
    fs::write(dir.join("done"), b"").unwrap();
    // Whoever waits for its death kills it.
    let _ = io::stdin().read_exact(&mut [0]);
}

fn larger(vm: &Vm) -> Vm {
    let mut vm = vm.clone();
    vm.machine.mem_size += 8;
    vm
}

/// Gives no container its network twice in one life.
#[derive(Debug)]
struct Dying {
    is_plugged: bool,
}

fn dying(config: DockerConfig, is_plugged: bool) -> DockerConfig {
    DockerConfig { plug: Arc::new(Dying { is_plugged }), ..config }
}

impl Plug for Dying {
    fn plug(&self, vm: &Vm, into: BorrowedFd<'_>) -> io::Result<()> {
        if self.is_plugged {
            Pairs.plug(vm, into)?;
        }
        Ok(kill_process(getpid(), Signal::KILL)?)
    }

    fn unplug(&self, _: &Vm) -> io::Result<()> {
        Ok(())
    }
}

/// A test of one machine whose daemons die.
struct Scene {
    rig: Rig,
    cut: Cut,
    vm: Vm,
}

impl Scene {
    fn new(name: &str) -> Option<Self> {
        let rig = Rig::new(name)?;
        let cut = Cut::new(rig.dir().join(SOCKET), &rig.dockerd.socket());
        let vm = rig.vm();
        Some(Self { rig, cut, vm })
    }

    /// The next daemon.
    fn engine(&self) -> DockerEngine {
        let engine = self.rig.engine();
        assert_eq!(engine.init(Arc::new(|_| {})).unusable, None);
        engine
    }

    /// Does `deed` in another process, which dies when Docker has answered it `passing` times and does so again. False if
    /// it was done before that.
    fn dies(&self, deed: &str, passing: u32) -> bool {
        let [begun, done] = ["begun", "done"].map(|name| self.rig.dir().join(name));
        for file in [&begun, &done] {
            let _ = fs::remove_file(file);
        }
        let mut daemon = self.spawn(deed);
        let mut start = daemon.stdin.take().unwrap();
        assert!(within(PATIENCE, || begun.exists()), "the daemon does not come");
        let pid = Pid::from_raw(daemon.id().try_into().unwrap()).unwrap();
        self.cut.arm(passing, move || kill_process(pid, Signal::KILL).unwrap());
        start.write_all(b"s").unwrap();
        let mut is_over = || done.exists() || daemon.try_wait().unwrap().is_some();
        assert!(within(PATIENCE, &mut is_over), "{deed} takes too long");
        let is_done = done.exists();
        let _ = daemon.kill();
        daemon.wait().unwrap();
        assert!(self.cut.disarm() || is_done || deed.starts_with("die"), "{deed} failed");
        !is_done
    }

    fn spawn(&self, deed: &str) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "crash::daemon", "--nocapture"]);
        command.env(DAEMON, format!("{},{deed}", self.rig.dir().display()));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    }

    /// It runs, whatever it was before.
    fn runs(&self, engine: &dyn VmEngine) {
        let begun = self.rig.layout.vm_dir(self.vm.id).join("begun");
        let mut last = None;
        let runs = within(PATIENCE, || {
            last = engine.start_vm(&self.vm).err();
            // One that nobody let begin ends by itself.
            last.is_none() && begun.exists()
        });
        assert!(runs, "it does not run: {last:?}");
        assert!(self.rig.beats(&self.vm), "its image's process does not run");
    }

    /// There is one container, and it has a process.
    fn is_one(&self) {
        let all = self.rig.docker().containers(&[]).unwrap();
        assert_eq!(all.len(), 1, "{all:?}");
        assert!(self.rig.docker().container(&all[0].id).unwrap().unwrap().state.has_process());
    }

    fn ends(&self, engine: &dyn VmEngine) {
        remove(engine, &self.vm);
        assert_eq!(engine.machines().unwrap(), []);
        assert_eq!(fs::read_dir(self.rig.layout.run.join("vm")).unwrap().count(), 0);
    }
}

#[test]
fn whenever_the_daemon_dies_the_next_one_carries_on() {
    let name = "docker::whenever_the_daemon_dies_the_next_one_carries_on";
    let Some(scene) = Scene::new(name) else { return };
    let deaths = [beginnings(&scene), ends(&scene), holds(&scene), updates(&scene)];
    println!("daemons died while they began, ended, held and updated one: {deaths:?}");
    assert!(deaths[0] >= 6 && deaths[1..].iter().all(|deaths| *deaths >= 2), "{deaths:?}");
    scene.ends(&scene.engine());
}

fn beginnings(scene: &Scene) -> u32 {
    for step in 0..CALLS_MAX {
        let has_died = match step {
            0 => scene.dies("die before the plug", CALLS_MAX),
            1 => scene.dies("die after the plug", CALLS_MAX),
            _ => scene.dies("begin", step - 2),
        };
        let engine = scene.engine();
        let seen = engine.look(&scene.vm).unwrap();
        let is_known = !matches!(seen, Machine::Paused | Machine::Outdated);
        assert!(is_known && !matches!(seen, Machine::Exited { clean: true, .. }), "{seen:?}");
        assert_eq!(engine.machines().unwrap().is_empty(), seen == Machine::Absent, "{seen:?}");
        if step % 2 == 0 || !has_died {
            scene.runs(&engine);
            scene.is_one();
        }
        scene.ends(&engine);
        // The next one begins without a container, too.
        let name = scene.rig.layout.container(scene.vm.id, scene.vm.epoch);
        assert!(within(PATIENCE, || scene.rig.docker().remove(&name).is_ok()), "it stays");
        if !has_died {
            return step;
        }
    }
    panic!("a beginning makes more than {CALLS_MAX} calls");
}

fn ends(scene: &Scene) -> u32 {
    for step in 0..CALLS_MAX {
        let engine = scene.engine();
        scene.runs(&engine);
        let has_died = scene.dies("end", step);
        scene.ends(&engine);
        if !has_died {
            return step;
        }
    }
    panic!("an end makes more than {CALLS_MAX} calls");
}

fn holds(scene: &Scene) -> u32 {
    let mut boot = None;
    for step in 0..CALLS_MAX {
        let engine = scene.engine();
        scene.runs(&engine);
        let pid = scene.rig.pid(&scene.vm);
        assert_eq!(*boot.get_or_insert(pid), pid, "it was begun again");
        let has_died = scene.dies("hold", step);
        let seen = engine.look(&scene.vm).unwrap();
        assert!(matches!(seen, Machine::Running | Machine::Paused), "{seen:?}");
        if !has_died {
            return step;
        }
    }
    panic!("a hold makes more than {CALLS_MAX} calls");
}

fn updates(scene: &Scene) -> u32 {
    for step in 0..CALLS_MAX {
        let engine = scene.engine();
        scene.runs(&engine);
        engine.update_vm(&scene.vm).unwrap();
        let has_died = scene.dies("update", step);
        engine.update_vm(&larger(&scene.vm)).unwrap();
        assert!(scene.rig.beats(&scene.vm));
        if !has_died {
            return step;
        }
    }
    panic!("an update makes more than {CALLS_MAX} calls");
}
