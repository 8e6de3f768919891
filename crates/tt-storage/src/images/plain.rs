//! Disks that are files, whatever their format. They are made under a temporary name and renamed.

use super::files::{Owner, Temporary, give, make_dirs, open_image, sync_dir};
use super::{Disks, Job};
use crate::StorageError;
use crate::source::Source;
use std::fs::File;
use std::path::{Path, PathBuf};
use tt_model::{StorageKind, Vm};

/// What one format does differently.
pub(crate) trait Format: Send + Sync + std::fmt::Debug {
    /// Which back end it is.
    fn kind(&self) -> StorageKind;

    /// Makes `image`, an empty file, a clone of `source` with `job.want_bytes`, which is no less than `source` has. Asks
    /// [`Job::reserve`] before it writes data. The caller removes the file after an error, and syncs it otherwise.
    fn clone_source(&self, job: &Job, source: &Source, image: &File) -> Result<(), StorageError>;

    /// The size that a guest sees.
    fn size_bytes(&self, path: &Path, image: &File) -> Result<u64, StorageError>;

    /// See [`Disks::relink`].
    fn relink(
        &self,
        _job: &Job,
        _origin: (&str, StorageKind),
        _image: &File,
    ) -> Result<(), StorageError> {
        Ok(())
    }

    /// Gives a smaller image, which no machine has open, the size that is wanted.
    fn grow(&self, job: &Job, image: &File) -> Result<(), StorageError>;
}

/// Disks that are files of some format.
#[derive(Debug)]
pub(crate) struct Files<F>(pub(crate) F);

impl<F: Format> Disks for Files<F> {
    fn kind(&self) -> StorageKind {
        self.0.kind()
    }

    fn make(&self, job: &Job, vm: &Vm, epoch: u32, owner: Owner) -> Result<(), StorageError> {
        // Opened before anything is made: a source that is missing or too large changes nothing.
        let source = Source::open(job, self.kind(), vm, epoch)?;
        job.reserve(0)?;
        if let (true, Owner::Machine(uid)) = (self.kind().is_layered(), owner) {
            source.freeze(uid)?;
        }
        let (temporary, changed) = self.draw(job, &source, owner)?;
        temporary
            .file
            .sync_all()
            .and_then(|()| temporary.commit(&job.path))
            // Inner ones first: most file systems then have written the outer ones already.
            .and_then(|()| changed.iter().try_for_each(|dir| sync_dir(dir)))
            .map_err(|e| job.failed(0, e))
    }

    fn freeze(&self, job: &Job, source: &Source, _: &Vm) -> Result<(), StorageError> {
        job.reserve(0)?;
        let (temporary, _) = self.draw(job, source, Owner::Daemon)?;
        temporary.commit(&job.path).map_err(|e| job.failed(0, e))
    }

    fn sync(&self, job: &Job, _: bool) -> Result<(), StorageError> {
        let image = open_image(&job.path)?.ok_or_else(|| job.lost())?;
        let dirs = [job.path.parent().unwrap_or(job.data), &job.data.join("images")];
        image
            .sync_all()
            .and_then(|()| dirs.iter().try_for_each(|dir| sync_dir(dir)))
            .map_err(|e| job.not_synced(e))
    }

    fn size_bytes(&self, path: &Path, image: &File) -> Result<u64, StorageError> {
        self.0.size_bytes(path, image)
    }

    fn grow(&self, job: &Job, image: &File) -> Result<(), StorageError> {
        self.0.grow(job, image)
    }

    fn relink(
        &self,
        job: &Job,
        origin: (&str, StorageKind),
        image: &File,
    ) -> Result<(), StorageError> {
        self.0.relink(job, origin, image)
    }

    fn collect(&self, _: &Path, _: &dyn Fn(&str) -> bool) -> Result<(), StorageError> {
        Ok(())
    }
}

impl<F: Format> Files<F> {
    /// Makes one image under its temporary name. Answers the directories, too, that are to be synced with it.
    fn draw(
        &self,
        job: &Job,
        source: &Source,
        owner: Owner,
    ) -> Result<(Temporary, Vec<PathBuf>), StorageError> {
        let failed = |e| job.failed(0, e);
        let dir = job.path.parent().unwrap_or(job.data);
        let changed = make_dirs(job.data, dir).map_err(failed)?;
        let temporary = Temporary::create(&job.path).map_err(failed)?;
        self.0.clone_source(job, source, &temporary.file)?;
        give(&temporary.file, owner).map_err(failed)?;
        Ok((temporary, changed))
    }
}
