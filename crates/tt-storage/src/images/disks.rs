//! What a back end of images says of its disks.

use super::files::{Owner, open_image, remove_others, size_bytes, space};
use super::{Job, merging};
use crate::source::Source;
use crate::{Space, StorageError, tree};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use tt_model::{StorageKind, Vm, VmId};

/// How the disks of one back end come to be below `images/<vm>/`.
pub(crate) trait Disks: Send + Sync + std::fmt::Debug {
    /// Which back end it is.
    fn kind(&self) -> StorageKind;

    /// A disk, if it is there and complete.
    fn open(&self, job: &Job) -> Result<Option<File>, StorageError> {
        open_image(&job.path)
    }

    /// As [`open`](Self::open), also where no more than the way to the disk was lost.
    fn find(&self, job: &Job) -> Result<Option<File>, StorageError> {
        self.open(job)
    }

    /// Whether a disk is there and complete, be it one that nobody opens.
    fn has(&self, job: &Job) -> Result<bool, StorageError> {
        self.open(job).map(|image| image.is_some())
    }

    /// Makes the disk `epoch` of `vm`, which is not there, from what the record says; or nothing. It is on disk then.
    fn make(&self, job: &Job, vm: &Vm, epoch: u32, owner: Owner) -> Result<(), StorageError>;

    /// Makes the disk of a snapshot: what `source`, the runtime image, is at this moment. What has its name is replaced.
    /// A guest waits for it: it is on disk after [`Disks::sync`].
    fn freeze(&self, job: &Job, source: &Source, vm: &Vm) -> Result<(), StorageError>;

    /// Brings to disk what a disk holds, a machine's (`is_runtime`) or a snapshot's, and its name.
    fn sync(&self, job: &Job, is_runtime: bool) -> Result<(), StorageError>;

    /// The size that a guest sees.
    fn size_bytes(&self, path: &Path, image: &File) -> Result<u64, StorageError> {
        size_bytes(image).map_err(|source| StorageError::List { path: path.into(), source })
    }

    /// Gives a smaller disk, which no machine has open, the size that is wanted.
    fn grow(&self, job: &Job, image: &File) -> Result<(), StorageError>;

    /// Lets `read` open a disk that nothing writes to any more, and what it lies on, by these names.
    fn show(
        &self,
        _data: &Path,
        layers: &[String],
        read: &dyn Fn(&[String]) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        read(layers)
    }

    /// What these disks are called in the Vm's directory.
    fn file_names(&self, epochs: &BTreeSet<u32>) -> BTreeSet<String> {
        epochs.iter().map(|epoch| format!("{epoch}.{}", self.kind().extension())).collect()
    }

    /// Removes all disks of a Vm, complete or not, but those in `stay`. `dir`: the Vm's directory. Says
    /// [`StorageError::InUse`] of one that could not be removed because a machine has it open, once all others are gone.
    fn keep_only(&self, dir: &Path, _: VmId, stay: &BTreeSet<u32>) -> Result<(), StorageError> {
        let stay = self.file_names(stay);
        // What is being merged is called so.
        remove_others(dir, |name| {
            stay.contains(name.strip_suffix(merging::UNDER_WAY).unwrap_or(name))
        })
        .map_err(|source| StorageError::Destroy { path: dir.into(), source })
    }

    /// Removes all disks of a Vm. What another back end has mounted in its directory is left to that.
    fn remove_all(&self, dir: &Path, _: VmId) -> Result<(), StorageError> {
        let removed = tree::remove(dir).map(drop);
        removed.map_err(|source| StorageError::Destroy { path: dir.into(), source })
    }

    /// Vms that have disks elsewhere than in the data directory.
    fn found(&self) -> Result<Vec<VmId>, StorageError> {
        Ok(Vec::new())
    }

    /// Room for disks.
    fn space(&self, data: &Path) -> Result<Space, StorageError> {
        space(data)
    }

    /// Lets a layer say that it lies on `origin`, a name relative to the data directory and its format. Durable, and
    /// done at once or not at all.
    fn relink(
        &self,
        _job: &Job,
        _origin: (&str, StorageKind),
        _image: &File,
    ) -> Result<(), StorageError> {
        Ok(())
    }

    /// Removes what it keeps of templates that are not `in_use`.
    fn collect(&self, data: &Path, in_use: &dyn Fn(&str) -> bool) -> Result<(), StorageError>;
}
