//! File systems for one bench, in a mount namespace of the calling thread: whatever ends the bench,
//! the kernel takes mounts, loop devices and content away. No other process sees them.

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
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
            mount(kind, &dir)?;
            Ok(action(&dir.path().join("mnt")))
        });
        run.join()
    });
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn mount(kind: Kind, dir: &TempDir) -> Result<(), String> {
    let (image, point) = (dir.path().join("image"), dir.path().join("mnt"));
    fs::create_dir(&point).must("a mount point");
    let mkfs: &[&str] = match kind {
        Kind::Xfs => &["mkfs.xfs", "-q", "-m", "reflink=1"],
        Kind::Ext4 => &["mkfs.ext4", "-q", "-m", "0"],
        Kind::Tmpfs => {
            return tool(Command::new("mount").args(["-t", "tmpfs", "bench"]).arg(point));
        }
    };
    File::create(&image).and_then(|file| file.set_len(SIZE_BYTES)).must("a sparse file");
    tool(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image))?;
    tool(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(point))?;
    // The loop device, which goes with its mount, is all that holds it from now on.
    fs::remove_file(&image).must("remove a file");
    Ok(())
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
