//! A directory into which a stranger's files go, and nothing of them goes anywhere else.
//!
//! Every path is resolved by the kernel with this directory as its root (`openat2(2)`, `RESOLVE_IN_ROOT`), and the last
//! part of one is never followed. So a link in the tree means what it will mean in the guest, and leads out of it never.

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Parts of a path at most, and of a path's real place behind the links in it: what walks the tree later is recursive.
pub(super) const DEPTH_MAX: usize = 128;
/// Longest value of a link, as the kernel has it.
const LINK_BYTES_MAX: usize = 4095;

const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Neither `/proc`'s links nor other file systems are ever entered.
const BENEATH: ResolveFlags =
    ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

/// Why something can not be put into the tree.
#[derive(Debug)]
pub(crate) enum TreeError {
    /// What was asked for makes no sense here.
    Refuse(String),
    /// The system failed.
    System(Errno),
}

impl From<Errno> for TreeError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::LOOP => {
                refused("it leads through a link that goes in circles or leaves the tree")
            }
            Errno::NOTDIR => refused("it leads through something that is no directory"),
            Errno::XDEV => refused("it leads to another file system"),
            Errno::NAMETOOLONG => refused("a part of its name has more than 255 bytes"),
            Errno::MLINK => refused("the file has more hard links than a file system can hold"),
            other => Self::System(other),
        }
    }
}

/// Whose a thing is, and when it was changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
}

/// The directory.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    root_depth: usize,
}

/// A place in the tree: an open directory and a name in it, which is one part and neither `.` nor `..`.
#[derive(Debug)]
pub(crate) struct Place {
    dir: OwnedFd,
    name: Vec<u8>,
}

impl Tree {
    /// The tree below `path`, which is ours.
    pub(crate) fn open(path: &Path) -> Result<Self, Errno> {
        let root = rustix::fs::open(path, DIR_FLAGS, Mode::empty())?;
        let root_depth = depth(&root)?;
        Ok(Self { root, root_depth })
    }

    /// The root itself.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The place that `parts` name; directories on the way that are missing are made.
    pub(crate) fn make_way(&self, parts: &[&[u8]]) -> Result<Place, TreeError> {
        let (name, dirs) = split(parts)?;
        let dir = match self.enter(dirs) {
            Err(TreeError::System(Errno::NOENT)) => {
                self.make_dirs(dirs).and_then(|()| self.enter(dirs))
            }
            entered => entered,
        };
        let dir = dir.map_err(|error| match error {
            // All that was missing is there now, so it is the target of a link that is not.
            TreeError::System(Errno::NOENT) => refused("it leads through a link to nothing"),
            error => error,
        })?;
        Ok(Place { dir, name })
    }

