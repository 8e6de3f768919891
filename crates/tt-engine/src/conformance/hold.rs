//! Clauses about machines that are held still for a moment, and about daemons that die meanwhile.

use super::memory::next;
use super::needs::{MEMORY, Needs};
use super::{Clause, Suite, bell, done};
use crate::{EngineError, Machine};
use tt_model::{Snapshot, StopMode, Vm, feat, names};

pub(super) const CLAUSES: &[Clause] = &[
    (
        "a hold takes the memory of its moment, and the guest goes on",
        Needs::Features(MEMORY),
        holds,
    ),
    ("a hold of a paused machine leaves it paused", Needs::Features(MEMORY), holds_paused),
    ("while held, the disk gets a layer", Needs::Layers, switches),
    ("a living machine lies on what the record says", Needs::Layers, lies_on_merges),
    (
        "a hold that is dropped leaves no memory, and the guest goes on to a clean end",
        Needs::Features(MEMORY),
        drops,
    ),
    ("a hold without memory keeps none", Needs::Features(feat::SNAPSHOT), holds_without_memory),
    (
        "an absent machine's memory is what it would begin from",
        Needs::Features(MEMORY),
        holds_absent,
    ),
    ("what a daemon held that died is found, and goes on", Needs::Features(MEMORY), survives_death),
    (
        "a held machine of a dead daemon can be suspended and held again",
        Needs::Features(MEMORY),
        works_after_death,
    ),
];

fn holds(suite: &Suite<'_>) {
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
    let mut vm = suite.layered();
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

fn lies_on_merges(suite: &Suite<'_>) {
    let mut vm = suite.layered();
    suite.start(&vm);
    for _ in 0..4 {
        let mut hold = suite.hold(&vm, None);
        // By then it has opened what is frozen now.
        done(hold.pause());
        let layered = suite.fixture.with_layer(&vm);
        done(hold.switch_disk(&layered));
        done(hold.release());
        done(hold.finish());
        vm = layered;
        done(suite.engine.update_vm(&vm));
    }
    let has_open = |vm: &Vm, epoch: u32| {
        let runtime_image = names::runtime_image(vm.storage, vm.id, epoch);
        suite.fixture.has_open(&Vm { epoch, runtime_image, ..vm.clone() })
    };
    assert!([0, 1, 2, 3, 4].iter().all(|epoch| has_open(&vm, *epoch)));
    let content = suite.fixture.tick(&vm);
    for _ in 0..2 {
        let merged = suite.fixture.with_merge(&vm);
        done(suite.engine.update_vm(&merged));
        done(suite.engine.update_vm(&merged));
        let gone = vm.disks.keys().filter(|epoch| !merged.disks.contains_key(epoch));
        assert!(gone.clone().count() == 2 && !gone.into_iter().any(|epoch| has_open(&vm, *epoch)));
        assert!(merged.disks.keys().all(|epoch| has_open(&merged, *epoch)));
        assert!(suite.fixture.beats(&merged), "the guest stands still");
        vm = merged;
    }
    // A layer that a dead daemon had made and not switched to.
    vm = suite.fixture.with_layer(&suite.fixture.with_layer(&vm));
    done(suite.engine.update_vm(&vm));
    assert!(vm.disks.keys().all(|epoch| has_open(&vm, *epoch)), "{:?}", vm.disks);
    assert_eq!(suite.fixture.content(&vm), content);
    suite.suspend(&vm);
    suite.start(&vm);
    assert!(vm.disks.keys().all(|epoch| has_open(&vm, *epoch)), "a new process has other disks");
    suite.forget(&vm);
}

fn drops(suite: &Suite<'_>) {
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
    suite.fixture.power_off(&vm);
    suite.exited(&vm, true);
    suite.forget(&vm);
}

fn holds_without_memory(suite: &Suite<'_>) {
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
        next.fixture.power_off(&vm);
        next.exited(&vm, true);
        next.remove(&vm);
        done(next.engine.remove_memory(&vm));
        assert_eq!(done(next.engine.memories()), [], "memory is left after {steps} steps");
        assert_eq!(done(next.engine.machines()), []);
    }
}

fn works_after_death(suite: &Suite<'_>) {
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
