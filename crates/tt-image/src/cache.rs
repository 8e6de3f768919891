//! What builds keep in the cache directory, within bounds: packages, kernels, roots of packages, builds. All of it can be
//! made again, so losing it loses time only. Images' blobs have bounds of their own (`oci/cache.rs`); templates are not here.

use crate::deb::{self, Downloads};
use crate::files::{self, Lock};
use crate::oci::collect_blobs;
use crate::{Catalogue, ImageError};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tt_model::recipe::BUILT_IN;

/// Most that is kept beside what was used last on each shelf: a kernel unpacked has 60 MB, a build of `micro` 80 MB, one
/// of `debian-12` 700 MB.
const BYTES_MAX: u64 = 4 << 30;
/// What no build took for so long is of versions that are over.
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// A draft that nobody works on and no record knows was left by a host that lost its records.
const DRAFT_AGE: Duration = Duration::from_secs(3600);

/// How much is kept.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    bytes_max: u64,
    age_max: Duration,
}

/// Something that is kept.
struct Kept {
    /// First, so that the one that nothing used for longest sorts first.
    used: SystemTime,
    path: PathBuf,
    bytes: u64,
}

impl Catalogue {
    /// Removes from the cache what was not used for long, and beyond its bound what was not used for longest; the last
    /// of each kind stays, so that a host without a network can build again. Answers what is gone: nothing while
    /// somebody builds.
    ///
    /// # Errors
    /// [`ImageError::Read`], [`ImageError::Write`].
    pub fn bound_cache(&self) -> Result<Vec<PathBuf>, ImageError> {
        self.bound_cache_to(Bounds { bytes_max: BYTES_MAX, age_max: AGE_MAX })
    }

    fn bound_cache_to(&self, bounds: Bounds) -> Result<Vec<PathBuf>, ImageError> {
        if !self.cache.is_dir() {
            return Ok(Vec::new());
        }
        collect_blobs(&self.cache)?;
        // In the order in which a build takes them.
        let shelves = BUILT_IN.map(|name| self.cache.join(name));
        let mut held = Vec::new();
        for dir in shelves.iter().filter(|dir| dir.is_dir()).chain([&self.cache]) {
            match Lock::try_take(dir)? {
                Some(lock) => held.push(lock),
                None => return Ok(Vec::new()),
            }
        }
        let mut kept = Vec::new();
        let builds = shelves.iter().flat_map(|dir| [dir.join("roots"), dir.join("builds")]);
        for shelf in builds.chain([self.cache.join("kernels")]) {
            let mut all = on_shelf(&shelf)?;
            all.pop();
            kept.append(&mut all);
        }
        kept.append(&mut self.old_downloads()?);
        remove_beyond(kept, bounds)
    }

    /// Files of packages that no build takes any more.
    fn old_downloads(&self) -> Result<Vec<Kept>, ImageError> {
        let downloads = Downloads::open(&self.cache)?;
        let mut taken = BTreeSet::new();
        for package in [deb::KERNEL, deb::BUSYBOX] {
            taken.extend(downloads.kept(package)?);
        }
        let mut all = on_shelf(&self.cache.join(deb::DOWNLOADS))?;
        all.retain(|kept| !taken.contains(&kept.path));
        Ok(all)
    }

