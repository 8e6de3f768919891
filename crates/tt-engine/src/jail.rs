//! A root directory of a program's own: what it is shown of the host, and nothing else. It is made before the program is, so that
//! what is missing is named, and it is gone when the program ends: it lies in the program's mount namespace alone.

use crate::process::Process;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mkdirat, mknodat,
};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, mount_move, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

/// Room for names: nothing else lies in the root itself.
const ROOT_BYTES: &str = "64k";
/// Devices: below `dev`, with their numbers (`devices.txt` of the kernel's documentation).
const DEVICES: [(&CStr, (u32, u32)); 3] =
    [(c"dev/kvm", (10, 232)), (c"dev/net/tun", (10, 200)), (c"dev/urandom", (1, 9))];
/// Where a program's libraries lie that is not of one piece.
const LIBRARIES: [&str; 4] = ["lib", "lib64", "usr/lib", "usr/lib64"];
/// Layers of what is shown under one name, at most: each showing first takes away what was shown.
const SHOWN_MAX: u32 = 8;

/// What a program will see.
#[derive(Debug)]
pub(crate) struct Jail {
    root: OwnedFd,
    /// Mounts that are attached nowhere yet, and where they go.
    shown: Vec<(OwnedFd, CString)>,
    /// A directory of the host's that the root is put over before it is the root.
    over: CString,
    /// The program's working directory.
    dir: CString,
}

impl Jail {
    /// With devices for `uid` alone, and nothing else. `over`: any directory of the host's. `dir`: will be the working directory.
    ///
    /// # Errors
    /// The kernel is older than 5.2, or this process may not mount.
    pub fn new(over: &Path, dir: &str, uid: u32) -> io::Result<Self> {
        let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in [("size", ROOT_BYTES), ("mode", "0755")] {
            fsconfig_set_string(&context, key, value)?;
        }
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID;
        let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        for dir in [c"dev", c"dev/net"] {
            make_dir(&root, dir)?;
        }
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
        for (path, (major, minor)) in DEVICES {
            let mode = Mode::RUSR | Mode::WUSR;
            mknodat(&root, path, FileType::CharacterDevice, mode, makedev(major, minor))?;
            chownat(&root, path, Some(user), Some(group), AtFlags::empty())?;
        }
        let over = CString::new(over.as_os_str().as_bytes())?;
        Ok(Self { root, shown: Vec::new(), over, dir: CString::new(dir)? })
    }

    /// Shows a file or a directory of the host's under `name`, a single one.
    ///
    /// # Errors
    /// It is not there, or can not be shown.
    pub fn show(&mut self, path: &Path, name: &str) -> io::Result<()> {
        let (tree, name) = (tree(path)?, CString::new(name)?);
        match path.is_dir() {
            true => make_dir(&self.root, &name)?,
            false => make_file(&self.root, &name)?,
        }
        self.shown.push((tree, name));
        Ok(())
    }

    /// Makes room for what [`show_to`] will show under `name`.
    pub fn leave_empty(&self, name: &str) -> io::Result<()> {
        make_file(&self.root, &CString::new(name)?)
    }

    /// Shows a program under `name`, and its libraries if it needs any.
    ///
    /// # Errors
    /// As of [`Jail::show`], and if the program can not be read.
    pub fn show_program(&mut self, path: &Path, name: &str) -> io::Result<()> {
        self.show(path, name)?;
        if !needs_libraries(path)? {
            return Ok(());
        }
        make_dir(&self.root, c"usr")?;
        let all = LIBRARIES.map(|name| (name, Path::new("/").join(name)));
        let mut there = all.iter().filter(|(_, path)| path.is_dir());
        there.try_for_each(|(name, path)| self.show(path, name))
    }

    /// Puts the calling process into it. To be called between fork and exec: it makes system calls on what is there.
    ///
    /// # Errors
    /// The kernel refuses; then the process must not go on.
    pub fn enter(&self) -> io::Result<()> {
        // SAFETY: no descriptor is shared; only the namespace of this process changes.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
        let all = MountPropagationFlags::REC;
        // What is mounted from here on is seen by this process alone; what the host unmounts goes here, too.
        mount_change(c"/", MountPropagationFlags::DOWNSTREAM | all)?;
        attach(&self.root, CWD, &self.over)?;
        for (tree, name) in &self.shown {
            attach(tree, self.root.as_fd(), name)?;
        }
        fchdir(&self.root)?;
        match pivot_root(c".", c".") {
            // The old root lies on the new one.
            Ok(()) => unmount(c".", UnmountFlags::DETACH)?,
            // A host that never left its initramfs can not let go of it. It lies below, out of reach without privileges.
            Err(rustix::io::Errno::INVAL) => {
                mount_move(c".", c"/")?;
                chroot(c".")?;
            }
            Err(error) => return Err(error.into()),
        }
        mount_change(c"/", MountPropagationFlags::PRIVATE | all)?;
        Ok(chdir(&*self.dir)?)
    }
}

/// Shows a file of the host's to a living process under `name`, in place of what it was shown there before; `None`: nothing.
///
/// # Errors
/// The kernel refuses, or the process has ended.
pub(crate) fn show_to(process: &Process, path: Option<&Path>, name: &str) -> io::Result<()> {
    let name = &*CString::new(name)?;
    let tree = path.map(tree).transpose()?;
    let show = || {
        // SAFETY: only this thread's, which ends below, working directory and root cease to be those of the others.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS)? };
        move_into_thread_name_spaces(process.fd.as_fd(), ThreadNameSpaceType::MOUNT)?;
        for _ in 0..SHOWN_MAX {
            if unmount(name, UnmountFlags::DETACH).is_err() {
                break;
            }
        }
        tree.as_ref().map_or(Ok(()), |tree| attach(tree, CWD, name))
    };
    let shown = thread::scope(|scope| scope.spawn(show).join());
    shown.unwrap_or_else(|_| Err(io::Error::other("the thread that shows it panicked")))
}

/// A mount of it that is attached nowhere.
fn tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, path, flags)?)
}

fn attach(tree: &OwnedFd, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    Ok(move_mount(tree, c"", dir, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

fn make_dir(root: &OwnedFd, name: &CStr) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o755);
    mkdirat(root, name, mode)?;
    // The umask may have taken away what the program needs.
    Ok(chmodat(root, name, mode, AtFlags::empty())?)
}

fn make_file(root: &OwnedFd, name: &CStr) -> io::Result<()> {
    Ok(mknodat(root, name, FileType::RegularFile, Mode::RUSR, 0)?)
}

/// Whether a program (elf(5), of 64 bits) wants another one to load it, as those do that need libraries.
///
/// # Errors
/// It can not be read, or is no such program.
pub(crate) fn needs_libraries(program: &Path) -> io::Result<bool> {
    const ELF64: [u8; 5] = *b"\x7fELF\x02";
    const PT_INTERP: u32 = 3;
    let file = File::open(program)?;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    if !header.starts_with(&ELF64) {
        return Err(ErrorKind::InvalidData.into());
    }
    let number = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (size, count) = (number(54), number(56));
    let mut at = (0..4).fold(0, |offset, part| offset | number(32 + 2 * part) << (16 * part));
    for _ in 0..count {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, at)?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(true);
        }
        at = at.saturating_add(size);
    }
    Ok(false)
}
