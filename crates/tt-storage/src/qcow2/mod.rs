//! The `qcow2` back end: an empty layer over its source, in a moment on any file system, for QEMU only. It never opens
//! the backing file that an image names: a machine could have written that name.

use crate::StorageError;
use crate::images::{Format, Job};
use crate::source::Source;
use header::Header;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tt_model::StorageKind;

mod header;
mod read;

pub(crate) use header::CLUSTER_BYTES;
pub(crate) use read::{Cluster, Reader};

/// The qcow2 format.
#[derive(Debug)]
pub(crate) struct Overlay;

impl Format for Overlay {
    fn kind(&self) -> StorageKind {
        StorageKind::Qcow2
    }

    fn clone_source(&self, job: &Job, source: &Source, image: &File) -> Result<(), StorageError> {
        let backing_file = relative(&job.name, &source.name);
        if backing_file.len() > header::BACKING_FILE_BYTES_MAX {
            return Err(StorageError::CheckPath { path: backing_file });
        }
        let header = Header::new(job.want_bytes, &backing_file, backing_format(source.format));
        if job.want_bytes > header::SIZE_BYTES_MAX {
            return Err(limit(job, header::SIZE_BYTES_MAX));
        }
        job.reserve(header.metadata_bytes())?;
        header
            .sections()
            .iter()
            .try_for_each(|(offset, bytes)| image.write_all_at(bytes, *offset))
            .and_then(|()| image.set_len(header.metadata_bytes()))
            .map_err(|e| job.failed(header.metadata_bytes(), e))
    }

    fn size_bytes(&self, path: &Path, image: &File) -> Result<u64, StorageError> {
        size_bytes(path, image)
    }

    fn grow(&self, job: &Job, image: &File) -> Result<(), StorageError> {
        let header = read_header(&job.path, image)?;
        if header.capacity_bytes() < job.want_bytes {
            return Err(limit(job, header.capacity_bytes()));
        }
        image
            .write_all_at(&job.want_bytes.to_be_bytes(), header::SIZE_OFFSET)
            .map_err(|e| job.not_grown(e))
    }
}

/// The size that a guest of that image sees.
pub(crate) fn size_bytes(path: &Path, image: &File) -> Result<u64, StorageError> {
    Ok(read_header(path, image)?.size_bytes)
}

/// `to` as seen from the directory of `from`, so that a data directory can be moved as a whole. Both are relative to it.
fn relative(from: &str, to: &str) -> String {
    let dir = from.rfind('/').map_or("", |end| &from[..=end]);
    match to.strip_prefix(dir) {
        Some(sibling) => sibling.to_owned(),
        None => format!("{}{to}", "../".repeat(dir.matches('/').count())),
    }
}

/// QEMU's name of a format.
fn backing_format(kind: StorageKind) -> &'static str {
    match kind {
        StorageKind::File | StorageKind::Btrfs | StorageKind::Zfs => "raw",
        StorageKind::Qcow2 => "qcow2",
    }
}

fn read_header(path: &Path, image: &File) -> Result<header::Found, StorageError> {
    let mut bytes = [0; header::HEADER_BYTES];
    image
        .read_exact_at(&mut bytes, 0)
        .map_err(|e| e.to_string())
        .and_then(|()| header::parse(&bytes).map_err(str::to_owned))
        .map_err(|problem| StorageError::Damaged { path: path.into(), problem })
}

fn limit(job: &Job, max_bytes: u64) -> StorageError {
    StorageError::Limit { path: job.path.clone(), max_mb: max_bytes >> 20, want_mb: job.want_mb() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_named_as_seen_from_the_image() {
        for (to, want) in [
            ("images/7/0.qcow2", "0.qcow2"),
            ("images/70/0.qcow2", "../../images/70/0.qcow2"),
            ("templates/x/disk.raw", "../../templates/x/disk.raw"),
        ] {
            assert_eq!(relative("images/7/3.qcow2", to), want);
        }
    }
}
