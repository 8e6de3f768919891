//! The two forms of disks in a pool, and what differs between them: a raw file in a data set of its own, mounted at the disk's
//! directory, and a volume, whose device has a node there. All else is the same for both.

use super::command::{Refused, Zfs};
use super::mounts::set_of;
use super::{damaged, volume};
use crate::StorageError;
use crate::images::files::{lock, open_device, open_image, open_plain};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tt_model::StorageKind;

/// What a disk is in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A raw file in a data set.
    File,
    /// A volume.
    Volume,
}

/// What there is at a disk's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing, or what is left of something that is not there.
    Nothing,
    /// The disk.
    Disk,
    /// Something else.
    Other,
}

impl Form {
    pub(super) fn kind(self) -> StorageKind {
        match self {
            Self::File => StorageKind::Zfs,
            Self::Volume => StorageKind::Zvol,
        }
    }

    /// Behind the name of a disk's directory.
    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::File => ".zfs",
            Self::Volume => ".zvol",
        }
    }

    /// What there is at a disk's directory, which is there. It asks no program.
    pub(super) fn look(self, set: &str, place: &Path, meta: &Metadata) -> io::Result<Seen> {
        let above = place.parent().map(fs::symlink_metadata).transpose()?;
        let is_mounted = above.is_some_and(|above| above.dev() != meta.dev());
        if self == Self::File && !is_mounted {
            return Ok(Seen::Nothing);
        }
        match self.is_shown(set, place)? {
            true => Ok(Seen::Disk),
            false if is_mounted => Ok(Seen::Other),
            // A node of another time.
            false => Ok(Seen::Nothing),
        }
    }

    /// Whether a disk is at its directory.
    pub(super) fn is_shown(self, set: &str, place: &Path) -> io::Result<bool> {
        match self {
            Self::File => Ok(set_of(place)?.is_some_and(|mounted| mounted == set)),
            Self::Volume => volume::is_shown(set, place),
        }
    }

    /// Lets a disk be at its directory, which is there.
    pub(super) fn show(self, set: &str, place: &Path) -> Result<(), StorageError> {
        match self {
            Self::File => mount(set, place),
            Self::Volume => volume::show(set, place),
        }
    }

    /// Lets nobody see a disk, or what a template's disk was made in, any more.
    pub(super) fn hide(self, set: &str, place: &Path) -> Result<(), StorageError> {
        match self {
            Self::File => {
                Zfs::mount_at(set, None).run()?;
                Ok(())
            }
            Self::Volume => self.let_go(place),
        }
    }

    /// To be called before a disk may go: what gets its number next must not be reached by its old name. Data sets have no
    /// numbers.
    pub(super) fn let_go(self, place: &Path) -> Result<(), StorageError> {
        match self {
            Self::File => Ok(()),
            Self::Volume => volume::hide(place)
                .map_err(|source| StorageError::Destroy { path: place.into(), source }),
        }
    }

    /// Opens a disk that is at its directory, whose name is `disk`.
    pub(super) fn open(self, set: &str, disk: &Path) -> Result<Option<File>, StorageError> {
        let place = super::place_of(disk);
        match self {
            Self::File => open_image(disk),
            Self::Volume => volume::open(set, place)
                .map_err(|source| StorageError::List { path: disk.into(), source }),
        }
    }

    /// Whether a machine has a disk open.
    pub(super) fn is_open(self, set: &str, place: &Path) -> bool {
        let Some(disk) = self.kind().inner().map(|inner| place.join(inner)) else { return false };
        let disk = match self {
            Self::File => open_plain(&disk, true),
            Self::Volume if !volume::is_shown(set, place).unwrap_or(false) => return false,
            Self::Volume => open_device(&disk, true),
        };
        // One that can not be looked at is tried: whoever has it says so.
        disk.is_ok_and(|disk| matches!(lock(&disk), Ok(false)))
    }

    /// Makes a disk from a snapshot, with what it lies below. Answers whether it is known to be new: it may have been there.
    pub(super) fn clone_set(self, from: &str, set: &str, place: &Path) -> Result<bool, Refused> {
        match self {
            Self::File => {
                Zfs::clone(from, set, Some(place)).run()?;
                // One that is there already is a success, too, but is not mounted: a create was killed, or its directory lost.
                Ok(set_of(place).is_ok_and(|there| there.is_some_and(|there| there == set)))
            }
            Self::Volume => match Zfs::clone_volume(from, set).run() {
                // What it is to lie below, or the snapshot.
                Err(Refused::Absent) => Zfs::clone_volume_below(from, set).run().map(|_| true),
                cloned => cloned.map(|_| true),
            },
        }
    }
}

/// Mounts a disk's data set where its name says.
fn mount(set: &str, place: &Path) -> Result<(), StorageError> {
    let look = || set_of(place).map_err(|source| StorageError::List { path: place.into(), source });
    if look()?.is_some_and(|mounted| mounted == set) {
        return Ok(());
    }
    if fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(damaged(place, "it is where a data set is to be mounted, and not empty"));
    }
    // It may be mounted where the data directory was once.
    let mounted = Zfs::mount(set).run();
    if look()?.is_none() {
        Zfs::mount_at(set, Some(place)).run()?;
    }
    match look()? {
        Some(there) if there == set => Ok(()),
        _ => match mounted {
            Err(refused) => Err(refused.into()),
            Ok(_) => Err(StorageError::Pool { problem: format!("{set} is mounted elsewhere") }),
        },
    }
}
