//! File systems that are full, or run full.

use crate::common::{Files, has_qemu_img};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tt_model::StorageKind::{self, File as Raw, Qcow2};
use tt_model::Vm;
use tt_storage::conformance::{CLAUSES, Rig, vm};
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
    let full = CLAUSES.into_iter().find(|(name, _)| *name == "full pool").unwrap();
    full.1(&Files::alone(data, kind)).unwrap();
}
