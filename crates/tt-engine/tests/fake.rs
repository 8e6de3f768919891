//! The fake keeps the contract, and dies wherever it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tt_engine::conformance::{self, Fixture};
use tt_engine::fake::{FakeEngine, FakeWorld, effect};
use tt_engine::{EngineError, Machine, VmEngine};
use tt_model::fault::{Fault, FaultHook, Moment, no_fault};
use tt_model::{StopMode, StorageKind, Vm, VmResource, names};

#[cfg(test)]
#[path = "common/layers.rs"]
mod layers;
#[cfg(test)]
#[path = "common/sample.rs"]
mod sample;
#[cfg(test)]
#[path = "common/table.rs"]
mod table;

struct World {
    world: Arc<FakeWorld>,
    next: AtomicU32,
}

impl World {
    fn new() -> Self {
        Self { world: FakeWorld::new(), next: AtomicU32::new(1) }
    }
}

impl Fixture for World {
    fn vm(&self) -> Vm {
        sample::vm(u64::from(self.next.fetch_add(1, Ordering::SeqCst)))
    }

    fn restarted(&self) -> Box<dyn VmEngine> {
        Box::new(FakeEngine::new(self.world.clone(), no_fault()))
    }

    fn beats(&self, vm: &Vm) -> bool {
        self.world.machine(vm.id) == Machine::Running
    }

    fn power_off(&self, vm: &Vm) {
        self.world.exit(vm.id, true);
    }

    fn kill(&self, vm: &Vm) {
        self.world.exit(vm.id, false);
    }

    fn leave_remains(&self, vm: &Vm) {
        self.world.leave_remains(vm.id);
    }

    fn layered_vm(&self) -> Option<Vm> {
        let vm = self.vm();
        let runtime_image = names::runtime_image(StorageKind::Qcow2, vm.id, 0);
        Some(Vm { storage: StorageKind::Qcow2, runtime_image, ..vm })
    }

    fn with_layer(&self, vm: &Vm) -> Vm {
        layers::with_layer(vm)
    }

    fn with_merge(&self, vm: &Vm) -> Vm {
        layers::with_merge(vm).0
    }

    fn tick(&self, vm: &Vm) -> u64 {
        self.world.tick(vm.id).unwrap_or(u64::MAX)
    }

    fn content(&self, vm: &Vm) -> u64 {
        self.world.content(vm.id).unwrap_or(u64::MAX)
    }

    fn has_open(&self, vm: &Vm) -> bool {
        self.world.layers(vm.id).is_some_and(|layers| layers.contains(&vm.runtime_image))
    }

    fn disk_mb(&self, vm: &Vm) -> Option<u32> {
        self.world.disk_mb(vm.id)
    }

    fn disk_limit(&self, vm: &Vm) -> (u32, u32) {
        let (kib, ops) = self.world.disk_limit(vm.id).unwrap_or((Some(u32::MAX), None));
        (kib.unwrap_or_default(), ops.unwrap_or_default())
    }

    fn mem_mb(&self, _: &Vm) -> Option<u32> {
        None
    }

    fn has_memory(&self, path: &str) -> bool {
        self.world.memories().contains_key(path)
    }
}

#[test]
fn conforms() {
    let fixture = World::new();
    table::compare("fake", &conformance::run(&*fixture.restarted(), &fixture));
    assert!(fixture.world.is_empty());
}

#[test]
fn the_table_has_a_row_for_each_clause_and_a_column_for_each_engine() {
    let table = table::table();
    let mut rows: Vec<_> = conformance::names().collect();
    rows.sort_unstable();
    assert!(table.keys().eq(rows.iter()), "{:?}", table.keys());
    let columns = [
        "docker",
        "exec",
        "fake",
        "firecracker",
        "firecracker, stand-in",
        "podman",
        "qemu-kvm",
        "qemu-tcg",
    ];
    assert!(table.values().all(|row| row.keys().eq(columns.iter())), "{table:?}");
}

#[test]
fn dies_at_every_effect_and_the_next_daemon_carries_on() {
    let vm = sample::vm(1);
    let runtime_image = names::runtime_image(StorageKind::Qcow2, vm.id, 0);
    let vm = Vm { storage: StorageKind::Qcow2, runtime_image, ..vm };
    let layered = layers::with_layer(&vm);
    let merged = layers::with_merge(&layers::with_layer(&layered)).0;
    for effect in effect::ALL {
        for moment in [Moment::Before, Moment::After] {
            let world = FakeWorld::new();
            let hook: FaultHook = Arc::new(move |m, e| match (m, e) == (moment, effect) {
                true => Fault::Die,
                false => Fault::None,
            });
            let engine = FakeEngine::new(world.clone(), hook);
            let life = || {
                engine.start_vm(&vm)?;
                engine.stop_vm(&vm, StopMode::Pause)?;
                engine.start_vm(&vm)?;
                let larger = VmResource { disk_size: 7, ..vm.resource.clone() };
                engine.update_vm(&Vm { resource: larger, ..vm.clone() })?;
                let mut hold = engine.prepare_hold(&vm, Some(&names::memory(vm.id, 1)))?;
                hold.pause()?;
                hold.switch_disk(&layered)?;
                hold.release()?;
                hold.finish()?;
                engine.update_vm(&merged)?;
                engine.remove_memory(&vm)?;
                engine.stop_vm(&vm, StopMode::Suspend)?;
                engine.start_vm(&vm)?;
                world.set_deaf(vm.id, true);
                engine.stop_vm(&vm, StopMode::Shutdown)?;
                engine.stop_vm(&vm, StopMode::Kill)?;
                engine.stop_vm(&vm, StopMode::Kill)
            };
            assert!(matches!(life(), Err(EngineError::Died)), "{effect} {moment:?}");
            assert!(matches!(engine.look(&vm), Err(EngineError::Died)));
            let next = FakeEngine::new(world.clone(), no_fault());
            next.start_vm(&vm).unwrap();
            assert_eq!(next.look(&vm).unwrap(), Machine::Running, "{effect} {moment:?}");
            while next.look(&vm).unwrap() != Machine::Absent {
                next.stop_vm(&vm, StopMode::Kill).unwrap();
            }
            next.remove_stray_memory(vm.id).unwrap();
            assert!(world.is_empty(), "{effect} {moment:?}: {world:?}");
            engine.revive();
            assert_eq!(engine.look(&vm).unwrap(), Machine::Absent);
        }
    }
}

#[test]
fn a_failure_changes_nothing_before_and_everything_after() {
    let vm = sample::vm(1);
    for (moment, expected) in [(Moment::Before, 0), (Moment::After, 1)] {
        let world = FakeWorld::new();
        let hook: FaultHook =
            Arc::new(move |m, e| match (m, e) == (moment, effect::MAKE_PROCESS) {
                true => Fault::Fail,
                false => Fault::None,
            });
        let engine = FakeEngine::new(world.clone(), hook);
        let failed = engine.start_vm(&vm).unwrap_err();
        assert!(failed.is_retryable(), "{failed}");
        assert_eq!(world.starts(vm.id), expected);
    }
}

#[test]
fn an_unusable_engine_starts_nothing_and_still_stops() {
    let vm = sample::vm(1);
    let world = FakeWorld::new();
    let engine = FakeEngine::new(world.clone(), no_fault()).with_unusable("install it");
    world.leave_remains(vm.id);
    assert_eq!(engine.init(Arc::new(|_| {})).unusable.as_deref(), Some("install it"));
    assert!(!engine.start_vm(&vm).unwrap_err().is_retryable());
    engine.stop_vm(&vm, StopMode::Kill).unwrap();
    assert!(world.is_empty());
}
