//! A host of its own for each test: directories, a template, disks, network namespaces with taps. Everything goes when
//! the rig is dropped.

pub use crate::host::{make_network, remove, wait_until};
use crate::monitor::Monitor;
use crate::{guest, host, layers, sample};
use serde_json::json;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tt_engine::conformance::Fixture;
use tt_engine::qemu::{AcceleratorChoice, QemuConfig, QemuEngine};
use tt_engine::{GuestNetwork, VmEngine};
use tt_model::{Instance, Layout, StorageKind, Vm, VmId, names};

/// How long a guest may be silent before it counts as standing still; it speaks some thousand times a second.
const BEAT_MAX: Duration = Duration::from_secs(5);
/// What a console may still have held back from before a pause.
const STALE: Duration = Duration::from_millis(100);

/// Whether machines are executed by KVM, which only works where somebody knows that it does: then a kernel is booted on
/// `microvm`.
pub fn has_kvm() -> bool {
    std::env::var_os("TT_TEST_ACCELERATOR").is_some_and(|name| name == "kvm")
}

static RIGS: AtomicU64 = AtomicU64::new(0);

/// A host.
pub struct Rig {
    pub layout: Layout,
    next: AtomicU64,
    dir: Option<TempDir>,
}

impl Rig {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("tt").tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
        let number = u64::from(std::process::id()) * 16 + RIGS.fetch_add(1, Ordering::SeqCst);
        let mut rig = Self::at(dir.path(), number as u16);
        rig.dir = Some(dir);
        let template = rig.layout.data.join("template");
        for path in [&template, &rig.layout.netns_dir()] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(template.join("kernel"), guest::kernel(has_kvm())).unwrap();
        fs::write(template.join("initramfs"), b"unused").unwrap();
        rig
    }

    /// The host in `dir` that another process made.
    pub fn at(dir: &Path, instance: u16) -> Self {
        let layout =
            Layout { data: dir.join("data"), run: dir.join("run"), instance: Instance(instance) };
        Self { layout, next: AtomicU64::new(1), dir: None }
    }

    pub fn path(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    pub fn config(&self) -> QemuConfig {
        QemuConfig {
            layout: self.layout.clone(),
            binary: "qemu-system-x86_64".into(),
            accelerator: if has_kvm() { AcceleratorChoice::Kvm } else { AcceleratorChoice::Tcg },
            network: GuestNetwork { gateway: [10, 0, 0, 1].into(), prefix_len: 8 },
        }
    }

    pub fn engine(&self) -> QemuEngine {
        QemuEngine::new(self.config())
    }

    /// The process of a machine.
    pub fn pid(&self, id: VmId) -> u32 {
        let mut pids = self.cgroups(id).into_iter().map(|dir| dir.join("cgroup.procs"));
        let pids = fs::read_to_string(pids.next_back().expect("its cgroups")).unwrap();
        let [pid] = host::processes(&pids)[..] else { panic!("not one process: {pids:?}") };
        pid
    }

    /// Says one byte to the guest, and hears it until it hangs up or has answered with `answer`.
    pub fn say(&self, vm: &Vm, byte: u8, answer: Option<u8>) {
        let mut console = UnixStream::connect(self.layout.console_socket(vm.id)).unwrap();
        console.write_all(&[byte]).unwrap();
        console.set_read_timeout(Some(BEAT_MAX)).unwrap();
        let mut byte = [0];
        while console.read(&mut byte).unwrap() > 0 {
            if Some(byte[0]) == answer {
                return;
            }
        }
    }

    /// Says one byte to the guest that it answers with a number, and hears it.
    pub fn ask(&self, vm: &Vm, byte: u8) -> u64 {
        let mut console = UnixStream::connect(self.layout.console_socket(vm.id)).unwrap();
        console.write_all(&[byte]).unwrap();
        console.set_read_timeout(Some(BEAT_MAX)).unwrap();
        let mut heard = [0];
        loop {
            assert_eq!(console.read(&mut heard).unwrap(), 1, "the guest hung up");
            if heard[0].is_ascii_lowercase() {
                return u64::from(heard[0] - b'a');
            }
        }
    }

    /// Directories of a machine's cgroups that exist.
    pub fn cgroups(&self, id: VmId) -> Vec<PathBuf> {
        let roots = ["", "cpu", "memory", "pids"].map(|c| Path::new("/sys/fs/cgroup").join(c));
        let all = roots.map(|root| root.join(self.layout.cgroup(id)));
        all.into_iter().filter(|dir| dir.exists()).collect()
    }
}

impl Fixture for Rig {
    fn vm(&self) -> Vm {
        let vm = sample::vm(self.next.fetch_add(1, Ordering::SeqCst));
        let disk = self.layout.disk(&vm);
        fs::create_dir_all(disk.parent().unwrap()).unwrap();
        File::create(&disk).unwrap().set_len(1 << 20).unwrap();
        make_network(self.layout.netns(vm.env_id), names::tap(vm.id));
        vm
    }

