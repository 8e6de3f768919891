//! The back ends on real file systems: the one at hand, ext4, XFS and btrfs on loop devices.

#![cfg(test)]

mod common;
mod full;
mod killed;
mod lost;
mod machines;
mod merges;
mod pool;
mod sets;
mod table;
mod volumes;
mod zvols;

use common::{Files, Mount, has_qemu_img, tool};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use tt_model::StorageKind::{Btrfs, File as Raw, Qcow2, Zfs, Zvol};
use tt_storage::conformance::{self, Rig, vm};
use tt_storage::{StorageError, TEMPLATE_DISK, choose};

const QEMU: &str = "qemu-system-x86_64";
const XFS: [&str; 4] = ["mkfs.xfs", "-q", "-m", "reflink=1"];
const BTRFS: [&str; 2] = ["mkfs.btrfs", "-q"];
const EXT4: [&str; 4] = ["mkfs.ext4", "-q", "-m", "0"];

fn suite(data: &Path, test: &str) {
    table::run(Raw, &Files::alone(data, Raw));
    if has_qemu_img() {
        table::run(Qcow2, &Files::alone(data, Qcow2));
    } else {
        println!("SKIPPED {test} with qcow2: qemu-img is not installed");
    }
}

fn mount(mkfs: &[&str], size_mb: u64, test: &str) -> Option<Mount> {
    Mount::new(mkfs, size_mb).inspect_err(|reason| println!("SKIPPED {test}: {reason}")).ok()
}

#[test]
fn conforms_on_this_file_system() {
    let dir = tempfile::tempdir().unwrap();
    conformance::run(&Files::new(dir.path(), Raw), |_, _| ());
    if has_qemu_img() {
        conformance::run(&Files::new(dir.path(), Qcow2), |_, _| ());
    } else {
        println!("SKIPPED conforms_on_this_file_system with qcow2: qemu-img is not installed");
    }
}

#[test]
fn conforms_on_ext4() {
    let Some(ext4) = mount(&EXT4, 512, "conforms_on_ext4") else { return };
    suite(&ext4.path(), "conforms_on_ext4");
}

#[test]
fn conforms_and_shares_blocks_on_xfs() {
    let Some(xfs) = mount(&XFS, 512, "conforms_and_shares_blocks_on_xfs") else {
        return;
    };
    suite(&xfs.path(), "conforms_and_shares_blocks_on_xfs");
    assert_eq!(choose(&xfs.path(), QEMU.as_ref(), None).unwrap().kind, Raw);
    clone_takes_no_room(&xfs.path());
}

#[test]
fn conforms_and_shares_blocks_on_btrfs() {
    let Some(btrfs) = mount(&BTRFS, 512, "conforms_and_shares_blocks_on_btrfs") else {
        return;
    };
    suite(&btrfs.path(), "conforms_and_shares_blocks_on_btrfs");
    clone_takes_no_room(&btrfs.path());
}

#[test]
fn subvolumes_conform() {
    let Some(btrfs) = mount(&BTRFS, 512, "subvolumes_conform") else { return };
    assert_eq!(choose(&btrfs.path(), QEMU.as_ref(), None).unwrap().kind, Btrfs);
    let left: Vec<_> = fs::read_dir(btrfs.path()).unwrap().collect();
    assert!(left.is_empty(), "the probe left {left:?}");
    table::run(Btrfs, &Files::alone(&btrfs.path(), Btrfs));
}

#[test]
fn data_sets_conform() {
    let Some(pool) = pool::Pool::try_new(400, "data_sets_conform") else { return };
    table::run(Zfs, &pool::Sets::new(&pool));
}

#[test]
fn zvols_conform() {
    let Some(pool) = pool::Pool::with_volumes(400, "zvols_conform") else { return };
    table::run(Zvol, &pool::Sets::volumes(&pool));
}

/// Five clones of 100 MB fit where two copies would not.
fn clone_takes_no_room(data: &Path) {
    let files = Files::new(data, Raw);
    enlarge_template(data, 100);
    for id in 1..=5 {
        let mut vm = vm(id, Raw);
        vm.resource.disk_size = 1024;
        let start = Instant::now();
        files.storage().create_image(&vm).unwrap();
        println!("clone of 100 MB on {}: {:?}", data.display(), start.elapsed());
    }
    assert!(files.storage().space().unwrap().free_mb > 200);
}

/// Gives the suite's template `size_mb` MB of data.
fn enlarge_template(data: &Path, size_mb: u64) {
    let disk = data.join("templates/sample").join(TEMPLATE_DISK);
    let disk = File::options().write(true).open(disk).unwrap();
    for mb in 0..size_mb {
        disk.write_all_at(&[mb as u8 | 1; 1 << 20], mb << 20).unwrap();
    }
    disk.sync_all().unwrap();
}

#[test]
fn ext4_has_no_reflinks_and_copies_keep_holes() {
    let Some(ext4) = mount(&EXT4, 256, "ext4_has_no_reflinks_and_copies_keep_holes") else {
        return;
    };
    let choice = choose(&ext4.path(), QEMU.as_ref(), None).unwrap();
    let want = if Command::new(QEMU).arg("--version").output().is_ok() { Qcow2 } else { Raw };
    assert_eq!(choice.kind, want);
    assert!(choice.reason.contains("can not share blocks"), "{}", choice.reason);
    let files = Files::new(&ext4.path(), Raw);
    let vm = vm(1, Raw);
    files.storage().create_image(&vm).unwrap();
    let allocated = fs::metadata(files.layout.disk(&vm)).unwrap().blocks() * 512;
    assert!(allocated < 1 << 20, "{allocated} bytes of a template with 8 KiB of data");
}

#[test]
fn hostile_templates_and_images_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), Raw);
    let disk = dir.path().join("templates/sample").join(TEMPLATE_DISK);
    fs::remove_file(&disk).unwrap();
    for target in ["/etc/hostname", "/dev/zero"] {
        std::os::unix::fs::symlink(target, &disk).unwrap();
        let error = files.storage().create_image(&vm(1, Raw)).unwrap_err();
        assert!(matches!(error, StorageError::OpenTemplate { .. }), "{error:?}");
        fs::remove_file(&disk).unwrap();
    }
    tool(Command::new("mkfifo").arg(&disk)).unwrap();
    let error = files.storage().create_image(&vm(1, Raw)).unwrap_err();
    assert!(matches!(error, StorageError::OpenTemplate { .. }), "{error:?}");
    fs::remove_file(&disk).unwrap();
    File::create(&disk).unwrap().set_len(1 << 43).unwrap();
    let error = files.storage().create_image(&vm(1, Raw)).unwrap_err();
    assert!(matches!(error, StorageError::BelowSource { .. }), "{error:?}");
    assert!(!dir.path().join("images").exists());

    let image = files.layout.disk(&vm(2, Raw));
    fs::create_dir_all(files.layout.images_of(vm(2, Raw).id)).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &image).unwrap();
    let error = files.storage().create_image(&vm(2, Raw)).unwrap_err();
    assert!(matches!(error, StorageError::Damaged { .. }), "{error:?}");
    files.storage().destroy_image(&vm(2, Raw)).unwrap();
    assert!(Path::new("/etc/hostname").exists());
}
