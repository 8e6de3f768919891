//! Merges of real layers: whatever QEMU left in them, whatever a machine could have written, whenever a daemon dies.

use crate::common::{Files, has_qemu_img, tool};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tt_model::StorageKind::Qcow2;
use tt_model::plan::{HIDDEN_MAX, plan_merge, plan_merged};
use tt_model::{Merge, Vm, VmId, names};
use tt_storage::conformance::{DISK_MB, Life, Rig, vm};
use tt_storage::{Merging, StorageError};

/// Set in the child that a test kills: the data directory that it works in.
const KILL_DIR: &str = "TT_STORAGE_TEST_MERGE_DIR";
/// How often a child is killed.
const KILLS: u64 = 6;
const CLUSTER: u64 = 1 << 16;

/// A Vm whose layers are to be merged, as its record names the merge.
fn planned(files: &Files) -> (Vm, Merge) {
    let mut life = Life::new(files, 1);
    life.write();
    assert!(life.take("kept"));
    for _ in 0..HIDDEN_MAX + 2 {
        life.write();
        assert!(life.take("passing"));
        life.settle();
        life.drop("passing");
    }
    life.write();
    assert!(life.take("last"));
    life.settle();
    let mut vm = life.vm.clone();
    let taken_mb = files.storage().taken_mb(&vm).unwrap();
    assert!(plan_merge(&mut vm, &taken_mb), "{:?}", vm.disks);
    let merge = vm.merge.unwrap();
    (vm, merge)
}

fn path(files: &Files, vm: &Vm, epoch: u32) -> PathBuf {
    files.layout.data.join(names::runtime_image(Qcow2, vm.id, epoch))
}

/// What each disk of a record is.
fn contents(files: &Files, vm: &Vm) -> BTreeMap<u32, u64> {
    let content = |epoch: &u32| {
        let runtime_image = names::runtime_image(Qcow2, vm.id, *epoch);
        let view = Vm { epoch: *epoch, runtime_image, ..vm.clone() };
        assert_eq!(files.size_mb(&view), Some(DISK_MB.into()), "epoch {epoch}");
        (*epoch, files.content(&view).unwrap())
    };
    vm.disks.keys().map(content).collect()
}

fn make(files: &Files, vm: &mut Vm) {
    let mut merging = files.storage().begin_merge(vm).unwrap();
    assert!(merging.copy(&|| true).unwrap());
    merging.finish().unwrap();
    assert!(plan_merged(vm));
    files.storage().destroy_snapshot(vm).unwrap();
}

fn can_run(test: &str) -> bool {
    if !has_qemu_img() {
        println!("SKIPPED {test}: qemu-img is not installed");
    }
    has_qemu_img()
}

#[test]
fn a_merge_holds_all_that_qemu_can_leave_in_a_layer() {
    if !can_run("a_merge_holds_all_that_qemu_can_leave_in_a_layer") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), Qcow2);
    let (mut vm, merge) = planned(&files);
    // Data, zeros with and without room, holes; whole clusters and parts, in each layer elsewhere and over each other.
    let mut number = 7_u64;
    for epoch in vm.disks.keys() {
        let disk = path(&files, &vm, *epoch);
        let mut write = Command::new("qemu-io");
        write.args(["-f", "qcow2", "-d", "unmap"]);
        for kind in ["write -P 9", "write -z", "write -z -u", "discard", "write -P 200"] {
            number = number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let at = (number >> 33) % 120 * CLUSTER + (number >> 20) % 2 * 512;
            write.args(["-c", &format!("{kind} {at} {}", 3 * CLUSTER + (number >> 50) % 3 * 512)]);
        }
        // A layer ends where its guest wrote last, in the middle of a cluster.
        tool(write.args(["-c", &format!("write -P 3 {} 512", 125 * CLUSTER)]).arg(&disk)).unwrap();
    }
    let mut before = contents(&files, &vm);
    while vm.merge.is_some() {
        let top = before.remove(&vm.merge.unwrap().top).unwrap();
        before.remove(&vm.merge.unwrap().bottom);
        before.insert(vm.merge.unwrap().epoch, top);
        make(&files, &mut vm);
        assert_eq!(contents(&files, &vm), before);
        // Down to one layer: everything is copied at least once.
        vm.snapshots.retain(|_, snapshot| snapshot.epoch == Some(vm.epoch));
        let chain = vm.chain(vm.epoch);
        if let [_, top, bottom, ..] = chain[..] {
            vm.merge = Some(Merge { epoch: vm.next_epoch, top, bottom });
            vm.next_epoch += 1;
        }
    }
    assert_eq!(vm.disks.len(), 2, "{merge:?}");
    assert_eq!(fs::read_dir(files.layout.images_of(vm.id)).unwrap().count(), 2);
}

