//! Writes an archive beneath one directory, and nothing anywhere else, whatever the archive holds.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::header::{EntryKind, MAX_NAME};
use super::parse::{Event, Parser, readable};
use crate::Error;

/// Components of a name at most.
const MAX_DEPTH: usize = 130;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// How much an archive may write.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of file data.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

impl Limits {
    /// No limit but the disk's: for an archive from whoever owns the disk.
    pub const NONE: Self = Self { bytes: u64::MAX, entries: u64::MAX };
}

/// Unpacks an archive as it comes in.
///
/// The archive has one top entry, as [`super::Packer`] makes it. It goes into the target if that is an existing
/// directory, and takes the target's name otherwise (its parent must exist). Directories are merged, files and links
/// replaced. Modes lose set-id and sticky bits, and directories stay open to their owner. An incomplete file is removed.
#[derive(Debug)]
pub struct Unpacker {
    parser: Parser,
    writer: Writer,
}

#[derive(Debug)]
struct Writer {
    base: OwnedFd,
    base_path: PathBuf,
    /// What the top entry is called on disk; `None`: as in the archive.
    rename: Option<String>,
    top: Option<String>,
    file_mode: Option<u32>,
    left: Limits,
    current: Option<Current>,
}

/// The file that is being written.
#[derive(Debug)]
struct Current {
    file: File,
    directory: OwnedFd,
    name: String,
    path: PathBuf,
    mode: u32,
}

impl Unpacker {
    /// Prepares to unpack at `target`. `name`: what to call the top entry if `target` is a directory, instead of what
    /// the archive says (give it when the archive is not trusted). `mode`: permissions of a single file, instead of the
    /// archive's.
    ///
    /// # Errors
    /// `AcceptPath`, `AccessFile`; nothing was written.
    pub fn new(
        target: &Path,
        name: Option<&str>,
        mode: Option<u32>,
        limits: Limits,
    ) -> Result<Self, Error> {
        let unusable = |why| Error::AcceptPath { path: target.to_owned(), why };
        let (base_path, rename) = if target.is_dir() {
            (target, name)
        } else if target.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(unusable("there is no such directory"));
        } else {
            let name = target.file_name().ok_or_else(|| unusable("it has no file name"))?;
            let parent = target
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            (parent, Some(name.to_str().ok_or_else(|| unusable("its name is not UTF-8"))?))
        };
        if rename.is_some_and(|name| !is_component(name)) {
            return Err(unusable("its name must be one component, and neither `.` nor `..`"));
        }
        let base = rustix::fs::openat(CWD, base_path, DIRECTORY, Mode::empty());
        let base = base.map_err(|error| access("open", base_path, error))?;
        let writer = Writer {
            base,
            base_path: base_path.to_owned(),
            rename: rename.map(str::to_owned),
            top: None,
            file_mode: mode,
            left: limits,
            current: None,
        };
        Ok(Self { parser: Parser::default(), writer })
    }

    /// Takes the next bytes of the archive.
    ///
    /// # Errors
    /// `ReadArchive`, `AcceptEntry`, `AccessFile`; the unpacker must then be given up. What was complete stays.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let writer = &mut self.writer;
        self.parser.push(bytes, &mut |event| match event {
            Event::Entry { name, mode, kind } => writer.begin(name, mode, &kind),
            Event::Data(data) => writer.write(data),
            Event::FileEnd => writer.end(),
        })
    }

    /// Says whether all of the archive arrived.
    ///
    /// # Errors
    /// `ReadArchive` if its end is missing, or if it was empty.
    pub fn finish(self) -> Result<(), Error> {
        self.parser.finish()?;
        match self.writer.top {
            Some(_) => Ok(()),
            None => Err(Error::ReadArchive { why: "it is empty" }),
        }
    }
}

