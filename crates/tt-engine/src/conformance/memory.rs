//! Clauses about memory on disk and incarnations.

use super::needs::{ALWAYS, MEMORY, Needs};
use super::{Clause, END_MAX, REMOVALS_MAX, Suite, done};
use crate::{EngineError, Hold, Machine};
use std::time::Instant;
use tt_model::{Goal, MachineSize, Snapshot, StopMode, Vm, feat, names};

pub(super) const CLAUSES: &[Clause] = &[
    (
        "suspend keeps memory on disk, and the next start goes on from it, once",
        Needs::Features(feat::SUSPEND),
        suspends,
    ),
    ("a paused machine is suspended, too", Needs::Features(MEMORY), suspends_paused),
    (
        "suspend of what has no process does nothing",
        Needs::Features(feat::SUSPEND),
        suspends_nothing,
    ),
    ("a machine of an earlier incarnation is outdated, and is replaced", ALWAYS, replaces),
    ("a new incarnation begins from memory once", Needs::Features(MEMORY), begins_from_memory),
    (
        "memory that does not fit is refused, and nothing is changed",
        Needs::Features(feat::SUSPEND),
        refuses_misfit,
    ),
    ("memory of memory of memory is as good", Needs::Features(MEMORY), goes_on_for_generations),
    ("update grows the disk of a living machine", Needs::Growth, updates),
    ("update gives a living machine its limits", Needs::Limits, limits),
    ("the disk of a living machine is limited", Needs::Features(feat::DISK_LIMIT), limits_disk),
    ("memory that no record names is removed", Needs::Features(MEMORY), removes_memory),
];

impl Suite<'_> {
    pub(super) fn hold(&self, vm: &Vm, memory: Option<&str>) -> Box<dyn Hold> {
        done(self.engine.prepare_hold(vm, memory))
    }

    /// A whole hold; answers whether there was memory.
    pub(super) fn capture(&self, vm: &Vm, memory: Option<&str>) -> bool {
        let mut hold = self.hold(vm, memory);
        done(hold.pause());
        done(hold.release());
        done(hold.finish())
    }

    /// Suspends it, and removes what is left of the machine.
    pub(super) fn suspend(&self, vm: &Vm) {
        self.stop(vm, StopMode::Suspend);
        let until = Instant::now() + END_MAX;
        while matches!(self.look(vm), Machine::Running | Machine::Paused) {
            assert!(Instant::now() < until, "a suspended machine goes on living");
        }
        self.remove(vm);
        assert!(self.fixture.has_memory(&names::suspended(vm.id, vm.incarnation)));
    }

    /// Removes machine and memory.
    pub(super) fn forget(&self, vm: &Vm) {
        self.remove(vm);
        done(self.engine.remove_stray_memory(vm.id));
        assert!(!done(self.engine.memories()).contains(&vm.id), "memory is left");
    }

    /// See [`Needs::Layers`].
    pub(super) fn layered(&self) -> Vm {
        match self.fixture.layered_vm() {
            Some(vm) => vm,
            None => panic!("there are disks with layers no more"),
        }
    }
}

/// The Vm as after an apply of memory at `path`.
pub(super) fn next(vm: &Vm, path: &str) -> Vm {
    Vm { incarnation: vm.incarnation + 1, memory: Some(path.to_owned()), ..vm.clone() }
}

fn suspends(suite: &Suite<'_>) {
    let vm = suite.running();
    let content = suite.fixture.tick(&vm);
    suite.suspend(&vm);
    assert_eq!(done(suite.engine.memories()), [vm.id]);
    suite.start(&vm);
    assert_eq!(suite.look(&vm), Machine::Running);
    assert!(suite.fixture.beats(&vm), "a resumed guest stands still");
    assert_eq!(suite.fixture.content(&vm), content, "memory was lost");
    assert!(!suite.fixture.has_memory(&names::suspended(vm.id, vm.incarnation)));
    suite.remove(&vm);
    suite.start(&vm);
    assert_eq!(suite.fixture.content(&vm), 0, "memory was begun from twice");
    suite.forget(&vm);
}

