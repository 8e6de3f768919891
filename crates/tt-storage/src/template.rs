//! A template's disk, opened for a clone. It is never written.

use crate::images::{Job, below};
use crate::{StorageError, TEMPLATE_DISK};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

/// A template's disk.
#[derive(Debug)]
pub(crate) struct Template {
    /// Its content.
    pub(crate) file: File,
    /// Its size.
    pub(crate) size_bytes: u64,
    /// What it takes on the file system: what a sparse copy has to write.
    pub(crate) allocated_bytes: u64,
}

impl Template {
    /// Opens the disk that `job` clones; refuses one that is no plain file or does not fit the size asked for.
    pub(crate) fn open(job: &Job) -> Result<Self, StorageError> {
        let path = below(job.data, &job.vm.template.path)?.join(TEMPLATE_DISK);
        let failed = |source: io::Error| StorageError::OpenTemplate { path: path.clone(), source };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        let file = File::from(file);
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            let problem = "it is no regular file";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, problem)));
        }
        if meta.len() > job.want_bytes() {
            return Err(StorageError::BelowTemplate {
                template_mb: meta.len().div_ceil(1 << 20),
                want_mb: job.vm.resource.disk_size,
                path,
            });
        }
        Ok(Self {
            size_bytes: meta.len(),
            // `st_blocks` counts 512 bytes whatever the file system's block size.
            allocated_bytes: meta.blocks() * 512,
            file,
        })
    }
}
