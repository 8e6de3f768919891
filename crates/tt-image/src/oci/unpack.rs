//! Lays an image's layers over each other in a directory, as its guests will see them. It never writes outside of that
//! directory, and nothing at all of a layer whose content is not the promised one.

use super::tar::{self, Entries, Entry, Kind};
use super::tree::{self, Meta, Tree, TreeError};
use crate::progress::{Asking, is_unwanted};
use crate::{ImageError, Progress, files};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How the names of whiteouts begin, and what follows in the name of one that hides all.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..opq";
/// What is left free on the file system.
const RESERVE_BYTES: u64 = 128 << 20;
/// The free space is looked at after this much data, where an entry counts for the least that it takes.
const LOOK_BYTES: u64 = 32 << 20;
const ENTRY_BYTES: u64 = 4096;
/// Data is written in pieces of this size; one of zeros becomes a hole.
const PIECE_BYTES: usize = 64 << 10;

/// What an image may hold in all of its layers together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Unpacked, headers included.
    pub(super) bytes: u64,
    pub(super) entries: u64,
    /// What the whiteouts of one layer may take in memory.
    pub(super) hidden_bytes: u64,
}

/// Unpacks layers, the lowest first.
pub(super) struct Unpacker<'a> {
    tree: Tree,
    path: PathBuf,
    left: Limits,
    since_look: u64,
    progress: &'a dyn Progress,
}

/// What a layer takes away from those below.
#[derive(Debug, PartialEq, Eq)]
enum Hidden {
    /// The thing of this path.
    One(Vec<u8>),
    /// All that is in the directory of this path.
    All(Vec<u8>),
}

impl Hidden {
    /// What it takes in memory.
    fn bytes(&self) -> u64 {
        let (Self::One(path) | Self::All(path)) = self;
        (size_of::<Self>() + path.len()) as u64
    }
}

/// What one reading of a layer found.
#[derive(Debug, Default)]
struct Found {
    hidden: Vec<Hidden>,
    hidden_bytes: u64,
    entries: u64,
}

impl<'a> Unpacker<'a> {
    /// Into `path`, an empty directory that nobody else writes to.
    pub(super) fn new(
        path: &Path,
        limits: Limits,
        progress: &'a dyn Progress,
    ) -> Result<Self, ImageError> {
        let tree = Tree::open(path).map_err(|e| files::not_written(path)(e.into()))?;
        Ok(Self { tree, path: path.into(), left: limits, since_look: 0, progress })
    }

    /// One more layer, `what` to those who read of it. `open` gives its tar from the beginning, every time with the same
    /// content or an error: it is read twice, since what it hides lies below whatever it brings, wherever it says so.
    pub(super) fn layer<R: Read>(
        &mut self,
        what: &str,
        open: &dyn Fn(u64) -> Result<R, ImageError>,
    ) -> Result<(), ImageError> {
        let in_layer = |error| as_image_error(what, &self.path, error);
        let input = Asking::new(open(self.left.bytes)?, self.progress);
        let mut input = Counted { input, bytes: 0 };
        let found = read_through(&mut input, self.left, self.progress).map_err(in_layer)?;
        self.left.bytes = self.left.bytes.saturating_sub(input.bytes);
        self.left.entries -= found.entries;
        for hidden in &found.hidden {
            self.hide(hidden).map_err(|e| as_image_error(what, &self.path, e))?;
        }
        let mut entries = Entries::new(Asking::new(open(u64::MAX)?, self.progress));
        loop {
            self.progress.check()?;
            let entry = entries.next().map_err(Fault::from);
            let entry = entry.map_err(|e| as_image_error(what, &self.path, e))?;
            let Some(entry) = entry else { break };
            self.put(&entry, &mut entries)
                .map_err(|e| as_image_error(what, &self.path, e.at(&entry.path)))?;
        }
        entries.finish().map_err(|e| as_image_error(what, &self.path, e.into()))
    }

