//! What a guest sees of its disk while layers below it are merged. It writes all the time, through the device that it
//! has; what it would read is copied off by the machine itself.

use crate::monitor::Monitor;
use crate::rig::{Rig, remove, wait_until};
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tt_engine::VmEngine;
use tt_engine::conformance::Fixture;
use tt_model::{Vm, names};

/// Pieces of the disk that are written, 4 KiB each: some to a cluster.
const PIECES: usize = 250;
/// The disk, in bytes.
const DISK_BYTES: usize = 1 << 20;
/// Layers that come, one by one.
const ROUNDS: u32 = 10;

/// What the guest has written.
struct Guest<'a> {
    rig: &'a Rig,
    disk: Vec<u8>,
    dice: u64,
}

impl Guest<'_> {
    fn roll(&mut self, bound: usize) -> usize {
        self.dice =
            self.dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.dice >> 33) as usize % bound
    }

    /// Does what the guest would do with its disk.
    fn order(&self, vm: &Vm, order: &str) {
        let mut monitor = Monitor::new(self.rig, vm);
        let device = monitor.ask("query-block", json!({}))[0]["qdev"].as_str().unwrap().to_owned();
        let line = format!("qemu-io -d {device} \"{order}\"");
        monitor.ask("human-monitor-command", json!({"command-line": line}));
    }

    fn write(&mut self, vm: &Vm) {
        let (at, pattern) = (self.roll(PIECES) * 4096, self.roll(255) as u8 + 1);
        self.order(vm, &format!("write -P {pattern} {at} 4096"));
        self.disk[at..at + 4096].fill(pattern);
    }

    /// Lets the machine copy off what its guest sees.
    fn check(&self, vm: &Vm) {
        let copy = self.rig.layout.vm_dir(vm.id).join("own/copy.raw");
        File::create(&copy).unwrap().set_len(DISK_BYTES as u64).unwrap();
        let uid = self.rig.layout.uid(vm.id);
        chown(&copy, Some(uid), Some(uid)).unwrap();
        let mut monitor = Monitor::new(self.rig, vm);
        let file = json!({"driver": "file", "filename": copy});
        monitor.ask("blockdev-add", json!({"node-name": "copy", "driver": "raw", "file": file}));
        let node = format!("disk-{}", vm.epoch);
        let job = json!({"job-id": "copy", "device": node, "target": "copy", "sync": "full"});
        monitor.ask("blockdev-backup", job);
        wait_until("the copy", || monitor.ask("query-block-jobs", json!({})) == json!([]));
        monitor.ask("blockdev-del", json!({"node-name": "copy"}));
        let seen = fs::read(&copy).unwrap();
        let differs = seen.chunks(4096).zip(self.disk.chunks(4096)).position(|(a, b)| a != b);
        assert_eq!((differs, seen.len()), (None, DISK_BYTES), "in {:?}", vm.disks);
        fs::remove_file(copy).unwrap();
    }
}

#[test]
fn a_guest_that_writes_sees_its_disk_whatever_is_merged_below_it() {
    let rig = Rig::new();
    let engine = rig.engine();
    assert_eq!(engine.init(Arc::new(|_| {})).unusable, None);
    let mut vm = rig.layered_vm().unwrap();
    engine.start_vm(&vm).unwrap();
    let (first, is_over, writes) = (vm.clone(), AtomicBool::new(false), AtomicU32::new(0));
    let guest = Mutex::new(Guest { rig: &rig, disk: vec![0; DISK_BYTES], dice: 7 });
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                guest.lock().unwrap().write(&first);
                writes.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let wait = |number: u32| {
            let until = writes.load(Ordering::SeqCst) + number;
            while writes.load(Ordering::SeqCst) < until && !writer.is_finished() {
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        for round in 0..ROUNDS {
            wait(10);
            let layered = rig.with_layer(&vm);
            let memory = (round % 3 != 2).then(|| names::memory(vm.id, layered.next_epoch));
            let mut hold = engine.prepare_hold(&vm, memory.as_deref()).unwrap();
            // A guest that stands still writes nothing.
            let still = guest.lock().unwrap();
            hold.pause().unwrap();
            hold.switch_disk(&layered).unwrap();
            hold.release().unwrap();
            drop(still);
            hold.finish().unwrap();
            vm = layered;
            engine.update_vm(&vm).unwrap();
            wait(10);
            // Neither what the machine writes to nor what that lies on is merged.
            if vm.disks.len() > 3 {
                vm = rig.with_merge(&vm);
                engine.update_vm(&vm).unwrap();
            }
            guest.lock().unwrap().check(&vm);
        }
        is_over.store(true, Ordering::SeqCst);
    });
    let guest = guest.into_inner().unwrap();
    assert_eq!(vm.disks.len(), 3, "{:?}", vm.disks);
    guest.order(&vm, "flush");
    // A new process has the same layers from the record, and sees the same.
    remove(&engine, &vm);
    engine.start_vm(&vm).unwrap();
    guest.check(&vm);
    println!("{} writes through {ROUNDS} layers", writes.load(Ordering::SeqCst));
    remove(&engine, &vm);
    engine.remove_stray_memory(vm.id).unwrap();
}

#[test]
fn a_machine_tells_of_as_many_layers_as_a_plan_allows() {
    let rig = Rig::new();
    let engine = rig.engine();
    assert_eq!(engine.init(Arc::new(|_| {})).unusable, None);
    let mut vm = rig.layered_vm().unwrap();
    while vm.disks.len() < tt_model::plan::LAYERS_MAX {
        vm = rig.with_layer(&vm);
    }
    engine.start_vm(&vm).unwrap();
    // It has opened all of them once it answers.
    drop(Monitor::new(&rig, &vm));
    let merged = rig.with_merge(&vm);
    engine.update_vm(&merged).unwrap();
    assert!(rig.has_open(&merged));
    let mut larger = merged.clone();
    larger.resource.disk_size = 3;
    engine.update_vm(&larger).unwrap();
    let answer = Monitor::new(&rig, &vm).ask("query-block", json!({})).to_string();
    let nodes = Monitor::new(&rig, &vm).ask("query-named-block-nodes", json!({"flat": true}));
    println!(
        "{} and {} bytes tell of {} layers",
        answer.len(),
        nodes.to_string().len(),
        merged.disks.len()
    );
    remove(&engine, &vm);
}

#[test]
fn a_layer_that_a_dead_daemon_had_opened_is_switched_to() {
    let rig = Rig::new();
    let engine = rig.engine();
    assert_eq!(engine.init(Arc::new(|_| {})).unusable, None);
    let vm = rig.layered_vm().unwrap();
    engine.start_vm(&vm).unwrap();
    let mut monitor = Monitor::new(&rig, &vm);
    let layered = rig.with_layer(&vm);
    let (file, uid) = (rig.layout.disk(&layered), rig.layout.uid(vm.id));
    chown(&file, Some(uid), Some(uid)).unwrap();
    let file = json!({"driver": "file", "filename": file});
    let node = format!("disk-{}", layered.epoch);
    let node = json!({"node-name": node, "driver": "qcow2", "backing": null, "file": file});
    monitor.ask("blockdev-add", node);
    drop(monitor);
    engine.update_vm(&layered).unwrap();
    let guest = Guest { rig: &rig, disk: vec![0; DISK_BYTES], dice: 7 };
    guest.check(&layered);
    assert!(rig.beats(&layered) && rig.has_open(&layered) && rig.has_open(&vm));
    remove(&engine, &layered);
}
