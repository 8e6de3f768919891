//! What only a durable store promises: commits outlive their process, and a file that must not be
//! used is refused.

use std::fs;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;

use super::SqliteKv;
use crate::{Kv, Outcome, Retention, Revision, StoreError, Txn};

/// Tells a re-executed test binary which directory it is to work in.
const CHILD_DIR: &str = "TT_STORE_TEST_DIR";

fn put(kv: &dyn Kv, key: &str, value: impl Into<Vec<u8>>) -> Revision {
    match kv.commit(&Txn::new().put(key, value)).unwrap() {
        Outcome::Done(revision) => revision,
        Outcome::Conflict { key } => panic!("conflict at {key}"),
    }
}

fn refused(dir: &Path) -> StoreError {
    SqliteKv::open(dir).map(drop).unwrap_err()
}

fn database(dir: &Path) -> PathBuf {
    dir.join("store.db")
}

fn sqlite(dir: &Path, text: &str) {
    Connection::open(database(dir)).unwrap().execute_batch(text).unwrap();
}

#[test]
fn everything_is_there_after_a_reopen() {
    let dir = TempDir::new().unwrap();
    let (start, entries, end) = {
        let kv = SqliteKv::open(dir.path()).unwrap();
        let start = put(&kv, "a", "1");
        put(&kv, "a", "2");
        put(&kv, "b", vec![0xff; 100_000]);
        let _ = kv.commit(&Txn::new().delete("b").put("c", "")).unwrap();
        (start, kv.range("", None, 10).unwrap().entries, put(&kv, "d", "x"))
    };
    let kv = SqliteKv::open(dir.path()).unwrap();
    let page = kv.range("", None, 10).unwrap();
    assert_eq!((&page.entries[..2], page.revision), (&entries[..], end));

    let mut watch = kv.watch("", start).unwrap();
    let revisions = (0..4).map(|_| watch.blocking_next().unwrap().revision.0);
    assert!(revisions.eq(start.0 + 1..=end.0), "the log survives too");
    assert_eq!(put(&kv, "e", "x"), Revision(end.0 + 1));
    assert_eq!(watch.blocking_next().unwrap().changes[0].key, "e");
}

#[test]
fn the_log_stays_bounded_after_a_reopen() {
    let dir = TempDir::new().unwrap();
    let retention = Retention { revisions: 10, bytes: 1000 };
    for round in 0..3_u64 {
        let kv = SqliteKv::with_retention(dir.path(), retention).unwrap();
        for i in 0..8 {
            put(&kv, "k", i.to_string());
        }
        let current = (round + 1) * 8;
        let first = current.saturating_sub(9).max(1);
        assert!(kv.watch("", Revision(first - 1)).is_ok());
        if first > 1 {
            let Err(StoreError::Compacted { first: said }) = kv.watch("", Revision(first - 2))
            else {
                panic!("{first}")
            };
            assert_eq!(said, Revision(first));
        }
    }
    let kv = SqliteKv::with_retention(dir.path(), retention).unwrap();
    let large = put(&kv, "k", vec![0; 5000]);
    assert!(
        matches!(kv.watch("", Revision(0)), Err(StoreError::Compacted { first }) if first == large)
    );
}

#[test]
fn what_a_dead_holder_left_is_waited_for() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("lock");
    let remnant = fs::File::create(&path).unwrap();
    remnant.try_lock().unwrap();
    let freed = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(remnant);
    });
    SqliteKv::open(dir.path()).unwrap();
    freed.join().unwrap();
}

#[test]
fn a_second_store_on_a_directory_is_refused() {
    let dir = TempDir::new().unwrap();
    let kv = SqliteKv::open(dir.path()).unwrap();
    put(&kv, "k", "x");
    let error = refused(dir.path());
    assert!(
        matches!(error, StoreError::Lock { pid: Some(pid), .. } if pid == std::process::id()),
        "{error}"
    );
    assert!(
        error.is_retryable() && error.to_string().contains(&std::process::id().to_string()),
        "{error}"
    );
    drop(kv);
    assert!(SqliteKv::open(dir.path()).unwrap().get("k").unwrap().is_some());
}

#[test]
fn the_records_are_for_their_owner_only() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("deep/store");
    put(&SqliteKv::open(&data).unwrap(), "k", "x");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&data), mode(&database(&data))), (0o700, 0o600));
}

#[test]
fn a_newer_schema_is_refused_and_kept() {
    let dir = TempDir::new().unwrap();
    put(&SqliteKv::open(dir.path()).unwrap(), "k", "x");
    sqlite(dir.path(), "UPDATE meta SET value = 2 WHERE name = 'schema_version'");
    let error = refused(dir.path());
    assert!(matches!(error, StoreError::Schema { found: 2, known: 1, .. }), "{error}");
    sqlite(dir.path(), "UPDATE meta SET value = 1 WHERE name = 'schema_version'");
    assert!(SqliteKv::open(dir.path()).unwrap().get("k").unwrap().is_some());
}

