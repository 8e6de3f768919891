//! What must hold where something is in the way, or missing.

use super::life::Life;
use super::{DISK_MB, Outcome, Rig, TEMPLATE_BEGIN, must, vm};
use crate::StorageError;
use std::time::{Duration, Instant};
use tt_model::Vm;
use tt_model::plan::{HIDDEN_MAX, plan_merge};

/// How much a clause about space writes, in MB: more than the noise of a file system's own blocks.
const WRITTEN_MB: u32 = 24;
/// The noise, in MB.
const NOISE_MB: u64 = 8;
/// Room that a file system gives back later is there by then.
const FREED_WITHIN: Duration = Duration::from_secs(60);

/// Names that people and imports bring: some are no names of files, data sets or subvolumes.
pub(super) fn odd_names_lead_nowhere(rig: &dyn Rig) -> Outcome {
    let storage = rig.storage();
    let long = "n".repeat(300);
    let odd =
        ["..", "a/../b", "a@b", "a b", "-rf", "a#b%", "a,b=c", "\u{1f600}", "a\nb", &long, ""];
    // People name Vms and snapshots.
    let mut life = Life::new(rig, 50);
    for name in odd {
        (life.vm.name, life.vm.env_name) = (name.to_owned(), name.to_owned());
        life.vm.template.name = name.into();
        if life.take(name) {
            life.apply(name);
            life.drop(name);
        }
    }
    life.check();
    life.end();
    // A digest is the catalogue's; a record that was altered could bring any.
    for name in odd {
        let mut vm = vm(50, storage.kind());
        vm.template.digest = name.into();
        match storage.create_image(&vm) {
            Ok(()) => {
                let begin = rig.read(&vm, 0, TEMPLATE_BEGIN.len());
                assert!(begin.is_none_or(|begin| begin == TEMPLATE_BEGIN));
                must(storage.destroy_image(&vm));
            }
            Err(StorageError::CheckPath { .. }) => assert_eq!(must(storage.images()), []),
            Err(error) => panic!("{name:?}: {error:?}"),
        }
    }
    Ok(())
}

/// What no back end made is neither used nor removed by a create.
pub(super) fn what_is_foreign_is_left_alone(rig: &dyn Rig) -> Outcome {
    let storage = rig.storage();
    let vm = vm(51, storage.kind());
    if !rig.plant(&vm) {
        return Err("nothing can be in its way");
    }
    for _ in 0..2 {
        let error = storage.create_image(&vm);
        let refused = matches!(error, Err(StorageError::Damaged { .. }));
        assert!(refused, "{error:?}");
    }
    must(storage.remove_stray(vm.id));
    must(storage.create_image(&vm));
    must(storage.destroy_image(&vm));
    must(storage.collect_templates(&|_| false));
    if rig.plant_template() {
        let error = storage.create_image(&vm);
        assert!(matches!(error, Err(StorageError::Damaged { .. })), "{error:?}");
        must(storage.destroy_image(&vm));
        must(storage.collect_templates(&|_| false));
        must(storage.create_image(&vm));
        must(storage.destroy_image(&vm));
    }
    Ok(())
}

/// What disks take is missing from the room, and back once they are gone.
pub(super) fn space_is_taken_and_comes_back(rig: &dyn Rig) -> Outcome {
    if rig.crowd().is_none() {
        return Err("others use its room, too");
    }
    let storage = rig.storage();
    let free_mb = || must(storage.space()).free_mb;
    wait_for_room(rig);
    let mut vm = vm(52, storage.kind());
    vm.resource.disk_size = DISK_MB + WRITTEN_MB;
    must(storage.create_image(&vm));
    let before_mb = free_mb();
    for mb in 0..u64::from(WRITTEN_MB) {
        rig.fill(&vm, (u64::from(DISK_MB) + mb) << 20, 1 << 20, (mb % 250) as u8 + 1);
    }
    wait_for(rig, || free_mb() + u64::from(WRITTEN_MB) <= before_mb + NOISE_MB);
    must(storage.destroy_image(&vm));
    wait_for(rig, || free_mb() + NOISE_MB >= before_mb);
    Ok(())
}

/// Some pools give back a little later what was removed.
fn wait_for_room(rig: &dyn Rig) {
    let need_mb = crate::RESERVE_MB + 2 * u64::from(WRITTEN_MB);
    wait_for(rig, || must(rig.storage().space()).free_mb > need_mb);
}

