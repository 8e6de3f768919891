//! Files and directories that are complete or absent: locks, temporary directories, synced writes, bounded reads. It
//! never follows a symbolic link at the place that it was asked for.

use crate::error::is_full;
use crate::progress::{Asking, is_unwanted};
use crate::{ImageError, Progress, Quiet};
use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, flock,
    ioctl_ficlone, utimensat,
};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Entered by machines, listed by the daemon only.
pub(crate) const DIR_MODE: u32 = 0o711;
/// Read by machines.
pub(crate) const FILE_MODE: u32 = 0o644;
/// How the names of unfinished things begin. Who holds the lock beside them may remove them.
pub(crate) const TEMPORARY: &str = ".tmp-";
const LOCK: &str = ".lock";
/// Tells the unfinished things of one process apart.
static NEXT: AtomicU64 = AtomicU64::new(0);
/// Another process may be at its first build, download included.
const LOCK_WAIT: Duration = Duration::from_secs(600);
/// How long a program may outlive the builder that was killed.
const ORPHAN_WAIT: Duration = Duration::from_secs(60);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// What a failed read was.
pub(crate) fn not_read(path: &Path) -> impl Fn(io::Error) -> ImageError {
    move |source| ImageError::Read { path: path.into(), source }
}

/// What a failed write was.
pub(crate) fn not_written(path: &Path) -> impl Fn(io::Error) -> ImageError {
    move |source| match is_full(&source) {
        true => ImageError::Full { path: path.into(), source },
        false => ImageError::Write { path: path.into(), source },
    }
}

/// Makes a directory and its parents; those that are there stay as they are.
pub(crate) fn make_dir(dir: &Path) -> Result<(), ImageError> {
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let missing: Vec<&Path> = dir.ancestors().take_while(is_missing).collect();
    let make = || {
        DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir)?;
        // The umask may have taken away what machines need.
        let open = |dir: &&Path| fs::set_permissions(dir, Permissions::from_mode(DIR_MODE));
        missing.iter().try_for_each(open)
    };
    make().map_err(not_written(dir))
}

/// The exclusive right to change a directory, held until it is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for it as long as that is wanted, and removes what a holder that was killed left unfinished.
    pub(crate) fn take(dir: &Path, progress: &dyn Progress) -> Result<Self, ImageError> {
        let start = Instant::now();
        loop {
            match Self::try_take_for(dir, progress)? {
                Some(lock) => return Ok(lock),
                None if start.elapsed() < LOCK_WAIT => {
                    progress.check()?;
                    std::thread::sleep(LOCK_POLL);
                }
                None => {
                    return Err(ImageError::Busy {
                        path: dir.into(),
                        waited_secs: LOCK_WAIT.as_secs(),
                    });
                }
            }
        }
    }

    /// As [`Lock::take`], without waiting.
    pub(crate) fn take_now(dir: &Path, progress: &dyn Progress) -> Result<Self, ImageError> {
        let busy = || ImageError::Busy { path: dir.into(), waited_secs: 0 };
        Self::try_take_for(dir, progress)?.ok_or_else(busy)
    }

    /// As [`Lock::take`], unless somebody has it.
    pub(crate) fn try_take(dir: &Path) -> Result<Option<Self>, ImageError> {
        Self::try_take_for(dir, &Quiet)
    }

    fn try_take_for(dir: &Path, progress: &dyn Progress) -> Result<Option<Self>, ImageError> {
        make_dir(dir)?;
        let path = dir.join(LOCK);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| not_written(&path)(e.into()))?;
        let file = File::from(file);
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(e) => return Err(not_written(&path)(e.into())),
        }
        remove_temporaries(dir, progress)?;
        Ok(Some(Self { _file: file }))
    }
}

/// A directory under construction. Unless it is published, it is removed.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// Beside what it will become; the caller has the lock of `parent`, so that the name is free.
    pub(crate) fn create(parent: &Path) -> Result<Self, ImageError> {
        make_dir(parent)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{TEMPORARY}{}-{number}", std::process::id()));
        remove(&path)?;
        make_dir(&path)?;
        Ok(Self { path })
    }

    /// Where it is for now.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, which nothing has. Its files have been synced.
    pub(crate) fn publish(self, target: &Path) -> Result<(), ImageError> {
        let publish = || {
            fs::set_permissions(&self.path, Permissions::from_mode(DIR_MODE))?;
            sync_dir(&self.path)?;
            fs::rename(&self.path, target)?;
            target.parent().map_or(Ok(()), sync_dir)
        };
        publish().map_err(not_written(target))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone after `publish`; if it can not go now, the next holder of the lock removes it.
        if let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "temporary files stay for now");
        }
    }
}

/// Removes a file or directory, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), ImageError> {
    let removed = match fs::remove_dir_all(path) {
        Err(e) if e.kind() == ErrorKind::NotADirectory => fs::remove_file(path),
        removed => removed,
    };
    match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(not_written(path)(e)),
        _ => Ok(()),
    }
}

/// Names of what is in a directory, without unfinished things and the lock. An absent one is empty.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, ImageError> {
    let mut names = all_names(dir)?;
    names.retain(|name| !name.starts_with(TEMPORARY) && name != LOCK);
    Ok(names)
}

