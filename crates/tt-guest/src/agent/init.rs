//! The duties of a guest's first process once its root disk is there: file systems, loopback, the user's start-up
//! program. None of them may keep the agent from serving the host.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::mount::MountFlags;
use tt_guest::entry::Entry;

use super::log::{explain, say};
use super::process::Identity;
use super::stage1::Kept;
use super::{Agent, console, entry, network, power};

/// A program that a template may bring along; started once, when the guest is ready.
const START_UP: &str = "/etc/tt/rc";

/// Without a host, the guest's own programs start this long after the agent.
const HOST_WAIT: Duration = Duration::from_secs(2);
/// The image's process is started when the guest has its network, and that is waited for in pieces of this length.
const READY_WAIT: Duration = Duration::from_secs(3600);

/// Kind, place, flags, options.
const MOUNTS: [(&str, &str, MountFlags, &std::ffi::CStr); 7] = [
    ("proc", "/proc", GUARDED, c""),
    ("sysfs", "/sys", GUARDED, c""),
    ("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=755"),
    (
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        c"gid=5,mode=620,ptmxmode=666",
    ),
    ("tmpfs", "/dev/shm", MountFlags::NOSUID.union(MountFlags::NODEV), c"mode=1777"),
    ("tmpfs", "/run", MountFlags::NOSUID.union(MountFlags::NODEV), c"mode=755"),
    ("tmpfs", "/tmp", MountFlags::NOSUID.union(MountFlags::NODEV), c"mode=1777"),
];

/// What of this an image brings itself, with things in it that its process expects.
const OF_IMAGES: [&str; 2] = ["/run", "/tmp"];

/// Names that programs know their standard files by.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

const GUARDED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Mounts what every program expects, unless it is mounted already, and raises the loopback interface. `is_image`: the
/// root disk was made from a container image.
pub fn mount_all(is_image: bool) {
    for (kind, target, flags, options) in MOUNTS {
        if is_mounted(target) || (is_image && OF_IMAGES.contains(&target)) {
            continue;
        }
        // If it cannot be made, mounting says so.
        let _ = fs::create_dir_all(target);
        if let Err(error) = rustix::mount::mount(kind, target, kind, flags, options) {
            say(format!("cannot mount {target}: {error}"));
        }
    }
    for (target, link) in LINKS {
        // What is there already does as well.
        let _ = std::os::unix::fs::symlink(target, link);
    }
    if let Err(error) = rustix::thread::set_name(c"tt-guest") {
        say(format!("cannot take a name: {error}"));
    }
    if let Err(error) = network::raise_loopback() {
        say(format!("cannot raise the loopback interface: {error}"));
    }
}

/// Starts the first process's other threads.
pub fn begin(agent: &Arc<Agent>, kept: Kept) -> std::io::Result<()> {
    let Kept { modules, entry, .. } = kept;
    begin_entry(agent, entry)?;
    let own = Arc::clone(agent);
    super::thread("start-up", move || {
        own.ready.wait(HOST_WAIT);
        run_start_up(&own);
        console::serve(&own);
    })?;
    let own = Arc::clone(agent);
    super::thread("drivers", move || {
        own.ready.wait(HOST_WAIT);
        for error in modules.iter().filter_map(|module| module.load().err()) {
            say(explain(&error));
        }
        power::watch_button(&own);
    })
}

/// Starts the other threads of a container's first process.
pub fn begin_container(agent: &Arc<Agent>, entry: Option<Entry>) -> std::io::Result<()> {
    begin_entry(agent, entry)?;
    let own = Arc::clone(agent);
    super::thread("start-up", move || {
        own.ready.wait(HOST_WAIT);
        run_start_up(&own);
    })
}

/// Lets the image's process begin once the guest is set up.
fn begin_entry(agent: &Arc<Agent>, entry: Option<Entry>) -> std::io::Result<()> {
    let Some(entry) = entry else { return Ok(()) };
    let own = Arc::clone(agent);
    super::thread("image", move || {
        while !own.ready.wait(READY_WAIT) {}
        entry::start(&own, &entry);
    })
}

fn is_mounted(target: &str) -> bool {
    let parent = Path::new(target).parent().unwrap_or(Path::new("/"));
    match (fs::metadata(target), fs::metadata(parent)) {
        (Ok(own), Ok(parent)) => own.dev() != parent.dev(),
        _ => false,
    }
}

fn run_start_up(agent: &Agent) {
    let is_executable = fs::metadata(START_UP)
        .is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0);
    if !is_executable {
        return;
    }
    let mut command = Command::new(START_UP);
    command.current_dir("/").env("PATH", super::spawn::PATH).env("HOME", "/root");
    let identity = Identity { user: None, takes_terminal: false };
    let started = agent.processes.spawn(&mut command, identity, |exit| {
        if exit.code != Some(0) {
            say(format!("{START_UP} failed: {exit:?}"));
        }
    });
    if let Err(error) = started {
        say(format!("cannot start {START_UP}: {error}"));
    }
}
