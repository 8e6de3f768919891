//! What must hold of snapshots: taken, applied, removed, in any order and again.

use super::life::Life;
use super::{DISK_MB, Outcome, Rig, TEMPLATE_MB, must, vm};
use crate::StorageError;
use std::fs;
use tt_model::names::runtime_image;
use tt_model::plan::{HIDDEN_MAX, plan_take};
use tt_model::{Snapshot, Vm};

/// Runs this part of the suite.
pub(super) fn run(rig: &dyn Rig) -> Outcome {
    snapshots_apply_in_any_order(rig);
    what_others_lie_on_stays(rig);
    ten_generations_come_and_go(rig);
    sizes_follow_the_record(rig);
    tries_that_were_given_up_leave_nothing(rig);
    frozen_disks_belong_to_no_machine(rig);
    what_is_lost_is_not_made_up(rig);
    wrong_snapshots_are_refused(rig);
    layers_that_nothing_names_are_merged(rig);
    Ok(())
}

fn layers_that_nothing_names_are_merged(rig: &dyn Rig) {
    let mut life = Life::new(rig, 28);
    assert!(rig.storage().begin_merge(&life.vm).is_err(), "none is planned");
    for round in 0..14 {
        life.write();
        assert!(life.take(&format!("s{round}")));
        life.settle();
        // Every sixth stays, and once others begin from one.
        if round % 6 != 0 {
            life.drop(&format!("s{round}"));
        }
        if round == 9 {
            life.apply("s6");
            life.settle();
        }
        while life.merge() {
            life.check();
        }
        rig.settle();
    }
    assert!(life.vm.disks.len() <= HIDDEN_MAX + 2 * life.names().len() + 2, "{:?}", life.vm.disks);
    for name in life.names() {
        life.apply(&name);
        life.check();
    }
    life.end();
}

fn snapshots_apply_in_any_order(rig: &dyn Rig) {
    let mut life = Life::new(rig, 20);
    for name in ["a", "b", "c"] {
        life.write();
        assert!(life.take(name));
    }
    life.write();
    for name in ["a", "c", "b", "b", "a", "c"] {
        life.apply(name);
        life.check();
        life.write();
    }
    life.check();
    life.end();
}

fn what_others_lie_on_stays(rig: &dyn Rig) {
    for order in [["a", "b", "c"], ["c", "b", "a"], ["b", "a", "c"]] {
        let mut life = Life::new(rig, 21);
        for name in ["a", "b", "c"] {
            life.write();
            assert!(life.take(name));
        }
        life.apply("b");
        life.write();
        for name in order {
            life.drop(name);
            life.check();
        }
        if !rig.storage().kind().is_layered() {
            assert_eq!(life.vm.disks.len(), 1, "{:?}", life.vm.disks);
        }
        life.end();
    }
}

fn ten_generations_come_and_go(rig: &dyn Rig) {
    let mut life = Life::new(rig, 22);
    for generation in 0..10 {
        life.write();
        let name = format!("s{generation}");
        assert!(life.take(&name));
        life.write();
        life.apply(&name);
    }
    life.check();
    for generation in [3, 0, 9, 1, 7, 5, 2, 8, 4] {
        life.drop(&format!("s{generation}"));
    }
    life.apply("s6");
    life.check();
    life.end();
}

fn sizes_follow_the_record(rig: &dyn Rig) {
    let mut life = Life::new(rig, 23);
    life.write();
    assert!(life.take("small"));
    life.grow(4);
    assert!(life.take("large"));
    life.apply("small");
    assert_eq!(rig.size_mb(&life.vm), Some(DISK_MB.into()));
    life.grow(1);
    life.apply("large");
    assert_eq!(rig.size_mb(&life.vm), Some(u64::from(DISK_MB) + 4));
    // No disk of a snapshot is cut off.
    life.plan_apply("large");
    life.vm.resource.disk_size = TEMPLATE_MB;
    let error = rig.storage().create_image(&life.vm);
    assert!(matches!(error, Err(StorageError::BelowSource { .. })), "{error:?}");
    assert_eq!(rig.size_mb(&life.vm), None);
    life.vm.resource.disk_size = DISK_MB + 4;
    must(rig.storage().create_image(&life.vm));
    must(rig.storage().destroy_snapshot(&life.vm));
    life.check();
    life.end();
}

