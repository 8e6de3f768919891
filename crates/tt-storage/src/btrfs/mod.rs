//! The `btrfs` back end: each disk is a raw file in a subvolume of its own, made by a snapshot, which takes the same time
//! whatever the file's size and pieces. It never starts a program.
//!
//! A template's disk gets a read-only subvolume, `volumes/DIGEST.btrfs`, when the first image is made from it. It is a
//! cache: whatever becomes of it, it is made again from the template.

use crate::StorageError;
use crate::file::clone_or_copy;
use crate::images::files::{
    DIR_MODE, Owner, TEMPORARY, give, make_dirs, open_image, open_plain, temporary_name,
};
use crate::images::{Disks, Job};
use crate::shelf::Shelf;
use crate::source::{Origin, Source};
use crate::tree;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use tt_model::{StorageKind, Vm};

pub(crate) mod subvolume;

/// A raw file in a subvolume.
#[derive(Debug)]
pub(crate) struct Subvolumes;

impl Disks for Subvolumes {
    fn kind(&self) -> StorageKind {
        StorageKind::Btrfs
    }

    fn open(&self, job: &Job) -> Result<Option<File>, StorageError> {
        let volume = volume_of(&job.path);
        if !is_there(volume)? {
            return Ok(None);
        }
        let image = match open_image(&job.path) {
            // The disk of a snapshot.
            Err(StorageError::List { source, .. })
                if source.kind() == ErrorKind::ReadOnlyFilesystem =>
            {
                let failed = |source| StorageError::List { path: job.path.clone(), source };
                Some(open_plain(&job.path, false).map_err(failed)?)
            }
            image => image?,
        };
        image.map(Some).ok_or_else(|| damaged(volume, "it holds no disk"))
    }

    fn make(&self, job: &Job, vm: &Vm, epoch: u32, owner: Owner) -> Result<(), StorageError> {
        // Opened before anything is made: a source that is missing or too large changes nothing.
        let source = Source::open(job, self.kind(), vm, epoch)?;
        job.reserve(0)?;
        write(job, &source, vm, owner)
    }

    fn freeze(&self, job: &Job, source: &Source, vm: &Vm) -> Result<(), StorageError> {
        let failed = |e| job.failed(0, e);
        job.reserve(0)?;
        tree::remove(volume_of(&job.path)).map_err(failed)?;
        write(job, source, vm, Owner::Daemon)
    }

    fn sync(&self, job: &Job, is_runtime: bool) -> Result<(), StorageError> {
        let image = self.open(job)?.ok_or_else(|| job.lost())?;
        let synced = if is_runtime {
            image.sync_all()
        } else {
            // Its owner and everything else is on disk, too, once nothing in it can change any more.
            File::open(volume_of(&job.path)).and_then(|v| subvolume::set_read_only(&v, true))
        };
        synced.map_err(|e| job.not_synced(e))
    }

    fn grow(&self, job: &Job, image: &File) -> Result<(), StorageError> {
        image.set_len(job.want_bytes).map_err(|e| job.not_grown(e))
    }

    fn collect(&self, data: &Path, in_use: &dyn Fn(&str) -> bool) -> Result<(), StorageError> {
        Shelf::new(data, self.kind()).collect(in_use, |base| {
            let removed = tree::remove(base).map(drop);
            removed.map_err(|source| StorageError::Destroy { path: base.into(), source })
        })
    }
}

/// Makes one disk, or nothing.
fn write(job: &Job, source: &Source, vm: &Vm, owner: Owner) -> Result<(), StorageError> {
    let failed = |e| job.failed(0, e);
    let volume = volume_of(&job.path);
    let snapshot = |from: &Path| {
        // Not synced: the snapshot does so.
        make_dirs(job.data, volume.parent().unwrap_or(job.data)).map_err(failed)?;
        snapshot(from, volume).map_err(failed)
    };
    match source.origin {
        Origin::Template => {
            let shelf = Shelf::new(job.data, StorageKind::Btrfs);
            let make = |base: &Path| make_base(base, job, source);
            shelf.with(&vm.template.digest, is_base, make, snapshot)?;
        }
        Origin::Kept | Origin::Own => snapshot(volume_of(&source.path))?,
    }
    let finish = || {
        let image = open_plain(&job.path, true)?;
        if image.metadata()?.len() < job.want_bytes {
            image.set_len(job.want_bytes)?;
        }
        // Neither is synced: what the power takes of them the next create gives again, and what a guest has synced
        // has its place in the file.
        give(&image, owner)
    };
    finish().map(drop).map_err(|e| {
        // Only what can not have been in use.
        drop(tree::remove(volume));
        failed(e)
    })
}

