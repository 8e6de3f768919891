//! Network namespaces as files: made, entered, listed and removed. Only threads of its own change
//! their namespace; the caller's thread stays where it is.

use crate::NetworkError;
use rustix::fs::statfs;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::thread;
use tt_model::EnvId;

/// Where a thread finds its own network namespace.
pub(crate) const OWN: &str = "/proc/thread-self/ns/net";

/// `NSFS_MAGIC` of linux/magic.h: what lies below a namespace's file.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Mounts on top of each other are the work of somebody else; more than this many are left alone.
const MOUNTS_MAX: usize = 8;

/// Whether a namespace lies at `path`. A file alone is the rest of one.
pub(crate) fn exists(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.f_type == NSFS_MAGIC)
}

/// The Envs that have a file in `dir`, whether a namespace lies there or not.
pub(crate) fn list(dir: &Path) -> Result<Vec<EnvId>, NetworkError> {
    let fail = |source| NetworkError::UseFile { action: "list", path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail)?,
    };
    let mut envs = Vec::new();
    for entry in entries {
        let name = entry.map_err(fail)?.file_name();
        envs.extend(name.to_str().and_then(|name| name.parse().ok()).map(EnvId));
    }
    Ok(envs)
}

/// Runs `action` inside the namespace at `path`.
pub(crate) fn enter<T: Send>(
    path: &Path,
    action: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    let file = File::open(path).map_err(|source| fail("enter", path, source))?;
    enter_open(file.as_fd(), path, action)
}

/// Runs `action` inside the namespace `open`, which is called `path` in errors.
pub(crate) fn enter_open<T: Send>(
    open: BorrowedFd<'_>,
    path: &Path,
    action: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    on_thread(path, || {
        move_into_link_name_space(open, Some(LinkNameSpaceType::Network))
            .map_err(|errno| fail("enter", path, errno.into()))?;
        action()
    })
}

/// Makes a namespace, runs `action` inside it, and only then puts it at `path`: what lies there is
/// complete, and what is not complete goes with the thread.
pub(crate) fn make<T: Send>(
    path: &Path,
    action: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    on_thread(path, || {
        let fail = |source| fail("make", path, source);
        // SAFETY: `CLONE_NEWNET` parts no memory, descriptors or file systems from other threads.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(|errno| fail(errno.into()))?;
        let value = action()?;
        File::create(path).map_err(fail)?;
        mount_bind(OWN, path).map_err(|errno| fail(errno.into()))?;
        Ok(value)
    })
}

/// Removes the namespace at `path`, whatever is left of it. It ends with its last user.
pub(crate) fn remove(path: &Path) -> Result<(), NetworkError> {
    let fail = |source| fail("remove", path, source);
    for _ in 0..MOUNTS_MAX {
        match unmount(path, UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(errno) => return Err(fail(errno.into())),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(error)),
        _ => Ok(()),
    }
}

fn fail(action: &'static str, path: &Path, source: io::Error) -> NetworkError {
    NetworkError::UseNamespace { action, path: path.to_owned(), source }
}

fn on_thread<T: Send>(
    path: &Path,
    action: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, action)
            .map_err(|source| fail("enter", path, source))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