/// Writes a new file and syncs it.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), ImageError> {
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
        file.sync_all()
    };
    write().map_err(not_written(path))
}

/// Syncs a file that a program wrote.
pub(crate) fn settle(path: &Path) -> Result<(), ImageError> {
    let settle = || {
        let file = File::open(path)?;
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
        file.sync_all()
    };
    settle().map_err(not_written(path))
}

/// Reads a plain file of at most `bytes_max` bytes.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ImageError> {
    let damaged = |problem: String| ImageError::Damaged { path: path.into(), problem };
    // Without blocking: a FIFO would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::LOOP) => return Err(damaged("it is a symbolic link".into())),
        Err(e) => return Err(not_read(path)(e.into())),
    };
    let meta = file.metadata().map_err(not_read(path))?;
    if !meta.is_file() {
        return Err(damaged("it is no regular file".into()));
    }
    let mut content = Vec::new();
    let read = file.take(bytes_max + 1).read_to_end(&mut content);
    read.map_err(not_read(path))?;
    if content.len() as u64 > bytes_max {
        return Err(damaged(format!("it has more than {bytes_max} bytes")));
    }
    Ok(content)
}

/// Gives a finished file that never changes a second place: by a hard link, else by shared blocks, else by a copy.
/// A copy is made as long as it is wanted.
pub(crate) fn share(from: &Path, to: &Path, progress: &dyn Progress) -> Result<(), ImageError> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    let copy = || {
        let source = File::open(from)?;
        let target = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(to)?;
        if ioctl_ficlone(&target, &source).is_err() {
            copy_data(Asking::new(&source, progress), &target)?;
        }
        target.set_permissions(Permissions::from_mode(FILE_MODE))?;
        target.sync_all()
    };
    copy().map_err(|error| match is_unwanted(&error) {
        true => ImageError::Unwanted,
        false => not_written(to)(error),
    })
}

/// Copies all but blocks of zeros, which become holes.
fn copy_data(mut from: impl Read, to: &File) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut at = 0;
    loop {
        let len = from.read(&mut buffer)?;
        if len == 0 {
            return to.set_len(at);
        }
        if buffer[..len].iter().any(|byte| *byte != 0) {
            to.write_all_at(&buffer[..len], at)?;
        }
        at += len as u64;
    }
}

/// Notes that something in the cache was used. If that fails, it is only forgotten earlier.
pub(crate) fn touch(path: &Path) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    let _ = utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn remove_temporaries(dir: &Path, progress: &dyn Progress) -> Result<(), ImageError> {
    let start = Instant::now();
    let names = all_names(dir)?;
    for name in names.iter().filter(|name| name.starts_with(TEMPORARY)) {
        // A program of the killed holder may still write there, until it is done or sees that its files are gone.
        while let Err(error) = remove(&dir.join(name)) {
            if start.elapsed() > ORPHAN_WAIT {
                return Err(error);
            }
            progress.check()?;
            std::thread::sleep(LOCK_POLL);
        }
    }
    Ok(())
}

fn all_names(dir: &Path) -> Result<Vec<String>, ImageError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(not_read(dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        // Nothing of ours has a name that is no text.
        names.extend(entry.map_err(not_read(dir))?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::WantedFor;
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    #[test]
    fn nobody_waits_for_what_is_not_wanted_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let held = Lock::take(dir.path(), &Quiet).unwrap();
        let now = Lock::take_now(dir.path(), &Quiet);
        assert!(matches!(now, Err(ImageError::Busy { waited_secs: 0, .. })), "{now:?}");
        let start = Instant::now();
        let waited = Lock::take(dir.path(), &WantedFor::times(3));
        assert!(matches!(waited, Err(ImageError::Unwanted)), "{waited:?}");
        assert!(start.elapsed() < LOCK_WAIT / 2);
        drop(held);
        // Free, it is had without a question.
        Lock::take(dir.path(), &WantedFor::times(0)).unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, vec![7; 4 << 20]).unwrap();
        let copied = copy_data(
            Asking::new(File::open(&from).unwrap(), &WantedFor::times(2)),
            &File::create(&to).unwrap(),
        );
        assert!(is_unwanted(&copied.unwrap_err()));
    }

    #[test]
    fn machines_pass_new_directories_whatever_the_umask() {
        let scratch = tempfile::tempdir().unwrap();
        let there = scratch.path().join("there");
        let new = there.join("data/templates");
        let make = || {
            // SAFETY: the thread is the test's own; it only stops sharing its umask and working directory with others.
            unsafe { unshare_unsafe(UnshareFlags::FS) }.unwrap();
            rustix::process::umask(Mode::from_raw_mode(0o077));
            fs::create_dir(&there).unwrap();
            make_dir(&new).unwrap();
            make_dir(&new).unwrap();
        };
        std::thread::scope(|scope| scope.spawn(make).join()).unwrap();
        let mode = |dir: &Path| fs::metadata(dir).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&new), mode(new.parent().unwrap())), (DIR_MODE, DIR_MODE));
        assert_eq!(mode(&there), 0o700, "what was there was changed");
    }
}
