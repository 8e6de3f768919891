//! What back ends keep of templates, below `volumes/`: made when the first image needs it, removed when the template goes.
//! It never reads a template itself.

use crate::StorageError;
use crate::images::files::{TEMPORARY, make_dir, open_dir};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
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
        let lock = |how| {
            make_dir(dir)?;
            let file = open_dir(dir)?;
            flock(&file, how)?;
            Ok(file)
        };
        let shared = lock(FlockOperation::LockShared).map_err(failed)?;
        if is_made(&path)? {
            return clone(&path);
        }
        drop(shared);
        let _alone = lock(FlockOperation::LockExclusive).map_err(failed)?;
        if !is_made(&path)? {
            make(&path)?;
        }
        clone(&path)
    }

    /// Removes with `remove` the volumes of all templates but those `in_use`. While one is being made nothing is done: the
    /// next call finds the rest.
    pub(crate) fn collect(
        &self,
        in_use: &dyn Fn(&str) -> bool,
        remove: impl Fn(&Path) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let path = self.data.join(template_volume(self.kind, "any"));
        let dir = path.parent().unwrap_or(self.data);
        let failed = |source| StorageError::List { path: dir.into(), source };
        let Some(_alone) = try_alone(dir).map_err(failed)? else { return Ok(()) };
        for entry in fs::read_dir(dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let digest = name.to_str().and_then(|name| self.digest_of(name));
            if digest.is_some_and(|digest| !in_use(digest)) {
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

    /// The digest in a volume's name; a half-made one counts as one of no template.
    fn digest_of<'n>(&self, name: &'n str) -> Option<&'n str> {
        let end = format!(".{}", self.kind.extension());
        let half = format!("{end}{TEMPORARY}");
        name.strip_suffix(&end).or_else(|| name.strip_suffix(&half).map(|_| ""))
    }
}

/// The lock of the directory, if it is there and nobody has it.
fn try_alone(dir: &Path) -> io::Result<Option<File>> {
    let file = match open_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
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
            ("12ab.btrfs", Some("12ab")),
            ("12ab.btrfs.tmp", Some("")),
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
                assert!(path.exists());
                shelf.collect(&|_| false, remove)
            };
            shelf.with(digest, is_made, make, collects).unwrap();
        }
        fs::create_dir(dir.path().join("volumes/three.btrfs.tmp")).unwrap();
        fs::create_dir(dir.path().join("volumes/foreign")).unwrap();
        shelf.collect(&|digest| digest == "two", remove).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path().join("volumes")).unwrap().collect();
        left.sort_by_key(|entry| entry.as_ref().unwrap().file_name());
        let left: Vec<_> = left.into_iter().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["foreign", "two.btrfs"]);
    }
}
