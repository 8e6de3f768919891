//! The `qcow2` back end: an empty layer over its source, in a moment on any file system, for QEMU only. It never opens
//! the backing file that an image names: a machine could have written that name.

use crate::StorageError;
use crate::images::{Format, Job};
use crate::source::Source;
use header::{Counts, Header};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use table::Layer;
use tt_model::StorageKind;

mod header;
mod merge;
mod read;
mod table;

pub(crate) use header::CLUSTER_BYTES;
pub(crate) use read::Reader;
pub(crate) use table::Cluster;

/// The qcow2 format.
#[derive(Debug)]
pub(crate) struct Overlay;

impl Format for Overlay {
    fn kind(&self) -> StorageKind {
        StorageKind::Qcow2
    }

    fn clone_source(&self, job: &Job, source: &Source, image: &File) -> Result<(), StorageError> {
        let backing_file = named(job, &source.name)?;
        let header = Header::new(job.want_bytes, &backing_file, backing_format(source.format));
        if job.want_bytes > header::SIZE_BYTES_MAX {
            return Err(limit(job, header::SIZE_BYTES_MAX));
        }
        let counts = Counts::of(header.first_free_cluster());
        job.reserve(counts.file_bytes())?;
        let sections = [
            (0, header.with_counts(&counts)),
            (counts.blocks_offset(), counts.blocks()),
            (counts.table_offset(), counts.table()),
        ];
        sections
            .iter()
            .try_for_each(|(offset, bytes)| image.write_all_at(bytes, *offset))
            .and_then(|()| image.set_len(counts.file_bytes()))
            .map_err(|e| job.failed(counts.file_bytes(), e))
    }

    fn relink(
        &self,
        job: &Job,
        origin: (&str, StorageKind),
        image: &File,
    ) -> Result<(), StorageError> {
        let backing_file = named(job, origin.0)?;
        let mut have = [0; header::SECTOR_BYTES];
        read_header(&job.path, image)?;
        let damaged =
            |e: io::Error| StorageError::Damaged { path: job.path.clone(), problem: e.to_string() };
        image.read_exact_at(&mut have, 0).map_err(damaged)?;
        let (fixed, _) = have.split_first_chunk().unwrap_or((&[0; header::HEADER_BYTES], &[]));
        let want = header::with_backing(fixed, &backing_file, backing_format(origin.1));
        if have.starts_with(&want) {
            return Ok(());
        }
        image
            .write_all_at(&want, 0)
            .and_then(|()| image.sync_data())
            .map_err(|source| StorageError::Relink { path: job.path.clone(), source })
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

/// Writes `image`, an empty file, as one layer in place of two: `top` and what it lies on, each with its path. `origin`:
/// name and format of what the lower one lies on. Answers whether it is complete; not if `goes_on` said no.
pub(crate) fn merge(
    job: &Job,
    [top, bottom]: [(PathBuf, File); 2],
    origin: (&str, StorageKind),
    image: &File,
    goes_on: &dyn Fn() -> bool,
) -> Result<bool, StorageError> {
    let backing_file = named(job, origin.0)?;
    let (top, bottom) = (Layer::open(top.0, top.1)?, Layer::open(bottom.0, bottom.1)?);
    let backing = (&*backing_file, backing_format(origin.1));
    merge::merge(job, &top, &bottom, backing, image, goes_on)
}

/// The size that a guest of that image sees.
pub(crate) fn size_bytes(path: &Path, image: &File) -> Result<u64, StorageError> {
    Ok(read_header(path, image)?.size_bytes)
}

/// What an image calls what it lies on.
fn named(job: &Job, source: &str) -> Result<String, StorageError> {
    let name = relative(&job.name, source);
    if name.len() > header::BACKING_FILE_BYTES_MAX {
        return Err(StorageError::CheckPath { path: name });
    }
    Ok(name)
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
        StorageKind::Qcow2 => "qcow2",
        StorageKind::File
        | StorageKind::Btrfs
        | StorageKind::Zfs
        | StorageKind::Zvol
        | StorageKind::Docker => "raw",
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
