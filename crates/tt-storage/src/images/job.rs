//! One image that is to be made or changed: what is wanted where, and what a failure was. It never touches the image.

use super::files::space;
use crate::{RESERVE_MB, StorageError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// One image that is to be made or changed.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// Its name, relative to the data directory.
    pub(crate) name: String,
    /// The same as a path.
    pub(crate) path: PathBuf,
    /// The data directory.
    pub(crate) data: &'a Path,
    /// The size that it must have.
    pub(crate) want_bytes: u64,
}

impl Job<'_> {
    /// The size that it must have, for people.
    pub(crate) fn want_mb(&self) -> u32 {
        u32::try_from(self.want_bytes >> 20).unwrap_or(u32::MAX)
    }

    /// Refuses what would leave less than [`RESERVE_MB`] free.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<(), StorageError> {
        let need_mb = bytes.div_ceil(1 << 20).saturating_add(RESERVE_MB);
        let free_mb = space(self.data)?.free_mb;
        if need_mb > free_mb {
            return Err(StorageError::NoSpace { path: self.path.clone(), need_mb, free_mb });
        }
        Ok(())
    }

    /// What a failed write of about so many bytes was: a full file system, or something else.
    pub(crate) fn failed(&self, bytes: u64, source: io::Error) -> StorageError {
        let full = matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        match space(self.data) {
            Ok(space) if full => StorageError::NoSpace {
                path: self.path.clone(),
                need_mb: bytes.div_ceil(1 << 20) + RESERVE_MB,
                free_mb: space.free_mb,
            },
            _ => StorageError::Create { path: self.path.clone(), source },
        }
    }

    /// What a failed growth was.
    pub(crate) fn not_grown(&self, source: io::Error) -> StorageError {
        StorageError::Grow { path: self.path.clone(), want_mb: self.want_mb(), source }
    }

    /// What a failed change of the image's owner was.
    pub(crate) fn not_given(&self, source: io::Error) -> StorageError {
        StorageError::Give { path: self.path.clone(), source }
    }

    /// What a failed write to the disk was.
    pub(crate) fn not_synced(&self, source: io::Error) -> StorageError {
        StorageError::Sync { path: self.path.clone(), source }
    }

    /// The image is gone, and nothing is left to make it from.
    pub(crate) fn lost(&self) -> StorageError {
        StorageError::Lost { path: self.path.clone() }
    }
}