impl Writer {
    fn begin(&mut self, name: &str, mode: u32, kind: &EntryKind) -> Result<(), Error> {
        let refuse = |why| Error::AcceptEntry { name: readable(name), why };
        self.left.entries = self
            .left
            .entries
            .checked_sub(1)
            .ok_or_else(|| refuse("the archive has too many entries"))?;
        let components = self.components(name)?;
        let (last, directories) =
            components.split_last().ok_or_else(|| refuse("it has no name"))?;
        let path = self.base_path.join(components.join("/"));
        let directory = self.enter(directories, name)?;
        match kind {
            EntryKind::Directory => make_directory(&directory, last, mode, &path).and_then(|()| {
                open_directory(&directory, last)
                    .map(drop)
                    .map_err(|error| through(name, &path, error))
            }),
            EntryKind::Symlink { target } => {
                if target.is_empty() || target.len() > MAX_NAME || target.contains('\0') {
                    return Err(refuse("its target is empty or no path"));
                }
                remove(&directory, last, &path)?;
                rustix::fs::symlinkat(target.as_str(), &directory, last.as_str())
                    .map_err(|error| access("link", &path, error))
            }
            EntryKind::File { .. } => {
                remove(&directory, last, &path)?;
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::WRONLY
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let created =
                    rustix::fs::openat(&directory, last.as_str(), flags, Mode::RUSR | Mode::WUSR);
                let file = File::from(created.map_err(|error| access("create", &path, error))?);
                let mode =
                    self.file_mode.filter(|_| directories.is_empty()).unwrap_or(mode) & 0o777;
                self.current = Some(Current { file, directory, name: last.clone(), path, mode });
                Ok(())
            }
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<(), Error> {
        let Some(current) = &mut self.current else { return Ok(()) };
        match self.left.bytes.checked_sub(data.len() as u64) {
            Some(left) => self.left.bytes = left,
            None => {
                let name = readable(&current.name);
                return Err(Error::AcceptEntry {
                    name,
                    why: "the archive has more data than is allowed",
                });
            }
        }
        current.file.write_all(data).map_err(|source| Error::AccessFile {
            action: "write",
            path: current.path.clone(),
            source,
        })
    }

    fn end(&mut self) -> Result<(), Error> {
        let Some(current) = &self.current else { return Ok(()) };
        let set = rustix::fs::fchmod(&current.file, Mode::from_raw_mode(current.mode));
        set.map_err(|error| access("set the mode of", &current.path, error))?;
        self.current = None;
        Ok(())
    }

    /// The components of a name on disk, each checked.
    fn components(&mut self, name: &str) -> Result<Vec<String>, Error> {
        let refuse = |why| Error::AcceptEntry { name: readable(name), why };
        if name.starts_with('/') {
            return Err(refuse("its name must be relative"));
        }
        let mut components: Vec<String> =
            name.strip_suffix('/').unwrap_or(name).split('/').map(str::to_owned).collect();
        if components.len() > MAX_DEPTH {
            return Err(refuse("it lies too deep"));
        }
        if !components.iter().all(|component| is_component(component)) {
            return Err(refuse("its name must not hold `.`, `..` or empty parts"));
        }
        if self.top.get_or_insert_with(|| components[0].clone()) != &components[0] {
            return Err(refuse("it lies outside of the archive's first entry"));
        }
        if let Some(rename) = &self.rename {
            components[0].clone_from(rename);
        }
        Ok(components)
    }

    /// Enters directories one by one, never through a symlink.
    fn enter(&self, directories: &[String], name: &str) -> Result<OwnedFd, Error> {
        let mut at = self.base.try_clone().map_err(|source| Error::AccessFile {
            action: "open",
            path: self.base_path.clone(),
            source,
        })?;
        for directory in directories {
            at = open_directory(&at, directory)
                .map_err(|error| through(name, &self.base_path.join(directory), error))?;
        }
        Ok(at)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(current) = &self.current {
            // An incomplete file must not pass for the whole one; if it is gone already, all is well.
            let _ =
                rustix::fs::unlinkat(&current.directory, current.name.as_str(), AtFlags::empty());
        }
    }
}

fn is_component(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && !part.contains(['/', '\0'])
}

fn open_directory(at: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(at, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

fn make_directory(at: &OwnedFd, name: &str, mode: u32, path: &Path) -> Result<(), Error> {
    match rustix::fs::mkdirat(at, name, Mode::RWXU) {
        Err(Errno::EXIST) => return Ok(()),
        made => made.map_err(|error| access("create", path, error))?,
    }
    let mode = Mode::from_raw_mode(mode & 0o777) | Mode::RWXU;
    rustix::fs::chmodat(at, name, mode, AtFlags::empty())
        .map_err(|error| access("set the mode of", path, error))
}

/// Removes what a file or link replaces; a directory is not replaced.
fn remove(at: &OwnedFd, name: &str, path: &Path) -> Result<(), Error> {
    match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        Ok(about) if FileType::from_raw_mode(about.st_mode) == FileType::Directory => {
            return Err(access("replace", path, Errno::ISDIR));
        }
        _ => (),
    }
    rustix::fs::unlinkat(at, name, AtFlags::empty()).map_err(|error| access("replace", path, error))
}

fn through(name: &str, path: &Path, error: Errno) -> Error {
    match error {
        Errno::LOOP | Errno::NOTDIR => Error::AcceptEntry {
            name: readable(name),
            why: "it leads through a symbolic link or a file",
        },
        _ => access("open", path, error),
    }
}

fn access(action: &'static str, path: &Path, error: Errno) -> Error {
    Error::AccessFile { action, path: path.to_owned(), source: io::Error::from(error) }
}
