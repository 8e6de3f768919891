//! One container: what it keeps of the contract, how it is refused, how it heals.

use crate::rig::{Rig, remove};
use crate::table;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use testkit::within;
use tt_engine::conformance::{self, Fixture};
use tt_engine::docker::DockerConfig;
use tt_engine::{EngineError, Machine, VmEngine};
use tt_model::{Vm, VmId};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn conforms() {
    let Some(rig) = Rig::new("docker::conforms") else { return };
    all_clauses(&rig, "docker");
}

#[test]
fn podman_conforms() {
    let Some(rig) = Rig::with_podman("docker::podman_conforms") else { return };
    all_clauses(&rig, "podman");
}

fn all_clauses(rig: &Rig, column: &str) {
    table::compare(column, &conformance::run(&rig.engine(), rig));
    let left = fs::read_dir(&rig.layout.run).unwrap().count();
    assert_eq!(left, 0, "something is left below the run directory");
}

#[test]
fn a_container_says_what_it_lacks_and_how_it_ended() {
    let Some(rig) = Rig::new("a_container_says_what_it_lacks_and_how_it_ended") else { return };
    let engine = rig.engine();
    assert_eq!(engine.init(Arc::new(|_| {})).unusable, None);
    what_is_missing_is_named(&rig, &engine);
    its_process_is_the_images(&rig, &engine);
    a_start_that_was_cut_short_ends_by_itself(&rig, &engine);
    what_others_removed_is_told_and_made_anew(&rig, &engine);
    assert_eq!(engine.machines().unwrap(), []);
}

fn what_is_missing_is_named(rig: &Rig, engine: &dyn VmEngine) {
    let vm = Vm { id: VmId(900), ..rig.vm() };
    let refused = engine.start_vm(&vm).unwrap_err();
    assert!(matches!(&refused, EngineError::Read { path, .. } if path.ends_with("tt-1234:900-0")));
    remove(engine, &vm);
    let without = DockerConfig { agent: "/none".into(), ..rig.config() };
    let without = tt_engine::docker::DockerEngine::new(without);
    let why = without.init(Arc::new(|_| {})).unusable.unwrap();
    assert!(why.contains("no agent at /none"), "{why}");
    let away = Arc::new(tt_docker::Docker::new("/none.sock"));
    let away = DockerConfig { docker: away, ..rig.config() };
    let away = tt_engine::docker::DockerEngine::new(away);
    let why = away.init(Arc::new(|_| {})).unusable.unwrap();
    assert!(why.contains("no Docker answers at /none.sock; install docker.io"), "{why}");
    let vm = rig.vm();
    let refused = away.start_vm(&vm).unwrap_err();
    assert!(refused.is_retryable(), "{refused}");
    assert!(away.machines().unwrap().is_empty() && away.clear(vm.id).unwrap());
}

fn its_process_is_the_images(rig: &Rig, engine: &dyn VmEngine) {
    let vm = rig.vm();
    engine.start_vm(&vm).unwrap();
    assert!(!rig.inside(&vm, "beat").exists(), "it began before its guest was set up");
    assert!(rig.beats(&vm));
    let children = format!("/proc/{0}/task/{0}/children", rig.pid(&vm));
    let mut environments = Vec::new();
    for pid in fs::read_to_string(children).unwrap().split_whitespace() {
        let environ = fs::read(Path::new("/proc").join(pid).join("environ")).unwrap();
        environments.push(String::from_utf8_lossy(&environ).replace('\0', " "));
    }
    assert!(environments.iter().any(|env| env.contains("COLOUR=green")), "{environments:?}");
    remove(engine, &vm);
}

/// As if the daemon had died between the start of the process and its network.
fn a_start_that_was_cut_short_ends_by_itself(rig: &Rig, engine: &dyn VmEngine) {
    let vm = rig.vm();
    engine.start_vm(&vm).unwrap();
    remove(engine, &vm);
    rig.leave_remains(&vm);
    fs::create_dir_all(rig.layout.vm_dir(vm.id).join("door")).unwrap();
    rig.docker().start(&rig.layout.container(vm.id, vm.epoch)).unwrap();
    let ended = within(PATIENCE, || matches!(engine.look(&vm), Ok(Machine::Exited { .. })));
    assert!(ended, "{:?}", engine.look(&vm));
    engine.start_vm(&vm).unwrap();
    assert!(rig.beats(&vm));
    remove(engine, &vm);
}

fn what_others_removed_is_told_and_made_anew(rig: &Rig, engine: &dyn VmEngine) {
    let vm = rig.vm();
    engine.start_vm(&vm).unwrap();
    assert!(rig.beats(&vm));
    let name = rig.layout.container(vm.id, vm.epoch);
    rig.kill(&vm);
    assert!(within(PATIENCE, || rig.docker().remove(&name).is_ok()));
    match engine.look(&vm).unwrap() {
        Machine::Exited { clean: false, why } => assert!(why.contains("somebody removed"), "{why}"),
        other => panic!("it is {other:?}"),
    }
    engine.start_vm(&vm).unwrap();
    assert!(rig.beats(&vm));
    remove(engine, &vm);
}
