//! Real builds of the `micro` template: with apt, dpkg, mkfs.ext4 and debugfs of this machine. What was fetched stays in
//! the build's own directory, so that only the first run needs the network.

#![cfg(test)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tt_image::{Catalogue, ImageError, MICRO, Packages, Quiet};

/// Set in the child that a test kills: the directory that it builds in.
const KILL_DIR: &str = "TT_IMAGE_TEST_KILL_DIR";

/// Any static program stands in for the agent here.
fn agent() -> PathBuf {
    "/bin/busybox".into()
}

/// A cache that outlives the test run.
fn shared_cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("tt-image-cache")
}

/// A data directory and a cache of its own, which has the packages but nothing that was built.
fn fresh() -> (TempDir, Catalogue) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let shared = Catalogue::new(dir.path().join("other"), shared_cache(), agent());
    shared.build(MICRO, Packages::Kept, &Quiet).unwrap();
    let downloads = dir.path().join("cache/downloads");
    fs::create_dir_all(&downloads).unwrap();
    for entry in fs::read_dir(shared_cache().join("downloads")).unwrap() {
        let entry = entry.unwrap();
        fs::hard_link(entry.path(), downloads.join(entry.file_name())).unwrap();
    }
    let catalogue = catalogue_in(dir.path());
    (dir, catalogue)
}

fn catalogue_in(dir: &Path) -> Catalogue {
    Catalogue::new(dir.join("data"), dir.join("cache"), agent())
}

/// Everything that an interrupted build left below `dir`.
fn unfinished(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".tmp-") {
            found.push(entry.path());
        }
        if entry.file_type().unwrap().is_dir() {
            found.extend(unfinished(&entry.path()));
        }
    }
    found
}

