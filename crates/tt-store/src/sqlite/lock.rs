//! The lock on a data directory: one store per directory, whoever opens it. The kernel frees it
//! when its holder dies, so there is never a stale one, and the file's content only serves the
//! message of who is refused.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{Result, StoreError};

const FILE: &str = "lock";
/// How long [`lock_exclusive`] waits for what a dead holder left, and how often it looks.
const REMNANT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(5);
/// No process id is longer; whatever else stands in the file is not read.
const PID_BYTES_MAX: u64 = 20;

/// The right to use a directory, held until it is dropped.
#[derive(Debug)]
pub(super) struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the lock of `dir`, or says who has it.
    pub(super) fn take(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let failed = |source| StoreError::Prepare { path: path.clone(), source };
        let mut options = OpenOptions::new();
        // Not truncated: until the lock is taken the content is another process's.
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match lock_exclusive(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Lock { dir: dir.to_owned(), pid: holder(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        sign(&mut file).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// Locks a file for this process alone.
///
/// A process that is killed may leave a child behind that is not yet the program it was started
/// for, and shares all its files until then. So a lock that is held is tried again for 5 s.
///
/// # Errors
/// As [`File::try_lock`].
pub fn lock_exclusive(file: &File) -> std::result::Result<(), TryLockError> {
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if begin.elapsed() < REMNANT => std::thread::sleep(LOOK),
            locked => return locked,
        }
    }
}

fn sign(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(PID_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
