//! Clauses about memory on disk, holds and incarnations.

use super::{Clause, END_MAX, REMOVALS_MAX, Suite, bell, done};
use crate::{EngineError, Hold, Machine};
use std::time::Instant;
use tt_model::{Goal, MachineSize, Snapshot, StopMode, Vm, feat, names};

pub(super) const CLAUSES: &[Clause] = &[
    ("suspend keeps memory on disk, and the next start goes on from it, once", suspends),
    ("a paused machine is suspended, too", suspends_paused),
    ("suspend of what has no process does nothing", suspends_nothing),
    ("a machine of an earlier incarnation is outdated, and is replaced", replaces),
    ("a new incarnation begins from memory once", begins_from_memory),
    ("memory that does not fit is refused, and nothing is changed", refuses_misfit),
    ("a hold takes the memory of its moment, and the guest goes on", holds),
    ("a hold of a paused machine leaves it paused", holds_paused),
    ("while held, the disk gets a layer", switches),
    ("a hold that is dropped leaves no memory, and the guest goes on", drops),
    ("a hold without memory keeps none", holds_without_memory),
    ("an absent machine's memory is what it would begin from", holds_absent),
    ("what a daemon held that died is found, and goes on", survives_death),
    ("a held machine of a dead daemon can be suspended and held again", works_after_death),
    ("memory of memory of memory is as good", goes_on_for_generations),
    ("update grows the disk of a living machine", updates),
    ("memory that no record names is removed", removes_memory),
];

impl Suite<'_> {
    fn hold(&self, vm: &Vm, memory: Option<&str>) -> Box<dyn Hold> {
        done(self.engine.prepare_hold(vm, memory))
    }

    /// A whole hold; answers whether there was memory.
    fn capture(&self, vm: &Vm, memory: Option<&str>) -> bool {
        let mut hold = self.hold(vm, memory);
        done(hold.pause());
        done(hold.release());
        done(hold.finish())
    }

    /// Suspends it, and removes what is left of the machine.
    fn suspend(&self, vm: &Vm) {
        self.stop(vm, StopMode::Suspend);
        let until = Instant::now() + END_MAX;
        while matches!(self.look(vm), Machine::Running | Machine::Paused) {
            assert!(Instant::now() < until, "a suspended machine goes on living");
        }
        self.remove(vm);
        assert!(self.fixture.has_memory(&names::suspended(vm.id, vm.incarnation)));
    }

    /// Removes machine and memory.
    fn forget(&self, vm: &Vm) {
        self.remove(vm);
        done(self.engine.remove_stray_memory(vm.id));
        assert!(!done(self.engine.memories()).contains(&vm.id), "memory is left");
    }

    fn has_memory(&self) -> bool {
        self.has(feat::SUSPEND | feat::MEMORY_SNAPSHOT | feat::PAUSE)
    }
}

/// The Vm as after an apply of memory at `path`.
fn next(vm: &Vm, path: &str) -> Vm {
    Vm { incarnation: vm.incarnation + 1, memory: Some(path.to_owned()), ..vm.clone() }
}

fn suspends(suite: &Suite<'_>) {
    if !suite.has(feat::SUSPEND) {
        return;
    }
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
    if !suite.has_memory() {
        return;
    }
    let vm = suite.running();
    let content = suite.fixture.tick(&vm);
    suite.stop(&vm, StopMode::Pause);
    suite.suspend(&vm);
    suite.start(&vm);
    assert_eq!(suite.fixture.content(&vm), content);
    suite.forget(&vm);
}

