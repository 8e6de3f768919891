//! Disks that were there and are not any more: told, never made anew.

use crate::common::{Files, has_qemu_img};
use crate::pool::{Pool, Sets, zfs};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tt_model::StorageKind::{self, File as Raw, Qcow2};
use tt_storage::StorageError;
use tt_storage::conformance::{Life, Rig};

/// `lose` takes the runtime image away; where it is a file, others are lost, too.
fn is_told(rig: &dyn Rig, lose: &dyn Fn(&Path)) {
    let disk = |life: &Life<'_>| rig.layout().unwrap().disk(&life.vm);
    let storage = rig.storage();
    let mut life = Life::new(rig, 1);
    // Before it was ever used, it may be made anew.
    lose(&disk(&life));
    storage.create_image(&life.vm).unwrap();
    life.write();
    assert!(life.take("a"));
    life.write();
    life.settle();
    lose(&disk(&life));
    for _ in 0..2 {
        let error = storage.create_image(&life.vm).unwrap_err();
        assert!(matches!(error, StorageError::Lost { .. }) && !error.is_retryable(), "{error:?}");
    }
    // Its owner decides.
    life.apply("a");
    life.settle();
    life.check();
    life.end();
}

fn is_waited_for(files: &Files) {
    let mut life = Life::new(files, 2);
    life.write();
    assert!(life.take("a"));
    life.write();
    life.settle();
    let (data, dir) = (&files.layout.data, files.layout.images_of(life.vm.id));
    let (frozen, away) = (data.join(&life.vm.snapshots["a"].path), data.join("away"));
    let old = dir.join(format!("99.{}", files.kind.extension()));
    fs::rename(&frozen, &away).unwrap();
    files.storage().destroy_snapshot(&life.vm).unwrap();
    fs::write(&old, b"old").unwrap();
    let error = files.storage().destroy_snapshot(&life.vm).unwrap_err();
    assert!(matches!(error, StorageError::Away { .. }) && error.is_retryable(), "{error:?}");
    assert!(old.exists());
    fs::rename(&away, &frozen).unwrap();
    files.storage().destroy_snapshot(&life.vm).unwrap();
    assert!(!old.exists());
    life.check();
    life.end();
}

#[test]
fn a_lost_disk_is_told_and_nothing_is_removed_while_one_is_away() {
    let kinds = if has_qemu_img() { vec![Raw, Qcow2] } else { vec![Raw] };
    for kind in kinds {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path(), kind);
        is_told(&files, &|disk| fs::remove_file(disk).unwrap());
        is_waited_for(&files);
    }
}

#[test]
fn a_lost_data_set_is_told() {
    let test = "a_lost_data_set_is_told";
    let Some(pool) = Pool::try_new(256, test) else { return };
    let sets = Sets::new(&pool);
    // As a pool that was made anew has it: what the directories stand for is not there.
    let lose = |_: &Path| {
        let destroy = || zfs(&["destroy", "-r", &format!("{}/v/1.0", sets.root())]);
        // It is busy for a moment after its last user has gone.
        while destroy().is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let mut life = Life::new(&sets, 1);
    life.write();
    life.settle();
    lose(Path::new(""));
    let error = sets.storage().create_image(&life.vm).unwrap_err();
    assert!(matches!(error, StorageError::Lost { .. }) && !error.is_retryable(), "{error:?}");
    assert_eq!(life.vm.storage, StorageKind::Zfs);
    life.end();
}
