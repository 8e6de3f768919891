//! The driver for programs of others, with the example and real machines.

use crate::rig::{Rig, remove, wait_until};
use crate::table;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use tt_engine::conformance::{self, Fixture};
use tt_engine::exec::{ExecConfig, ExecEngine};
use tt_engine::{EngineError, Machine, VmEngine};
use tt_model::{StopMode, Vm, feat};

/// The rig, whose machines the example starts.
struct Exec(Rig);

impl Exec {
    fn engine(&self) -> ExecEngine {
        engine(&self.0, env!("CARGO_BIN_EXE_tt-example-engine").into())
    }
}

fn engine(rig: &Rig, program: PathBuf) -> ExecEngine {
    ExecEngine::new(ExecConfig { layout: rig.layout.clone(), program })
}

/// What every other call of the fixture is: as with the built-in driver.
macro_rules! as_in_the_rig {
    ($($name:ident($($arg:ident: $kind:ty),*) $(-> $out:ty)?;)*) => {
        $(fn $name(&self, $($arg: $kind),*) $(-> $out)? { self.0.$name($($arg),*) })*
    };
}

impl Fixture for Exec {
    fn restarted(&self) -> Box<dyn VmEngine> {
        Box::new(self.engine())
    }

    as_in_the_rig! {
        vm() -> Vm;
        beats(vm: &Vm) -> bool;
        power_off(vm: &Vm);
        kill(vm: &Vm);
        leave_remains(vm: &Vm);
        layered_vm() -> Option<Vm>;
        with_layer(vm: &Vm) -> Vm;
        with_merge(vm: &Vm) -> Vm;
        tick(vm: &Vm) -> u64;
        content(vm: &Vm) -> u64;
        has_open(vm: &Vm) -> bool;
        disk_mb(vm: &Vm) -> Option<u32>;
        disk_limit(vm: &Vm) -> (u32, u32);
        mem_mb(vm: &Vm) -> Option<u32>;
        has_memory(path: &str) -> bool;
    }
}

#[test]
fn the_example_conforms() {
    let exec = Exec(Rig::new());
    table::compare("exec", &conformance::run(&exec.engine(), &exec));
    let left = fs::read_dir(&exec.0.layout.run).unwrap().flatten();
    let left: Vec<_> = left.map(|e| e.file_name()).filter(|n| n != "netns").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_program_that_goes_wrong_leaves_nothing_behind() {
    let rig = Rig::new();
    let path = rig.path().join("engine");
    let about = r#"{"version":"1","features":["nat","pause"]}"#;
    let script = |start: &str| {
        let text = format!(
            "#!/bin/sh\nread request\ncase $request in\n*'\"init\"'*) echo '{about}';;\n\
             *'\"start\"'*) {start};;\n*) exit 1;;\nesac\n"
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    };
    script("echo no power >&2; exit 1");
    let engine = engine(&rig, path.clone());
    let facts = engine.init(Arc::new(|_| {}));
    assert_eq!((facts.unusable, facts.features), (None, feat::NAT | feat::PAUSE));
    assert!(!engine.check_feat(&[feat::SUSPEND]));
    let vm = rig.vm();
    let refused = |part: &str| {
        let error = engine.start_vm(&vm).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert!(matches!(engine.look(&vm).unwrap(), Machine::Exited { clean: false, .. }));
        remove(&engine, &vm);
        error
    };
    assert!(refused("no power").is_retryable());
    script("echo nonsense");
    refused("its answer is odd");
    script(r#"echo '{"program":"sh","args":[],"overhead_mb":1}'"#);
    assert!(matches!(refused("absolute path"), EngineError::Describe { .. }));
    script(r#"echo '{"program":"/no/such","args":[],"overhead_mb":1}'"#);
    assert!(matches!(refused("start"), EngineError::Spawn { .. }));
    // A machine of it is confined and killed as any other, and how it ended is not worth an error.
    script(r#"echo '{"program":"/bin/sleep","args":["600"],"overhead_mb":64}'"#);
    engine.start_vm(&vm).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", rig.pid(vm.id))).unwrap();
    assert!(status.contains(&format!("Uid:\t{}", rig.layout.uid(vm.id))), "{status}");
    assert!(engine.stop_vm(&vm, StopMode::Pause).is_err());
    engine.stop_vm(&vm, StopMode::Kill).unwrap();
    wait_until("the end", || matches!(engine.look(&vm), Ok(Machine::Exited { clean: false, .. })));
    remove(&engine, &vm);
}

#[test]
fn a_program_that_is_not_there_is_told() {
    let rig = Rig::new();
    let absent = engine(&rig, "/no/engine".into());
    let why = absent.init(Arc::new(|_| {})).unusable.unwrap();
    assert!(why.contains("/no/engine") && why.contains("No such file"), "{why}");
    let refused = absent.start_vm(&rig.vm());
    assert!(matches!(refused, Err(EngineError::Unusable { .. })), "{refused:?}");
}
