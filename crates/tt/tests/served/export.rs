//! Templates' disks as files: whole, or not there.

use crate::daemon::Daemon;
use crate::{PATIENCE, signal};
use rustix::process::Signal;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};
use tt_api::access::{Disk, DiskForm};

/// Size of the disk of `micro`: 1 MB of data, a hole, and one byte.
const SIZE: u64 = 64 << 20;
/// How fast the disk of `slow` comes, which never ends.
const PAUSE: Duration = Duration::from_millis(5);

/// The disk of a template, as a host sends it.
pub fn disk(name: &str, form: DiskForm) -> Disk {
    let piece = |at: u64, data: &[u8]| {
        let len = u32::try_from(data.len()).unwrap().to_le_bytes();
        [&at.to_le_bytes()[..], &len, data].concat()
    };
    let data = [piece(0, &content()), piece(SIZE - 1, b"x"), piece(SIZE, b"")].concat();
    let content: Box<dyn Read + Send> = match (name, form) {
        ("slow", _) => Box::new(Slow(io::repeat(0))),
        (_, DiskForm::Sparse) => Box::new(io::Cursor::new(data)),
        (_, DiskForm::Raw | DiskForm::Qcow2) => Box::new(io::Cursor::new(content())),
    };
    Disk { bytes: None, content }
}

fn content() -> Vec<u8> {
    (0..1_u32 << 18).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

struct Slow(io::Repeat);

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        std::thread::sleep(PAUSE);
        self.0.read(buffer)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// An export that does not end by itself, once some of it is in its file.
fn under_way(daemon: &Daemon, file: &str) -> Child {
    let child = daemon.spawn(&["template", "export", "slow", file]);
    let deadline = Instant::now() + PATIENCE;
    let fds = format!("/proc/{}/fd", child.id());
    // Its file has no name yet.
    let is_written = || {
        let open = fs::read_dir(&fds).unwrap().flatten();
        open.filter_map(|fd| fs::metadata(fd.path()).ok()).any(|m| m.is_file() && m.len() > 0)
    };
    while !is_written() {
        assert!(Instant::now() < deadline, "nothing is written");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

#[test]
fn a_template_becomes_a_file_with_its_holes() {
    let daemon = Daemon::start();
    daemon.add_template("slow");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let file = path.to_str().unwrap();
    let done = daemon.tt(&["template", "export", "micro", file]);
    assert_eq!((done.code, done.out), (Some(0), format!("{file} has the disk of micro\n")));
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.len(), meta.mode() & 0o777), (SIZE, 0o644));
    assert!(meta.blocks() * 512 < 2 << 20, "{} blocks", meta.blocks());
    let read = fs::read(&path).unwrap();
    assert!(read.starts_with(&content()) && read.ends_with(b"\0x"));
    // What is there stays, unless it is said that it shall not.
    fs::write(&path, "precious").unwrap();
    let again = ["template", "export", "micro", file, "--format", "qcow2"];
    daemon.tt(&again).fails(2, "is there\n  write another name, or --force to replace it");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let forced = daemon.tt(&[&again[..], &["--force", "--json"]].concat());
    assert!(forced.out.contains("\"bytes\":1048576") && forced.out.contains("qcow2"));
    assert!(fs::read(&path).unwrap() == content());
    daemon
        .tt(&["template", "export", "micro", dir.path().to_str().unwrap(), "--force"])
        .fails(2, "is a directory");
    daemon.tt(&["template", "export", "micro", "/no/such/dir"]).fails(1, "make the file");
    daemon.tt(&["template", "export", "none", "x"]).fails(1, "[ERR_TT_NOT_FOUND]");
    daemon.tt(&["template", "export", "micro", "x", "--format", "vdi"]).fails(2, "raw or qcow2");
    assert_eq!(names(dir.path()), ["disk.raw"]);
}

#[test]
fn nothing_is_left_of_an_export_that_was_ended() {
    let mut daemon = Daemon::start();
    daemon.add_template("slow");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    let file = path.to_str().unwrap();
    for (number, code) in [(Signal::INT, Some(130)), (Signal::TERM, None), (Signal::KILL, None)] {
        let child = under_way(&daemon, file);
        assert_eq!(names(dir.path()), [""; 0], "{number:?}");
        daemon.tt(&["template", "rm", "slow"]).fails(1, "[ERR_TT_IN_USE]");
        signal(&child, number);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), names(dir.path()).len()), (code, 0), "{number:?}");
    }
    // The daemon ends in the middle of it.
    let child = under_way(&daemon, file);
    daemon.replace();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), names(dir.path()).len()), (Some(1), 0), "{said}");
    assert!(said.contains("try again"), "{said}");
}
