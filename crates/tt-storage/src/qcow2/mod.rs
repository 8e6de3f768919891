//! The `qcow2` back end: an overlay on the template's disk, in a moment on any file system, for QEMU only. It never opens
//! the backing file that an image names: a machine could have written that name.

use crate::images::{Format, Job};
use crate::template::Template;
use crate::{StorageError, TEMPLATE_DISK};
use header::Header;
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tt_model::StorageKind;

mod header;

/// The qcow2 format.
#[derive(Debug)]
pub(crate) struct Overlay;

impl Format for Overlay {
    fn kind(&self) -> StorageKind {
        StorageKind::Qcow2
    }

    fn clone_template(
        &self,
        job: &Job,
        _template: &Template,
        image: &File,
    ) -> Result<(), StorageError> {
        let backing_file = backing_file(job);
        if backing_file.len() > header::BACKING_FILE_BYTES_MAX {
            return Err(StorageError::CheckPath { path: backing_file });
        }
        let header = Header::new(job.want_bytes(), &backing_file);
        if job.want_bytes() > header::SIZE_BYTES_MAX {
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
        Ok(read_header(path, image)?.size_bytes)
    }

    fn grow(&self, job: &Job, image: &File) -> Result<(), StorageError> {
        // QEMU keeps the header in memory and would write its own size over ours. It has locks on every image that it has
        // open; this one goes when the file is closed.
        match fcntl_lock(image, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => {
                return Err(StorageError::InUse { path: job.path.clone() });
            }
            Err(e) => return Err(job.not_grown(e.into())),
        }
        let header = read_header(&job.path, image)?;
        if header.capacity_bytes() < job.want_bytes() {
            return Err(limit(job, header.capacity_bytes()));
        }
        image
            .write_all_at(&job.want_bytes().to_be_bytes(), header::SIZE_OFFSET)
            .map_err(|e| job.not_grown(e))
    }
}

/// The template's disk as seen from the image's directory, so that a data directory can be moved as a whole.
fn backing_file(job: &Job) -> String {
    let depth = Path::new(&job.vm.runtime_image).components().count() - 1;
    format!("{}{}/{TEMPLATE_DISK}", "../".repeat(depth), job.vm.template.path)
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
    StorageError::Limit {
        path: job.path.clone(),
        max_mb: max_bytes >> 20,
        want_mb: job.vm.resource.disk_size,
    }
}
