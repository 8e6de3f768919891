//! Disks in volumes of their own, and what the removal of one meets.

use crate::common::{Files, tool};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use tt_model::StorageKind::{self, Btrfs, File as Raw, Qcow2};
use tt_model::{Vm, VmId};
use tt_storage::conformance::{Life, Rig, vm};

fn btrfs(args: &[&str], path: &Path) {
    tool(Command::new("btrfs").args(["-q", "subvolume"]).args(args).arg(path)).unwrap();
}

#[test]
fn nested_and_read_only_subvolumes_go() {
    let Some(mount) = crate::mount(&crate::BTRFS, 256, "nested_and_read_only_subvolumes_go") else {
        return;
    };
    let files = Files::new(&mount.path(), Btrfs);
    let mut life = Life::new(&files, 1);
    assert!(life.take("a"));
    let dir = files.layout.images_of(life.vm.id);
    // Those of somebody who looked around, in a disk's subvolume and beside it.
    btrfs(&["create"], &dir.join("0.btrfs/inner"));
    btrfs(&["create"], &dir.join("0.btrfs/inner/innermost"));
    btrfs(&["create"], &dir.join("other"));
    fs::create_dir(dir.join("plain")).unwrap();
    btrfs(&["create"], &dir.join("plain/volume"));
    tool(
        Command::new("btrfs")
            .args(["property", "set"])
            .arg(dir.join("0.btrfs/inner"))
            .args(["ro", "true"]),
    )
    .unwrap();
    files.storage().destroy_snapshot(&life.vm).unwrap();
    let mut left: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["0.btrfs", "1.btrfs"]);
    // Whichever back end is asked.
    Files::new(&mount.path(), Raw).storage().remove_stray(life.vm.id).unwrap();
    assert!(!dir.exists());
    life.vm.id = VmId(2);
    files.storage().remove_stray(life.vm.id).unwrap();
}

#[test]
fn snapshots_can_not_be_changed_once_they_are_ready() {
    let test = "snapshots_can_not_be_changed_once_they_are_ready";
    let Some(mount) = crate::mount(&crate::BTRFS, 256, test) else { return };
    let files = Files::new(&mount.path(), Btrfs);
    let mut life = Life::new(&files, 1);
    assert!(life.take("a"));
    let frozen = mount.path().join(&life.vm.snapshots["a"].path);
    let error = File::options().write(true).open(&frozen).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    // Each disk is a file system of its own to the kernel: nothing was copied.
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_ne!(device(&frozen), device(&files.layout.disk(&life.vm)));
    let base = mount.path().join("volumes/sample.btrfs/disk.raw");
    assert!(File::options().write(true).open(base).is_err(), "a template's volume can be written");
    life.write();
    life.apply("a");
    life.check();
    life.end();
}

#[test]
fn a_host_serves_disks_of_every_kind() {
    let Some(mount) = crate::mount(&crate::BTRFS, 512, "a_host_serves_disks_of_every_kind") else {
        return;
    };
    let all = [Raw, Qcow2, Btrfs].map(|kind: StorageKind| Files::new(&mount.path(), kind));
    let vms: Vec<Vm> = all.iter().zip(1..).map(|(files, id)| vm(id, files.kind)).collect();
    for (files, vm) in all.iter().zip(&vms) {
        files.storage().create_image(vm).unwrap();
    }
    for (files, vm) in all.iter().zip(&vms) {
        assert_eq!(files.storage().images().unwrap(), [VmId(1), VmId(2), VmId(3)]);
        files.storage().create_image(vm).unwrap();
        assert_eq!(fs::metadata(files.layout.disk(vm)).unwrap().uid(), files.layout.uid(vm.id));
    }
    for vm in &vms {
        // The sweep asks all of them.
        all.iter().for_each(|files| files.storage().remove_stray(vm.id).unwrap());
    }
    for files in &all {
        files.storage().collect_templates(&|_| false).unwrap();
        assert_eq!(files.storage().images().unwrap(), []);
    }
    assert_eq!(all[0].templates(), [""; 0]);
}
