//! Files and directories below a data directory: opened, owned, committed. It never follows a symbolic link at an image's
//! name.

use crate::{Space, StorageError, tree};
use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_lock};
use rustix::io::Errno;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown,
};
use std::path::{Component, Path, PathBuf};

/// Entered by machines, listed by the daemon only.
pub(crate) const DIR_MODE: u32 = 0o711;
/// Behind the name of an image that is not complete.
pub(crate) const TEMPORARY: &str = ".tmp";

/// Who may do what with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The machine of that user reads and writes it.
    Machine(u32),
    /// The machine of that user reads it: layers lie on it.
    Frozen(u32),
    /// Only the daemon reaches it.
    Daemon,
    /// A kept image that machines of other users lie on.
    Shared,
}

impl Owner {
    /// User, group and mode.
    fn rights(self) -> (u32, u32, u32) {
        match self {
            Self::Machine(uid) => (uid, uid, 0o600),
            Self::Frozen(uid) => (0, uid, 0o440),
            Self::Daemon => (0, 0, 0o600),
            Self::Shared => (0, 0, 0o444),
        }
    }
}

/// Gives an image to `owner`. Answers whether anything was to do.
pub(crate) fn give(image: &File, owner: Owner) -> io::Result<bool> {
    let meta = image.metadata()?;
    let (uid, gid, mode) = owner.rights();
    let (is_own, is_mode) = ((meta.uid(), meta.gid()) == (uid, gid), meta.mode() & 0o7777 == mode);
    // The mode first: a machine that only loses the right to write can read all the time.
    if !is_mode {
        image.set_permissions(Permissions::from_mode(mode))?;
    }
    if !is_own {
        fchown(image, Some(uid), Some(gid))?;
    }
    Ok(!(is_own && is_mode))
}

/// An image under its temporary name. Unless it is committed, it is removed.
pub(super) struct Temporary {
    path: PathBuf,
    pub(super) file: File,
}

impl Temporary {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Self::create_as(path, TEMPORARY)
    }

    /// As [`Temporary::create`], with another ending.
    pub(super) fn create_as(path: &Path, ending: &str) -> io::Result<Self> {
        let path = with_ending(path, ending);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(Owner::Daemon.rights().2)
            .open(&path)?;
        Ok(Self { path, file })
    }

    /// Gives it its name. Its content is on disk only if it was synced before.
    pub(super) fn commit(&self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a commit nothing has this name any more; if it can not go now, the next create removes it.
        if let Err(e) = fs::remove_file(&self.path)
            && e.kind() != ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), error = %e, "temporary image stays for now");
        }
    }
}

/// What is made at a path has this one until it is complete.
pub(crate) fn temporary_name(path: &Path) -> PathBuf {
    with_ending(path, TEMPORARY)
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Joins a name of the plan to `data`; refuses one that could lead elsewhere.
pub(crate) fn below(data: &Path, name: &str) -> Result<PathBuf, StorageError> {
    let relative = Path::new(name);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || name.is_empty() || name.contains('\0') {
        return Err(StorageError::CheckPath { path: name.into() });
    }
    Ok(data.join(relative))
}

/// Opens a plain file for reading, and with `write` for writing too.
pub(crate) fn open_plain(path: &Path, write: bool) -> io::Result<File> {
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::LOOP) => return Err(odd("it is a symbolic link")),
        Err(Errno::ISDIR) => return Err(odd("it is a directory")),
        Err(e) => return Err(e.into()),
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(odd("it is no regular file")) }
}

/// Opens a block device, in the same way.
pub(crate) fn open_device(path: &Path, write: bool) -> io::Result<File> {
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    // Looked at first: to open something else may wait, or do something.
    if !fs::symlink_metadata(path)?.file_type().is_block_device() {
        return Err(odd("it is no block device"));
    }
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.file_type().is_block_device() {
        true => Ok(file),
        false => Err(odd("it is no block device")),
    }
}

/// The size of a plain file, or of a block device.
pub(crate) fn size_bytes(file: &File) -> io::Result<u64> {
    let meta = file.metadata()?;
    match meta.file_type().is_block_device() {
        true => Ok(rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?),
        false => Ok(meta.len()),
    }
}

/// What is no image at all.
pub(crate) fn odd(problem: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, problem)
}

/// An image of this Vm, if it is there.
pub(crate) fn open_image(path: &Path) -> Result<Option<File>, StorageError> {
    match open_plain(path, true) {
        Ok(image) => Ok(Some(image)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == ErrorKind::InvalidInput => {
            Err(StorageError::Damaged { path: path.into(), problem: e.to_string() })
        }
        Err(source) => Err(StorageError::List { path: path.into(), source }),
    }
}

/// Whether no machine has the image open. QEMU has locks on every image that it has open, also on raw ones; what this
/// takes goes when the file is closed.
pub(crate) fn lock(image: &File) -> io::Result<bool> {
    match fcntl_lock(image, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Makes what is missing of the directories above an image, and clears what an interrupted create left there. Answers
/// which of them are to be synced, inner ones first.
pub(crate) fn make_dirs(data: &Path, dir: &Path) -> io::Result<Vec<PathBuf>> {
    let images = data.join("images");
    let is_first = make_dir(&images)?;
    make_dir(dir)?;
    remove_others(dir, |name| !name.ends_with(TEMPORARY))?;
    // `images` even if `dir` was there: who made it may have been killed before the sync.
    let mut changed = vec![dir.to_path_buf(), images];
    if is_first {
        changed.push(data.to_path_buf());
    }
    Ok(changed)
}

/// Whether the directory was made now.
pub(crate) fn make_dir(dir: &Path) -> io::Result<bool> {
    match DirBuilder::new().mode(DIR_MODE).create(dir) {
        Ok(()) => {
            // The umask may have taken bits away.
            fs::set_permissions(dir, Permissions::from_mode(DIR_MODE))?;
            Ok(true)
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes from a directory what `stays` does not name. An absent directory is empty.
pub(crate) fn remove_others(dir: &Path, stays: impl Fn(&str) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&stays) {
            continue;
        }
        tree::remove(&entry.path())?;
    }
    Ok(())
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

pub(crate) fn space(dir: &Path) -> Result<Space, StorageError> {
    let stat = rustix::fs::statvfs(dir)
        .map_err(|e| StorageError::Space { path: dir.into(), source: e.into() })?;
    let mb = |blocks: u64| ((u128::from(blocks) * u128::from(stat.f_frsize)) >> 20) as u64;
    Ok(Space { total_mb: mb(stat.f_blocks), free_mb: mb(stat.f_bavail) })
}
