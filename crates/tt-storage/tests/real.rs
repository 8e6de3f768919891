//! The back ends on real file systems: the one at hand, XFS and btrfs on loop devices, one that is full, and a create
//! that is killed.

#![cfg(test)]

mod common;

use common::{Files, Mount, tool};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tt_model::StorageKind::{File as Raw, Qcow2};
use tt_storage::conformance::{self, Rig, vm};
use tt_storage::{RESERVE_MB, StorageError, TEMPLATE_DISK, choose};

/// Set in the child that a test kills: the data directory that it works in.
const KILL_DIR: &str = "TT_STORAGE_TEST_KILL_DIR";
const QEMU: &str = "qemu-system-x86_64";
const XFS: [&str; 4] = ["mkfs.xfs", "-q", "-m", "reflink=1"];
const BTRFS: [&str; 2] = ["mkfs.btrfs", "-q"];
const EXT4: [&str; 4] = ["mkfs.ext4", "-q", "-m", "0"];

fn has_qemu_img() -> bool {
    Command::new("qemu-img").arg("--version").output().is_ok()
}

fn suite(data: &Path, test: &str) {
    conformance::run(&Files::new(data, Raw));
    if has_qemu_img() {
        conformance::run(&Files::new(data, Qcow2));
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
    suite(dir.path(), "conforms_on_this_file_system");
}

#[test]
fn conforms_and_shares_blocks_on_xfs() {
    let Some(xfs) = mount(&XFS, 512, "conforms_and_shares_blocks_on_xfs") else {
        return;
    };
    suite(&xfs.path(), "conforms_and_shares_blocks_on_xfs");
    assert_eq!(choose(&xfs.path(), QEMU.as_ref()).unwrap().kind, Raw);
    clone_takes_no_room(&xfs.path());
}

#[test]
fn conforms_and_shares_blocks_on_btrfs() {
    let Some(btrfs) = mount(&BTRFS, 512, "conforms_and_shares_blocks_on_btrfs") else {
        return;
    };
    suite(&btrfs.path(), "conforms_and_shares_blocks_on_btrfs");
    assert_eq!(choose(&btrfs.path(), QEMU.as_ref()).unwrap().kind, Raw);
    clone_takes_no_room(&btrfs.path());
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
    let choice = choose(&ext4.path(), QEMU.as_ref()).unwrap();
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
fn a_full_file_system_is_refused_before_and_cleaned_after() {
    let Some(ext4) = mount(&EXT4, 320, "a_full_file_system_is_refused_before_and_cleaned_after")
    else {
        return;
    };
    let files = Files::new(&ext4.path(), Raw);
    enlarge_template(&ext4.path(), 100);
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
fn fill_while_created(files: &Files, data: &Path, vm: &tt_model::Vm) -> bool {
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
fn a_killed_create_leaves_nothing_that_matters() {
    if let Some(dir) = std::env::var_os(KILL_DIR) {
        // The child: makes and removes images until it is killed.
        let files = Files::new(Path::new(&dir), Raw);
        loop {
            files.storage().create_image(&vm(1, Raw)).unwrap();
            files.storage().destroy_image(&vm(1, Raw)).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), Raw);
    let mut states = [0, 0, 0];
    for round in 0..30_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "a_killed_create_leaves_nothing_that_matters"]);
        child.env(KILL_DIR, dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = child.process_group(0).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(15_000 + round * 977));
        child.kill().unwrap();
        child.wait().unwrap();
        // Whatever is there: complete, in part or absent.
        match files.size_mb(&vm(1, Raw)) {
            Some(size) => {
                assert_eq!(size, u64::from(conformance::DISK_MB));
                states[0] += 1;
            }
            None if files.storage().images().unwrap().is_empty() => states[1] += 1,
            None => states[2] += 1,
        }
        files.storage().create_image(&vm(1, Raw)).unwrap();
        assert_eq!(files.size_mb(&vm(1, Raw)), Some(conformance::DISK_MB.into()));
        assert_eq!(fs::read_dir(files.layout.images_of(vm(1, Raw).id)).unwrap().count(), 1);
        files.storage().destroy_image(&vm(1, Raw)).unwrap();
    }
    println!("complete, absent, in part after a kill: {states:?}");
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

#[test]
fn an_overlay_that_qemu_has_open_is_not_grown() {
    if !has_qemu_img() {
        println!("SKIPPED an_overlay_that_qemu_has_open_is_not_grown: qemu-img is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), Qcow2);
    let mut vm = vm(1, Qcow2);
    files.storage().create_image(&vm).unwrap();
    let mut open = Command::new("qemu-io");
    let open = open.args(["-f", "qcow2"]).arg(files.layout.disk(&vm));
    let mut open = open.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Once it answers, it has the image open.
    open.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
    let mut said = [0; 64];
    let mut until = 0;
    while !String::from_utf8_lossy(&said[..until]).contains("MiB") {
        let len = open.stdout.as_mut().unwrap().read(&mut said[until..]).unwrap();
        assert!(len > 0, "qemu-io ended");
        until += len;
    }
    files.storage().create_image(&vm).unwrap();
    vm.resource.disk_size += 1;
    let error = files.storage().create_image(&vm);
    drop(open.stdin.take());
    open.wait().unwrap();
    assert!(matches!(error, Err(StorageError::InUse { .. })), "{error:?}");
    files.storage().create_image(&vm).unwrap();
    assert_eq!(files.size_mb(&vm), Some(vm.resource.disk_size.into()));
}

#[test]
fn a_spoiled_overlay_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), Qcow2);
    let vm = vm(1, Qcow2);
    files.storage().create_image(&vm).unwrap();
    let image = File::options().write(true).open(files.layout.disk(&vm)).unwrap();
    for (offset, bytes) in [(79_u64, 2_u8), (63, 1), (20, 9), (0, 0)] {
        image.write_all_at(&[bytes], offset).unwrap();
        let error = files.storage().create_image(&vm).unwrap_err();
        assert!(matches!(error, StorageError::Damaged { .. }), "{offset}: {error:?}");
    }
    image.set_len(10).unwrap();
    let error = files.storage().create_image(&vm).unwrap_err();
    assert!(matches!(error, StorageError::Damaged { .. }), "{error:?}");
}
