//! A host of its own for each test: directories, a template, disks, network namespaces with taps, and a program that is
//! Firecracker or its stand-in. Everything goes when the rig is dropped.

use crate::{guest, host, sample};
use serde_json::Value;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tt_engine::conformance::Fixture;
use tt_engine::firecracker::{FirecrackerConfig, FirecrackerEngine};
use tt_engine::{GuestNetwork, VmEngine};
use tt_model::{Instance, Layout, Vm, VmId, names};

/// How long a guest may be silent before it counts as standing still; it speaks some thousand times a second.
const BEAT_MAX: Duration = Duration::from_secs(5);
/// What a guest has said that stands still from now on is read within this time.
const STALE: Duration = Duration::from_millis(100);
/// How often a pipe is looked at.
const POLL: Duration = Duration::from_millis(1);

static RIGS: AtomicU64 = AtomicU64::new(0);

/// A host.
pub struct Rig {
    pub layout: Layout,
    binary: PathBuf,
    needs_kvm: bool,
    next: AtomicU64,
    dir: Option<TempDir>,
}

impl Rig {
    /// With the stand-in.
    pub fn new() -> Self {
        Self::with(Path::new(env!("CARGO_BIN_EXE_tt-firecracker-stand-in")), false)
    }

    /// With Firecracker; `None`, and why in words, where none is named.
    pub fn real(test: &str) -> Option<Self> {
        match std::env::var_os("TT_FIRECRACKER") {
            Some(binary) => Some(Self::with(Path::new(&binary), true)),
            None => {
                println!("SKIPPED {test}: TT_FIRECRACKER names no Firecracker");
                None
            }
        }
    }

    fn with(program: &Path, needs_kvm: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("tt").tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
        let number = u64::from(std::process::id()) * 16 + RIGS.fetch_add(1, Ordering::SeqCst);
        // Machines' users may not pass to where it was built.
        let binary = dir.path().join("firecracker");
        fs::copy(program, &binary).unwrap();
        fs::set_permissions(&binary, Permissions::from_mode(0o755)).unwrap();
        let mut rig = Self::at(dir.path(), number as u16);
        (rig.dir, rig.needs_kvm) = (Some(dir), needs_kvm);
        let template = rig.layout.data.join("template");
        for path in [&template, &rig.layout.netns_dir()] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(template.join("kernel"), guest::kernel()).unwrap();
        fs::write(template.join("initramfs"), b"unused").unwrap();
        rig
    }

    /// The host in `dir` that another process made, with the stand-in.
    pub fn at(dir: &Path, instance: u16) -> Self {
        let layout =
            Layout { data: dir.join("data"), run: dir.join("run"), instance: Instance(instance) };
        let (binary, next) = (dir.join("firecracker"), AtomicU64::new(1));
        Self { layout, binary, needs_kvm: false, next, dir: None }
    }

    pub fn path(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    /// The program that is Firecracker here.
    pub fn program(&self) -> &Path {
        &self.binary
    }

    pub fn config(&self) -> FirecrackerConfig {
        FirecrackerConfig {
            layout: self.layout.clone(),
            binary: self.binary.clone(),
            needs_kvm: self.needs_kvm,
            has_layers: false,
            network: GuestNetwork { gateway: [10, 0, 0, 1].into(), prefix_len: 8 },
        }
    }

    pub fn engine(&self) -> FirecrackerEngine {
        FirecrackerEngine::new(self.config())
    }

    /// A driver that has looked at the host, and a machine that runs.
    pub fn started(&self) -> (FirecrackerEngine, Vm) {
        let engine = self.engine();
        assert_eq!(engine.init(std::sync::Arc::new(|_| {})).unusable, None);
        let vm = self.vm();
        engine.start_vm(&vm).unwrap();
        (engine, vm)
    }

    /// The process of a machine.
    pub fn pid(&self, id: VmId) -> u32 {
        let mut pids = self.cgroups(id).into_iter().map(|dir| dir.join("cgroup.procs"));
        let pids = fs::read_to_string(pids.next_back().expect("its cgroups")).unwrap();
        let [pid] = host::processes(&pids)[..] else { panic!("not one process: {pids:?}") };
        pid
    }

    /// Directories of a machine's cgroups that exist.
    pub fn cgroups(&self, id: VmId) -> Vec<PathBuf> {
        let roots = ["", "cpu", "memory", "pids"].map(|c| Path::new("/sys/fs/cgroup").join(c));
        let all = roots.map(|root| root.join(self.layout.cgroup(id)));
        all.into_iter().filter(|dir| dir.exists()).collect()
    }

    /// Whether a machine's process has a file open. It may know it under another name.
    pub fn has_file_open(&self, vm: &Vm, path: &Path) -> bool {
        let file = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
        let wanted = file(path);
        let fds = fs::read_dir(format!("/proc/{}/fd", self.pid(vm.id))).unwrap();
        fds.flatten().any(|fd| wanted.is_some() && file(&fd.path()) == wanted)
    }

    fn say(&self, vm: &Vm, byte: u8) {
        let [typed, _] = self.layout.console_pipes(vm.id);
        let mut options = OpenOptions::new();
        let pipe = options.write(true).custom_flags(libc::O_NONBLOCK).open(typed);
        pipe.unwrap().write_all(&[byte]).unwrap();
    }

    /// Says one byte to the guest that it answers with a number, and hears it.
    fn ask(&self, vm: &Vm, byte: u8) -> u64 {
        let mut shown = self.shown(vm).unwrap();
        // What nobody read is in the way of the answer.
        hear(&mut shown, STALE, |_| false);
        self.say(vm, byte);
        let mut answer = None;
        hear(&mut shown, BEAT_MAX, |byte| {
            answer = byte.is_ascii_lowercase().then_some(byte);
            answer.is_some()
        });
        u64::from(answer.expect("the guest does not answer") - b'a')
    }

    fn shown(&self, vm: &Vm) -> std::io::Result<File> {
        let [_, shown] = self.layout.console_pipes(vm.id);
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(shown)
    }
}

/// Hears a guest until `is_it` takes a byte, for at most so long; whether it took one.
fn hear(shown: &mut File, within: Duration, mut is_it: impl FnMut(u8) -> bool) -> bool {
    let (until, mut bytes) = (Instant::now() + within, [0; 4096]);
    while Instant::now() < until {
        match shown.read(&mut bytes) {
            Ok(0) => return false,
            Ok(count) if bytes[..count].iter().any(|byte| is_it(*byte)) => return true,
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(POLL),
            Err(_) => return false,
        }
    }
    false
}

impl Fixture for Rig {
    fn vm(&self) -> Vm {
        let vm = sample::vm(self.next.fetch_add(1, Ordering::SeqCst));
        let vm = Vm { engine: "firecracker".into(), ..vm };
        let disk = self.layout.disk(&vm);
        fs::create_dir_all(disk.parent().unwrap()).unwrap();
        File::create(&disk).unwrap().set_len(1 << 20).unwrap();
        host::make_network(self.layout.netns(vm.env_id), names::tap(vm.id));
        vm
    }