type Damage<'a> = &'a dyn Fn(&mut fs::File);

#[test]
fn a_damaged_database_is_refused_and_kept() {
    let made = || {
        let dir = TempDir::new().unwrap();
        let kv = SqliteKv::open(dir.path()).unwrap();
        for i in 0..200 {
            put(&kv, &format!("k{i}"), vec![b'v'; 500]);
        }
        dir
    };
    let whole = made();
    let len = fs::metadata(database(whole.path())).unwrap().len();
    let damages: [(&str, Damage<'_>); 5] = [
        ("empty", &|file| file.set_len(0).unwrap()),
        ("cut", &|file| file.set_len(len / 2).unwrap()),
        ("header", &|file| file.write_all(&[b'x'; 100]).unwrap()),
        ("pages", &|file| {
            file.seek(SeekFrom::Start(4096)).unwrap();
            file.write_all(&vec![0xa5; 5 * 4096]).unwrap();
        }),
        ("text", &|file| {
            file.set_len(0).unwrap();
            file.write_all(b"not a database at all, but someone's notes").unwrap();
        }),
    ];
    for (name, damage) in damages {
        let dir = made();
        damage(&mut fs::OpenOptions::new().write(true).open(database(dir.path())).unwrap());
        let before = fs::read(database(dir.path())).unwrap();
        let error = refused(dir.path());
        assert!(matches!(error, StoreError::Damaged { .. }), "{name}: {error:?}");
        assert!(!error.is_retryable() && error.to_string().contains("store.db"), "{name}: {error}");
        assert!(fs::read(database(dir.path())).unwrap() == before, "{name}: the file was changed");
    }
}

#[test]
fn a_missing_database_beside_its_log_is_refused() {
    let dir = TempDir::new().unwrap();
    drop(SqliteKv::open(dir.path()).unwrap());
    fs::remove_file(database(dir.path())).unwrap();
    fs::write(dir.path().join("store.db-wal"), "commits").unwrap();
    assert!(matches!(refused(dir.path()), StoreError::Damaged { .. }));
    assert!(!database(dir.path()).exists(), "no empty store was made instead");
}

#[test]
fn another_program_s_database_is_refused() {
    let dir = TempDir::new().unwrap();
    sqlite(dir.path(), "CREATE TABLE notes (text)");
    assert!(matches!(refused(dir.path()), StoreError::Damaged { .. }));
}

#[test]
fn a_creation_that_was_cut_short_is_begun_again() {
    let dir = TempDir::new().unwrap();
    for left in ["store.db.new", "store.db.new-journal"] {
        fs::write(dir.path().join(left), "half").unwrap();
    }
    put(&SqliteKv::open(dir.path()).unwrap(), "k", "x");
    assert!(!dir.path().join("store.db.new").exists());
}

#[test]
fn a_directory_that_is_a_file_is_refused() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    assert!(matches!(refused(&file), StoreError::Prepare { .. }));
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

/// Runs one test of this binary as a process of its own, told to work in `dir`.
fn child(test: &str, dir: &Path, wrapper: &[&str]) -> Command {
    let own = std::env::current_exe().unwrap();
    let mut argv: Vec<_> = wrapper.iter().map(PathBuf::from).collect();
    argv.push(own);
    let mut command = Command::new(&argv[0]);
    let test = format!("sqlite::tests::{test}");
    command
        .args(&argv[1..])
        .args(["--exact", &test, "--nocapture", "--include-ignored"])
        .env(CHILD_DIR, dir);
    command
}

/// The directory this process was told to work in, if it is such a child.
fn child_dir() -> Option<PathBuf> {
    std::env::var_os(CHILD_DIR).map(PathBuf::from)
}

/// A child that is dead once this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Commits three keys at a time, one of them a counter, until it is killed; says each answered
/// revision.
#[test]
#[ignore = "a part of kill_9_loses_nothing_that_was_answered, which runs it as a child"]
fn commit_until_killed() {
    let Some(dir) = child_dir() else { return };
    let kv = SqliteKv::with_retention(&dir, Retention { revisions: 50, bytes: 1 << 20 }).unwrap();
    let mut count: u64 =
        kv.get("count").unwrap().map_or(0, |entry| text(&entry.value).parse().unwrap());
    loop {
        count += 1;
        let filler = vec![b'x'; usize::try_from(count % 50).unwrap() * 200];
        let txn = Txn::new()
            .put("count", count.to_string())
            .put(format!("n/{count}"), filler)
            .put("same", count.to_string());
        let Outcome::Done(revision) = kv.commit(&txn).unwrap() else {
            panic!("no guards, no conflict")
        };
        println!("\nANSWERED {revision} {count}");
    }
}

fn text(value: &[u8]) -> &str {
    std::str::from_utf8(value).unwrap()
}

#[test]
fn kill_9_loses_nothing_that_was_answered() {
    let dir = TempDir::new().unwrap();
    let mut answered = (0, 0);
    for round in 0..10_u64 {
        let mut command = child("commit_until_killed", dir.path(), &[]);
        let mut killed = Killed(command.stdout(Stdio::piped()).spawn().unwrap());
        let lines = BufReader::new(killed.0.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || {
            let lines = lines.map_while(Result::ok);
            lines.filter_map(|line| parse(&line)).last()
        });
        let jitter =
            u64::from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos()) % 40;
        std::thread::sleep(Duration::from_millis(60 + round * 10 + jitter));
        drop(killed);
        answered = reader.join().unwrap().unwrap_or(answered).max(answered);
        verify(dir.path(), answered);
    }
    println!("{} commits over 10 kills", answered.1);
    assert!(answered.1 > 10, "the children committed {} times", answered.1);
}