fn suspends_nothing(suite: &Suite<'_>) {
    if !suite.has(feat::SUSPEND) {
        return;
    }
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
    if !suite.has_memory() {
        return;
    }
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
    if !suite.has(feat::SUSPEND) {
        return;
    }
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

fn holds(suite: &Suite<'_>) {
    if !suite.has_memory() {
        return;
    }
    let vm = suite.running();
    let path = names::memory(vm.id, 1);
    let content = suite.fixture.tick(&vm);
    let mut hold = suite.hold(&vm, Some(&path));
    assert!(suite.fixture.beats(&vm), "the guest stands still before the pause");
    done(hold.pause());
    assert!(!suite.fixture.beats(&vm), "a held guest goes on");
    assert_eq!(suite.look(&vm), Machine::Paused);
    done(hold.release());
    assert_eq!(suite.look(&vm), Machine::Running);
    assert!(suite.fixture.tick(&vm) > content, "the guest lost its memory");
    assert!(!suite.fixture.has_memory(&path), "memory is there before it is complete");
    assert!(done(hold.finish()));
    assert!(suite.fixture.has_memory(&path));
    assert_eq!(suite.look(&vm), Machine::Running);
    let next = next(&vm, &path);
    suite.remove(&vm);
    suite.start(&next);
    assert_eq!(suite.fixture.content(&next), content, "it is not the memory of that moment");
    suite.forget(&next);
}

fn holds_paused(suite: &Suite<'_>) {
    if !suite.has_memory() {
        return;
    }
    let vm = suite.running();
    let content = suite.fixture.tick(&vm);
    suite.stop(&vm, StopMode::Pause);
    for number in 1..=2 {
        assert!(suite.capture(&vm, Some(&names::memory(vm.id, number))));
        assert_eq!(suite.look(&vm), Machine::Paused);
        assert!(!suite.fixture.beats(&vm), "a paused guest goes on");
    }
    suite.start(&vm);
    assert_eq!(suite.fixture.content(&vm), content);
    let next = next(&vm, &names::memory(vm.id, 2));
    suite.remove(&vm);
    suite.start(&next);
    assert_eq!(suite.fixture.content(&next), content);
    suite.forget(&next);
}

fn switches(suite: &Suite<'_>) {
    if !suite.has_memory() {
        return;
    }
    let mut vm = suite.fixture.layered_vm();
    suite.start(&vm);
    assert!(suite.fixture.beats(&vm) && suite.fixture.has_open(&vm));
    for memory in [None, Some(names::memory(vm.id, 1)), None] {
        let mut hold = suite.hold(&vm, memory.as_deref());
        let layered = suite.fixture.with_layer(&vm);
        let refused = hold.switch_disk(&layered);
        assert!(matches!(refused, Err(EngineError::Order { .. })), "{refused:?}");
        done(hold.pause());
        done(hold.switch_disk(&layered));
        done(hold.release());
        assert_eq!(done(hold.finish()), memory.is_some());
        assert!(suite.fixture.has_open(&layered), "it has another disk");
        assert!(suite.fixture.beats(&layered), "the guest stands still");
        vm = layered;
    }
    let content = suite.fixture.tick(&vm);
    suite.suspend(&vm);
    suite.start(&vm);
    assert_eq!(suite.fixture.content(&vm), content);
    assert!(suite.fixture.has_open(&vm), "a new process has an old disk");
    suite.forget(&vm);
}

fn drops(suite: &Suite<'_>) {
    if !suite.has_memory() {
        return;
    }
    let vm = suite.running();
    let path = names::memory(vm.id, 1);
    let content = suite.fixture.tick(&vm);
    for steps in 0..3 {
        let mut hold = suite.hold(&vm, Some(&path));
        if steps > 0 {
            done(hold.pause());
        }
        if steps > 1 {
            done(hold.release());
        }
        drop(hold);
        assert_eq!(suite.look(&vm), Machine::Running, "after {steps} steps");
        assert!(suite.fixture.beats(&vm), "the guest stands still after {steps} steps");
        assert_eq!(suite.fixture.content(&vm), content);
        assert!(!suite.fixture.has_memory(&path), "memory is left after {steps} steps");
    }
    suite.forget(&vm);
}

fn holds_without_memory(suite: &Suite<'_>) {
    if !suite.has(feat::SNAPSHOT) {
        return;
    }
    let vm = suite.running();
    let mut hold = suite.hold(&vm, None);
    done(hold.pause());
    assert!(!suite.fixture.beats(&vm), "a held guest goes on");
    done(hold.release());
    assert!(suite.fixture.beats(&vm), "a released guest stands still");
    assert!(!done(hold.finish()));
    assert_eq!(suite.look(&vm), Machine::Running);
    suite.remove(&vm);
    assert_eq!(done(suite.engine.memories()), []);
}

fn holds_absent(suite: &Suite<'_>) {
    if !suite.has_memory() {
        return;
    }
    let vm = suite.running();
    let path = names::memory(vm.id, 1);
    suite.remove(&vm);
    assert!(!suite.capture(&vm, Some(&path)), "a machine that is not there has no memory");
    assert!(!suite.fixture.has_memory(&path));
    suite.start(&vm);
    let content = suite.fixture.tick(&vm);
    suite.suspend(&vm);
    assert!(suite.capture(&vm, Some(&path)));
    // The suspended machine goes on, and what was taken stays.
    suite.start(&vm);
    assert_eq!(suite.fixture.content(&vm), content);
    assert!(suite.fixture.tick(&vm) > content);
    suite.remove(&vm);
    let next = next(&vm, &path);
    let copy = names::memory(vm.id, 2);
    assert!(suite.capture(&next, Some(&copy)), "memory that was not begun from");
    for path in [path, copy] {
        let next = Vm { memory: Some(path), ..next.clone() };
        suite.start(&next);
        assert_eq!(suite.fixture.content(&next), content);
        suite.remove(&next);
        assert!(!suite.capture(&next, Some(&names::memory(vm.id, 3))), "it has begun from it");
        let unmarked = Vm { memory: None, ..next.clone() };
        let keep = |n| Snapshot { memory: Some(names::memory(vm.id, n)), ..Snapshot::default() };
        let snapshots = [1, 2].map(|n| (n.to_string(), keep(n))).into();
        done(suite.engine.remove_memory(&Vm { snapshots, ..unmarked }));
    }
    suite.forget(&vm);
}

/// A daemon's death in the middle of a hold: nobody drops it.
fn dies_holding(suite: &Suite<'_>, vm: &Vm, path: &str, steps: u32) {
    let mut hold = suite.hold(vm, Some(path));
    if steps > 0 {
        done(hold.pause());
    }
    if steps > 1 {
        done(hold.release());
    }
    std::mem::forget(hold);
}

fn survives_death(suite: &Suite<'_>) {
    if !suite.has_memory() {
        return;
    }
    for steps in 0..3 {
        let vm = suite.running();
        let path = names::memory(vm.id, 1);
        let content = suite.fixture.tick(&vm);
        dies_holding(suite, &vm, &path, steps);
        let engine = suite.fixture.restarted();
        let (wake, ends) = bell();
        assert_eq!(engine.init(wake).unusable, None);
        let next = Suite { engine: &*engine, fixture: suite.fixture, ends };
        match steps {
            1 => assert_eq!(next.look(&vm), Machine::Paused),
            _ => assert_eq!(next.look(&vm), Machine::Running, "after {steps} steps"),
        }
        next.start(&vm);
        assert_eq!(next.look(&vm), Machine::Running);
        assert!(next.fixture.beats(&vm), "the guest stands still after {steps} steps");
        assert_eq!(next.fixture.content(&vm), content);
        assert!(!next.fixture.has_memory(&path));
        next.remove(&vm);
        done(next.engine.remove_memory(&vm));
        assert_eq!(done(next.engine.memories()), [], "memory is left after {steps} steps");
        assert_eq!(done(next.engine.machines()), []);
    }
}

fn works_after_death(suite: &Suite<'_>) {
    if !suite.has_memory() {
        return;
    }
    let vm = suite.running();
    let path = names::memory(vm.id, 1);
    let content = suite.fixture.tick(&vm);
    dies_holding(suite, &vm, &path, 1);
    let engine = suite.fixture.restarted();
    let (wake, ends) = bell();
    assert_eq!(engine.init(wake).unusable, None);
    let next = Suite { engine: &*engine, fixture: suite.fixture, ends };
    assert!(next.capture(&vm, Some(&path)));
    assert_eq!(next.look(&vm), Machine::Paused);
    next.suspend(&vm);
    next.start(&vm);
    assert_eq!(next.fixture.content(&vm), content);
    next.forget(&vm);
}

fn goes_on_for_generations(suite: &Suite<'_>) {
    if !suite.has_memory() {
        return;
    }
    let mut vm = suite.running();
    for number in 1..=4 {
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
    if !suite.has(feat::LIVE_UPDATE) {
        return;
    }
    let mut vm = suite.fixture.vm();
    done(suite.engine.update_vm(&vm));
    suite.start(&vm);
    let before = suite.fixture.disk_mb(&vm);
    vm.resource.disk_size = before + 3;
    for _ in 0..2 {
        done(suite.engine.update_vm(&vm));
        assert_eq!(suite.fixture.disk_mb(&vm), before + 3);
    }
    vm.resource.disk_size = before;
    done(suite.engine.update_vm(&vm));
    assert_eq!(suite.fixture.disk_mb(&vm), before + 3, "a disk shrank");
    if suite.has(feat::PAUSE) {
        suite.stop(&vm, StopMode::Pause);
        vm.resource.disk_size = before + 4;
        done(suite.engine.update_vm(&vm));
        assert_eq!(suite.fixture.disk_mb(&vm), before + 4);
        assert_eq!(suite.look(&vm), Machine::Paused);
    }
    suite.remove(&vm);
}

fn removes_memory(suite: &Suite<'_>) {
    if !suite.has_memory() {
        return;
    }
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
