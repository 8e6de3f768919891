//! What back ends keep of templates, below `volumes/`: made when the first image needs it, removed when the template goes.
//! It never reads a template itself.

use crate::StorageError;
use crate::images::files::{TEMPORARY, make_dir};
use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tt_model::StorageKind;
use tt_model::names::template_volume;

/// Longest name of a template's volume: what remains of a file name's 255 bytes is for endings.
const DIGEST_BYTES_MAX: usize = 200;

/// The volumes of one kind.
#[derive(Debug)]
pub(crate) struct Shelf<'a> {
    data: &'a Path,
    kind: StorageKind,
}

impl<'a> Shelf<'a> {
    pub(crate) fn new(data: &'a Path, kind: StorageKind) -> Self {
        Self { data, kind }
    }

    /// Lets `clone` use the volume of the template of that digest. Unless it `is_made`, `make` makes it first, while nobody
    /// else does; nobody removes it meanwhile.
    pub(crate) fn with(
        &self,
        digest: &str,
        is_made: impl Fn(&Path) -> Result<bool, StorageError>,
        make: impl FnOnce(&Path) -> Result<(), StorageError>,
        clone: impl FnOnce(&Path) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let path = self.path(digest)?;
        let dir = path.parent().unwrap_or(self.data);
        let failed = |source| StorageError::Create { path: path.clone(), source };
        make_dir(dir).map_err(failed)?;
        let lock = lock_of(&path);
        {
            let _shared = lock.read().unwrap_or_else(PoisonError::into_inner);
            if is_made(&path)? {
                return clone(&path);
            }
        }
        let _alone = lock.write().unwrap_or_else(PoisonError::into_inner);
        if !is_made(&path)? {
            make(&path)?;
        }
        clone(&path)
    }

    /// Removes with `remove` the volumes of all templates but those `in_use`, and what was left half made. One that is being made
    /// or cloned is left to the next call.
    pub(crate) fn collect(
        &self,
        in_use: &dyn Fn(&str) -> bool,
        remove: impl Fn(&Path) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let path = self.data.join(template_volume(self.kind, "any"));
        let dir = path.parent().unwrap_or(self.data);
        let failed = |source| StorageError::List { path: dir.into(), source };
        let entries = match fs::read_dir(dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let found = name.to_str().and_then(|name| self.digest_of(name));
            let Some((digest, is_half)) = found else { continue };
            if !is_half && in_use(digest) {
                continue;
            }
            let lock = lock_of(&self.data.join(template_volume(self.kind, digest)));
            if let Ok(_alone) = lock.try_write() {
                remove(&dir.join(&name))?;
            }
        }
        Ok(())
    }

    /// Where the volume of a template lies; refuses a digest that is no plain name.
    fn path(&self, digest: &str) -> Result<PathBuf, StorageError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if digest.is_empty() || digest.len() > DIGEST_BYTES_MAX || !digest.bytes().all(is_plain) {
            return Err(StorageError::CheckPath { path: digest.into() });
        }
        Ok(self.data.join(template_volume(self.kind, digest)))
    }

    /// The digest in a volume's name, and whether that is half made.
    fn digest_of<'n>(&self, name: &'n str) -> Option<(&'n str, bool)> {
        let end = format!(".{}", self.kind.extension());
        let (whole, is_half) = match name.strip_suffix(TEMPORARY) {
            Some(whole) => (whole, true),
            None => (name, false),
        };
        whole.strip_suffix(&end).map(|digest| (digest, is_half))
    }
}

/// The lock of one volume: others' are made, cloned and removed meanwhile. Another process has no business in a data directory.
fn lock_of(volume: &Path) -> Arc<RwLock<()>> {
    static LOCKS: Mutex<Option<HashMap<PathBuf, Arc<RwLock<()>>>>> = Mutex::new(None);
    let mut locks = LOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    let locks = locks.get_or_insert_default();
    // Those that nobody has any more.
    locks.retain(|_, lock| Arc::strong_count(lock) > 1);
    locks.entry(volume.to_owned()).or_default().clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_digests_have_volumes() {
        let shelf = Shelf::new("/data".as_ref(), StorageKind::Btrfs);
        let path = shelf.path("12ab").unwrap();
        assert_eq!(path, Path::new("/data/volumes/12ab.btrfs"));
        let long = "a".repeat(DIGEST_BYTES_MAX + 1);
        for digest in ["", ".", "..", "a/b", "a.b", "a@b", "a b", "ä", "a\0", &long] {
            let error = shelf.path(digest);
            assert!(matches!(error, Err(StorageError::CheckPath { .. })), "{digest:?}: {error:?}");
        }
        for (name, digest) in [
            ("12ab.btrfs", Some(("12ab", false))),
            ("12ab.btrfs.tmp", Some(("12ab", true))),
            ("12ab.zfs", None),
            ("12ab", None),
        ] {
            assert_eq!(shelf.digest_of(name), digest, "{name}");
        }
    }

    #[test]
    fn a_volume_is_made_once_and_goes_when_nothing_uses_it() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path(), StorageKind::Btrfs);
        let is_made = |path: &Path| Ok(path.exists());
        let make = |path: &Path| {
            fs::create_dir(path)
                .map_err(|source| StorageError::Create { path: path.into(), source })
        };
        let remove = |path: &Path| {
            fs::remove_dir(path)
                .map_err(|source| StorageError::Destroy { path: path.into(), source })
        };
        shelf.collect(&|_| false, remove).unwrap();
        for digest in ["one", "two", "one"] {
            let collects = |path: &Path| {
                shelf.collect(&|_| false, remove)?;
                assert!(path.exists(), "it was being cloned");
                Ok(())
            };
            shelf.with(digest, is_made, make, collects).unwrap();
        }
        fs::create_dir(dir.path().join("volumes/three.btrfs.tmp")).unwrap();
        fs::create_dir(dir.path().join("volumes/foreign")).unwrap();
        shelf.collect(&|digest| digest == "one", remove).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path().join("volumes")).unwrap().collect();
        left.sort_by_key(|entry| entry.as_ref().unwrap().file_name());
        let left: Vec<_> = left.into_iter().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["foreign", "one.btrfs"]);
    }

    #[test]
    fn while_one_volume_is_made_others_are_made_cloned_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path(), StorageKind::Btrfs);
        let make = |path: &Path| {
            fs::create_dir(path)
                .map_err(|source| StorageError::Create { path: path.into(), source })
        };
        let remove = |path: &Path| {
            fs::remove_dir(path)
                .map_err(|source| StorageError::Destroy { path: path.into(), source })
        };
        let is_made = |path: &Path| Ok(path.exists());
        let slow = |path: &Path| {
            make(&crate::images::files::temporary_name(path))?;
            // All of this within the time that it takes, so nothing of it waits for that.
            std::thread::scope(|scope| {
                let others = || shelf.with("other", is_made, make, |_| Ok(()));
                scope.spawn(others).join().unwrap().unwrap();
                scope.spawn(|| shelf.collect(&|_| false, remove)).join().unwrap().unwrap();
            });
            assert!(!dir.path().join("volumes/other.btrfs").exists());
            fs::rename(crate::images::files::temporary_name(path), path)
                .map_err(|source| StorageError::Create { path: path.into(), source })
        };
        shelf.with("slow", is_made, slow, |path| is_made(path).map(|made| assert!(made))).unwrap();
        shelf.collect(&|_| false, remove).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("volumes")).unwrap().count(), 0);
    }
}
