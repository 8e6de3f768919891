//! File systems that are full, or run full.

use crate::common::{Files, has_qemu_img, tool};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tt_model::StorageKind::{self, File as Raw, Qcow2};
use tt_model::{Merge, Vm, names};
use tt_storage::conformance::{CLAUSES, Life, Rig, vm};
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

/// Takes room until so many MB are free.
fn leave(data: &Path, filler: &File, free_mb: u64) {
    rustix::fs::syncfs(filler).unwrap();
    let stat = rustix::fs::statvfs(data).unwrap();
    let have_mb = (stat.f_bavail * stat.f_frsize) >> 20;
    let more_mb = have_mb.checked_sub(free_mb).filter(|more_mb| *more_mb > 0).unwrap();
    let len = filler.metadata().unwrap().len();
    fallocate(filler, FallocateFlags::empty(), len, more_mb << 20).unwrap();
}

#[test]
fn a_merge_asks_for_what_it_copies_and_leaves_its_layers_when_it_gets_none() {
    const LAYER_MB: u64 = 24;
    let test = "a_merge_asks_for_what_it_copies_and_leaves_its_layers_when_it_gets_none";
    if !has_qemu_img() {
        return println!("SKIPPED {test}: qemu-img is not installed");
    }
    let Some(ext4) = crate::mount(&crate::EXT4, 256, test) else { return };
    let files = Files::new(&ext4.path(), Qcow2);
    let mut two = vm(1, Qcow2);
    two.resource.disk_size = LAYER_MB as u32 + 8;
    let mut life = Life::of(&files, two);
    // Two layers that hold the same places, and a third one that a machine would write to.
    for (byte, name) in [(1, "bottom"), (2, "top")] {
        let write = format!("write -P {byte} 0 {LAYER_MB}M");
        let disk = files.layout.disk(&life.vm);
        tool(Command::new("qemu-io").args(["-f", "qcow2", "-c", &write]).arg(disk)).unwrap();
        assert!(life.take(name));
        life.settle();
    }
    let [top, bottom] = ["top", "bottom"].map(|name| life.vm.snapshots[name].epoch.unwrap());
    life.vm.merge = Some(Merge { epoch: life.vm.next_epoch, top, bottom });
    let layers =
        [top, bottom].map(|epoch| ext4.path().join(names::runtime_image(Qcow2, life.vm.id, epoch)));
    let before = layers.each_ref().map(|layer| fs::read(layer).unwrap());
    let filler = File::create(ext4.path().join("filler")).unwrap();
    leave(&ext4.path(), &filler, RESERVE_MB + LAYER_MB + 4);

    // Others take the rest while it copies.
    let mut merging = files.storage().begin_merge(&life.vm).unwrap();
    let asked = std::cell::Cell::new(0);
    let copied = merging.copy(&|| {
        asked.set(asked.get() + 1);
        if asked.get() == 4 {
            leave(&ext4.path(), &filler, 4);
        }
        true
    });
    assert!(matches!(copied, Err(StorageError::NoSpace { .. })), "{copied:?}");
    drop(merging);
    assert!(asked.get() >= 4, "it did not begin");
    assert!(before == layers.each_ref().map(|layer| fs::read(layer).unwrap()));
    let left = fs::read_dir(files.layout.images_of(life.vm.id)).unwrap().count();
    assert_eq!(left, life.vm.disks.len());

    filler.set_len(0).unwrap();
    leave(&ext4.path(), &filler, RESERVE_MB + LAYER_MB + 4);
    let mut merging = files.storage().begin_merge(&life.vm).unwrap();
    assert!(merging.copy(&|| true).unwrap(), "both layers together would not fit");
    merging.finish().unwrap();
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
