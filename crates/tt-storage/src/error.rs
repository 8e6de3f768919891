//! What can go wrong with a disk. It never says what the caller was about.

use std::io;
use std::path::PathBuf;
use tt_model::{ErrorCode, VmId};

/// Why a storage call failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The image would not fit, or the file system ran full; nothing of the image is left. A retry helps once there is
    /// room.
    #[error(
        "image {} needs {need_mb} MB and the file system has {free_mb} MB free: make room and retry",
        path.display()
    )]
    NoSpace {
        /// The image.
        path: PathBuf,
        /// What it would take, with [`RESERVE_MB`](crate::RESERVE_MB).
        need_mb: u64,
        /// What may be written.
        free_mb: u64,
    },
    /// The image is larger than asked for; it is left as it is.
    #[error(
        "image {} has {have_bytes} bytes and can not shrink to {want_mb} MB: ask for no less than it has",
        path.display()
    )]
    Shrink {
        /// The image.
        path: PathBuf,
        /// Its size.
        have_bytes: u64,
        /// What was asked for.
        want_mb: u32,
    },
    /// What the disk is made from is larger than the disk asked for. Nothing was changed.
    #[error(
        "disk of {want_mb} MB is smaller than what it is made from, {}: ask for {source_mb} MB or more",
        path.display()
    )]
    BelowSource {
        /// The disk that it is made from.
        path: PathBuf,
        /// Its size, rounded up.
        source_mb: u64,
        /// What was asked for.
        want_mb: u32,
    },
    /// What the image is made from is being taken in for another one. Nothing went wrong: look again soon.
    #[error("{name} waits for another template that is being taken in")]
    NotYet {
        /// What it is made from.
        name: String,
    },
    /// Docker did not do something. See the source.
    #[error(transparent)]
    Docker(#[from] tt_docker::DockerError),
    /// A name in the record leaves the data directory.
    #[error(
        "{path:?} is no path below the data directory: it must be relative, short, without `.` and `..`"
    )]
    CheckPath {
        /// The name.
        path: String,
    },
    /// The image's name is not the one of this Vm in this back end.
    #[error("image {path:?} does not belong to this Vm and back end: its name would be {right:?}")]
    CheckName {
        /// The image's name.
        path: String,
        /// What it would be.
        right: String,
    },
    /// The template's disk can not be read. A retry helps if the template comes back.
    #[error("template disk {} can not be used", path.display())]
    OpenTemplate {
        /// The template's disk.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A disk that an image is made from, a kept image or one of the same Vm, can not be read. A retry may help.
    #[error("disk {}, which an image is to be made from, can not be used", path.display())]
    OpenDisk {
        /// The disk.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A disk that the record says to exist is gone, and what it held can not be made again. No retry helps: its owner
    /// decides.
    #[error(
        "disk {} is gone, and what it held can not be made again: bring it back, apply a snapshot, or remove the Vm",
        path.display()
    )]
    Lost {
        /// The disk.
        path: PathBuf,
    },
    /// Nothing is removed, for a disk that the record says to exist is not there: what holds it may only be away. A retry
    /// helps once it is back, or not named any more.
    #[error(
        "disk {} is not there, so no other one is removed: bring it back (a file system or a pool may be away), or \
         remove its snapshot",
        path.display()
    )]
    Away {
        /// The disk.
        path: PathBuf,
    },
    /// The image could not be made; nothing of it is left. A retry may help.
    #[error("image {} can not be created", path.display())]
    Create {
        /// The image or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The image could not be grown; its content is untouched. A retry may help.
    #[error("image {} can not be changed to {want_mb} MB", path.display())]
    Grow {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        want_mb: u32,
        /// What the system said.
        source: io::Error,
    },
    /// The image could not be given to those who are to read or write it. A retry may help.
    #[error("image {} can not be given to its owner", path.display())]
    Give {
        /// The image.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The record names no merge, or this back end has no layers. No retry helps.
    #[error("vm {id} has no layers that are to be merged")]
    NoMerge {
        /// The Vm.
        id: VmId,
    },
    /// An image could not be told what it lies on. A retry may help.
    #[error("image {} can not be told what it lies on", path.display())]
    Relink {
        /// The image.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The image could not be brought to disk. A retry may help.
    #[error("image {} can not be brought to disk", path.display())]
    Sync {
        /// The image.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A machine has the image open, and only its engine can grow it. A retry helps when it did, or stopped.
    #[error("image {} is open in a machine: only its engine can grow it now", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// Somebody has a disk open that is to go. A retry helps when he has let it go.
    #[error("a disk that is to be removed is in use: {problem}")]
    Held {
        /// What the pool said.
        problem: String,
    },
    /// What lies at the image's name is none that this back end made. It is left as it is.
    #[error("image {} is damaged: {problem}", path.display())]
    Damaged {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The image has a size that its format can not hold.
    #[error("image {} can have {max_mb} MB at most, not {want_mb} MB", path.display())]
    Limit {
        /// The image.
        path: PathBuf,
        /// What it can hold.
        max_mb: u64,
        /// What was asked for.
        want_mb: u32,
    },
    /// The content of a disk could not be written elsewhere, or was not wanted there any more. A retry may help.
    #[error("the content of image {} can not be copied", path.display())]
    Export {
        /// The image.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An image could not be removed. A retry may help.
    #[error("images in {} can not be removed", path.display())]
    Destroy {
        /// Where they lie.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The images could not be looked at. A retry may help.
    #[error("images in {} can not be listed", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file system did not say how much room it has. A retry may help.
    #[error("room in {} can not be measured", path.display())]
    Space {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The data directory could not be tried out. A retry may help.
    #[error("data directory {} can not be probed", path.display())]
    Probe {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The pool of data sets is not there, or did not do what it was told: it is busy, say. A retry may help.
    #[error("the pool of data sets: {problem}")]
    Pool {
        /// What the program said, or what is missing.
        problem: String,
    },
    /// Something can not be removed, for others were made from it. A retry helps once they are gone.
    #[error("data sets that were made from it go on needing it")]
    HasClones,
    /// A fake failed on demand. A retry may help.
    #[error("storage failed on demand at {effect}")]
    Fault {
        /// The side effect.
        effect: &'static str,
    },
    /// A fake behaves as if the daemon had died. No retry helps until it is revived.
    #[error("storage died on demand at {effect}")]
    Died {
        /// The side effect at which it died.
        effect: &'static str,
    },
}

impl StorageError {
    /// Whether the same call may succeed later without its caller changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoSpace { .. }
            | Self::Away { .. }
            | Self::OpenTemplate { .. }
            | Self::OpenDisk { .. }
            | Self::Create { .. }
            | Self::Give { .. }
            | Self::Grow { .. }
            | Self::Sync { .. }
            | Self::Export { .. }
            | Self::Relink { .. }
            | Self::InUse { .. }
            | Self::Held { .. }
            | Self::Destroy { .. }
            | Self::List { .. }
            | Self::Space { .. }
            | Self::Probe { .. }
            | Self::Pool { .. }
            | Self::HasClones
            | Self::NotYet { .. }
            | Self::Fault { .. } => true,
            Self::Docker(source) => source.is_retryable(),
            Self::Shrink { .. }
            | Self::BelowSource { .. }
            | Self::CheckPath { .. }
            | Self::CheckName { .. }
            | Self::Damaged { .. }
            | Self::Limit { .. }
            | Self::Lost { .. }
            | Self::NoMerge { .. }
            | Self::Died { .. } => false,
        }
    }

    /// The stable code that stands for it in answers and logs.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoSpace { .. } => ErrorCode::NoRoom,
            Self::Shrink { .. } | Self::BelowSource { .. } | Self::Limit { .. } => {
                ErrorCode::Invalid
            }
            Self::InUse { .. } | Self::Held { .. } => ErrorCode::InUse,
            Self::Docker(source) if source.is_away() => ErrorCode::Host,
            Self::OpenTemplate { .. } | Self::Export { .. } => ErrorCode::Template,
            Self::Destroy { .. } | Self::Away { .. } | Self::HasClones => ErrorCode::DestroyImage,
            Self::Space { .. } | Self::Probe { .. } | Self::Pool { .. } => ErrorCode::Host,
            Self::CheckPath { .. } | Self::CheckName { .. } | Self::NoMerge { .. } => {
                ErrorCode::Internal
            }
            Self::Create { .. }
            | Self::Docker(_)
            | Self::NotYet { .. }
            | Self::OpenDisk { .. }
            | Self::Grow { .. }
            | Self::Give { .. }
            | Self::Sync { .. }
            | Self::Relink { .. }
            | Self::Lost { .. }
            | Self::Damaged { .. }
            | Self::List { .. }
            | Self::Fault { .. }
            | Self::Died { .. } => ErrorCode::CreateImage,
        }
    }
}