#[test]
fn micro_is_built_once_and_is_the_same_everywhere() {
    let (dir, catalogue) = fresh();
    let steps = Mutex::new(Vec::new());
    let note = |step: &str| steps.lock().unwrap().push(step.to_owned());
    let start = Instant::now();
    let built = catalogue.build(MICRO, Packages::Kept, &note).unwrap();
    let first = start.elapsed();
    assert!(steps.lock().unwrap().iter().any(|step| step.starts_with("unpacking linux-image-")));

    let template = dir.path().join("data").join(&built.path);
    for (name, magic) in [("kernel", &b"\x7fELF"[..]), ("initramfs", b"070701")] {
        assert!(fs::read(template.join(name)).unwrap().starts_with(magic), "{name}");
    }
    let disk = template.join("disk.raw").metadata().unwrap();
    assert_eq!(disk.len(), u64::from(built.disk_size) << 20);
    assert!(disk.blocks() * 512 < disk.len() / 2, "the disk is sparse");
    assert_eq!(disk.permissions().mode() & 0o7777, 0o644);
    assert_eq!(template.metadata().unwrap().permissions().mode() & 0o7777, 0o711);
    assert_eq!(catalogue.get(MICRO).unwrap(), built);
    assert_eq!(catalogue.list().unwrap().as_slice(), std::slice::from_ref(&built));

    // Another data directory takes it from the cache.
    steps.lock().unwrap().clear();
    let second = Catalogue::new(dir.path().join("data2"), dir.path().join("cache"), agent());
    let start = Instant::now();
    assert_eq!(second.build(MICRO, Packages::Kept, &note).unwrap(), built);
    println!("built in {first:?}, from the cache in {:?}", start.elapsed());
    assert_eq!(*steps.lock().unwrap(), ["installing"]);
    let linked = dir.path().join("data2").join(&built.path).join("disk.raw");
    assert_eq!(linked.metadata().unwrap().ino(), disk.ino());

    // Another cache comes to the same content.
    let (_dir, elsewhere) = fresh();
    assert_eq!(elsewhere.build(MICRO, Packages::Kept, &Quiet).unwrap(), built);
    assert_eq!(unfinished(dir.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_rebuild_needs_no_network() {
    let (_dir, catalogue) = fresh();
    std::thread::spawn(move || {
        // SAFETY: only the network namespace of this thread and of its children changes, no memory or descriptors.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        let built = catalogue.build(MICRO, Packages::Kept, &Quiet).unwrap();
        let error = catalogue.build(MICRO, Packages::Newest, &Quiet).unwrap_err();
        assert!(matches!(error, ImageError::Tool { .. }) && error.is_retryable(), "{error}");
        assert_eq!(catalogue.get(MICRO).unwrap(), built);
        catalogue.build(MICRO, Packages::Kept, &Quiet).unwrap();
    })
    .join()
    .unwrap();
}

#[test]
fn two_builders_at_once_get_one_template() {
    let (dir, catalogue) = fresh();
    let built = std::thread::scope(|scope| {
        let builders =
            [0, 1].map(|_| scope.spawn(|| catalogue.build(MICRO, Packages::Kept, &Quiet)));
        builders.map(|builder| builder.join().unwrap().unwrap())
    });
    assert_eq!(built[0], built[1]);
    assert_eq!(fs::read_dir(dir.path().join("cache/micro/builds")).unwrap().count(), 1);
    assert_eq!(unfinished(dir.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_killed_build_leaves_no_half_template() {
    if let Some(dir) = std::env::var_os(KILL_DIR) {
        // The child: it is killed somewhere in here, or reaches the end.
        catalogue_in(Path::new(&dir)).build(MICRO, Packages::Kept, &Quiet).unwrap();
        return;
    }
    let (dir, catalogue) = fresh();
    let mut cut = 0;
    for wait_ms in [50, 800, 2000, 3500, 5000] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_killed_build_leaves_no_half_template"])
            .env(KILL_DIR, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(wait_ms));
        cut += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        match catalogue.get(MICRO) {
            Ok(_) => break,
            Err(ImageError::NotFound { .. }) => {}
            Err(e) => panic!("half a template after {wait_ms} ms: {e}"),
        }
    }
    assert!(cut > 0, "every build was over before it was killed");
    let built = catalogue.build(MICRO, Packages::Kept, &Quiet).unwrap();
    assert_eq!(catalogue.get(MICRO).unwrap(), built);
    assert_eq!(unfinished(dir.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_new_agent_is_a_new_digest_and_vms_keep_the_old_one() {
    let (dir, catalogue) = fresh();
    let old = catalogue.build(MICRO, Packages::Kept, &Quiet).unwrap();
    // What follows the end of a program changes nothing but its digest.
    let agent = dir.path().join("agent");
    fs::write(&agent, [fs::read("/bin/busybox").unwrap(), b"newer".to_vec()].concat()).unwrap();
    let catalogue = Catalogue::new(dir.path().join("data"), dir.path().join("cache"), agent);
    let start = Instant::now();
    let new = catalogue.build(MICRO, Packages::Kept, &Quiet).unwrap();
    println!("built with a new agent in {:?}", start.elapsed());
    assert_ne!(old.digest, new.digest);
    assert_eq!(catalogue.list().unwrap().as_slice(), std::slice::from_ref(&new));

    let data = dir.path().join("data");
    let in_use = [old.digest.clone()].into();
    assert_eq!(catalogue.collect(&in_use).unwrap(), Vec::<String>::new());
    assert!(data.join(&old.path).is_dir());
    assert_eq!(catalogue.collect(&[].into()).unwrap(), [old.digest]);
    assert!(!data.join(&old.path).exists());
    assert_eq!(catalogue.get(MICRO).unwrap(), new);

    catalogue.remove(MICRO, &Quiet).unwrap();
    catalogue.remove(MICRO, &Quiet).unwrap();
    assert!(!data.join(&new.path).exists());
    let error = catalogue.get(MICRO).unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    assert_eq!(catalogue.list().unwrap(), []);
}

#[test]
fn an_agent_that_is_not_static_is_refused() {
    let (dir, _) = fresh();
    let own = std::env::current_exe().unwrap();
    let catalogue = Catalogue::new(dir.path().join("data"), dir.path().join("cache"), own);
    let error = catalogue.build(MICRO, Packages::Kept, &Quiet).unwrap_err();
    assert!(matches!(error, ImageError::Format { .. }), "{error}");
    assert!(!dir.path().join("data").exists());
}
