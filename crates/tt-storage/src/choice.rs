//! Which back end a data directory gets: tried out, not guessed from the file system's name. It leaves nothing behind.

use crate::file::not_cloneable;
use crate::{StorageError, btrfs, zfs};
use rustix::fs::{Mode, OFlags, ioctl_ficlone};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tt_model::StorageKind;

/// A back end, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The back end for new images.
    pub kind: StorageKind,
    /// Why that one, for people.
    pub reason: String,
    /// What keeps it from working now, for people: disks wait until that has changed.
    pub trouble: Option<String>,
}

/// What the data sets of the back end `zfs`, and the volumes of `zvol`, lie below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// A pool, or a data set in one: `tank`, `tank/vms`.
    pub name: String,
    /// Whether somebody named it. Else the data directory lies in it.
    pub is_configured: bool,
}

impl Pool {
    /// The one that is configured, else the data set in which `data_dir` lies, if it is on ZFS.
    ///
    /// # Errors
    /// [`StorageError::Probe`] if the kernel does not say what is mounted there.
    pub fn find(configured: Option<&str>, data_dir: &Path) -> Result<Option<Self>, StorageError> {
        let failed = |source| StorageError::Probe { path: data_dir.into(), source };
        match configured {
            Some(name) => Ok(Some(Self { name: name.to_owned(), is_configured: true })),
            None => {
                let found = zfs::pool_of(data_dir).map_err(failed)?;
                Ok(found.map(|name| Self { name, is_configured: false }))
            }
        }
    }

    /// Why disks of that kind can not be made in it now, and used in `data_dir`: tried out. Kinds that lie in no pool have no
    /// trouble with it.
    #[must_use]
    pub fn trouble(&self, kind: StorageKind, data_dir: &Path) -> Option<String> {
        match kind {
            StorageKind::Zfs => zfs::probe(&self.name).err(),
            StorageKind::Zvol => zfs::probe_volumes(&self.name, data_dir).err(),
            StorageKind::File | StorageKind::Qcow2 | StorageKind::Btrfs | StorageKind::Docker => {
                None
            }
        }
    }
}

/// Chooses the back end for new images in `data_dir`: `zfs` where there is a pool that was named or that does what is needed,
/// `btrfs` where it has subvolumes, `file` where files can share blocks, else `qcow2` where QEMU is installed, else `file`
/// with copies. `zvol` is chosen by nobody but who configures it. `qemu` is the program that would run machines: a path, or a name that is looked up in `PATH`.
///
/// A pool that was named and is not there is waited for: nobody wants disks in another place because of the order in which a
/// host comes up.
///
/// # Errors
/// [`StorageError::Probe`] if nothing can be written there.
pub fn choose(data_dir: &Path, qemu: &Path, pool: Option<&Pool>) -> Result<Choice, StorageError> {
    let trouble = pool.and_then(|pool| pool.trouble(StorageKind::Zfs, data_dir));
    if let Some(pool) = pool
        && (pool.is_configured || trouble.is_none())
    {
        return Ok(of_pool(pool, trouble));
    }
    let failed = |source| StorageError::Probe { path: data_dir.into(), source };
    let found = Found {
        subvolumes: btrfs::probe(data_dir).map_err(failed)?,
        reflink: probe_reflink(data_dir).map_err(failed)?,
        qemu: is_installed(qemu),
    };
    let mut choice = decide(&found);
    if let (Some(pool), Some(trouble)) = (pool, trouble) {
        choice.reason = format!("{} can not be used ({trouble}); {}", pool.name, choice.reason);
    }
    Ok(choice)
}

/// What was found in a data directory and on its host.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    subvolumes: bool,
    reflink: bool,
    qemu: bool,
}

fn of_pool(pool: &Pool, trouble: Option<String>) -> Choice {
    let whose = if pool.is_configured { "is configured" } else { "holds the data directory" };
    let reason = format!(
        "the data set {} {whose}: clones in it take the same time whatever a disk's size and pieces, and serve every \
         engine",
        pool.name
    );
    Choice { kind: StorageKind::Zfs, reason, trouble }
}

/// As `execvp` would find it: only a name without a slash is looked up.
fn is_installed(program: &Path) -> bool {
    if program.components().count() > 1 || program.has_root() {
        return program.is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn decide(found: &Found) -> Choice {
    let (kind, reason) = match found {
        Found { subvolumes: true, .. } => (
            StorageKind::Btrfs,
            "this file system has subvolumes: snapshots of them take the same time whatever a disk's size and pieces, \
             and serve every engine",
        ),
        Found { reflink: true, .. } => (
            StorageKind::File,
            "files of this file system can share blocks: clones take no time and serve every engine",
        ),
        Found { qemu: true, .. } => (
            StorageKind::Qcow2,
            "files of this file system can not share blocks: overlays take no time, but serve QEMU only; \
             put the data directory on XFS or btrfs to serve every engine",
        ),
        Found { .. } => (
            StorageKind::File,
            "files of this file system can not share blocks, and QEMU is not installed: images are copied; \
             put the data directory on XFS or btrfs to clone them",
        ),
    };
    Choice { kind, reason: reason.to_owned(), trouble: None }
}

fn probe_reflink(dir: &Path) -> io::Result<bool> {
    // Files without a name: a probe that is killed leaves nothing.
    let unnamed = || {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR).map(File::from)
    };
    let source = match unnamed() {
        // Where files must have names, no file system of today shares blocks.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => return Ok(false),
        source => source?,
    };
    source.write_all_at(&[1; 4096], 0)?;
    match ioctl_ficlone(unnamed()?, &source) {
        Ok(()) => Ok(true),
        Err(e) if not_cloneable(e) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_path_or_by_name() {
        for (program, want) in [
            ("sh", true),
            ("/bin/sh", true),
            ("/bin", false),
            ("/bin/no-such-program", false),
            ("no-such-program", false),
            ("./sh", false),
            ("", false),
        ] {
            assert_eq!(is_installed(program.as_ref()), want, "{program:?}");
        }
    }

    #[test]
    fn copies_are_the_last_resort() {
        let found = |subvolumes, reflink, qemu| Found { subvolumes, reflink, qemu };
        for (found, want) in [
            (found(true, true, true), StorageKind::Btrfs),
            (found(false, true, true), StorageKind::File),
            (found(false, true, false), StorageKind::File),
            (found(false, false, true), StorageKind::Qcow2),
            (found(false, false, false), StorageKind::File),
        ] {
            assert_eq!(decide(&found).kind, want);
        }
    }

    #[test]
    fn a_pool_that_was_named_is_waited_for_and_another_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Pool::find(None, dir.path()).unwrap(), None);
        let named = Pool::find(Some("no-such-pool"), dir.path()).unwrap().unwrap();
        let choice = choose(dir.path(), "sh".as_ref(), Some(&named)).unwrap();
        assert_eq!(choice.kind, StorageKind::Zfs);
        assert!(choice.trouble.is_some(), "{choice:?}");
        let found = Pool { is_configured: false, ..named };
        let choice = choose(dir.path(), "sh".as_ref(), Some(&found)).unwrap();
        assert_ne!(choice.kind, StorageKind::Zfs);
        assert!(choice.reason.starts_with("no-such-pool can not be used ("), "{choice:?}");
        assert_eq!(choice.trouble, None);
    }
}