    fn hide(&self, hidden: &Hidden) -> Result<(), Fault> {
        let (Hidden::One(path) | Hidden::All(path)) = hidden;
        let hide = || {
            let parts = parts(path)?;
            match hidden {
                Hidden::One(_) => self.tree.find(&parts)?.remove(),
                Hidden::All(_) => {
                    Ok(tree::empty(std::os::fd::AsFd::as_fd(&self.tree.enter(&parts)?))?)
                }
            }
        };
        match hide() {
            // Nothing is there to be hidden.
            Err(TreeError::System(Errno::NOENT)) => Ok(()),
            hidden => hidden.map_err(|error| Fault::from(error).at(path)),
        }
    }

    fn put(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), Fault> {
        self.look(ENTRY_BYTES)?;
        let parts = parts(&entry.path)?;
        if parts.iter().any(|part| part.starts_with(WHITEOUT)) {
            return Ok(());
        }
        let meta = Meta { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime };
        if parts.is_empty() {
            return match entry.kind {
                Kind::Dir => Ok(tree::describe(self.tree.root(), meta, &kept(&entry.xattrs))?),
                _ => Err(Fault::refuse("the root can be a directory only")),
            };
        }
        if entry.kind == Kind::Device {
            // The guest's kernel makes its own.
            return match parts[0] {
                b"dev" => Ok(()),
                _ => Err(Fault::refuse("it is a device; devices belong below /dev")),
            };
        }
        let place = self.tree.make_way(&parts)?;
        match &entry.kind {
            Kind::Dir => {
                let dir = place.directory()?;
                Ok(tree::describe(dir, meta, &kept(&entry.xattrs))?)
            }
            Kind::File { .. } => {
                let file = place.file()?;
                self.fill(&file, data)?;
                Ok(tree::describe(&file, meta, &kept(&entry.xattrs))?)
            }
            Kind::Symlink { target } => Ok(place.symlink(target, meta)?),
            Kind::HardLink { target } => {
                let of = match self.tree.find(&self::parts(target)?) {
                    Err(TreeError::System(Errno::NOENT)) => {
                        return Err(Fault::refuse("it is a hard link to nothing"));
                    }
                    of => of?,
                };
                Ok(place.hard_link(&of)?)
            }
            Kind::Fifo => Ok(place.fifo(meta)?),
            Kind::Device => Ok(()),
        }
    }

    fn fill(&mut self, mut file: &File, data: &mut impl Read) -> Result<(), Fault> {
        let mut buffer = vec![0; PIECE_BYTES];
        let mut bytes = 0;
        loop {
            let len = data.read(&mut buffer)?;
            if len == 0 {
                return file.set_len(bytes).map_err(Fault::Write);
            }
            self.look(len as u64)?;
            bytes += len as u64;
            if buffer[..len].iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Start(bytes)).map_err(Fault::Write)?;
            } else {
                file.write_all(&buffer[..len]).map_err(Fault::Write)?;
            }
        }
    }

    /// Looks at the free space from time to time, and whether anybody still wants this.
    fn look(&mut self, bytes: u64) -> Result<(), Fault> {
        self.since_look += bytes;
        if self.since_look < LOOK_BYTES {
            return Ok(());
        }
        self.since_look = 0;
        self.progress.check().map_err(Fault::Image)?;
        let about = rustix::fs::fstatvfs(self.tree.root()).map_err(|e| Fault::Write(e.into()))?;
        if about.f_bavail.saturating_mul(about.f_frsize) < RESERVE_BYTES {
            return Err(Fault::Write(Errno::NOSPC.into()));
        }
        Ok(())
    }
}

/// What goes wrong with an entry.
#[derive(Debug)]
enum Fault {
    /// The layer can not be read, or is none.
    Read(io::Error),
    /// An entry can not be kept: which, and why.
    Refuse(Vec<u8>, String),
    /// It can not be written.
    Write(io::Error),
    /// Something else, which says all itself.
    Image(ImageError),
}

impl Fault {
    fn refuse(why: &str) -> Self {
        Self::Refuse(Vec::new(), why.to_owned())
    }

