//! Switches of the network below `/proc/sys/net`, seen from the calling thread's namespace. What a
//! daemon changes for the whole host is written down first, so that it can be taken back.

use crate::NetworkError;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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

/// Lets the host forward, and notes at `record` if it did not before.
pub(crate) fn forward(record: &Path) -> Result<(), NetworkError> {
    if read(&path(FORWARD))?.trim_ascii_end() != "0" {
        return Ok(());
    }
    write(record, &format!("{FORWARD}=0\n"))?;
    set(FORWARD, "1")
}

/// Takes back what was noted at `record`. `is_shared`: others still need it, so it stays.
pub(crate) fn restore(record: &Path, is_shared: bool) -> Result<(), NetworkError> {
    let noted = match fs::read_to_string(record) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        noted => noted.map_err(|source| fail("read", record, source))?,
    };
    if !is_shared && noted.lines().any(|line| line == format!("{FORWARD}=0")) {
        set(FORWARD, "0")?;
    }
    fs::remove_file(record).map_err(|source| fail("remove", record, source))
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
