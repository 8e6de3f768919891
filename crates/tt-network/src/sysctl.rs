//! Switches of the network below `/proc/sys/net`, seen from the calling thread's namespace. What a
//! daemon changes for the whole host is written down first, so that it can be taken back.

use crate::NetworkError;
use rustix::fs::{Mode, OFlags};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const FORWARD: &str = "ipv4/ip_forward";
/// How a folder is opened.
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// More than any of the switches that are set here says: numbers.
const VALUE_BYTES_MAX: usize = 64;

/// A folder of switches, held open: the kernel looks for the first name below `/proc/sys/net` among those of all namespaces.
#[derive(Debug)]
pub(crate) struct Folder {
    dir: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Of the calling thread's namespace.
    pub(crate) fn open(name: &str) -> Result<Self, NetworkError> {
        let path = path(name);
        let dir = rustix::fs::open(&path, FOLDER, Mode::empty());
        Ok(Self { dir: dir.map_err(|source| fail("open", &path, source.into()))?, path })
    }

    /// As [`Folder::open`], where the kernel has it.
    pub(crate) fn find(name: &str) -> Result<Option<Self>, NetworkError> {
        match Self::open(name) {
            Err(NetworkError::UseFile { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            opened => opened.map(Some),
        }
    }

    /// A folder in it.
    pub(crate) fn below(&self, name: &str) -> Result<Self, NetworkError> {
        let path = self.path.join(name);
        let dir = rustix::fs::openat(&self.dir, name, FOLDER, Mode::empty());
        Ok(Self { dir: dir.map_err(|source| fail("open", &path, source.into()))?, path })
    }

    /// Writes each value to the switch of that name, unless it is there already.
    pub(crate) fn set(&self, switches: &[(&str, &str)]) -> Result<(), NetworkError> {
        switches.iter().try_for_each(|(name, value)| {
            self.change(name, value).map_err(|source| fail("set", &self.path.join(name), source))
        })
    }

    fn change(&self, name: &str, value: &str) -> io::Result<()> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let switch = File::from(rustix::fs::openat(&self.dir, name, flags, Mode::empty())?);
        let mut now = [0; VALUE_BYTES_MAX];
        let length = switch.read_at(&mut now, 0)?;
        match now[..length].trim_ascii_end() == value.as_bytes() {
            true => Ok(()),
            // A switch takes what is written to its beginning, whatever was read.
            false => switch.write_all_at(value.as_bytes(), 0),
        }
    }
}

/// Writes `value`, unless it is there already, where the kernel has that switch.
pub(crate) fn set_if_there(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = path(name);
    match fs::read_to_string(&path) {
        Ok(now) if now.trim_ascii_end() == value => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => write(&path, value),
        Err(source) => Err(fail("read", &path, source)),
    }
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