    fn restarted(&self) -> Box<dyn VmEngine> {
        Box::new(self.engine())
    }

    fn beats(&self, vm: &Vm) -> bool {
        let Ok(mut console) = UnixStream::connect(self.layout.console_socket(vm.id)) else {
            return false;
        };
        let mut bytes = [0; 4096];
        let begin = Instant::now();
        console.set_read_timeout(Some(STALE)).unwrap();
        while begin.elapsed() < STALE {
            match console.read(&mut bytes) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) | Ok(0) => return false,
                Ok(_) => {}
            }
        }
        console.set_read_timeout(Some(BEAT_MAX)).unwrap();
        matches!(console.read(&mut bytes), Ok(1..))
    }

    fn power_off(&self, vm: &Vm) {
        self.say(vm, b'q', None);
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
        let vm = self.vm();
        let storage = StorageKind::Qcow2;
        let runtime_image = names::runtime_image(storage, vm.id, 0);
        let base = self.layout.disk(&vm);
        let vm = Vm { storage, runtime_image, ..vm };
        make_layer(&self.layout.disk(&vm), &base, "raw");
        Some(vm)
    }

    fn with_layer(&self, vm: &Vm) -> Vm {
        let layered = layers::with_layer(vm);
        let frozen = self.layout.disk(vm);
        make_layer(&self.layout.disk(&layered), &frozen, "qcow2");
        // As the storage does: no machine opens it for writing any more.
        fs::set_permissions(&frozen, Permissions::from_mode(0o440)).unwrap();
        chown(&frozen, Some(0), Some(self.layout.uid(vm.id))).unwrap();
        layered
    }

    fn with_merge(&self, vm: &Vm) -> Vm {
        let (merged, [new, top, bottom]) = layers::with_merge(vm);
        let path = |epoch| self.layout.data.join(names::runtime_image(vm.storage, vm.id, epoch));
        let base = self.layout.data.join(names::runtime_image(StorageKind::File, vm.id, 0));
        let node = |file: &Path, format: &str| serde_json::json!({"driver": format, "file": {"driver": "file", "filename": file}});
        // What an image says that it lies on may have been merged before.
        let mut source = node(&path(top), "qcow2");
        source["backing"] = node(&path(bottom), "qcow2");
        source["backing"]["backing"] = node(&base, "raw");
        let source = format!("json:{source}");
        img(&[&"convert", &"-U", &"-O", &"qcow2", &source, &path(new)]);
        img(&[&"rebase", &"-u", &"-F", &"raw", &"-b", &base, &path(new)]);
        for gone in [top, bottom] {
            fs::remove_file(path(gone)).unwrap();
        }
        merged
    }

    fn tick(&self, vm: &Vm) -> u64 {
        self.ask(vm, b't')
    }

    fn content(&self, vm: &Vm) -> u64 {
        self.ask(vm, b'n')
    }

    fn has_open(&self, vm: &Vm) -> bool {
        let disk = self.layout.disk(vm);
        let fds = fs::read_dir(format!("/proc/{}/fd", self.pid(vm.id))).unwrap();
        fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == disk))
    }

    fn disk_mb(&self, vm: &Vm) -> Option<u32> {
        Some((fs::metadata(self.layout.disk(vm)).unwrap().len() >> 20) as u32)
    }

    fn disk_limit(&self, vm: &Vm) -> (u32, u32) {
        let disks = Monitor::new(self, vm).ask("query-block", json!({}));
        let disk = disks.as_array().unwrap().iter().find(|disk| {
            disk["inserted"]["node-name"].as_str().is_some_and(|node| node.starts_with("disk"))
        });
        let limit = |name: &str| disk.unwrap()["inserted"][name].as_u64().unwrap() as u32;
        (limit("bps") >> 10, limit("iops"))
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

/// Makes an empty qcow2 layer.
fn make_layer(path: &Path, base: &Path, format: &str) {
    // Without a look at what it lies on, which may say something old of itself.
    let options = ["create", "-q", "-u", "-f", "qcow2", "-F", format];
    let mut args: Vec<&dyn AsRef<OsStr>> = options.iter().map(|o| o as &dyn AsRef<OsStr>).collect();
    args.extend([&"-b" as &dyn AsRef<OsStr>, &base, &path, &"1M"]);
    img(&args);
}

/// Runs `qemu-img`.
fn img(args: &[&dyn AsRef<OsStr>]) {
    let mut img = std::process::Command::new("qemu-img");
    img.args(args.iter().map(|arg| arg.as_ref()));
    assert!(img.status().unwrap().success());
}