    /// Discards the drafts that are not known to `is_known`; what somebody works on, or did within the hour, stays. It is
    /// asked while nobody else has the draft. Answers their names.
    ///
    /// # Errors
    /// [`ImageError::Read`], [`ImageError::Write`].
    pub fn discard_orphans(
        &self,
        is_known: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, ImageError> {
        let mut gone = Vec::new();
        for name in self.drafts()? {
            let Ok(dir) = self.draft_dir(&name) else { continue };
            let used = dir.symlink_metadata().and_then(|meta| meta.modified());
            let is_old = used.is_ok_and(|used| used.elapsed().is_ok_and(|age| age > DRAFT_AGE));
            if !is_old {
                continue;
            }
            let Some(_lock) = Lock::try_take(&dir)? else { continue };
            if !is_known(&name) {
                files::remove(&dir)?;
                gone.push(name);
            }
        }
        Ok(gone)
    }
}

/// What is on a shelf, the one that was used last at the end.
fn on_shelf(dir: &Path) -> Result<Vec<Kept>, ImageError> {
    let mut all = Vec::new();
    for name in files::names(dir)? {
        let path = dir.join(name);
        let meta = path.symlink_metadata().map_err(files::not_read(&path))?;
        let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let bytes = bytes(&path)?;
        all.push(Kept { used, path, bytes });
    }
    all.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
    Ok(all)
}

fn remove_beyond(mut kept: Vec<Kept>, bounds: Bounds) -> Result<Vec<PathBuf>, ImageError> {
    kept.sort_by_key(|kept| kept.used);
    let mut bytes: u64 = kept.iter().map(|kept| kept.bytes).sum();
    let mut gone = Vec::new();
    for Kept { used, path, bytes: own } in kept {
        let is_old = used.elapsed().is_ok_and(|age| age > bounds.age_max);
        if is_old || bytes > bounds.bytes_max {
            files::remove(&path)?;
            bytes -= own;
            gone.push(path);
        }
    }
    Ok(gone)
}

/// What a file or directory takes on disk. No link is followed.
fn bytes(path: &Path) -> Result<u64, ImageError> {
    let meta = path.symlink_metadata().map_err(files::not_read(path))?;
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir() {
        for name in files::names(path)? {
            bytes += self::bytes(&path.join(name))?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    const KERNEL: &str = "downloads/linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb";
    const DAY: u64 = 24 * 3600;

    fn catalogue() -> (TempDir, Catalogue) {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::new(dir.path().join("data"), dir.path().join("cache"), "/none");
        (dir, catalogue)
    }

    /// Something of a megabyte that was used some days ago.
    fn keep(catalogue: &Catalogue, name: &str, days: u64) {
        let path = catalogue.cache.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if name.ends_with(".deb") {
            fs::write(&path, vec![7; 1 << 20]).unwrap();
        } else {
            fs::create_dir(&path).unwrap();
            fs::write(path.join("disk.raw"), vec![7; 1 << 20]).unwrap();
        }
        age(&path, days * DAY);
    }

    fn age(path: &Path, secs: u64) {
        let then = SystemTime::now() - Duration::from_secs(secs);
        File::open(path).unwrap().set_modified(then).unwrap();
    }

    fn shelves(catalogue: &Catalogue) {
        for (name, days) in [
            (KERNEL, 100),
            ("downloads/linux-image-6.1.0-1-cloud-amd64_6.1.1-1_amd64.deb", 9),
            ("kernels/a", 8),
            ("kernels/b", 7),
            ("micro/builds/a", 6),
            ("micro/builds/b", 5),
            ("debian-12/roots/a", 50),
            ("debian-12/builds/a", 4),
            ("debian-12/builds/b", 3),
        ] {
            keep(catalogue, name, days);
        }
    }

    fn gone(catalogue: &Catalogue, megabytes: u64, days: u64) -> Vec<String> {
        let age_max = Duration::from_secs(days * DAY);
        // Directories take some blocks, too.
        let bounds = Bounds { bytes_max: (megabytes << 20) + (1 << 19), age_max };
        let gone = catalogue.bound_cache_to(bounds).unwrap();
        let name = |path: PathBuf| path.strip_prefix(&catalogue.cache).unwrap().to_owned();
        gone.into_iter().map(|path| name(path).to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_the_last_of_each_kind_stays() {
        let (_dir, catalogue) = catalogue();
        assert_eq!(gone(&catalogue, 0, 0), [""; 0]);
        shelves(&catalogue);
        let old = "downloads/linux-image-6.1.0-1-cloud-amd64_6.1.1-1_amd64.deb";
        // Used, it is not the first any more.
        files::touch(&catalogue.cache.join("kernels/a"));
        assert_eq!(gone(&catalogue, 4, 40), [""; 0]);
        assert_eq!(gone(&catalogue, 2, 40), [old, "kernels/b"]);
        assert_eq!(gone(&catalogue, 2, 5), ["micro/builds/a"]);
        assert_eq!(gone(&catalogue, 0, 5), ["debian-12/builds/a"]);
        assert_eq!(gone(&catalogue, 0, 0), [""; 0]);
        let stays =
            [KERNEL, "kernels/a", "micro/builds/b", "debian-12/roots/a", "debian-12/builds/b"];
        for name in stays {
            assert!(catalogue.cache.join(name).exists(), "{name}");
        }
    }

    #[test]
    fn nothing_goes_while_somebody_builds_and_what_a_kill_left_goes() {
        let (_dir, catalogue) = catalogue();
        shelves(&catalogue);
        let left = [".tmp-1-0", "debian-12/.tmp-1-0"].map(|name| catalogue.cache.join(name));
        for dir in [&catalogue.cache, &catalogue.cache.join(crate::DEBIAN)] {
            let _lock = Lock::take(dir, &crate::Quiet).unwrap();
            assert_eq!(gone(&catalogue, 0, 1), [""; 0]);
        }
        for dir in &left {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("disk.raw"), "half").unwrap();
        }
        assert_eq!(gone(&catalogue, 100, 1000), [""; 0]);
        assert!(left.iter().all(|dir| !dir.exists()));
    }

    #[test]
    fn no_link_is_followed() {
        let (dir, catalogue) = catalogue();
        let precious = dir.path().join("precious");
        fs::create_dir(&precious).unwrap();
        fs::write(precious.join("file"), "mine").unwrap();
        keep(&catalogue, "kernels/a", 1);
        symlink(&precious, catalogue.cache.join("kernels/link")).unwrap();
        keep(&catalogue, "kernels/b", 0);
        fs::write(catalogue.cache.join("kernels/b/file"), "later").unwrap();
        assert_eq!(gone(&catalogue, 0, 0).len(), 2);
        assert_eq!(fs::read_to_string(precious.join("file")).unwrap(), "mine");
    }

    #[test]
    fn drafts_that_no_record_knows_go_once_nobody_works_on_them() {
        let (_dir, catalogue) = catalogue();
        let drafts = ["wanted", "a.org/old", "young", "held"];
        for name in drafts {
            let draft = catalogue.draft(name, &crate::Quiet).unwrap();
            fs::write(draft.dir().join("source"), "part").unwrap();
            age(draft.dir(), if name == "young" { 60 } else { 7200 });
        }
        let held = catalogue.draft("held", &crate::Quiet).unwrap();
        age(held.dir(), 7200);
        assert_eq!(catalogue.discard_orphans(|name| name == "wanted").unwrap(), ["a.org/old"]);
        assert_eq!(catalogue.drafts().unwrap(), ["held", "wanted", "young"]);
    }
}
