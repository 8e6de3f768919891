//! Daemons that are killed at any moment: the next one, with the same record, ends up where it would have.

use crate::common::{Files, has_qemu_img};
use crate::pool::{Pool, Sets};
use crate::table;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tt_model::StorageKind::{self, Btrfs, File as Raw, Qcow2, Zfs, Zvol};
use tt_model::{Layout, Vm, VmId};
use tt_storage::Storage;
use tt_storage::conformance::{Life, Rig, vm};
use tt_storage::fake::{FakeDisk, FakeStorage};

/// Set in the child that a test kills: the data directory that it works in.
const KILL_DIR: &str = "TT_STORAGE_TEST_KILL_DIR";
/// Which of the records is in force: what a store would tell the next daemon.
const STEP: &str = "step";
/// How often a child is killed.
const ROUNDS: u64 = 30;
/// How long a life takes where no program is started.
const LIFE: Duration = Duration::from_millis(150);

/// A back end on paper, to let the planner name things.
struct Paper {
    disk: Arc<FakeDisk>,
    kind: StorageKind,
}

impl Rig for Paper {
    fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(FakeStorage::reliable(Arc::clone(&self.disk)).with_kind(self.kind))
    }

    fn layout(&self) -> Option<&Layout> {
        None
    }

    fn size_mb(&self, vm: &Vm) -> Option<u64> {
        self.disk.images_of(vm.id).get(&vm.epoch).map(|image| image.size_mb.into())
    }

    fn read(&self, _: &Vm, _: u64, _: usize) -> Option<Vec<u8>> {
        None
    }

    fn content(&self, vm: &Vm) -> Option<u64> {
        self.disk.content(vm.id, vm.epoch)
    }

    fn fill(&self, vm: &Vm, _: u64, _: usize, _: u8) {
        self.disk.write(vm.id, vm.epoch);
    }

    fn interrupt(&self, _: &Vm) {}
}

/// The records of a life, one after the other.
fn records(kind: StorageKind) -> Vec<Vm> {
    let paper = Paper { disk: FakeDisk::new(1 << 20), kind };
    let mut life = Life::new(&paper, 1);
    let mut records = vec![life.vm.clone()];
    for name in ["a", "b"] {
        assert!(life.plan_take(name));
        records.push(life.vm.clone());
        life.take_planned(name);
        records.push(life.vm.clone());
    }
    for name in ["a", "b"] {
        life.plan_apply(name);
        records.push(life.vm.clone());
        life.apply_planned(name);
        records.push(life.vm.clone());
        life.drop(name);
        records.push(life.vm.clone());
    }
    records
}

/// What a daemon does about a record.
fn match_record(storage: &dyn Storage, vm: &Vm) {
    match vm.wanted_snapshots().next() {
        Some(snapshot) => storage
            .create_snapshot(vm, snapshot)
            .and_then(|()| storage.sync_disk(vm, snapshot.epoch.unwrap_or(vm.epoch))),
        None => storage.create_image(vm),
    }
    .unwrap();
    storage.destroy_snapshot(vm).unwrap();
}

/// Lives that life again and again, until it is killed.
fn live(data: &Path, kind: StorageKind) -> ! {
    let files = Files::new(data, kind);
    let records = records(kind);
    let begin = |step: usize| {
        fs::write(data.join("next"), step.to_string()).unwrap();
        fs::rename(data.join("next"), data.join(STEP)).unwrap();
    };
    loop {
        for (step, vm) in records.iter().enumerate() {
            begin(step);
            match_record(&*files.storage(), vm);
        }
        begin(records.len());
        files.storage().remove_stray(VmId(1)).unwrap();
    }
}

fn kill_again_and_again(test: &str, kind: StorageKind) {
    let dir = tempfile::tempdir().unwrap();
    kill_in(test, &Files::new(dir.path(), kind), LIFE);
}

/// Lives in a directory that is given by who is going to kill it, if somebody is.
fn live_if_asked(kind: StorageKind) {
    if let Some(dir) = std::env::var_os(KILL_DIR) {
        live(Path::new(&dir), kind);
    }
}

