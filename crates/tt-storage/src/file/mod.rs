//! The `file` back end: a raw file that shares its blocks with its source where the file system can (`FICLONE`), else a
//! copy of the source's data without its holes. It never falls back from a clone that failed half-way.

use crate::StorageError;
use crate::images::{Format, Job};
use crate::source::Source;
use rustix::fs::{SeekFrom, ioctl_ficlone};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use tt_model::StorageKind;

/// The raw format.
#[derive(Debug)]
pub(crate) struct Raw;

impl Format for Raw {
    fn kind(&self) -> StorageKind {
        StorageKind::File
    }

    fn clone_source(&self, job: &Job, source: &Source, image: &File) -> Result<(), StorageError> {
        clone_or_copy(job, source, image)?;
        let failed = |e| job.failed(source.allocated_bytes, e);
        // A clone has its source's size, and a change of size is one more transaction of the file system.
        match image.metadata().map_err(failed)?.len() == job.want_bytes {
            true => Ok(()),
            false => image.set_len(job.want_bytes).map_err(failed),
        }
    }

    fn size_bytes(&self, path: &Path, image: &File) -> Result<u64, StorageError> {
        let meta =
            image.metadata().map_err(|source| StorageError::List { path: path.into(), source })?;
        Ok(meta.len())
    }

    fn grow(&self, job: &Job, image: &File) -> Result<(), StorageError> {
        image.set_len(job.want_bytes).map_err(|e| job.not_grown(e))
    }
}

/// Gives `image`, an empty file, what `source` has: its size too, if nothing but a hole is at its end.
pub(crate) fn clone_or_copy(job: &Job, source: &Source, image: &File) -> Result<(), StorageError> {
    let failed = |e| job.failed(source.allocated_bytes, e);
    match ioctl_ficlone(image, &source.file) {
        Ok(()) => Ok(()),
        Err(e) if not_cloneable(e) => {
            job.reserve(source.allocated_bytes)?;
            copy_data(&source.file, image, source.size_bytes).map_err(failed)?;
            image.set_len(source.size_bytes).map_err(failed)
        }
        Err(e) => Err(failed(e.into())),
    }
}

/// Whether `FICLONE` said that it does not work here at all, see ioctl_ficlone(2).
pub(crate) fn not_cloneable(e: Errno) -> bool {
    [Errno::OPNOTSUPP, Errno::XDEV, Errno::INVAL, Errno::NOTTY, Errno::NOSYS].contains(&e)
}

/// Copies `size` bytes but the holes, which the empty file `to` has already.
pub(crate) fn copy_data(from: &File, to: &File, size: u64) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole follows.
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?.min(size);
        let (mut source, mut sink) = (from, to);
        source.seek(io::SeekFrom::Start(start))?;
        sink.seek(io::SeekFrom::Start(start))?;
        // `copy_file_range` where it works, else through memory.
        let len = end - start;
        if io::copy(&mut source.take(len), &mut sink)? != len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at = end;
    }
    Ok(())
}
