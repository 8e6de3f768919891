//! A pool of ZFS of a test's own: a file, in a mount namespace of the calling thread. Where the kernel has OpenZFS it serves
//! the pool, for one test at a time; elsewhere a `zfs-fuse` of the test's own does. Whatever ends the test, the kernel takes
//! mounts and file away; a pool of OpenZFS that is left goes with the next one.

use crate::common::{Files, tool};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::any::Any;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tt_model::{Layout, StorageKind, Vm};
use tt_storage::conformance::Rig;
use tt_storage::{RESERVE_MB, Storage};

/// A `zfs-fuse` answers within a second or two.
const STARTS_WITHIN: Duration = Duration::from_secs(20);
/// The pool's name, as `zpool` has it, which nobody else gives to one.
pub const NAME: &str = "tt-test-pool";

/// A pool, until it is dropped.
pub struct Pool {
    dir: TempDir,
    server: Server,
}

/// What serves it.
enum Server {
    Fuse(Child),
    /// The kernel, as long as this test has the lock.
    Kernel {
        _lock: File,
    },
}

impl Pool {
    /// Makes one; `Err` says why this machine can not.
    fn new(size_mb: u64) -> Result<Self, String> {
        let text = |e: io::Error| e.to_string();
        let programs = if has_module() { &["zpool"][..] } else { &["zfs-fuse", "zpool"] };
        for program in programs {
            let mut help = Command::new(program);
            help.arg("--help").stdout(Stdio::null()).stderr(Stdio::null());
            if help.status().is_err() {
                return Err(format!("{program} is not installed"));
            }
        }
        let dir = tempfile::tempdir().map_err(text)?;
        // SAFETY: nothing in Rust relies on which file systems a thread sees; the test's thread ends with it.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
            .map_err(|e| format!("no mount namespace: {e}"))?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).map_err(|e| e.to_string())?;
        let server = if has_module() { Server::kernel()? } else { Server::fuse()? };
        let pool = Self { dir, server };
        let image = pool.dir.path().join("pool");
        File::create(&image).and_then(|file| file.set_len(size_mb << 20)).map_err(text)?;
        // No list of pools on this machine is to name it.
        let args = ["create", "-o", "cachefile=none", "-m", "none", NAME];
        tool(Command::new("zpool").args(args).arg(&image))?;
        Ok(pool)
    }

    /// The same for a test of that name, which says so where it can not run.
    pub fn try_new(size_mb: u64, test: &str) -> Option<Self> {
        Self::new(size_mb).inspect_err(|reason| println!("SKIPPED {test}: {reason}")).ok()
    }

    /// The same for a test that needs volumes.
    pub fn with_volumes(size_mb: u64, test: &str) -> Option<Self> {
        if has_module() {
            return Self::try_new(size_mb, test);
        }
        println!("SKIPPED {test}: this kernel has no OpenZFS, and others have no volumes");
        None
    }

    /// A data set of somebody else in the pool, mounted.
    pub fn set(&self, name: &str) -> PathBuf {
        let place = self.dir.path().join(name);
        let mountpoint = format!("mountpoint={}", place.display());
        zfs(&["create", "-o", &mountpoint, &format!("{NAME}/{name}")]).unwrap();
        place
    }

    /// A data directory beside the pool.
    pub fn data(&self) -> PathBuf {
        let data = self.dir.path().join("data");
        fs::create_dir_all(&data).unwrap();
        data
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Whoever names new devices looks into them for a moment.
        for _ in 0..100 {
            if tool(Command::new("zpool").args(["destroy", "-f", NAME])).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if let Server::Fuse(server) = &mut self.server {
            let _ = kill_process(Pid::from_child(server), Signal::KILL);
            let _ = server.wait();
        }
    }
}