#[test]
fn a_hostile_layer_is_refused_and_fills_no_disk() {
    if !can_run("a_hostile_layer_is_refused_and_fills_no_disk") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), Qcow2);
    let (vm, merge) = planned(&files);
    let top = path(&files, &vm, merge.top);
    let honest = fs::read(&top).unwrap();
    let entry = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l1 = entry(&honest, 40) as usize;
    let l2 = (entry(&honest, l1) & 0x00ff_ffff_ffff_fe00) as usize;
    assert_ne!(l2, 0, "an empty layer");
    let data = (0..128).map(|n| entry(&honest, l2 + 8 * n)).find(|e| *e > 1).unwrap();
    let spoil = |at: usize, value: u64, times: usize| {
        let mut bytes = honest.clone();
        for n in 0..times {
            bytes[at + 8 * n..at + 8 * n + 8].copy_from_slice(&value.to_be_bytes());
        }
        bytes
    };
    let repeated = {
        let mut bytes = spoil(l2, 1, 8192);
        let table = entry(&bytes, l1).to_be_bytes();
        bytes[24..32].copy_from_slice(&(64_u64 << 30).to_be_bytes());
        bytes[36..40].copy_from_slice(&128_u32.to_be_bytes());
        (0..128).for_each(|n| bytes[l1 + 8 * n..l1 + 8 * n + 8].copy_from_slice(&table));
        bytes
    };
    for (what, bytes) in [
        ("one table of zeros again and again", repeated),
        ("a compressed cluster", spoil(l2, 1 << 62 | data, 1)),
        ("reserved bits", spoil(l2, 1 << 57 | data, 1)),
        ("a place behind the end", spoil(l2, 1 << 40, 1)),
        ("a place in a cluster", spoil(l2, data + 512, 1)),
        ("the same place again and again", spoil(l2, data, 128)),
        ("a table behind the end", spoil(l1, 1 << 40, 1)),
        ("a first table behind the end", spoil(40, 1 << 40, 1)),
        ("a huge first table", spoil(32, u64::from(u32::MAX), 1)),
        ("a huge disk", spoil(24, 1 << 60, 1)),
        ("an unknown feature", spoil(72, 1 << 4, 1)),
        ("nothing", Vec::new()),
        ("half a table", honest[..l2 + 100].to_vec()),
    ] {
        fs::write(&top, bytes).unwrap();
        let mut merging = files.storage().begin_merge(&vm).unwrap();
        let error = merging.copy(&|| true);
        assert!(matches!(error, Err(StorageError::Damaged { .. })), "{what}: {error:?}");
        drop(merging);
        let left = fs::read_dir(files.layout.images_of(vm.id)).unwrap();
        let taken: u64 = left.map(|e| e.unwrap().metadata().unwrap().blocks() * 512).sum();
        assert!(taken < u64::from(DISK_MB) << 20, "{what}: {taken} bytes");
    }
    fs::write(&top, honest).unwrap();
    make(&files, &mut vm.clone());
}

#[test]
fn what_a_machine_says_that_its_disk_lies_on_is_not_believed() {
    if !can_run("what_a_machine_says_that_its_disk_lies_on_is_not_believed") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), Qcow2);
    let vm = vm(1, Qcow2);
    files.storage().create_image(&vm).unwrap();
    let disk = files.layout.disk(&vm);
    let before = files.content(&vm);
    for format in ["raw", "qcow2"] {
        let secret = dir.path().join("secret");
        fs::write(&secret, [42; 4096]).unwrap();
        let mut rebase = Command::new("qemu-img");
        rebase.args(["rebase", "-u", "-f", "qcow2", "-F", format, "-b"]);
        tool(rebase.arg(&secret).arg(&disk)).unwrap();
        files.storage().destroy_snapshot(&vm).unwrap();
        assert_eq!(files.content(&vm), before);
    }
    // A name without an end, and one that lies elsewhere.
    let image = OpenOptions::new().write(true).open(&disk).unwrap();
    for (offset, len) in [(500_u64, 60_000_u32), (u64::MAX, u32::MAX)] {
        image.write_all_at(&offset.to_be_bytes(), 8).unwrap();
        image.write_all_at(&len.to_be_bytes(), 16).unwrap();
        files.storage().destroy_snapshot(&vm).unwrap();
        assert_eq!(files.content(&vm), before);
    }
    files.storage().remove_stray(VmId(1)).unwrap();
}

