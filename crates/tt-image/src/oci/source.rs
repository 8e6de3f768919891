//! Where the parts of an image that somebody hands over are read from: a directory, or a tar archive that is not
//! unpacked. It reads nothing outside of what it was given, follows no link out of it, and never writes.

use super::tar::{Entries, Kind, shown};
use crate::progress::{Asking, is_unwanted};
use crate::{ImageError, Progress, files};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Entries of an archive with an image in it: three for each layer in the old form, one for each blob in the new.
const ENTRIES_MAX: usize = 4096;
/// Links that are followed from one entry to the next.
const LINKS_MAX: usize = 4;

/// Named parts.
#[derive(Debug)]
pub(super) enum Source {
    /// Files below a directory. With `is_flat` what a layout calls `blobs/sha256/DIGITS` is called `DIGITS`.
    Dir {
        /// Its path, for messages.
        path: PathBuf,
        /// It, open.
        root: OwnedFd,
        is_flat: bool,
    },
    /// Entries of an archive.
    Archive {
        /// Its path, for messages.
        path: PathBuf,
        /// It, open.
        file: File,
        /// Where what is.
        places: HashMap<String, Place>,
    },
}

/// Where an entry's data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the archive.
    At { offset: u64, bytes: u64 },
    /// At another entry: `docker save` once wrote equal layers so.
    SameAs(String),
}

/// A part as a stream.
#[derive(Debug)]
pub(super) struct Part {
    file: File,
    offset: u64,
    left: u64,
}

impl Source {
    /// The directory, or the archive that is not compressed, at `path`.
    pub(super) fn open(path: &Path, progress: &dyn Progress) -> Result<Self, ImageError> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty());
        let fd = fd.map_err(|e| files::not_read(path)(e.into()))?;
        let file = File::from(fd);
        let meta = file.metadata().map_err(files::not_read(path))?;
        if meta.is_dir() {
            return Ok(Self::Dir { path: path.into(), root: file.into(), is_flat: false });
        }
        if !meta.is_file() {
            return Err(refuse(path, "it is neither a file nor a directory".into()));
        }
        let places = index(&file, progress).map_err(|e| match e.raw_os_error() {
            _ if is_unwanted(&e) => ImageError::Unwanted,
            Some(_) => files::not_read(path)(e),
            None => refuse(path, e.to_string()),
        })?;
        Ok(Self::Archive { path: path.into(), file, places })
    }

    /// A directory of our own with nothing but blobs, named by their digits.
    pub(super) fn blobs(path: &Path, progress: &dyn Progress) -> Result<Self, ImageError> {
        match Self::open(path, progress)? {
            Self::Dir { path, root, .. } => Ok(Self::Dir { path, root, is_flat: true }),
            archive => Ok(archive),
        }
    }

    /// What it is called in messages.
    pub(super) fn path(&self) -> &Path {
        let (Self::Dir { path, .. } | Self::Archive { path, .. }) = self;
        path
    }

    /// Whether it has a part of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.part(name).is_ok()
    }

    /// The part `name`, from its beginning.
    pub(super) fn part(&self, name: &str) -> Result<Part, ImageError> {
        let missing = || refuse(self.path(), format!("it has no {}", shown(name.as_bytes())));
        match self {
            Self::Dir { root, is_flat, .. } => {
                let name = if *is_flat { name.trim_start_matches("blobs/sha256/") } else { name };
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let resolve =
                    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
                let opened = rustix::fs::openat2(root, name, flags, Mode::empty(), resolve);
                let file = match opened {
                    Ok(fd) => File::from(fd),
                    Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing()),
                    Err(Errno::LOOP | Errno::XDEV) => {
                        let problem = format!("{} is a link", shown(name.as_bytes()));
                        return Err(refuse(self.path(), problem));
                    }
                    Err(e) => return Err(files::not_read(self.path())(e.into())),
                };
                let meta = file.metadata().map_err(files::not_read(self.path()))?;
                if !meta.is_file() {
                    let problem = format!("{} is no regular file", shown(name.as_bytes()));
                    return Err(refuse(self.path(), problem));
                }
                Ok(Part { file, offset: 0, left: meta.len() })
            }
            Self::Archive { file, places, .. } => {
                let mut place = places.get(name);
                for _ in 0..LINKS_MAX {
                    match place {
                        Some(Place::At { offset, bytes }) => {
                            let file = file.try_clone().map_err(files::not_read(self.path()))?;
                            return Ok(Part { file, offset: *offset, left: *bytes });
                        }
                        Some(Place::SameAs(other)) => place = places.get(other),
                        None => break,
                    }
                }
                Err(missing())
            }
        }
    }

    /// The content of the part `name`, which has at most `bytes_max`.
    pub(super) fn read(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, ImageError> {
        let part = self.part(name)?;
        if part.left > bytes_max {
            let name = shown(name.as_bytes());
            let problem = format!("{name} has {} bytes, {bytes_max} at most", part.left);
            return Err(refuse(self.path(), problem));
        }
        let mut content = Vec::new();
        let read = part.take(bytes_max).read_to_end(&mut content);
        read.map_err(files::not_read(self.path()))?;
        Ok(content)
    }
}

impl Part {
    /// How many bytes are left.
    pub(super) fn left(&self) -> u64 {
        self.left
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        // Places of its own: the descriptor of an archive is shared.
        let len = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += len as u64;
        self.left -= len as u64;
        Ok(len)
    }
}

/// Where the files of an archive lie in it.
fn index(mut file: &File, progress: &dyn Progress) -> io::Result<HashMap<String, Place>> {
    let mut places = HashMap::new();
    file.seek(SeekFrom::Start(0))?;
    let mut entries = Entries::new(Asking::new(file, progress));
    while let Some(entry) = entries.next()? {
        // A name of an image's part is text; what has another one is none.
        let Some(name) = std::str::from_utf8(&entry.path).ok().and_then(|path| tidy("", path))
        else {
            continue;
        };
        let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
        let text = |target: &[u8]| std::str::from_utf8(target).ok().map(str::to_owned);
        let place = match entry.kind {
            Kind::File { bytes } => Some(Place::At { offset: file.stream_position()?, bytes }),
            Kind::Symlink { target } => {
                text(&target).and_then(|target| tidy(dir, &target)).map(Place::SameAs)
            }
            Kind::HardLink { target } => {
                text(&target).and_then(|target| tidy("", &target)).map(Place::SameAs)
            }
            Kind::Dir | Kind::Fifo | Kind::Device => None,
        };
        let Some(place) = place else { continue };
        if places.insert(name, place).is_some() {
            // Which of them counts is answered differently by different readers.
            return Err(super::tar::bad(format!("it has {} twice", shown(&entry.path))));
        }
        if places.len() > ENTRIES_MAX {
            return Err(super::tar::bad(format!("it has more than {ENTRIES_MAX} files")));
        }
    }
    Ok(places)
}

/// The name in the archive that `path` means in its directory `dir`; `None` if it leads out of it.
fn tidy(dir: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = dir.split('/').filter(|part| !part.is_empty()).collect();
    if path.starts_with('/') {
        return None;
    }
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn refuse(path: &Path, problem: String) -> ImageError {
    ImageError::Format { what: format!("image {}", path.display()), problem }
}
