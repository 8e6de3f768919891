//! The marks of a Vm's disks: empty files that say which of them are complete, and which were begun.

use crate::StorageError;
use crate::images::files::{make_dirs, sync_dir, temporary_name};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use tt_model::names::runtime_image;
use tt_model::{Layout, StorageKind, VmId};

/// The marks of one Vm's.
pub(super) struct Marks<'a> {
    layout: &'a Layout,
    id: VmId,
}

impl<'a> Marks<'a> {
    pub(super) fn of(layout: &'a Layout, id: VmId) -> Self {
        Self { layout, id }
    }

    fn path(&self, epoch: u32) -> PathBuf {
        self.layout.data.join(runtime_image(StorageKind::Docker, self.id, epoch))
    }

    fn dir(&self) -> PathBuf {
        self.layout.images_of(self.id)
    }

    /// Whether a disk is complete.
    pub(super) fn has(&self, epoch: u32) -> bool {
        self.path(epoch).is_file()
    }

    /// Notes that a disk is about to be made.
    pub(super) fn begin(&self, epoch: u32) -> Result<(), StorageError> {
        let path = self.path(epoch);
        let made = make_dirs(&self.layout.data, &self.dir())
            .and_then(|_| File::create(temporary_name(&path)))
            .and_then(|file| file.sync_all());
        made.map_err(|source| StorageError::Create { path, source })
    }

    /// Notes that it is complete.
    pub(super) fn complete(&self, epoch: u32) -> Result<(), StorageError> {
        let path = self.path(epoch);
        let images = self.layout.data.join("images");
        let noted = fs::rename(temporary_name(&path), &path)
            .and_then(|()| sync_dir(&self.dir()))
            .and_then(|()| sync_dir(&images));
        noted.map_err(|source| StorageError::Create { path, source })
    }

    /// Notes that it is gone.
    pub(super) fn remove(&self, epoch: u32) -> Result<(), StorageError> {
        let path = self.path(epoch);
        for path in [temporary_name(&path), path] {
            absent(fs::remove_file(&path), &path)?;
        }
        Ok(())
    }

    /// Removes the directory, if nothing of another back end's is in it.
    pub(super) fn remove_dir(&self) -> Result<(), StorageError> {
        match fs::remove_dir(self.dir()) {
            Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => absent(removed, &self.dir()),
        }
    }

    /// All that were begun.
    pub(super) fn all(&self) -> Result<BTreeSet<u32>, StorageError> {
        let dir = self.dir();
        let failed = |source| StorageError::List { path: dir.clone(), source };
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries.map_err(failed)?,
        };
        let mut epochs = BTreeSet::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let epoch = name.split('.').next().and_then(|digits| digits.parse().ok());
            epochs.extend(epoch.filter(|epoch| {
                let own = self.path(*epoch);
                path == own || path == temporary_name(&own)
            }));
        }
        Ok(epochs)
    }
}

/// The Vms that have marks.
pub(super) fn ids(layout: &Layout) -> Result<Vec<VmId>, StorageError> {
    let dir = layout.data.join("images");
    let failed = |source: io::Error| StorageError::List { path: dir.clone(), source };
    let entries = match fs::read_dir(&dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let id = name.to_str().and_then(crate::layers::parse_id);
        if let Some(id) = id
            && !Marks::of(layout, id).all()?.is_empty()
        {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn absent(removed: io::Result<()>, path: &Path) -> Result<(), StorageError> {
    match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(StorageError::Destroy { path: path.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}
