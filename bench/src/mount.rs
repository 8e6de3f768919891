//! File systems for one bench, in a mount namespace of the calling thread: whatever ends the bench,
//! the kernel takes mounts, loop devices and content away. No other process sees them.

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use testkit::{Must, run};

/// Size of a file system; nothing of it is taken before it is written.
const SIZE_BYTES: u64 = 16 << 30;

/// A kind of file system.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// XFS that shares blocks, on a loop device.
    Xfs,
    /// ext4 on a loop device.
    Ext4,
    /// Memory.
    Tmpfs,
    /// btrfs on a loop device.
    Btrfs,
    /// The file system at hand, beside a pool of ZFS in a file, which a `zfs-fuse` of its own serves.
    Zfs,
}

/// The name of the pool.
pub const POOL: &str = "bench";
/// A `zfs-fuse` answers within a second or two.
const SERVES_WITHIN: Duration = Duration::from_secs(20);

/// What serves a pool, until it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `action` with an empty file system; `Err` says what this machine lacks for it.
pub fn with<T: Send>(kind: Kind, action: impl FnOnce(&Path) -> T + Send) -> Result<T, String> {
    let dir = tempfile::tempdir().must("a directory");
    let joined = std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            // SAFETY: nothing in Rust relies on which file systems a thread sees, and it ends here.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.must("a mount namespace");
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).must("keep mounts to ourselves");
            let _server = mount(kind, &dir)?;
            Ok(action(&dir.path().join("mnt")))
        });
        run.join()
    });
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn mount(kind: Kind, dir: &TempDir) -> Result<Option<Server>, String> {
    let (image, point) = (dir.path().join("image"), dir.path().join("mnt"));
    fs::create_dir(&point).must("a mount point");
    let mkfs: &[&str] = match kind {
        Kind::Xfs => &["mkfs.xfs", "-q", "-m", "reflink=1"],
        Kind::Ext4 => &["mkfs.ext4", "-q", "-m", "0"],
        Kind::Tmpfs => {
            tool(Command::new("mount").args(["-t", "tmpfs", "bench"]).arg(point))?;
            return Ok(None);
        }
        Kind::Btrfs => &["mkfs.btrfs", "-q"],
        Kind::Zfs => return serve(&image).map(Some),
    };
    File::create(&image).and_then(|file| file.set_len(SIZE_BYTES)).must("a sparse file");
    tool(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image))?;
    tool(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(point))?;
    // The loop device, which goes with its mount, is all that holds it from now on.
    fs::remove_file(&image).must("remove a file");
    Ok(None)
}

/// Makes a pool in a file.
fn serve(image: &Path) -> Result<Server, String> {
    // Where the server has its socket, its lock and its list of pools.
    for place in ["/run", "/var/lib"] {
        tool(Command::new("mount").args(["-t", "tmpfs", "bench", place]))?;
    }
    fs::create_dir("/run/lock").must("a directory");
    let mut server = Command::new("zfs-fuse");
    server.args(["--no-daemon", "--no-kstat-mount"]).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: one system call, which may be made between fork and exec.
    unsafe { server.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
    let server = Server(server.spawn().map_err(|e| format!("zfs-fuse: {e}"))?);
    File::create(image).and_then(|file| file.set_len(SIZE_BYTES)).must("a sparse file");
    let end = Instant::now() + SERVES_WITHIN;
    while let Err(said) = tool(Command::new("zpool").arg("list")) {
        if Instant::now() > end {
            return Err(said);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    tool(Command::new("zpool").args(["create", "-m", "none", POOL]).arg(image))?;
    Ok(server)
}

/// Runs a program of the host; `Err` says what it said.
pub fn tool(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_owned();
    let is_there = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(&program).is_file()));
    if !is_there {
        return Err(format!("there is no {}", program.display()));
    }
    let run = run(command, b"");
    if run.code == Some(0) { Ok(()) } else { Err(format!("{}: {}", run.line, run.err)) }
}
