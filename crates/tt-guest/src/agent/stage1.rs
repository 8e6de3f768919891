//! The first process of the initramfs: loads drivers, mounts the root disk and hands over to the agent on it. It does
//! what a boot needs and nothing else, since all of it is waited for.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::MountFlags;

/// Marks an initramfs.
const MARK: &str = "/tt/initramfs";
/// Names the kernel modules to load, in their order: a path beneath `/tt` on each line.
const MODULES: &str = "/tt/modules";
/// The root disk.
const ROOT_DEVICE: &str = "/dev/vda";
/// Where it is mounted at first.
const NEW_ROOT: &str = "/newroot";
/// The agent on the root disk.
const NEXT: &str = "/sbin/tt-guest";

const DISK_WAIT: Duration = Duration::from_secs(10);
const DISK_POLL: Duration = Duration::from_millis(1);

/// What cannot be done without.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file system could not be mounted or moved.
    #[error("cannot mount {what}")]
    Mount {
        /// Its place.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A driver could not be loaded.
    #[error("cannot load the module {module}")]
    LoadModule {
        /// Its path beneath `/tt`.
        module: String,
        /// What the system said.
        source: io::Error,
    },
    /// The root disk did not appear.
    #[error("{ROOT_DEVICE} did not appear within {seconds} s; is a driver missing in {MODULES}?", seconds = DISK_WAIT.as_secs())]
    FindDisk,
    /// The agent on the root disk could not be started.
    #[error("cannot start {NEXT} on the root disk")]
    Start {
        /// What the system said.
        source: io::Error,
    },
}

/// Whether this is the initramfs.
pub fn is_initramfs() -> bool {
    Path::new(MARK).exists()
}

/// Goes on to the root disk; returns only if that fails.
pub fn enter_root() -> BootError {
    match prepare() {
        Ok(()) => BootError::Start { source: Command::new(NEXT).exec() },
        Err(error) => error,
    }
}

fn prepare() -> Result<(), BootError> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount(kind, kind, target)?;
    }
    load_modules()?;
    wait_for_disk()?;
    mount(ROOT_DEVICE, "ext4", NEW_ROOT)?;
    for (from, to) in
        [("/proc", "/newroot/proc"), ("/sys", "/newroot/sys"), ("/dev", "/newroot/dev")]
    {
        make_directory(to);
        rustix::mount::mount_move(from, to).map_err(failed(from))?;
    }
    rustix::process::chdir(NEW_ROOT).map_err(failed(NEW_ROOT))?;
    rustix::mount::mount_move(".", "/").map_err(failed(NEW_ROOT))?;
    rustix::process::chroot(".").map_err(failed(NEW_ROOT))?;
    rustix::process::chdir("/").map_err(failed("/"))
}

fn mount(device: &'static str, kind: &str, target: &'static str) -> Result<(), BootError> {
    make_directory(target);
    rustix::mount::mount(device, target, kind, MountFlags::empty(), None).map_err(failed(target))
}

/// A place that exists already is as good; if it could not be made, mounting says so.
fn make_directory(path: &str) {
    let _ = fs::create_dir(path);
}

fn failed(what: &'static str) -> impl Fn(Errno) -> BootError {
    move |error| BootError::Mount { what, source: error.into() }
}

fn load_modules() -> Result<(), BootError> {
    let listed = match fs::read_to_string(MODULES) {
        // A kernel with all drivers built in needs none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        listed => {
            listed.map_err(|source| BootError::LoadModule { module: MODULES.to_owned(), source })?
        }
    };
    for module in listed.lines().map(str::trim).filter(|line| !line.is_empty()) {
        load(module)
            .map_err(|source| BootError::LoadModule { module: module.to_owned(), source })?;
    }
    Ok(())
}

fn load(module: &str) -> io::Result<()> {
    let file = File::open(Path::new("/tt").join(module))?;
    match rustix::system::finit_module(&file, &CString::default(), 0) {
        Err(Errno::EXIST) => Ok(()),
        done => Ok(done?),
    }
}

fn wait_for_disk() -> Result<(), BootError> {
    let until = Instant::now() + DISK_WAIT;
    while !Path::new(ROOT_DEVICE).exists() {
        if Instant::now() > until {
            return Err(BootError::FindDisk);
        }
        thread::sleep(DISK_POLL);
    }
    Ok(())
}
