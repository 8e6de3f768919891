//! Switches of the network below `/proc/sys/net`, seen from the calling thread's namespace. What a
//! daemon changes for the whole host is written down first, so that it can be taken back.

use crate::NetworkError;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const FORWARD: &str = "ipv4/ip_forward";

/// Writes `value`, unless it is there already.
pub(crate) fn set(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = path(name);
    let now = read(&path)?;
    if now.trim_ascii_end() == value {
        return Ok(());
    }
    write(&path, value)
}

/// As [`set`], where the kernel has that switch.
pub(crate) fn set_if_there(name: &str, value: &str) -> Result<(), NetworkError> {
    if path(name).exists() { set(name, value) } else { Ok(()) }
}

/// Whether the kernel has IPv6 at all.
pub(crate) fn has_six() -> bool {
    static HAS: LazyLock<bool> = LazyLock::new(|| path("ipv6").exists());
    *HAS
}

/// What a switch says.
pub(crate) fn get(name: &str) -> Result<String, NetworkError> {
    let now = read(&path(name))?;
    Ok(now.trim_ascii_end().to_owned())
}

/// The names below a folder of switches.
pub(crate) fn names(folder: &str) -> Result<Vec<String>, NetworkError> {
    let path = path(folder);
    let names = fs::read_dir(&path).map_err(|source| fail("list", &path, source))?;
    Ok(names.flatten().filter_map(|name| name.file_name().into_string().ok()).collect())
}

/// Lets the host forward, and notes at `record` if it did not before.
pub(crate) fn forward(record: &Path) -> Result<(), NetworkError> {
    match get(FORWARD)?.as_str() {
        "0" => change(record, FORWARD, "1"),
        _ => Ok(()),
    }
}

/// Writes `value`, unless it is there already, and notes at `record` before what was there, unless something is noted.
pub(crate) fn change(record: &Path, name: &str, value: &str) -> Result<(), NetworkError> {
    let before = get(name)?;
    if before == value {
        return Ok(());
    }
    if !is_noted(record, name)? {
        let noted = format!("{}{name}={before}\n", notes(record)?);
        write(record, &noted)?;
    }
    write(&path(name), value)
}

/// Whether it is noted at `record` what a switch was.
pub(crate) fn is_noted(record: &Path, name: &str) -> Result<bool, NetworkError> {
    Ok(pairs(&notes(record)?).any(|(noted, _)| noted == name))
}

/// Takes back what was noted at `record`, the last first. `is_shared`: others still need it, so it stays.
pub(crate) fn restore(record: &Path, is_shared: bool) -> Result<(), NetworkError> {
    if !record.exists() {
        return Ok(());
    }
    let noted = notes(record)?;
    let mut noted: Vec<_> = pairs(&noted).filter(|_| !is_shared).collect();
    noted.reverse();
    for (name, value) in noted {
        // Links go, and their switches with them.
        set_if_there(name, value)?;
    }
    fs::remove_file(record).map_err(|source| fail("remove", record, source))
}

fn notes(record: &Path) -> Result<String, NetworkError> {
    match fs::read_to_string(record) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        noted => noted.map_err(|source| fail("read", record, source)),
    }
}

fn pairs(notes: &str) -> impl Iterator<Item = (&str, &str)> {
    notes.lines().filter_map(|line| line.split_once('='))
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}

fn read(path: &Path) -> Result<String, NetworkError> {
    fs::read_to_string(path).map_err(|source| fail("read", path, source))
}

fn write(path: &Path, value: &str) -> Result<(), NetworkError> {
    fs::write(path, value).map_err(|source| fail("write", path, source))
}

fn fail(action: &'static str, path: &Path, source: io::Error) -> NetworkError {
    NetworkError::UseFile { action, path: path.to_owned(), source }
}
