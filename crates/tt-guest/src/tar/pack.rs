//! Makes the archive of a file or a directory as it is read. It follows no symlink but the path that it was given, and
//! holds one directory's names at a time for each level.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::BLOCK;
use super::header::{self, EntryKind, MAX_NAME};
use crate::Error;

/// Names read from one directory at most: bounds the memory that a hostile tree can take.
const MAX_NAMES: usize = 1_000_000;

/// Directories inside each other at most.
const MAX_DEPTH: usize = 128;

/// An archive that comes into being as it is read, in bounded memory.
///
/// The one top entry is named after the path's last component. Sockets, pipes and devices are left out. A file that
/// shrinks while it is read ends the archive with an error; what it grows by is left out.
#[derive(Debug)]
pub struct Packer {
    /// Bytes of headers and padding not yet handed out.
    ready: Vec<u8>,
    ready_at: usize,
    file: Option<Source>,
    levels: Vec<Level>,
    ended: bool,
}

/// A file whose data is being packed.
#[derive(Debug)]
struct Source {
    file: File,
    path: PathBuf,
    left: u64,
    padding: usize,
}

/// A directory whose names are being packed.
#[derive(Debug)]
struct Level {
    path: PathBuf,
    name: String,
    /// In reverse order, so that the next one is popped.
    left: Vec<String>,
}

impl Packer {
    /// Begins the archive of `path`.
    ///
    /// # Errors
    /// `AccessFile` if it cannot be read; `AcceptPath` if it is neither a file nor a directory, or has no name.
    pub fn new(path: &Path) -> Result<Self, Error> {
        let unusable = |why| Error::AcceptPath { path: path.to_owned(), why };
        // `canonicalize` gives `.` and `/..` a name, and follows a link at the end.
        let real = fs::canonicalize(path).map_err(|source| access("find", path, source))?;
        let name = match path.file_name().or(real.file_name()) {
            Some(name) => name.to_str().ok_or_else(|| unusable("its name is not UTF-8"))?,
            None => "root",
        };
        let about =
            fs::symlink_metadata(&real).map_err(|source| access("look at", &real, source))?;
        if !about.is_file() && !about.is_dir() {
            return Err(unusable("only files and directories are copied"));
        }
        let mut packer =
            Self { ready: Vec::new(), ready_at: 0, file: None, levels: Vec::new(), ended: false };
        let name = name.to_owned();
        packer.begin(real, name, &about)?;
        Ok(packer)
    }

    /// Writes the next bytes of the archive into `out` and returns how many; 0 once it is complete.
    ///
    /// # Errors
    /// `AccessFile`, `AcceptPath`; the archive is then broken and must be given up.
    pub fn fill(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let mut filled = 0;
        while filled < out.len() {
            let waiting = &self.ready[self.ready_at..];
            if !waiting.is_empty() {
                let count = waiting.len().min(out.len() - filled);
                out[filled..filled + count].copy_from_slice(&waiting[..count]);
                self.ready_at += count;
                filled += count;
            } else if self.file.is_some() {
                filled += self.read_file(&mut out[filled..])?;
            } else if self.ended {
                break;
            } else {
                self.ready.clear();
                self.ready_at = 0;
                self.advance()?;
            }
        }
        Ok(filled)
    }

    fn read_file(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let Some(source) = &mut self.file else { return Ok(0) };
        let most = usize::try_from(source.left).unwrap_or(usize::MAX).min(out.len());
        let count = source
            .file
            .read(&mut out[..most])
            .map_err(|error| access("read", &source.path, error))?;
        if count == 0 {
            let shrank = io::Error::new(io::ErrorKind::UnexpectedEof, "the file shrank meanwhile");
            return Err(access("read", &source.path, shrank));
        }
        source.left -= count as u64;
        if source.left == 0 {
            self.ready = vec![0; source.padding];
            self.ready_at = 0;
            self.file = None;
        }
        Ok(count)
    }

    /// Goes on to the next entry, or to the end.
    fn advance(&mut self) -> Result<(), Error> {
        let Some(level) = self.levels.last_mut() else {
            self.ready.resize(2 * BLOCK, 0);
            self.ended = true;
            return Ok(());
        };
        let Some(child) = level.left.pop() else {
            self.levels.pop();
            return Ok(());
        };
        let path = level.path.join(&child);
        let name = format!("{}/{child}", level.name);
        match fs::symlink_metadata(&path) {
            Ok(about) => self.begin(path, name, &about),
            // It was removed since its directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(access("look at", &path, source)),
        }
    }

    fn begin(&mut self, path: PathBuf, name: String, about: &Metadata) -> Result<(), Error> {
        if name.len() > MAX_NAME || self.levels.len() >= MAX_DEPTH {
            return Err(Error::AcceptPath {
                path,
                why: "it lies too deep: 4095 bytes and 128 directories at most",
            });
        }
        let mode = about.permissions().mode() & 0o7777;
        if about.is_symlink() {
            let target = fs::read_link(&path).map_err(|source| access("read", &path, source))?;
            let target = target.into_os_string().into_string();
            let target = target
                .map_err(|_| Error::AcceptPath { path, why: "a link's target is not UTF-8" })?;
            self.ready = header::encode(&name, mode, &EntryKind::Symlink { target });
        } else if about.is_dir() {
            self.ready = header::encode(&name, mode, &EntryKind::Directory);
            let left = names(&path)?;
            self.levels.push(Level { path, name, left });
        } else if about.is_file() {
            self.begin_file(path, &name, mode)?;
        }
        Ok(())
    }

    fn begin_file(&mut self, path: PathBuf, name: &str, mode: u32) -> Result<(), Error> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let opened = fs::OpenOptions::new().read(true).custom_flags(flags).open(&path);
        let file = opened.map_err(|source| access("open", &path, source))?;
        let about = file.metadata().map_err(|source| access("look at", &path, source))?;
        let bytes = about.len();
        self.ready = header::encode(name, mode, &EntryKind::File { bytes });
        if bytes > 0 {
            self.file = Some(Source { file, path, left: bytes, padding: header::padding(bytes) });
        }
        Ok(())
    }
}

fn names(path: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(|source| access("list", path, source))? {
        let name = entry.map_err(|source| access("list", path, source))?.file_name().into_string();
        names.push(name.map_err(|_| Error::AcceptPath {
            path: path.to_owned(),
            why: "it holds a name that is not UTF-8",
        })?);
        if names.len() > MAX_NAMES {
            return Err(Error::AcceptPath {
                path: path.to_owned(),
                why: "it holds more than 1,000,000 names",
            });
        }
    }
    names.sort_unstable_by(|one, other| other.cmp(one));
    Ok(names)
}

fn access(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::AccessFile { action, path: path.to_owned(), source }
}
