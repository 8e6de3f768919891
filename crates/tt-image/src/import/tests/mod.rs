//! Imports of what is right, and of what strangers would like to be imported.

mod files;
mod good;
mod list;
mod server;
mod urls;
mod wrapped;

use super::*;
use crate::Quiet;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use tempfile::TempDir;

/// A host with an empty catalogue and a place for files to import.
struct Lab {
    dir: TempDir,
    catalogue: Catalogue,
    bounds: Bounds,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("files")).unwrap();
        let catalogue = Catalogue::new(dir.path().join("data"), dir.path().join("cache"), "/none");
        let http = Limits {
            answer: Duration::from_secs(2),
            pace: Duration::from_secs(1),
            pace_bytes: 4096,
            redirects_max: 3,
        };
        let bounds = Bounds {
            bytes_max: 1 << 30,
            unpacked_bytes: 64 << 20,
            unpacked_ratio: 2,
            http,
            pause: Duration::from_millis(1),
        };
        Self { dir, catalogue, bounds }
    }

    /// A path among the files.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("files").join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn import(&self, name: &str, import: &Import) -> Result<VmTemplate, ImageError> {
        let draft = self.catalogue.draft(name, &Quiet)?;
        let facts = Facts { name: name.into(), arch: "x86_64".into(), ..Facts::default() };
        self.catalogue.import_within(&draft, import, &facts, &self.bounds, &Quiet)
    }

    /// The import of that is refused within some seconds and some room: nothing is there afterwards that was not there
    /// before, and a draft that stays for a retry is small and can be given up. Answers why.
    fn refused(&self, what: &str, import: &Import) -> String {
        const SECONDS_MAX: u64 = 30;
        const DRAFT_BYTES_MAX: u64 = 80 << 20;
        const PEAK_BYTES_MAX: u64 = 120 << 20;
        let before = self.files();
        let begin = Instant::now();
        let (imported, peak) = self.watched(|| self.import("evil", import));
        let error = imported.expect_err(what);
        let took = begin.elapsed();
        assert_eq!(error.code(), list::CODE, "{what}: {error}");
        assert!(peak < PEAK_BYTES_MAX, "{what} took {peak} bytes");
        assert!(took < Duration::from_secs(SECONDS_MAX), "{what}: {took:?}");
        let left = tree(&self.dir.path().join("data/making"));
        let bytes: u64 = left.values().sum();
        assert!(bytes < DRAFT_BYTES_MAX, "{what} left {bytes} bytes");
        self.catalogue.discard("evil").unwrap();
        assert_eq!(self.catalogue.list().unwrap(), [], "{what}");
        assert_eq!(self.files(), before, "{what} changed what it was imported from");
        assert_eq!(tree(self.dir.path()), before, "{what} left files");
        chain(&error)
    }

    /// What came of it, and the most that lay below the data directory meanwhile, in bytes.
    fn watched<T>(&self, act: impl FnOnce() -> T) -> (T, u64) {
        let (is_over, peak) = (AtomicBool::new(false), AtomicU64::new(0));
        let data = self.dir.path().join("data");
        let look = || {
            while !is_over.load(Ordering::Relaxed) {
                peak.fetch_max(used_bytes(&data), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        };
        let done = std::thread::scope(|scope| {
            scope.spawn(look);
            let done = std::panic::catch_unwind(AssertUnwindSafe(act));
            is_over.store(true, Ordering::Relaxed);
            done
        });
        let done = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (done, peak.into_inner())
    }

    fn files(&self) -> BTreeMap<PathBuf, u64> {
        tree(&self.dir.path().join("files"))
    }
}

/// What a directory takes, while others change it.
fn used_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.path().symlink_metadata() {
        Ok(meta) if meta.is_dir() => used_bytes(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

/// With its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What lies below a directory, with the bytes that it takes, but for directories and locks.
fn tree(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            found.extend(tree(&path));
        } else if !path.ends_with(".lock") {
            found.insert(path, meta.blocks() * 512);
        }
    }
    found
}

fn import_of(from: impl AsRef<Path>) -> Import {
    Import { from: from.as_ref().to_str().unwrap().to_owned(), digest: None, format: None }
}

/// Makes a disk in a format, of 8 MiB with something at its beginning and at 5 MiB.
fn disk(lab: &Lab, name: &str, args: &[&str]) -> Vec<u8> {
    let raw = lab.write(&format!("{name}.raw"), plain());
    let to = lab.path(name);
    let made = Command::new("qemu-img")
        .args(["convert", "-f", "raw"])
        .args(args)
        .args([&raw, &to])
        .status()
        .unwrap();
    assert!(made.success(), "{args:?}");
    let content = std::fs::read(&to).unwrap();
    std::fs::remove_file(raw).unwrap();
    std::fs::remove_file(to).unwrap();
    content
}

/// The same, plain; it ends like a boot sector.
fn plain() -> Vec<u8> {
    let mut content = vec![0; 8 << 20];
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    content[5 << 20..][..70_000].fill(7);
    content
}