fn parse(line: &str) -> Option<(u64, u64)> {
    let (revision, count) = line.strip_prefix("ANSWERED ")?.split_once(' ')?;
    Some((revision.parse().ok()?, count.parse().ok()?))
}

/// Everything that was answered is there, at most one commit more, and none by half.
fn verify(dir: &Path, (revision, count): (u64, u64)) {
    // The lock of the killed process is free as soon as it is reaped.
    let kv = SqliteKv::open(dir).unwrap();
    let Some(entry) = kv.get("count").unwrap() else {
        assert_eq!((revision, kv.range("", None, 1).unwrap().entries.len()), (0, 0));
        return;
    };
    let found: u64 = text(&entry.value).parse().unwrap();
    assert!(
        (count..=count + 1).contains(&found),
        "{found} commits are there, {count} were answered"
    );
    let page = kv.range("", None, 10_000).unwrap();
    assert!(page.revision.0 >= revision && page.revision == entry.mod_revision);
    assert_eq!(entry.version, found);
    let same = kv.get("same").unwrap().unwrap();
    assert_eq!((same.value, same.mod_revision), (entry.value, entry.mod_revision));
    for n in 1..=found {
        let one = kv.get(&format!("n/{n}")).unwrap().unwrap();
        assert_eq!(one.value.len() as u64, (n % 50) * 200);
    }
    assert_eq!(page.entries.len() as u64, found + 2);
}

/// Fills a small file system of its own, then makes room and goes on.
#[test]
#[ignore = "a part of a_full_disk_loses_nothing, which runs it in a mount namespace of its own"]
fn fill_a_small_disk() {
    let Some(dir) = child_dir() else { return };
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
        .arg(&dir)
        .status()
        .unwrap();
    assert!(mounted.success());
    let ballast = dir.join("ballast");
    fs::write(&ballast, vec![1; 1 << 20]).unwrap();
    let kv = SqliteKv::open(&dir.join("store")).unwrap();
    let mut stored = 0;
    let error = loop {
        match kv.commit(&Txn::new().put(format!("k{stored}"), vec![b'v'; 50_000])) {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 100, "4 MiB take no more than this");
    };
    assert!(matches!(error, StoreError::Full { .. }) && error.is_retryable(), "{error:?}");
    assert!(stored > 5, "{stored}");
    let all_there = |kv: &SqliteKv| {
        let page = kv.range("", None, 1000).unwrap();
        assert_eq!((page.entries.len(), page.revision), (stored, Revision(stored as u64)));
        assert!(page.entries.iter().all(|entry| entry.value == vec![b'v'; 50_000]));
    };
    all_there(&kv);
    fs::remove_file(&ballast).unwrap();
    assert_eq!(put(&kv, "room", "x"), Revision(stored as u64 + 1));
    let _ = kv.commit(&Txn::new().delete("room")).unwrap();
    drop(kv);
    let kv = SqliteKv::open(&dir.join("store")).unwrap();
    assert_eq!(kv.range("k", None, 1000).unwrap().entries.len(), stored);
    println!("\nFILLED {stored}");
}

#[test]
fn a_full_disk_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let output = child("fill_a_small_disk", dir.path(), &["unshare", "--mount"]).output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if err.contains("unshare failed: Operation not permitted") {
        println!("SKIPPED a_full_disk_loses_nothing: it needs the right to mount");
        return;
    }
    assert!(output.status.success() && out.contains("FILLED"), "{out}\n{err}");
}
