//! The agent in an initramfs: loads drivers, mounts the root disk and makes it the root. It does what a boot needs and
//! nothing else, since all of it is waited for; and it goes on as the same process, which saves reading a program from
//! the disk.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::link::Link;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use tt_guest::entry::{ENTRY_BYTES_MAX, ENTRY_FILE, Entry, INIT_MARK};
use tt_guest::message::VSOCK_WORD;

/// Marks an initramfs.
const MARK: &str = "/tt/initramfs";
/// Names the kernel modules to load, in their order: a path beneath `/tt` on each line.
const MODULES: &str = "/tt/modules";
/// In the same form, the modules that are loaded once the guest is ready.
const LATER_MODULES: &str = "/tt/modules-later";
/// In the same form, the modules of a machine that has a vsock: the protocol first.
const VSOCK_MODULES: &str = "/tt/modules-vsock";
/// The kernel's command line.
const COMMAND_LINE: &str = "/proc/cmdline";
/// The root disk.
const ROOT_DEVICE: &str = "/dev/vda";
/// Where it is mounted at first.
const NEW_ROOT: &str = "/newroot";
/// What the root disk's first process is, where it has one of its own.
const INIT: &str = "/sbin/init";
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
    /// The image's process is described by something that can not be read.
    #[error("cannot read {ENTRY_FILE}")]
    ReadEntry {
        /// What the system said, or what is wrong with it.
        source: io::Error,
    },
    /// The root disk has no first process, or none that can be run.
    #[error("cannot run {INIT} of the root disk")]
    RunInit {
        /// What the system said.
        source: io::Error,
    },
    /// The root disk did not appear.
    #[error("{ROOT_DEVICE} did not appear within {seconds} s; is a driver missing in {MODULES}?", seconds = DISK_WAIT.as_secs())]
    FindDisk,
}

/// What the initramfs had for later, when it is out of reach.
#[derive(Debug, Default)]
pub struct Kept {
    /// Drivers.
    pub modules: Vec<Module>,
    /// Those of the vsock, if the machine has one: the protocol first.
    pub vsock: Vec<Module>,
    /// The process of the container image that the root disk was made from.
    pub entry: Option<Entry>,
    /// Whether the root disk has a first process of its own.
    pub has_init: bool,
}

/// A driver that is loaded later; its file is open, since the initramfs is out of reach by then.
#[derive(Debug)]
pub struct Module {
    name: String,
    file: File,
}

impl Module {
    /// Loads it, unless it is loaded.
    pub fn load(&self) -> Result<(), BootError> {
        match rustix::system::finit_module(&self.file, &CString::default(), 0) {
            Err(Errno::EXIST) | Ok(()) => Ok(()),
            Err(error) => Err(not_loaded(&self.name)(error.into())),
        }
    }
}

impl Kept {
    /// Listens on the machine's vsock: before its driver is there, or a host that is waiting would be refused.
    pub fn listen(&self) -> io::Result<Link> {
        let (protocol, drivers) = self.vsock.split_at(self.vsock.len().min(1));
        let load = |modules: &[Module]| modules.iter().try_for_each(Module::load);
        load(protocol).map_err(io::Error::other)?;
        let link = Link::listen_vsock()?;
        load(drivers).map_err(io::Error::other)?;
        Ok(link)
    }
}

/// Whether the machine has a vsock, and no virtio-serial port.
pub fn has_vsock() -> bool {
    let words = fs::read_to_string(COMMAND_LINE).unwrap_or_default();
    words.split_whitespace().any(|word| word == VSOCK_WORD)
}

/// Whether this is the initramfs.
pub fn is_initramfs() -> bool {
    Path::new(MARK).exists()
}

/// Makes the root disk the root. Returns what is needed later.
pub fn enter_root() -> Result<Kept, BootError> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount(kind, kind, target)?;
    }
    open_modules(MODULES)?.iter().try_for_each(Module::load)?;
    let has_init = Path::new(INIT_MARK).exists();
    let vsock = if has_vsock() { open_modules(VSOCK_MODULES)? } else { Vec::new() };
    if has_init {
        // Who listens is a service of the root disk, much later.
        vsock.iter().try_for_each(Module::load)?;
    }
    let kept =
        Kept { modules: open_modules(LATER_MODULES)?, vsock, entry: read_entry()?, has_init };
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
    rustix::process::chdir("/").map_err(failed("/"))?;
    Ok(kept)
}

/// Becomes the root disk's own first process; returns only if that is not possible.
pub fn become_init() -> BootError {
    BootError::RunInit { source: Command::new(INIT).exec() }
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

fn open_modules(list: &str) -> Result<Vec<Module>, BootError> {
    let listed = match fs::read_to_string(list) {
        // A kernel with all drivers built in needs none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(not_loaded(list))?,
    };
    let open = |name: &str| {
        let file = File::open(Path::new("/tt").join(name)).map_err(not_loaded(name))?;
        Ok(Module { name: name.to_owned(), file })
    };
    listed.lines().map(str::trim).filter(|line| !line.is_empty()).map(open).collect()
}

fn read_entry() -> Result<Option<Entry>, BootError> {
    let not_read = |source| BootError::ReadEntry { source };
    let file = match File::open(ENTRY_FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(not_read)?,
    };
    let entry = serde_json::from_reader(file.take(ENTRY_BYTES_MAX));
    entry.map(Some).map_err(|error| not_read(error.into()))
}

fn not_loaded(module: &str) -> impl FnOnce(io::Error) -> BootError {
    move |source| BootError::LoadModule { module: module.to_owned(), source }
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
