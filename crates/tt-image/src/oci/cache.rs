//! Blobs that were fetched once, so that images with the same layers fetch them once. It is bounded: what nothing used for
//! a while goes, and beyond its size the oldest. Whatever is taken from it is checked; losing it loses time only.

use super::blob::Digest;
use super::fetch::is_whole;
use crate::{ImageError, Progress, files, space};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Most that it keeps: some large images, or many small ones; and that part of the file system at most.
const BYTES_MAX: u64 = 16 << 30;
const PART_MAX: u64 = 10;
/// A blob that nothing used for so long is not used.
const AGE_MAX: Duration = Duration::from_secs(14 * 24 * 3600);

/// A directory of blobs, named by the digits of their digests. Any number of pulls may use it at once.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    bytes_max: u64,
    age_max: Duration,
}

impl Cache {
    /// Below the cache directory `cache`.
    pub(super) fn new(cache: &Path) -> Self {
        Self { dir: cache.join("blobs"), bytes_max: BYTES_MAX, age_max: AGE_MAX }
    }

    /// Gives a blob that is here the place `to`; answers whether it is here.
    pub(super) fn take(
        &self,
        digest: &Digest,
        bytes: u64,
        to: &Path,
        progress: &dyn Progress,
    ) -> Result<bool, ImageError> {
        let path = self.dir.join(digest.hex());
        if !is_whole(&path, digest, bytes, progress)? {
            files::remove(&path)?;
            return Ok(false);
        }
        match files::share(&path, to, progress) {
            // Collected meanwhile.
            Err(ImageError::Unwanted) => return Err(ImageError::Unwanted),
            Err(_) if !path.exists() => {
                files::remove(to)?;
                return Ok(false);
            }
            shared => shared?,
        }
        files::touch(&path);
        Ok(true)
    }

    /// Keeps the blob at `from`, which is complete and never changes.
    pub(super) fn keep(&self, digest: &Digest, from: &Path) -> Result<(), ImageError> {
        files::make_dir(&self.dir)?;
        let path = self.dir.join(digest.hex());
        if fs::hard_link(from, &path).is_ok() || path.exists() {
            files::touch(&path);
            return Ok(());
        }
        // On another file system a copy would cost as much room again; the next pull fetches it again.
        Ok(())
    }

    /// Removes what nothing used for a while, and the oldest of what is too much.
    pub(super) fn collect(&self) -> Result<(), ImageError> {
        let mut blobs = Vec::new();
        for name in files::names(&self.dir)? {
            let path = self.dir.join(name);
            // Another daemon may collect, too.
            if let Ok(meta) = path.symlink_metadata() {
                let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                blobs.push((used, meta.len(), path));
            }
        }
        blobs.sort();
        let most = self.bytes_max.min(space::room(&self.dir)?.total_bytes / PART_MAX);
        let mut total: u64 = blobs.iter().map(|(_, bytes, _)| bytes).sum();
        for (used, bytes, path) in &blobs {
            let is_old = used.elapsed().is_ok_and(|age| age > self.age_max);
            if is_old || total > most {
                files::remove(path)?;
                total -= bytes;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::WantedFor;

    fn keep(cache: &Cache, dir: &Path, content: &[u8], age_secs: u64) -> Digest {
        let digest = Digest::of(content);
        let from = dir.join(digest.hex());
        fs::write(&from, content).unwrap();
        cache.keep(&digest, &from).unwrap();
        let used = SystemTime::now() - Duration::from_secs(age_secs);
        fs::File::open(cache.dir.join(digest.hex())).unwrap().set_modified(used).unwrap();
        digest
    }

    #[test]
    fn what_is_kept_comes_back_unless_it_was_changed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(&dir.path().join("cache"));
        let to = dir.path().join("to");
        assert!(!cache.take(&Digest::of(b"a"), 1, &to, &crate::Quiet).unwrap());
        let digest = keep(&cache, dir.path(), b"a", 0);
        assert!(cache.take(&digest, 1, &to, &crate::Quiet).unwrap());
        assert_eq!(fs::read(&to).unwrap(), b"a");
        let taken = cache.take(&digest, 1, &to, &WantedFor::times(0));
        assert!(matches!(taken, Err(ImageError::Unwanted)), "{taken:?}");
        let path = cache.dir.join(digest.hex());
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"b").unwrap();
        assert!(!cache.take(&digest, 1, &dir.path().join("to-2"), &crate::Quiet).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_used_goes_and_then_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = Cache::new(&dir.path().join("cache"));
        (cache.bytes_max, cache.age_max) = (250, Duration::from_secs(1000));
        let ages = [2000, 500, 300, 100];
        let digests = ages.map(|age| keep(&cache, dir.path(), &[age as u8; 100], age));
        cache.collect().unwrap();
        let is_there = digests.map(|digest| cache.dir.join(digest.hex()).exists());
        assert_eq!(is_there, [false, false, true, true]);
        // What is taken is used.
        let to = dir.path().join("taken");
        assert!(cache.take(&Digest::of(&[300_u64 as u8; 100]), 100, &to, &crate::Quiet).unwrap());
        cache.bytes_max = 100;
        cache.collect().unwrap();
        assert!(cache.dir.join(Digest::of(&[300_u64 as u8; 100]).hex()).exists());
    }
}