#[test]
fn a_disk_is_read_while_layers_of_it_are_merged_and_go() {
    if !can_run("a_disk_is_read_while_layers_of_it_are_merged_and_go") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), Qcow2);
    let (vm, merge) = planned(&files);
    let layers = tt_model::layers::of_vm(&vm, vm.epoch, &[]).unwrap();
    let read = |name: &str, goes_on: &dyn Fn(u64, u64) -> bool| {
        let path = dir.path().join(name);
        let read = files.storage().export(&layers, &File::create(&path).unwrap(), goes_on);
        read.map(|()| fs::read(path).unwrap())
    };
    let before = read("before", &|_, _| true).unwrap();
    let vm = RefCell::new(vm);
    let meanwhile = |_, _| {
        if vm.borrow().merge.is_some() {
            make(&files, &mut vm.borrow_mut());
        }
        true
    };
    assert!(read("after", &meanwhile).unwrap() == before);
    assert!(!path(&files, &vm.borrow(), merge.top).exists());
    // Whoever comes later asks the record again.
    assert!(read("late", &|_, _| true).is_err());
}

/// Makes the merge of a record again and again, until it is killed.
fn merge_for_ever(data: &Path) -> ! {
    let files = Files::found(data, Qcow2);
    let record = fs::read(data.join("record")).unwrap();
    let [epoch, top, bottom] = record[..] else { panic!("{record:?}") };
    let merge = Merge { epoch: epoch.into(), top: top.into(), bottom: bottom.into() };
    let disks = [(merge.top, Some(merge.bottom)), (merge.bottom, record_parent(data))];
    let disk = |parent| tt_model::Disk { parent, is_frozen: true };
    let disks = disks.map(|(epoch, parent)| (epoch, disk(parent))).into();
    let vm = Vm { merge: Some(merge), disks, ..vm(1, Qcow2) };
    loop {
        let mut merging: Box<dyn Merging> = files.storage().begin_merge(&vm).unwrap();
        assert!(merging.copy(&|| true).unwrap());
        merging.finish().unwrap();
        fs::remove_file(path(&files, &vm, merge.epoch)).unwrap();
    }
}

fn record_parent(data: &Path) -> Option<u32> {
    fs::read_to_string(data.join("parent")).unwrap().parse().ok()
}

#[test]
fn a_daemon_that_is_killed_in_a_merge_has_changed_nothing() {
    let test = "a_daemon_that_is_killed_in_a_merge_has_changed_nothing";
    if let Some(dir) = std::env::var_os(KILL_DIR) {
        merge_for_ever(Path::new(&dir));
    }
    if !can_run(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), Qcow2);
    let (mut vm, merge) = planned(&files);
    let fill = format!("write -P 5 0 {}M", DISK_MB - 1);
    for epoch in [merge.bottom, merge.top] {
        let disk = path(&files, &vm, epoch);
        tool(Command::new("qemu-io").args(["-f", "qcow2", "-c", &fill]).arg(disk)).unwrap();
    }
    let numbers = [merge.epoch, merge.top, merge.bottom].map(|n| n as u8);
    fs::write(dir.path().join("record"), numbers).unwrap();
    let parent = vm.disks[&merge.bottom].parent.map(|n| n.to_string());
    fs::write(dir.path().join("parent"), parent.unwrap_or_default()).unwrap();
    let before = contents(&files, &vm);
    let mut found = BTreeMap::new();
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", &format!("merges::{test}")]).process_group(0);
        child.env(KILL_DIR, dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = child.spawn().unwrap();
        std::thread::sleep(Duration::from_micros(40_000 + kill * 7_954));
        child.kill().unwrap();
        child.wait().unwrap();
        for entry in fs::read_dir(files.layout.images_of(vm.id)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            *found.entry(name).or_insert(0) += 1;
        }
        // The next daemon's visit; the merge may be there by then, and is whole.
        files.storage().destroy_snapshot(&vm).unwrap();
        assert_eq!(contents(&files, &vm), before);
        if path(&files, &vm, merge.epoch).exists() {
            let made =
                Vm { disks: [(merge.epoch, vm.disks[&merge.bottom].clone())].into(), ..vm.clone() };
            assert_eq!(contents(&files, &made)[&merge.epoch], before[&merge.top]);
            fs::remove_file(path(&files, &vm, merge.epoch)).unwrap();
        }
    }
    println!("found after {KILLS} kills: {found:?}");
    let under_way = format!("{}.qcow2.merge", merge.epoch);
    assert!(found.contains_key(&under_way), "none was killed in a merge: {found:?}");
    make(&files, &mut vm);
    assert_eq!(contents(&files, &vm)[&merge.epoch], before[&merge.top]);
    assert!(!files.layout.images_of(vm.id).join(under_way).exists());
}