    fn at(self, path: &[u8]) -> Self {
        match self {
            Self::Refuse(at, why) if at.is_empty() => Self::Refuse(path.to_vec(), why),
            fault => fault,
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl From<TreeError> for Fault {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Refuse(why) => Self::Refuse(Vec::new(), why),
            TreeError::System(errno) => Self::Write(errno.into()),
        }
    }
}

fn as_image_error(what: &str, path: &Path, fault: Fault) -> ImageError {
    let refuse = |problem| ImageError::Format { what: what.to_owned(), problem };
    match fault {
        Fault::Read(source) if is_unwanted(&source) => ImageError::Unwanted,
        // What a decompressor, a digest or the archive says of the content; the disk says something else.
        Fault::Read(source) if source.raw_os_error().is_none() => refuse(source.to_string()),
        Fault::Read(source) => ImageError::Read { path: what.into(), source },
        Fault::Refuse(entry, why) => refuse(format!("{}: {why}", tar::shown(&entry))),
        Fault::Write(source) => files::not_written(path)(source),
        Fault::Image(error) => error,
    }
}

/// Reads a layer to its end: what it hides, and whether its names and their number can be.
fn read_through(
    input: &mut impl Read,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<Found, Fault> {
    let mut entries = Entries::new(input);
    let mut found = Found::default();
    while let Some(entry) = entries.next()? {
        progress.check().map_err(Fault::Image)?;
        found.entries += 1;
        if found.entries > limits.entries {
            return Err(Fault::Refuse(entry.path, "the image has too many entries".into()));
        }
        let parts = parts(&entry.path).map_err(|e| Fault::from(e).at(&entry.path))?;
        if parts.len() > tree::DEPTH_MAX + 1 {
            return Err(Fault::Refuse(entry.path, "it lies too deep".into()));
        }
        let hidden = hidden(&parts).map_err(|e| Fault::from(e).at(&entry.path))?;
        found.hidden_bytes += hidden.as_ref().map_or(0, Hidden::bytes);
        if found.hidden_bytes > limits.hidden_bytes {
            let problem = format!("whiteouts take more than {} bytes", limits.hidden_bytes);
            return Err(Fault::Refuse(entry.path, problem));
        }
        found.hidden.extend(hidden);
    }
    entries.finish()?;
    Ok(found)
}

/// What an entry of that name hides, whatever kind it has: some writers make whiteouts hard links to one another.
fn hidden(parts: &[&[u8]]) -> Result<Option<Hidden>, TreeError> {
    let refuse = |why: &str| Err(TreeError::Refuse(why.to_owned()));
    let Some((name, dirs)) = parts.split_last() else { return Ok(None) };
    if let Some(part) = dirs.iter().find(|part| part.starts_with(WHITEOUT)) {
        // AUFS keeps its own things in such directories.
        return if part.starts_with(b".wh..wh.") {
            Ok(None)
        } else {
            refuse("it lies in a whiteout")
        };
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(None),
        Some(OPAQUE) => Ok(Some(Hidden::All(dirs.join(&b'/')))),
        Some(rest) if rest.starts_with(WHITEOUT) => Ok(None),
        Some(b"" | b"." | b"..") => refuse("it is a whiteout of nothing that can be"),
        Some(rest) => {
            let mut path = dirs.to_vec();
            path.push(rest);
            Ok(Some(Hidden::One(path.join(&b'/'))))
        }
    }
}

/// The parts of a path below the root, which is where absolute ones begin.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>, TreeError> {
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err(TreeError::Refuse("its name holds `..`".into()));
    }
    Ok(parts)
}

/// The attributes that a guest can have from its image. Others are the host's business, or another file system's.
fn kept(xattrs: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let is_kept = |name: &str| name == "security.capability" || name.starts_with("user.");
    xattrs.iter().filter(|(name, _)| is_kept(name)).cloned().collect()
}

struct Counted<R> {
    input: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.input.read(buffer)?;
        self.bytes += len as u64;
        Ok(len)
    }
}
