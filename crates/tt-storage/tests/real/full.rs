//! File systems that are full, or run full.

use crate::common::{Files, has_qemu_img};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tt_model::StorageKind::{self, File as Raw, Qcow2};
use tt_model::Vm;
use tt_storage::conformance::{Life, Rig, vm};
use tt_storage::{RESERVE_MB, StorageError};

#[test]
fn a_full_file_system_is_refused_before_and_cleaned_after() {
    let Some(ext4) =
        crate::mount(&crate::EXT4, 320, "a_full_file_system_is_refused_before_and_cleaned_after")
    else {
        return;
    };
    let files = Files::new(&ext4.path(), Raw);
    crate::enlarge_template(&ext4.path(), 100);
    let (mut one, mut two) = (vm(1, Raw), vm(2, Raw));
    one.resource.disk_size = 200;
    two.resource.disk_size = 200;
    files.storage().create_image(&one).unwrap();
    match files.storage().create_image(&two).unwrap_err() {
        StorageError::NoSpace { need_mb, free_mb, .. } => {
            // The file system's own blocks for the file may add one.
            assert!((100..=101).contains(&(need_mb - RESERVE_MB)), "{need_mb}");
            assert!(free_mb < need_mb);
        }
        e => panic!("{e}"),
    }
    assert_eq!(files.size_mb(&two), None);

    // Now others take the room while the copy runs.
    files.storage().destroy_image(&one).unwrap();
    let full = (0..50).any(|_| fill_while_created(&files, &ext4.path(), &two));
    assert!(full, "the copy was never overtaken");
    let left: Vec<_> = fs::read_dir(files.layout.images_of(two.id)).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    files.storage().create_image(&two).unwrap();
}

/// Whether a create failed because the file system ran full meanwhile.
fn fill_while_created(files: &Files, data: &Path, vm: &Vm) -> bool {
    let filler = data.join("filler");
    let temporary = PathBuf::from(format!("{}.tmp", files.layout.disk(vm).display()));
    let created = std::thread::scope(|scope| {
        scope.spawn(|| {
            let deadline = Instant::now() + Duration::from_secs(5);
            while !temporary.exists() && Instant::now() < deadline {
                std::hint::spin_loop();
            }
            let file = File::create(&filler).unwrap();
            for size_mb in (1..=256_u64).rev() {
                if fallocate(&file, FallocateFlags::empty(), 0, size_mb << 20).is_ok() {
                    break;
                }
            }
        });
        files.storage().create_image(vm)
    });
    fs::remove_file(&filler).unwrap();
    match created {
        Ok(()) => {
            files.storage().destroy_image(vm).unwrap();
            false
        }
        Err(StorageError::NoSpace { .. }) => true,
        Err(e) => panic!("{e:?}"),
    }
}

/// What takes room of a file system, until it is dropped.
struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        // XFS frees what a removed file had a little later, but what is cut off at once.
        let _ = File::create(&self.0);
        let _ = fs::remove_file(&self.0);
    }
}

/// Leaves a little less than the reserve free.
fn fill(data: &Path) -> Filler {
    let filler = Filler(data.join("filler"));
    let file = File::create(&filler.0).unwrap();
    let stat = rustix::fs::statvfs(data).unwrap();
    let free_mb = (stat.f_bavail * stat.f_frsize) >> 20;
    fallocate(&file, FallocateFlags::empty(), 0, (free_mb - RESERVE_MB + 8) << 20).unwrap();
    filler
}

#[test]
fn a_full_file_system_loses_nothing_at_any_verb() {
    let test = "a_full_file_system_loses_nothing_at_any_verb";
    for mkfs in [&crate::EXT4[..], &crate::XFS[..]] {
        let Some(mount) = crate::mount(mkfs, 384, test) else { return };
        loses_nothing(&mount.path(), Raw);
        if has_qemu_img() {
            loses_nothing(&mount.path(), Qcow2);
        } else {
            println!("SKIPPED {test} with qcow2: qemu-img is not installed");
        }
    }
}

fn loses_nothing(data: &Path, kind: StorageKind) {
    let files = Files::new(data, kind);
    let storage = files.storage();
    let mut life = Life::new(&files, 1);
    for name in ["a", "b"] {
        life.write();
        assert!(life.take(name));
    }
    let filler = fill(data);
    let full = |result: Result<(), StorageError>| {
        assert!(matches!(result, Err(StorageError::NoSpace { .. })), "{result:?}");
    };
    full(storage.create_image(&vm(2, kind)));
    life.check_runtime();
    // A snapshot fails; given up, it leaves nothing, and the disks are what they were.
    let before = life.vm.clone();
    assert!(life.plan_take("c"));
    full(storage.create_snapshot(&life.vm, &life.vm.snapshots["c"]));
    storage.destroy_snapshot(&life.vm).unwrap();
    life.vm = before;
    life.check();
    // An apply fails; it is made once there is room.
    life.plan_apply("a");
    full(storage.apply_snapshot(&life.vm, &life.vm.snapshots["a"]));
    full(storage.create_image(&life.vm));
    full(storage.keep_image(&life.vm).map(drop));
    storage.destroy_snapshot(&life.vm).unwrap();
    drop(filler);
    life.apply("b");
    life.apply("a");
    life.check();
    // What takes no room works on a full file system.
    let _filler = fill(data);
    life.drop("b");
    life.drop("a");
    assert!(storage.keep_image(&life.vm).unwrap());
    life.check_runtime();
    let based = Vm { base: Some(life.vm.runtime_image.clone()), ..vm(2, kind) };
    full(storage.create_image(&based));
    life.check_runtime();
    storage.remove_stray(life.vm.id).unwrap();
    assert!(storage.images().unwrap().is_empty());
}