fn wait_for(rig: &dyn Rig, what: impl Fn() -> bool) {
    let end = Instant::now() + FREED_WITHIN;
    while !what() {
        rig.settle();
        assert!(Instant::now() < end, "the room is not what it should be");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A full pool is refused before anything is written; what is there stays, and what takes no room works.
pub(super) fn a_full_pool_loses_nothing(rig: &dyn Rig) -> Outcome {
    let storage = rig.storage();
    let kind = storage.kind();
    let mut life = Life::new(rig, 53);
    for name in ["a", "b"] {
        life.write();
        assert!(life.take(name));
    }
    let Some(crowd) = rig.crowd() else {
        life.end();
        return Err("others use its room, too");
    };
    let full = |result: Result<(), StorageError>| {
        assert!(matches!(result, Err(StorageError::NoSpace { .. })), "{result:?}");
    };
    full(storage.create_image(&vm(54, kind)));
    life.check_runtime();
    // A snapshot fails; given up, it leaves nothing, and the disks are what they were.
    let before = life.vm.clone();
    assert!(life.plan_take("c"));
    full(storage.create_snapshot(&life.vm, &life.vm.snapshots["c"]));
    must(storage.destroy_snapshot(&life.vm));
    life.vm = before;
    life.check();
    // An apply fails; it is made once there is room.
    life.plan_apply("a");
    full(storage.apply_snapshot(&life.vm, &life.vm.snapshots["a"]));
    full(storage.create_image(&life.vm));
    full(storage.keep_image(&life.vm).map(drop));
    must(storage.destroy_snapshot(&life.vm));
    drop(crowd);
    wait_for_room(rig);
    life.apply("b");
    life.apply("a");
    life.check();
    // What takes no room works on a full pool.
    let crowd = rig.crowd();
    life.drop("b");
    life.drop("a");
    assert!(must(storage.keep_image(&life.vm)));
    life.check_runtime();
    let based = Vm { base: Some(life.vm.runtime_image.clone()), ..vm(54, kind) };
    full(storage.create_image(&based));
    life.check_runtime();
    must(storage.remove_stray(life.vm.id));
    drop(crowd);
    wait_for_room(rig);
    a_merge_waits_for_room(rig);
    Ok(())
}

fn a_merge_waits_for_room(rig: &dyn Rig) {
    let storage = rig.storage();
    if !storage.kind().is_layered() {
        return;
    }
    let mut life = Life::new(rig, 55);
    for _ in 0..HIDDEN_MAX + 3 {
        life.write();
        assert!(life.take("a"));
        life.settle();
        life.drop("a");
    }
    life.write();
    let mut planned = life.vm.clone();
    assert!(plan_merge(&mut planned, &must(storage.taken_mb(&life.vm))));
    let crowd = rig.crowd();
    let mut merging = must(storage.begin_merge(&planned));
    let copied = merging.copy(&|| true);
    assert!(matches!(copied, Err(StorageError::NoSpace { .. })), "{copied:?}");
    drop(merging);
    life.check_runtime();
    drop(crowd);
    wait_for_room(rig);
    assert!(life.merge());
    life.check();
    life.end();
}

/// Without its pool nothing is made, nothing is taken for lost, and all of it is there when the pool is.
pub(super) fn a_missing_pool_is_waited_for(rig: &dyn Rig) -> Outcome {
    let mut life = Life::new(rig, 55);
    life.write();
    assert!(life.take("a"));
    let Some(pool) = rig.lose_pool() else {
        life.end();
        return Err("the data directory is its pool");
    };
    let storage = rig.storage();
    let snapshot = &life.vm.snapshots["a"];
    let away = |result: Result<(), StorageError>| match result {
        Err(e) => assert!(e.is_retryable(), "{e:?}"),
        Ok(()) => panic!("it works without its pool"),
    };
    away(storage.create_image(&life.vm));
    away(storage.create_image(&vm(56, storage.kind())));
    away(storage.create_snapshot(&life.vm, snapshot));
    away(storage.apply_snapshot(&life.vm, snapshot));
    away(storage.keep_image(&life.vm).map(drop));
    away(storage.destroy_image(&life.vm));
    assert_eq!(must(storage.images()), [life.vm.id]);
    drop(pool);
    must(storage.create_image(&life.vm));
    life.check();
    life.write();
    life.apply("a");
    life.check();
    life.end();
    Ok(())
}