    fn make_dirs(&self, dirs: &[&[u8]]) -> Result<(), TreeError> {
        for end in 1..=dirs.len() {
            let place = self.find(&dirs[..end])?;
            match rustix::fs::mkdirat(&place.dir, &*place.name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// The place that `parts` name, if the way to it is there.
    pub(super) fn find(&self, parts: &[&[u8]]) -> Result<Place, TreeError> {
        let (name, dirs) = split(parts)?;
        Ok(Place { dir: self.enter(dirs)?, name })
    }

    /// Opens the directory that `parts` name.
    pub(super) fn enter(&self, parts: &[&[u8]]) -> Result<OwnedFd, TreeError> {
        if parts.len() > DEPTH_MAX {
            return Err(refused("it lies too deep"));
        }
        if parts.is_empty() {
            return Ok(self.root.try_clone().map_err(|_| Errno::MFILE)?);
        }
        let path = parts.join(&b'/');
        let open = |resolve| {
            let flags = DIR_FLAGS - OFlags::NOFOLLOW;
            rustix::fs::openat2(&self.root, &*path, flags, Mode::empty(), resolve)
        };
        match open(BENEATH | ResolveFlags::NO_SYMLINKS) {
            Err(Errno::LOOP) => {}
            opened => return Ok(opened?),
        }
        // Through a link: it stays within the tree, but may lie deeper than it looks.
        let dir = open(BENEATH)?;
        if depth(&dir)?.saturating_sub(self.root_depth) > DEPTH_MAX {
            return Err(refused("it lies too deep"));
        }
        Ok(dir)
    }
}

impl Place {
    /// Makes it a directory, or takes the one that is there.
    pub(crate) fn directory(&self) -> Result<OwnedFd, TreeError> {
        if self.kind()?.is_some_and(|kind| kind != FileType::Directory) {
            self.remove()?;
        }
        match rustix::fs::mkdirat(&self.dir, &*self.name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(rustix::fs::openat(&self.dir, &*self.name, DIR_FLAGS, Mode::empty())?)
    }

    /// Makes it an empty file that nobody else may read yet.
    pub(crate) fn file(&self) -> Result<File, TreeError> {
        self.remove()?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, &*self.name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(file.into())
    }

    /// Makes it a symbolic link.
    pub(crate) fn symlink(&self, target: &[u8], meta: Meta) -> Result<(), TreeError> {
        if target.is_empty() || target.len() > LINK_BYTES_MAX {
            return Err(refused("its target is empty or too long"));
        }
        self.remove()?;
        rustix::fs::symlinkat(target, &self.dir, &*self.name)?;
        self.own(meta)
    }

    /// Makes it a named pipe.
    pub(super) fn fifo(&self, meta: Meta) -> Result<(), TreeError> {
        self.remove()?;
        let mode = Mode::from_raw_mode(meta.mode & 0o777);
        rustix::fs::mknodat(&self.dir, &*self.name, FileType::Fifo, mode, 0)?;
        self.own(meta)?;
        Ok(rustix::fs::chmodat(&self.dir, &*self.name, mode, AtFlags::empty())?)
    }

    /// Makes it another name of what is at `of`, which is no directory.
    pub(super) fn hard_link(&self, of: &Self) -> Result<(), TreeError> {
        match of.kind()? {
            None => return Err(refused("it is a hard link to nothing")),
            Some(FileType::Directory) => return Err(refused("it is a hard link to a directory")),
            Some(_) if self.is(of)? => return Ok(()),
            Some(_) => {}
        }
        self.remove()?;
        // If that was the way to the target, it is gone.
        match rustix::fs::linkat(&of.dir, &*of.name, &self.dir, &*self.name, AtFlags::empty()) {
            Err(Errno::NOENT) => Err(refused("it is a hard link to what it replaces")),
            linked => Ok(linked?),
        }
    }

    /// Removes whatever is there. An absent one is fine.
    pub(super) fn remove(&self) -> Result<(), TreeError> {
        Ok(remove(self.dir.as_fd(), &self.name)?)
    }

    /// Whether a directory is there.
    pub(crate) fn is_directory(&self) -> Result<bool, TreeError> {
        Ok(self.kind()? == Some(FileType::Directory))
    }

    /// What is there.
    fn kind(&self) -> Result<Option<FileType>, Errno> {
        match rustix::fs::statat(&self.dir, &*self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(about) => Ok(Some(FileType::from_raw_mode(about.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Whether it is the same file under the same or another name.
    fn is(&self, other: &Self) -> Result<bool, Errno> {
        let id = |place: &Self| match rustix::fs::statat(
            &place.dir,
            &*place.name,
            AtFlags::SYMLINK_NOFOLLOW,
        ) {
            Ok(about) => Ok(Some((about.st_dev, about.st_ino))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        };
        Ok(id(self)? == id(other)?)
    }

    fn own(&self, meta: Meta) -> Result<(), TreeError> {
        let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(&self.dir, &*self.name, Some(uid), Some(gid), flags)?;
        Ok(rustix::fs::utimensat(&self.dir, &*self.name, &times(meta.mtime), flags)?)
    }
}

/// Gives an open file or directory its owner, mode, attributes and time, in the order in which none takes another away.
pub(crate) fn describe(
    fd: impl AsFd,
    meta: Meta,
    xattrs: &[(String, Vec<u8>)],
) -> Result<(), TreeError> {
    rustix::fs::fchown(&fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(meta.mode & 0o7777))?;
    for (name, value) in xattrs {
        match rustix::fs::fsetxattr(&fd, name.as_str(), value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::RANGE | Errno::TOOBIG) => {
                return Err(refused(&format!("its attribute {name:?} can not be kept here")));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(rustix::fs::futimens(&fd, &times(meta.mtime))?)
}

/// Removes all that is in a directory.
pub(super) fn empty(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    // Read to its end first: what is removed while a directory is read may hide what follows.
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        names.push(entry?.file_name().to_bytes().to_vec());
    }
    names.retain(|name| !matches!(name.as_slice(), b"." | b".."));
    names.iter().try_for_each(|name| remove(dir, name))
}

fn remove(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {
            empty(rustix::fs::openat(dir, name, DIR_FLAGS, Mode::empty())?.as_fd())?;
            rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
        }
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    }
}

fn split<'a, 'b>(parts: &'b [&'a [u8]]) -> Result<(Vec<u8>, &'b [&'a [u8]]), TreeError> {
    let (name, dirs) = parts.split_last().ok_or_else(|| refused("it is the root itself"))?;
    Ok((name.to_vec(), dirs))
}

fn refused(why: &str) -> TreeError {
    TreeError::Refuse(why.to_owned())
}

/// How many parts the real path of an open directory has.
fn depth(dir: &OwnedFd) -> Result<usize, Errno> {
    let link = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let path = rustix::fs::readlink(link, Vec::new())?;
    Ok(path.to_bytes().split(|byte| *byte == b'/').filter(|part| !part.is_empty()).count())
}

fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
