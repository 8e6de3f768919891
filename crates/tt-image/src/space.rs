//! Room on the file system, and large files that take no more of it than their data: copies with holes, bounded by what is
//! free. It never fills a file system to its end.

use crate::files::{not_read, not_written, remove};
use crate::{ImageError, Progress};
use rustix::fs::ioctl_ficlone;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What is left free on the file system, so that the store, logs and running guests' disks can still be written.
pub(crate) const RESERVE_BYTES: u64 = 128 << 20;
/// The free space is looked at after so much was written.
pub(crate) const ROOM_LOOK_BYTES: u64 = 32 << 20;
/// Pieces of zeros of this size become holes; the usual block of a file system.
const SPARSE_BYTES: usize = 4096;
const COPY_BYTES: usize = 1 << 20;

/// Room of a file system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) total_bytes: u64,
    pub(crate) free_bytes: u64,
}

/// Room where `path` lies or is to lie.
pub(crate) fn room(path: &Path) -> Result<Room, ImageError> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(there).map_err(|e| not_read(there)(e.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Room { total_bytes: bytes(stat.f_blocks), free_bytes: bytes(stat.f_bavail) })
}

/// Refuses what would leave less than [`RESERVE_BYTES`] free.
pub(crate) fn check_room(path: &Path, need_bytes: u64) -> Result<(), ImageError> {
    let need = need_bytes.saturating_add(RESERVE_BYTES);
    let free = room(path)?.free_bytes;
    if need <= free {
        return Ok(());
    }
    Err(ImageError::NoRoom { path: path.into(), need_mb: need >> 20, free_mb: free >> 20 })
}

/// While a program writes `path`: tells how much there is of it, and ends what would fill the file system.
pub(crate) struct Roomy<'a> {
    pub(crate) progress: &'a dyn Progress,
    pub(crate) path: &'a Path,
}

impl Progress for Roomy<'_> {
    fn step(&self, what: &str) {
        self.progress.step(what);
    }

    fn is_wanted(&self) -> bool {
        self.progress.is_wanted()
    }

    fn check(&self) -> Result<(), ImageError> {
        if let Ok(meta) = self.path.symlink_metadata() {
            // `st_blocks` counts 512 bytes whatever the file system's block size.
            self.progress.bytes(meta.blocks() * 512, None);
        }
        check_room(self.path, 0)?;
        self.progress.check()
    }
}

/// A new file that has holes where zeros are written.
#[derive(Debug)]
pub(crate) struct SparseWriter {
    path: PathBuf,
    file: File,
    bytes: u64,
    looked: u64,
}

impl SparseWriter {
    pub(crate) fn create(path: &Path) -> Result<Self, ImageError> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(not_written(path))?;
        Ok(Self { path: path.into(), file, bytes: 0, looked: 0 })
    }

    /// Adds what is read next, however it is cut into pieces.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        for piece in bytes.chunks(SPARSE_BYTES) {
            if piece.iter().any(|byte| *byte != 0) {
                self.file.write_all_at(piece, self.bytes).map_err(not_written(&self.path))?;
                self.looked += piece.len() as u64;
            }
            self.bytes += piece.len() as u64;
        }
        if self.looked > ROOM_LOOK_BYTES {
            self.looked = 0;
            check_room(&self.path, 0)?;
        }
        Ok(())
    }

    /// Moves on without writing anything.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// How long it is by now.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn finish(self) -> Result<(), ImageError> {
        self.file
            .set_len(self.bytes)
            .and_then(|()| self.file.sync_all())
            .map_err(not_written(&self.path))
    }
}

/// Makes the new file `to` a copy of `from`, whose name is `name`: by shared blocks, else of its data alone.
pub(crate) fn copy_sparse(
    from: &File,
    name: &Path,
    to: &Path,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    remove(to)?;
    let mut writer = SparseWriter::create(to)?;
    if ioctl_ficlone(&writer.file, from).is_ok() {
        return writer.file.sync_all().map_err(not_written(to));
    }
    let bytes = from.metadata().map_err(not_read(name))?.len();
    let mut buffer = vec![0; COPY_BYTES];
    while writer.bytes < bytes {
        progress.check()?;
        progress.bytes(writer.bytes, Some(bytes));
        // Nothing but a hole follows, or it is not known where one is.
        let data = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(writer.bytes)) {
            Ok(data) => data.min(bytes),
            Err(rustix::io::Errno::NXIO) => bytes,
            Err(_) => writer.bytes,
        };
        writer.skip(data - writer.bytes);
        let len = buffer.len().min(usize::try_from(bytes - writer.bytes).unwrap_or(usize::MAX));
        from.read_exact_at(&mut buffer[..len], writer.bytes).map_err(not_read(name))?;
        writer.write(&buffer[..len])?;
    }
    writer.finish()
}

/// Makes a disk end at a whole sector.
pub(crate) fn pad(path: &Path) -> Result<(), ImageError> {
    let pad = || {
        let file = OpenOptions::new().write(true).open(path)?;
        let bytes = file.metadata()?.len();
        file.set_len(bytes.next_multiple_of(512))
    };
    pad().map_err(not_written(path))
}

/// Runs `act` with a directory, below `dir`, of a file system on which 32 MiB can be written. Only its thread sees that.
#[cfg(test)]
pub(crate) fn with_little_room(dir: &Path, act: impl FnOnce(&Path) + Send) {
    with_room(dir, RESERVE_BYTES + (32 << 20), act);
}

/// The same with a file system of `bytes` in all, and 100 files.
#[cfg(test)]
pub(crate) fn with_room(dir: &Path, bytes: u64, act: impl FnOnce(&Path) + Send) {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    let small = dir.join("small");
    std::fs::create_dir(&small).unwrap();
    let run = || {
        // SAFETY: the thread is the test's own; it only stops sharing its mounts and working directory with others.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let size = format!("size={bytes},nr_inodes=100");
        let size = std::ffi::CString::new(size).unwrap();
        mount("tmpfs", &small, "tmpfs", MountFlags::empty(), &*size).unwrap();
        act(&small);
    };
    let ran = std::thread::scope(|scope| scope.spawn(run).join());
    ran.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