    fn restarted(&self) -> Box<dyn VmEngine> {
        Box::new(self.engine())
    }

    fn beats(&self, vm: &Vm) -> bool {
        let Ok(mut shown) = self.shown(vm) else { return false };
        hear(&mut shown, STALE, |_| false);
        hear(&mut shown, BEAT_MAX, |_| true)
    }

    fn power_off(&self, vm: &Vm) {
        self.say(vm, b'q');
    }

    fn kill(&self, vm: &Vm) {
        let pid = rustix::process::Pid::from_raw(self.pid(vm.id) as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    fn leave_remains(&self, vm: &Vm) {
        fs::create_dir_all(self.layout.vm_dir(vm.id).join("own")).unwrap();
        let groups = ["pids", ""].map(|name| Path::new("/sys/fs/cgroup").join(name));
        let root = groups.into_iter().find(|dir| dir.join("cgroup.procs").exists()).unwrap();
        fs::create_dir_all(root.join(self.layout.cgroup(vm.id))).unwrap();
    }

    fn layered_vm(&self) -> Option<Vm> {
        None
    }

    fn with_layer(&self, _: &Vm) -> Vm {
        unreachable!("its disks have no layers")
    }

    fn with_merge(&self, _: &Vm) -> Vm {
        unreachable!("its disks have no layers")
    }

    fn tick(&self, vm: &Vm) -> u64 {
        self.ask(vm, b't')
    }

    fn content(&self, vm: &Vm) -> u64 {
        self.ask(vm, b'n')
    }

    fn has_open(&self, vm: &Vm) -> bool {
        self.has_file_open(vm, &self.layout.disk(vm))
    }

    fn disk_mb(&self, vm: &Vm) -> Option<u32> {
        Some((fs::metadata(self.layout.disk(vm)).unwrap().len() >> 20) as u32)
    }

    fn disk_limit(&self, vm: &Vm) -> (u32, u32) {
        let mut api = UnixStream::connect(self.layout.vm_dir(vm.id).join("own/api")).unwrap();
        api.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        api.write_all(b"GET /vm/config HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
        // It keeps the connection; an answer is complete when what is in it can be read.
        let config: Value = loop {
            let count = api.read(&mut piece).unwrap();
            answer.extend_from_slice(&piece[..count]);
            let body = answer.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4);
            if let Some(config) = body.and_then(|at| serde_json::from_slice(&answer[at..]).ok()) {
                break config;
            }
            assert!(count > 0, "the API hung up: {}", String::from_utf8_lossy(&answer));
        };
        let drives = config["drives"].as_array().unwrap();
        let disk = drives.iter().find(|drive| drive["drive_id"] == "disk").unwrap();
        let bucket = |name: &str| disk["rate_limiter"][name]["size"].as_u64().unwrap_or_default();
        ((bucket("bandwidth") >> 10) as u32, bucket("ops") as u32)
    }

    fn mem_mb(&self, _: &Vm) -> Option<u32> {
        None
    }

    fn has_memory(&self, path: &str) -> bool {
        self.layout.data.join(path).exists()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.dir.is_none() {
            return;
        }
        let engine = self.engine();
        engine.init(std::sync::Arc::new(|_| {}));
        for id in engine.memories().unwrap_or_default() {
            let _ = engine.remove_stray_memory(id);
        }
        for id in engine.machines().unwrap_or_default() {
            for _ in 0..100 {
                if engine.clear(id).unwrap_or(true) {
                    break;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        engine.close();
        for entry in fs::read_dir(self.layout.netns_dir()).into_iter().flatten().flatten() {
            let _ = rustix::mount::unmount(entry.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}
