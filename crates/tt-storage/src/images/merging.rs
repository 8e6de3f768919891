//! A merge of two layers that is under way: an image beside theirs, under a name that only [`Merging::finish`] changes.
//! It never touches the two.

use super::files::{Owner, Temporary, give, open_plain, remove_others, sync_dir};
use super::job::Job;
use crate::{Merging, StorageError, qcow2};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tt_model::StorageKind;

/// Behind the name of a merge that is not complete: creates leave it alone, unlike what others left.
pub(super) const UNDER_WAY: &str = ".merge";

/// What a merge is made from and where.
pub(super) struct Parts {
    /// Its name, relative to the data directory, and the same as a path.
    pub name: String,
    pub path: PathBuf,
    pub data: PathBuf,
    /// Its directory, which is there.
    pub dir: PathBuf,
    /// The two layers, upper one first.
    pub layers: [PathBuf; 2],
    /// Name and format of what the lower one lies on.
    pub origin: (String, StorageKind),
    pub owner: Owner,
}

/// See [`Merging`].
struct Draft {
    parts: Parts,
    temporary: Temporary,
}

/// One that an earlier daemon has completed, with its path and directory: its name may not be on disk yet.
struct Made(PathBuf, PathBuf);

/// Opens what is to be merged, and makes room for what an earlier try left.
pub(super) fn begin(parts: Parts) -> Result<Box<dyn Merging>, StorageError> {
    if open_plain(&parts.path, false).is_ok() {
        return Ok(Box::new(Made(parts.path, parts.dir)));
    }
    let failed = |source| StorageError::Create { path: parts.path.clone(), source };
    remove_others(&parts.dir, |name| !name.ends_with(UNDER_WAY)).map_err(failed)?;
    let temporary = Temporary::create_as(&parts.path, UNDER_WAY).map_err(failed)?;
    Ok(Box::new(Draft { parts, temporary }))
}

impl Merging for Draft {
    fn copy(&mut self, goes_on: &dyn Fn() -> bool) -> Result<bool, StorageError> {
        let Parts { name, path, data, layers, origin, owner, .. } = &self.parts;
        let (name, path) = (name.clone(), path.clone());
        let job = Job { name, path, data, want_bytes: 0 };
        let [top, bottom] = layers;
        let layers = [open(top)?, open(bottom)?];
        let origin = (&*origin.0, origin.1);
        let is_whole = qcow2::merge(&job, layers, origin, &self.temporary.file, goes_on)?;
        give(&self.temporary.file, *owner)
            .and_then(|_| self.temporary.file.sync_all())
            .map_err(|e| job.failed(0, e))?;
        Ok(is_whole)
    }

    fn finish(self: Box<Self>) -> Result<(), StorageError> {
        let Parts { path, dir, .. } = &self.parts;
        let named = self.temporary.commit(path).and_then(|()| sync_dir(dir));
        named.map_err(|source| StorageError::Create { path: path.clone(), source })
    }
}

impl Merging for Made {
    fn copy(&mut self, _: &dyn Fn() -> bool) -> Result<bool, StorageError> {
        Ok(true)
    }

    fn finish(self: Box<Self>) -> Result<(), StorageError> {
        let Self(path, dir) = *self;
        sync_dir(&dir).map_err(|source| StorageError::Create { path, source })
    }
}

fn open(path: &Path) -> Result<(PathBuf, std::fs::File), StorageError> {
    match open_plain(path, false) {
        Ok(file) => Ok((path.to_path_buf(), file)),
        Err(e) if e.kind() == ErrorKind::NotFound => Err(StorageError::Lost { path: path.into() }),
        Err(source) => Err(StorageError::OpenDisk { path: path.into(), source }),
    }
}
