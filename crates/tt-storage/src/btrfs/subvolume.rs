//! Subvolumes of btrfs, by the ioctls of `linux/btrfs.h`. It never follows a name that leads out of the directory it is
//! given.

use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// `BTRFS_SUPER_MAGIC` (`linux/magic.h`).
const MAGIC: u32 = 0x9123_683e;
/// `BTRFS_FIRST_FREE_OBJECTID`: the inode that every subvolume's root has.
const ROOT_INODE: u64 = 256;
/// `BTRFS_IOCTL_MAGIC`.
const GROUP: u8 = 0x94;
const SNAP_CREATE_V2: Opcode = opcode::write::<Args>(GROUP, 23);
const SUBVOL_CREATE_V2: Opcode = opcode::write::<Args>(GROUP, 24);
const SUBVOL_GETFLAGS: Opcode = opcode::read::<u64>(GROUP, 25);
const SUBVOL_SETFLAGS: Opcode = opcode::write::<u64>(GROUP, 26);
const SNAP_DESTROY_V2: Opcode = opcode::write::<Args>(GROUP, 63);
/// `BTRFS_SUBVOL_RDONLY`.
const READ_ONLY: u64 = 1 << 1;
/// `BTRFS_SUBVOL_NAME_MAX` and the zero behind it.
const NAME_BYTES: usize = 4040;

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct Args {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; NAME_BYTES],
}

impl Args {
    fn new(name: &OsStr) -> io::Result<Self> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() >= NAME_BYTES || bytes.contains(&b'/') {
            return Err(io::Error::new(ErrorKind::InvalidInput, "no name of a subvolume"));
        }
        let mut args = Self { fd: 0, transid: 0, flags: 0, unused: [0; 4], name: [0; NAME_BYTES] };
        args.name[..bytes.len()].copy_from_slice(bytes);
        Ok(args)
    }

    fn send<const CODE: Opcode>(self, parent: &File) -> io::Result<()> {
        // SAFETY: each of the codes that this is called with takes this structure and writes nothing back.
        unsafe { ioctl(parent.as_fd(), Setter::<CODE, Self>::new(self)) }?;
        Ok(())
    }
}

/// Makes an empty subvolume.
pub(crate) fn create(parent: &File, name: &OsStr) -> io::Result<()> {
    Args::new(name)?.send::<SUBVOL_CREATE_V2>(parent)
}

/// Makes a writable subvolume with the content that `source`, a subvolume, has at this moment, with all that was written
/// there by then. It is on disk, with everything that was done to the file system before, when this returns.
pub(crate) fn snapshot(source: &File, parent: &File, name: &OsStr) -> io::Result<()> {
    let mut args = Args::new(name)?;
    args.fd = source.as_raw_fd().into();
    args.send::<SNAP_CREATE_V2>(parent)
}

/// Removes a subvolume in which no other one lies. Its room comes back a little later.
pub(crate) fn destroy(parent: &File, name: &OsStr) -> io::Result<()> {
    Args::new(name)?.send::<SNAP_DESTROY_V2>(parent)
}

/// Whether nothing in the subvolume can be changed.
pub(crate) fn is_read_only(volume: &File) -> io::Result<bool> {
    // SAFETY: the code fills in one number of 64 bits.
    let flags: u64 = unsafe { ioctl(volume, Getter::<SUBVOL_GETFLAGS, u64>::new()) }?;
    Ok(flags & READ_ONLY != 0)
}

/// Lets nothing in the subvolume be changed any more, or again. All of it is on disk when this returns.
pub(crate) fn set_read_only(volume: &File, is_read_only: bool) -> io::Result<()> {
    let flags = if is_read_only { READ_ONLY } else { 0 };
    // SAFETY: the code takes one number of 64 bits.
    unsafe { ioctl(volume, Setter::<SUBVOL_SETFLAGS, u64>::new(flags)) }?;
    Ok(())
}

/// Whether a directory is a subvolume. `meta`: of `path`, no link followed.
pub(crate) fn is_subvolume(path: &Path, meta: &Metadata) -> io::Result<bool> {
    Ok(meta.is_dir() && meta.ino() == ROOT_INODE && is_btrfs(path)?)
}

/// Whether a file lies on btrfs.
pub(crate) fn is_btrfs(path: &Path) -> io::Result<bool> {
    Ok(rustix::fs::statfs(path)?.f_type as u32 == MAGIC)
}