fn suspends_paused(suite: &Suite<'_>) {
    let vm = suite.running();
    let content = suite.fixture.tick(&vm);
    suite.stop(&vm, StopMode::Pause);
    suite.suspend(&vm);
    suite.start(&vm);
    assert_eq!(suite.fixture.content(&vm), content);
    suite.forget(&vm);
}

fn suspends_nothing(suite: &Suite<'_>) {
    let vm = suite.fixture.vm();
    suite.stop(&vm, StopMode::Suspend);
    assert_eq!(suite.look(&vm), Machine::Absent);
    suite.fixture.leave_remains(&vm);
    suite.stop(&vm, StopMode::Suspend);
    assert!(matches!(suite.look(&vm), Machine::Exited { .. }));
    suite.remove(&vm);
    assert_eq!(done(suite.engine.memories()), []);
}

fn replaces(suite: &Suite<'_>) {
    let vm = suite.running();
    let next = Vm { incarnation: vm.incarnation + 1, ..vm.clone() };
    assert_eq!(suite.look(&next), Machine::Outdated);
    let refused = suite.engine.start_vm(&next);
    assert!(matches!(refused, Err(EngineError::Replace { .. })), "{refused:?}");
    if suite.has(feat::PAUSE) {
        suite.stop(&vm, StopMode::Pause);
        assert_eq!(suite.look(&next), Machine::Outdated);
    }
    suite.remove(&next);
    suite.start(&next);
    assert_eq!(suite.look(&next), Machine::Running);
    assert_eq!(suite.look(&vm), Machine::Running, "a stale record must not harm");
    suite.remove(&next);
}

fn begins_from_memory(suite: &Suite<'_>) {
    let vm = suite.running();
    let content = suite.fixture.tick(&vm);
    let path = names::memory(vm.id, 1);
    assert!(suite.capture(&vm, Some(&path)));
    assert!(suite.fixture.tick(&vm) > content);
    let vm = next(&vm, &path);
    suite.remove(&vm);
    suite.start(&vm);
    assert_eq!(suite.fixture.content(&vm), content, "it did not begin from memory");
    suite.fixture.tick(&vm);
    suite.remove(&vm);
    suite.start(&vm);
    assert_eq!(suite.fixture.content(&vm), 0, "memory was begun from twice");
    suite.remove(&vm);
    let again = next(&vm, &path);
    suite.start(&again);
    assert_eq!(suite.fixture.content(&again), content, "a snapshot can be applied once only");
    // What was suspended in this incarnation goes before what it began from.
    let later = suite.fixture.tick(&again);
    suite.suspend(&again);
    suite.start(&again);
    assert_eq!(suite.fixture.content(&again), later);
    suite.forget(&again);
}

fn refuses_misfit(suite: &Suite<'_>) {
    let vm = suite.running();
    let content = suite.fixture.tick(&vm);
    suite.suspend(&vm);
    let machine = MachineSize { mem_size: vm.machine.mem_size * 2, ..vm.machine };
    let refused = suite.engine.start_vm(&Vm { machine, ..vm.clone() });
    assert!(matches!(refused, Err(EngineError::Load { .. })), "{refused:?}");
    let missing = Vm { memory: Some(names::memory(vm.id, 99)), incarnation: 7, ..vm.clone() };
    let refused = suite.engine.start_vm(&missing);
    assert!(matches!(refused, Err(EngineError::Load { .. })), "{refused:?}");
    assert_eq!(suite.look(&vm), Machine::Absent);
    suite.start(&vm);
    assert_eq!(suite.fixture.content(&vm), content);
    suite.forget(&vm);
}

fn goes_on_for_generations(suite: &Suite<'_>) {
    let mut vm = suite.running();
    for number in 1..=10 {
        let content = suite.fixture.tick(&vm);
        let path = names::memory(vm.id, number);
        assert!(suite.capture(&vm, Some(&path)));
        suite.fixture.tick(&vm);
        vm = next(&vm, &path);
        suite.remove(&vm);
        suite.start(&vm);
        assert_eq!(suite.fixture.content(&vm), content, "generation {number}");
    }
    suite.forget(&vm);
}

