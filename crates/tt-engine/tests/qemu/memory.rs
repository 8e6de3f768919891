//! Memory on disk, seen from a real guest and on a real disk: how long it stands still, what its connections notice, what
//! a full disk does.

use crate::rig::{Rig, remove, wait_until};
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tt_engine::conformance::Fixture;
use tt_engine::qemu::QemuEngine;
use tt_engine::{EngineError, Hold, Machine, VmEngine};
use tt_model::{MachineSize, StopMode, Vm, names};

fn engine(rig: &Rig) -> QemuEngine {
    let engine = rig.engine();
    assert_eq!(engine.init(Arc::new(|_| {})).unusable, None);
    engine
}

/// What was heard, and when.
type Heard = Vec<(Instant, Vec<u8>)>;

/// One connection to a guest's console, heard all the time.
struct Listener {
    heard: Arc<Mutex<Heard>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn new(rig: &Rig, vm: &Vm) -> Self {
        let mut console = UnixStream::connect(rig.layout.console_socket(vm.id)).unwrap();
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let over: Arc<AtomicBool> = Arc::default();
        let (to, end) = (heard.clone(), over.clone());
        let thread = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = console.read(&mut bytes) {
                to.lock().unwrap().push((Instant::now(), bytes[..n].to_vec()));
            }
            end.store(true, Ordering::SeqCst);
        });
        Self { heard, over, thread: Some(thread) }
    }

    /// The longest silence since `from`.
    fn silence(&self, from: Instant) -> Duration {
        let heard = self.heard.lock().unwrap();
        let times = heard.iter().map(|(at, _)| *at).filter(|at| *at >= from);
        let times: Vec<_> = [from].into_iter().chain(times).chain([Instant::now()]).collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The guest is gone by now, or the whole test failed.
        if self.is_over() {
            let _ = self.thread.take().unwrap().join();
        }
    }
}

/// A whole hold: the longest silence, and what the parts took.
fn hold(engine: &dyn VmEngine, vm: &Vm, path: &str, listener: &Listener) -> Duration {
    let began = Instant::now();
    let mut hold: Box<dyn Hold> = engine.prepare_hold(vm, Some(path)).unwrap();
    let prepared = began.elapsed();
    let from = Instant::now();
    hold.pause().unwrap();
    let paused = from.elapsed();
    hold.release().unwrap();
    let released = from.elapsed();
    thread::sleep(Duration::from_millis(100));
    let silence = listener.silence(from);
    let began = Instant::now();
    assert!(hold.finish().unwrap());
    println!(
        "{} MB: prepare {prepared:?}, pause {paused:?}, release {:?}, silence {silence:?}, finish {:?}",
        vm.machine.mem_size,
        released - paused,
        began.elapsed()
    );
    silence
}

#[test]
fn a_held_guest_stands_still_for_as_long_whatever_its_memory_and_keeps_its_connections() {
    let rig = Rig::new();
    let engine = engine(&rig);
    let mut silences = Vec::new();
    for mem_size in [64, 512] {
        let vm = Vm { machine: MachineSize { cpu_num: 1, mem_size }, ..rig.vm() };
        engine.start_vm(&vm).unwrap();
        let content = rig.tick(&vm);
        let agent = UnixStream::connect(rig.layout.agent_socket(vm.id)).unwrap();
        let listener = Listener::new(&rig, &vm);
        let held = (1..=3).map(|n| hold(&engine, &vm, &names::memory(vm.id, n), &listener));
        silences.push(held.min().unwrap());
        assert!(!listener.is_over(), "the console's connection is gone");
        agent.set_nonblocking(true).unwrap();
        let heard = (&agent).read(&mut [0]).unwrap_err();
        assert_eq!(heard.kind(), std::io::ErrorKind::WouldBlock, "the agent's connection is gone");
        engine.stop_vm(&vm, StopMode::Kill).unwrap();
        wait_until("its end", || listener.is_over());
        remove(&engine, &vm);
        let next = Vm { incarnation: 1, memory: Some(names::memory(vm.id, 2)), ..vm.clone() };
        engine.start_vm(&next).unwrap();
        assert_eq!(rig.content(&next), content);
        remove(&engine, &next);
        engine.remove_stray_memory(vm.id).unwrap();
    }
    let bound = silences[0] * 4 + Duration::from_millis(200);
    assert!(silences[1] < bound, "{silences:?}");
}

/// A small file system in place of the memory directory.
struct Disk(PathBuf);

impl Disk {
    fn new(rig: &Rig, mb: u32) -> Self {
        let dir = rig.layout.data.join("memory");
        fs::create_dir_all(&dir).unwrap();
        let options = std::ffi::CString::new(format!("size={mb}m,mode=0711")).unwrap();
        rustix::mount::mount("tt-test", &dir, "tmpfs", MountFlags::empty(), &*options).unwrap();
        Self(dir)
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        let full = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn on_a_full_disk_the_guest_goes_on_and_nothing_is_left() {
    let rig = Rig::new();
    let engine = engine(&rig);
    let vm = rig.vm();
    engine.start_vm(&vm).unwrap();
    let content = rig.tick(&vm);
    let goes_on = || {
        assert_eq!(engine.look(&vm).unwrap(), Machine::Running);
        assert!(rig.beats(&vm));
        assert_eq!(rig.content(&vm), content);
        let left = fs::read_dir(rig.layout.memory_of(vm.id)).into_iter().flatten().count();
        assert_eq!(left, 0, "memory is left");
    };
    {
        let _small = Disk::new(&rig, 16);
        let refused = engine.stop_vm(&vm, StopMode::Suspend).unwrap_err();
        assert!(matches!(refused, EngineError::Room { .. }) && refused.is_retryable(), "{refused}");
        goes_on();
        let refused = engine.prepare_hold(&vm, Some(&names::memory(vm.id, 1))).err().unwrap();
        assert!(matches!(refused, EngineError::Room { .. }), "{refused}");
        goes_on();
    }
    {
        let disk = Disk::new(&rig, 128);
        let mut hold = engine.prepare_hold(&vm, Some(&names::memory(vm.id, 1))).unwrap();
        disk.fill();
        let copied = hold.pause().and_then(|()| hold.release());
        let failed = copied.and_then(|()| hold.finish().map(drop)).unwrap_err();
        println!("{failed}");
        assert!(matches!(failed, EngineError::Capture { .. }) && failed.is_retryable());
        goes_on();
    }
    engine.stop_vm(&vm, StopMode::Suspend).unwrap();
    wait_until("a running guest", || engine.start_vm(&vm).is_ok());
    assert_eq!(rig.content(&vm), content);
    remove(&engine, &vm);
}