/// Whether subvolumes can be made in a directory, snapshotted and removed: tried out. What a probe that was killed left is
/// removed by the next one.
pub(crate) fn probe(dir: &Path) -> io::Result<bool> {
    /// Followed by the id of the process.
    const PREFIX: &str = ".tt-probe-";
    if !subvolume::is_btrfs(dir)? {
        return Ok(false);
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).map(str::to_owned);
        let lives = |pid: String| Path::new("/proc").join(pid.trim_end_matches(TEMPORARY)).exists();
        if pid.is_some_and(|pid| !lives(pid)) {
            tree::remove(&dir.join(name))?;
        }
    }
    let first = dir.join(format!("{PREFIX}{}", std::process::id()));
    let second = temporary_name(&first);
    let attempt = || {
        let (parent, name) = split(&first)?;
        subvolume::create(&File::open(parent)?, name)?;
        snapshot(&first, &second)?;
        subvolume::set_read_only(&File::open(&second)?, true)
    };
    let made = attempt();
    tree::remove(&first).and(tree::remove(&second))?;
    match made {
        Ok(()) => Ok(true),
        // Not root, or a mount that lets no subvolumes be made or removed.
        Err(e) if [ErrorKind::PermissionDenied, ErrorKind::Unsupported].contains(&e.kind()) => {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// The subvolume in which a disk lies.
fn volume_of(disk: &Path) -> &Path {
    disk.parent().unwrap_or(disk)
}

/// Whether a subvolume is there; refuses what is something else.
fn is_there(volume: &Path) -> Result<bool, StorageError> {
    let look = || match tree::look(volume)? {
        Some(meta) => subvolume::is_subvolume(volume, &meta).map(Some),
        None => Ok(None),
    };
    match look() {
        Ok(Some(true)) => Ok(true),
        Ok(None) => Ok(false),
        Ok(Some(false)) => Err(damaged(volume, "it is no subvolume of btrfs")),
        Err(source) => Err(StorageError::List { path: volume.into(), source }),
    }
}

/// Whether a template's subvolume is there, and complete.
fn is_base(base: &Path) -> Result<bool, StorageError> {
    if !is_there(base)? {
        return Ok(false);
    }
    let failed = |source| StorageError::List { path: base.into(), source };
    let is_complete = File::open(base).and_then(|base| subvolume::is_read_only(&base));
    if is_complete.map_err(failed)? {
        return Ok(true);
    }
    Err(damaged(base, "it is a subvolume that can be written"))
}

/// Makes a template's subvolume from its disk.
fn make_base(base: &Path, job: &Job, source: &Source) -> Result<(), StorageError> {
    let failed = |e| job.failed(source.allocated_bytes, e);
    let half = temporary_name(base);
    let disk = half.join(inner(&job.path).map_err(failed)?);
    let begin = || {
        tree::remove(&half)?;
        let (parent, name) = split(&half)?;
        subvolume::create(&File::open(parent)?, name)?;
        fs::set_permissions(&half, Permissions::from_mode(DIR_MODE))?;
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&disk)
    };
    let made = begin().map_err(failed).and_then(|disk| {
        clone_or_copy(job, source, &disk)?;
        // All of it is on disk once nothing in it can change any more.
        File::open(&half)
            .and_then(|half| subvolume::set_read_only(&half, true))
            .and_then(|()| fs::rename(&half, base))
            .map_err(failed)
    });
    if made.is_err() {
        // The next try removes what can not go now.
        drop(tree::remove(&half));
    }
    made
}

/// Snapshots the subvolume `from` as `to`, whose directory is there.
fn snapshot(from: &Path, to: &Path) -> io::Result<()> {
    let (parent, name) = split(to)?;
    subvolume::snapshot(&File::open(from)?, &File::open(parent)?, name)
}

fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    path.parent().zip(path.file_name()).ok_or_else(|| ErrorKind::InvalidInput.into())
}

fn inner(disk: &Path) -> io::Result<&OsStr> {
    disk.file_name().ok_or_else(|| ErrorKind::InvalidInput.into())
}

fn damaged(volume: &Path, problem: &str) -> StorageError {
    StorageError::Damaged { path: volume.into(), problem: problem.into() }
}