fn tries_that_were_given_up_leave_nothing(rig: &dyn Rig) {
    let mut life = Life::new(rig, 24);
    life.write();
    assert!(life.plan_take("a"));
    plan_take(&mut life.vm, "a");
    must(rig.storage().create_snapshot(&life.vm, &life.vm.snapshots["a"]));
    if let Some(layout) = rig.layout() {
        let half = layout.images_of(life.vm.id).join("77.raw.tmp");
        must(fs::write(half, b"half"));
        must(fs::write(layout.images_of(life.vm.id).join("77.raw"), b"whole"));
    }
    plan_take(&mut life.vm, "a");
    life.take_planned("a");
    life.check();
    // Applied twice before anything of it is made.
    life.plan_apply("a");
    life.apply("a");
    life.check();
    life.end();
}

fn frozen_disks_belong_to_no_machine(rig: &dyn Rig) {
    let Some(layout) = rig.layout() else { return };
    let mut life = Life::new(rig, 25);
    assert!(life.take("a"));
    let uid = layout.uid(life.vm.id);
    let frozen = |vm: &Vm| {
        let path = vm.snapshots["a"].path.clone();
        rig.rights(&Vm { runtime_image: path, ..vm.clone() })
    };
    let want = if rig.storage().kind().is_layered() { (0, uid, 0o440) } else { (0, 0, 0o600) };
    let want = rig.is_frozen_a_file().then_some(want);
    assert_eq!(frozen(&life.vm), want);
    life.apply("a");
    assert_eq!(frozen(&life.vm), want);
    assert_eq!(rig.rights(&life.vm), Some((uid, uid, 0o600)));
    life.end();
}

fn what_is_lost_is_not_made_up(rig: &dyn Rig) {
    let mut life = Life::new(rig, 26);
    life.write();
    assert!(life.take("a"));
    life.plan_apply("a");
    must(rig.storage().destroy_image(&life.vm));
    let snapshot = &life.vm.snapshots["a"];
    for result in [
        rig.storage().create_image(&life.vm),
        rig.storage().apply_snapshot(&life.vm, snapshot),
        rig.storage().create_snapshot(&life.vm, snapshot),
        rig.storage().sync_disk(&life.vm, snapshot.epoch.unwrap_or_default()),
        rig.storage().sync_disk(&life.vm, life.vm.epoch),
    ] {
        assert!(matches!(result, Err(StorageError::Lost { .. })), "{result:?}");
    }
    assert_eq!(must(rig.storage().images()), []);
}

fn wrong_snapshots_are_refused(rig: &dyn Rig) {
    let kind = rig.storage().kind();
    let vm = vm(27, kind);
    must(rig.storage().create_image(&vm));
    let good = runtime_image(kind, vm.id, 1);
    for (path, epoch) in [
        ("", None),
        ("", Some(1)),
        ("/etc/passwd", Some(1)),
        ("images/27/../26/1.raw", Some(1)),
        ("images/26/1.raw", Some(1)),
        (good.as_str(), Some(2)),
        // The runtime image is no snapshot.
        (vm.runtime_image.as_str(), Some(0)),
    ] {
        let snapshot = Snapshot { path: path.into(), epoch, ..Snapshot::default() };
        for result in [
            rig.storage().create_snapshot(&vm, &snapshot),
            rig.storage().apply_snapshot(&vm, &snapshot),
        ] {
            assert!(matches!(result, Err(StorageError::CheckName { .. })), "{path}: {result:?}");
        }
    }
    assert_eq!(rig.size_mb(&vm), Some(DISK_MB.into()));
    must(rig.storage().destroy_image(&vm));
    must(rig.storage().destroy_snapshot(&Vm { epoch: 9, ..vm }));
}