impl Server {
    /// Starts a `zfs-fuse` of the test's own, and waits until it answers.
    fn fuse() -> Result<Self, String> {
        let text = |e: io::Error| e.to_string();
        // Where the server has its socket, its lock and its list of pools.
        for place in ["/run", "/var/lib"] {
            tool(Command::new("mount").args(["-t", "tmpfs", "zfs", place]))?;
        }
        fs::create_dir("/run/lock").map_err(text)?;
        let mut server = Command::new("zfs-fuse");
        server
            .args(["--no-daemon", "--no-kstat-mount"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: one system call, which may be made between fork and exec.
        unsafe { server.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
        let mut server = server.spawn().map_err(text)?;
        let end = Instant::now() + STARTS_WITHIN;
        loop {
            let Err(said) = tool(Command::new("zpool").arg("list")) else {
                return Ok(Self::Fuse(server));
            };
            let ended = server.try_wait().map_err(text)?;
            if ended.is_some() || Instant::now() > end {
                let _ = server.kill();
                let _ = server.wait();
                return Err(said);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until no other test has the kernel's pool of that name, and removes what a killed one left.
    fn kernel() -> Result<Self, String> {
        let lock = File::create(std::env::temp_dir().join("tt-test-pool.lock"))
            .and_then(|lock| lock.lock().map(|()| lock));
        let lock = lock.map_err(|e| e.to_string())?;
        let _ = tool(Command::new("zpool").args(["destroy", "-f", NAME]));
        Ok(Self::Kernel { _lock: lock })
    }
}

/// Whether the kernel has OpenZFS.
pub fn has_module() -> bool {
    Path::new("/dev/zfs").exists() && Path::new("/sys/module/zfs").exists()
}

/// All names in the pool.
pub fn names() -> Vec<String> {
    let listed = zfs(&["list", "-H", "-r", "-t", "all", "-o", "name"]).unwrap();
    listed.lines().map(str::to_owned).collect()
}

/// Runs `zfs`; answers what it prints.
pub fn zfs(args: &[&str]) -> Result<String, String> {
    let output = tool(Command::new("zfs").args(args))?;
    Ok(String::from_utf8(output.stdout).unwrap())
}

/// The back end `zfs` on a pool.
pub struct Sets<'a> {
    pub files: Files,
    pool: &'a Pool,
}

impl<'a> Sets<'a> {
    pub fn new(pool: &'a Pool) -> Self {
        Self { files: Files::new(&pool.data(), StorageKind::Zfs), pool }
    }

    /// The back end `zvol` on it.
    pub fn volumes(pool: &'a Pool) -> Self {
        Self { files: Files::new(&pool.data(), StorageKind::Zvol), pool }
    }

    /// The data set that holds those of the back end.
    pub fn root(&self) -> String {
        format!("{NAME}/tt/{}", self.files.layout.instance)
    }

    fn set(&self, vm: &Vm) -> String {
        assert_eq!(vm.epoch, 0);
        format!("{}/v/{}.0", self.root(), vm.id)
    }

    /// Shows a snapshot's disk, which no machine could open.
    fn with_snapshot<T>(&self, vm: &Vm, look: impl FnOnce(&Vm) -> T) -> Option<T> {
        let listed =
            zfs(&["list", "-H", "-r", "-t", "snapshot", "-o", "name", &self.root()]).ok()?;
        let end = format!("@{}-{}", vm.id, vm.epoch);
        let snapshot = listed.lines().find(|name| name.ends_with(&end))?;
        let place = self.files.layout.data.join("look");
        let set = format!("{NAME}/look");
        fs::create_dir_all(&place).unwrap();
        if self.files.kind.is_device() {
            zfs(&["clone", snapshot, &set]).unwrap();
            symlink(Path::new("/dev/zvol").join(&set), place.join("disk")).unwrap();
            wait_for(|| File::open(place.join("disk")).is_ok());
        } else {
            let mountpoint = format!("mountpoint={}", place.display());
            zfs(&["clone", "-o", &mountpoint, snapshot, &set]).unwrap();
        }
        let name = format!("look/{}", self.files.kind.inner().unwrap());
        let looked = look(&Vm { runtime_image: name, ..vm.clone() });
        wait_for(|| zfs(&["destroy", &set]).is_ok());
        fs::remove_dir_all(&place).unwrap();
        Some(looked)
    }
}

/// Waits for what comes by itself.
pub fn wait_for(mut what: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < end, "it does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Rig for Sets<'_> {
    fn storage(&self) -> Arc<dyn Storage> {
        self.files.storage()
    }

    fn layout(&self) -> Option<&Layout> {
        self.files.layout()
    }

    fn size_mb(&self, vm: &Vm) -> Option<u64> {
        self.files.size_mb(vm)
    }

    fn read(&self, vm: &Vm, offset: u64, len: usize) -> Option<Vec<u8>> {
        self.files.read(vm, offset, len)
    }

    fn content(&self, vm: &Vm) -> Option<u64> {
        self.files.content(vm).or_else(|| self.with_snapshot(vm, |vm| self.files.content(vm))?)
    }

    fn fill(&self, vm: &Vm, offset: u64, len: usize, byte: u8) {
        self.files.fill(vm, offset, len, byte);
    }

    fn interrupt(&self, vm: &Vm) {
        fs::create_dir_all(self.files.layout.disk(vm).parent().unwrap()).unwrap();
    }

    fn plant(&self, vm: &Vm) -> bool {
        let place = self.files.layout.disk(vm).parent().unwrap().to_path_buf();
        fs::create_dir_all(&place).unwrap();
        if !self.files.kind.is_device() {
            let mountpoint = format!("mountpoint={}", place.display());
            zfs(&["create", "-p", "-o", &mountpoint, &self.set(vm)]).unwrap();
        }
        fs::write(place.join("foreign"), b"foreign").unwrap();
        true
    }

    fn plant_template(&self) -> bool {
        self.files.plant_template()
    }

    fn crowd(&self) -> Option<Box<dyn Any>> {
        let set = format!("{NAME}/crowd");
        // What was removed may come back while this looks.
        let mut taken = 0;
        for _ in 0..10 {
            let free = zfs(&["get", "-H", "-p", "-o", "value", "available", NAME]).unwrap();
            let free: u64 = free.trim().parse().unwrap();
            let Some(more) =
                free.checked_sub((RESERVE_MB - 8) << 20).filter(|more| *more > 8 << 20)
            else {
                break;
            };
            taken += more;
            let reservation = format!("reservation={taken}");
            if zfs(&["set", &reservation, &set]).is_err() {
                zfs(&["create", "-o", "mountpoint=none", "-o", &reservation, &set]).unwrap();
            }
        }
        Some(Box::new(Crowd))
    }

    fn settle(&self) {
        // It ends a group of transactions, which takes half a minute by itself.
        zfs(&["set", "tt:settled=yes", NAME]).unwrap();
    }

    fn lose_pool(&self) -> Option<Box<dyn Any>> {
        wait_for(|| tool(Command::new("zpool").args(["export", NAME])).is_ok());
        Some(Box::new(Away(self.pool.dir.path().to_path_buf())))
    }

    fn is_frozen_a_file(&self) -> bool {
        false
    }

    fn templates(&self) -> Vec<String> {
        let listed = zfs(&["list", "-H", "-d", "1", "-o", "name", &format!("{}/t", self.root())]);
        let listed = listed.unwrap_or_default();
        let sets = listed.lines().skip(1).map(str::to_owned);
        sets.chain(self.files.templates()).collect()
    }
}

/// What has all room of the pool, until it is dropped.
struct Crowd;

impl Drop for Crowd {
    fn drop(&mut self) {
        zfs(&["destroy", &format!("{NAME}/crowd")]).unwrap();
    }
}

/// A pool that is not imported, until it is dropped.
struct Away(PathBuf);

impl Drop for Away {
    fn drop(&mut self) {
        let args = ["import", "-o", "cachefile=none", "-d"];
        tool(Command::new("zpool").args(args).arg(&self.0).arg(NAME)).unwrap();
    }
}