/// `life`: about how long a life takes; the kills are spread over it.
fn kill_in(test: &str, rig: &dyn Rig, life: Duration) {
    let storage = rig.storage();
    let (kind, dir) = (storage.kind(), &rig.layout().unwrap().data);
    let records = records(kind);
    let mut steps = vec![0; records.len() + 1];
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", &format!("killed::{test}")]);
        child.env(KILL_DIR, dir).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = child.process_group(0).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(15) + life * round as u32 / ROUNDS as u32);
        child.kill().unwrap();
        child.wait().unwrap();
        let Ok(step) = fs::read_to_string(dir.join(STEP)) else { continue };
        let step: usize = step.parse().unwrap();
        steps[step] += 1;
        match records.get(step) {
            Some(vm) => check_matched(rig, vm),
            None => storage.remove_stray(VmId(1)).unwrap(),
        }
        storage.remove_stray(VmId(1)).unwrap();
        assert_eq!(storage.images().unwrap(), []);
        fs::remove_file(dir.join(STEP)).unwrap();
    }
    println!("killed in each step of a life with {}: {steps:?}", kind.name());
    assert!(steps.iter().filter(|times| **times > 0).count() > 2, "{steps:?}");
    table::compare(kind, &[(table::KILLED, Ok(()))]);
}

/// Lets the next daemon match the record that was in force, and looks at every disk.
fn check_matched(rig: &dyn Rig, record: &Vm) {
    let storage = rig.storage();
    let other = vm(2, storage.kind());
    storage.create_image(&other).unwrap();
    let template = rig.content(&other);
    storage.destroy_image(&other).unwrap();
    match_record(&*storage, record);
    let names = fs::read_dir(rig.layout().unwrap().images_of(record.id)).unwrap();
    assert_eq!(names.count(), record.disks.len(), "{:?}", record.disks);
    for epoch in record.disks.keys() {
        let name = tt_model::names::runtime_image(storage.kind(), record.id, *epoch);
        let view = Vm { epoch: *epoch, runtime_image: name, ..record.clone() };
        assert_eq!(rig.content(&view), template);
        let is_file = *epoch == record.epoch || rig.is_frozen_a_file();
        let want = is_file.then_some(record.resource.disk_size.into());
        assert_eq!(rig.size_mb(&view), want);
    }
}

#[test]
fn a_killed_daemon_leaves_files_that_the_next_one_finishes() {
    live_if_asked(Raw);
    kill_again_and_again("a_killed_daemon_leaves_files_that_the_next_one_finishes", Raw);
}

#[test]
fn a_killed_daemon_leaves_layers_that_the_next_one_finishes() {
    let test = "a_killed_daemon_leaves_layers_that_the_next_one_finishes";
    live_if_asked(Qcow2);
    if has_qemu_img() {
        kill_again_and_again(test, Qcow2);
    } else {
        println!("SKIPPED {test}: qemu-img is not installed");
    }
}

#[test]
fn a_killed_daemon_leaves_subvolumes_that_the_next_one_finishes() {
    live_if_asked(Btrfs);
    let test = "a_killed_daemon_leaves_subvolumes_that_the_next_one_finishes";
    let Some(btrfs) = crate::mount(&crate::BTRFS, 512, test) else { return };
    kill_in(test, &Files::new(&btrfs.path(), Btrfs), LIFE);
}

#[test]
fn a_killed_daemon_leaves_data_sets_that_the_next_one_finishes() {
    live_if_asked(Zfs);
    let test = "a_killed_daemon_leaves_data_sets_that_the_next_one_finishes";
    let Some(pool) = Pool::try_new(256, test) else { return };
    // Each step starts programs.
    kill_in(test, &Sets::new(&pool), 6 * LIFE);
}

#[test]
fn a_killed_daemon_leaves_volumes_that_the_next_one_finishes() {
    live_if_asked(Zvol);
    let test = "a_killed_daemon_leaves_volumes_that_the_next_one_finishes";
    let Some(pool) = Pool::with_volumes(256, test) else { return };
    kill_in(test, &Sets::volumes(&pool), 6 * LIFE);
}