fn updates(suite: &Suite<'_>) {
    let mut vm = suite.fixture.vm();
    done(suite.engine.update_vm(&vm));
    suite.start(&vm);
    let disk_mb = |vm: &Vm| suite.fixture.disk_mb(vm);
    let Some(before) = disk_mb(&vm) else { panic!("its disk is not seen") };
    vm.resource.disk_size = before + 3;
    for _ in 0..2 {
        done(suite.engine.update_vm(&vm));
        assert_eq!(disk_mb(&vm), Some(before + 3));
    }
    vm.resource.disk_size = before;
    done(suite.engine.update_vm(&vm));
    assert_eq!(disk_mb(&vm), Some(before + 3), "a disk shrank");
    if suite.has(feat::PAUSE) {
        suite.stop(&vm, StopMode::Pause);
        vm.resource.disk_size = before + 4;
        done(suite.engine.update_vm(&vm));
        assert_eq!(disk_mb(&vm), Some(before + 4));
        assert_eq!(suite.look(&vm), Machine::Paused);
    }
    suite.remove(&vm);
}

fn limits_disk(suite: &Suite<'_>) {
    let limit = |vm: &mut Vm, kib: u32, ops: u32| {
        let given = |limit: u32| Some(limit).filter(|limit| *limit > 0);
        (vm.resource.disk_kib, vm.resource.disk_ops) = (given(kib), given(ops));
    };
    let has = |vm: &Vm| suite.fixture.disk_limit(vm);
    let mut vm = suite.fixture.vm();
    limit(&mut vm, 65_536, 1000);
    done(suite.engine.update_vm(&vm));
    suite.start(&vm);
    assert_eq!(has(&vm), (65_536, 1000), "from its start on");
    for (kib, ops) in [(1 << 20, 0), (0, 2000), (0, 0), (131_072, 3000)] {
        limit(&mut vm, kib, ops);
        for _ in 0..2 {
            done(suite.engine.update_vm(&vm));
            assert_eq!(has(&vm), (kib, ops));
        }
    }
    assert!(suite.fixture.beats(&vm), "the guest stands still");
    if suite.has(MEMORY) {
        for (kib, ops) in [(131_072, 4000), (0, 0)] {
            suite.suspend(&vm);
            limit(&mut vm, kib, ops);
            suite.start(&vm);
            done(suite.engine.update_vm(&vm));
            assert_eq!(has(&vm), (kib, ops), "whatever it began from");
        }
        assert!(suite.fixture.beats(&vm), "the guest stands still");
    }
    suite.forget(&vm);
}

fn limits(suite: &Suite<'_>) {
    let mut vm = suite.running();
    for more in [8, 0] {
        let machine = MachineSize { mem_size: vm.resource.mem_size + more, ..vm.machine };
        vm.machine = machine;
        for _ in 0..2 {
            done(suite.engine.update_vm(&vm));
            assert_eq!(suite.fixture.mem_mb(&vm), Some(machine.mem_size));
        }
        assert!(suite.fixture.beats(&vm), "the guest stands still");
    }
    suite.remove(&vm);
}

fn removes_memory(suite: &Suite<'_>) {
    let mut vm = suite.running();
    let [kept, begun, needless] = [1, 2, 3].map(|n| names::memory(vm.id, n));
    for path in [&kept, &begun, &needless] {
        assert!(suite.capture(&vm, Some(path)));
    }
    let suspended = names::suspended(vm.id, vm.incarnation);
    suite.suspend(&vm);
    let snapshot = Snapshot { memory: Some(kept.clone()), ..Snapshot::default() };
    vm.snapshots.insert("kept".into(), snapshot);
    vm.memory = Some(begun.clone());
    for _ in 0..2 {
        done(suite.engine.remove_memory(&vm));
        let left = [&kept, &begun, &needless, &suspended].map(|p| suite.fixture.has_memory(p));
        assert_eq!(left, [true, true, false, true]);
    }
    vm.goal = Goal::Stopped;
    vm.memory = None;
    done(suite.engine.remove_memory(&vm));
    let left = [&kept, &begun, &suspended].map(|p| suite.fixture.has_memory(p));
    assert_eq!(left, [true, false, false]);
    vm.goal = Goal::Gone;
    for _ in 0..REMOVALS_MAX {
        done(suite.engine.remove_memory(&vm));
    }
    assert_eq!(done(suite.engine.memories()), []);
}
