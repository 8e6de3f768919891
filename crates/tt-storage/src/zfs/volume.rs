//! Volumes as block devices. A volume's device has another number each time that its pool is imported, and one that another
//! volume had before; so a disk's directory holds a node of our own, with the rights of its machine, and who opens it asks
//! the kernel whose it is. It follows no name but udev's below `/dev/zvol`, and takes nothing from it but that number.

use crate::StorageError;
use crate::images::files::{odd, open_device};
use crate::tree;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::ioctl::{Getter, Opcode, ioctl, opcode};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tt_model::StorageKind;

/// Where udev names the devices of volumes (zvol(4)).
const DEVICES: &str = "/dev/zvol";
/// The kernel makes a volume's device when its program has ended, and udev names it later: within milliseconds, or, on a host
/// that has a thousand of them to name, within seconds.
const NAMED_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
/// `ZFS_MAX_DATASET_NAME_LEN` (`sys/fs/zfs.h`).
const NAME_BYTES: usize = 256;
/// `BLKZNAME` (`sys/fs/zfs.h`): the name of the volume that a device is.
const NAME: Opcode = opcode::read::<[u8; NAME_BYTES]>(0x12, 125);

/// The node below a disk's directory.
pub(super) fn node(place: &Path) -> PathBuf {
    place.join(StorageKind::Zvol.inner().unwrap_or_default())
}

/// Whether the volume is what the node in a directory leads to.
pub(super) fn is_shown(volume: &str, place: &Path) -> io::Result<bool> {
    match open_device(&node(place), false) {
        Ok(device) => Ok(name_of(&device)?.as_deref() == Some(volume)),
        Err(e) if is_gone(&e) || e.kind() == ErrorKind::InvalidInput => Ok(false),
        Err(e) => Err(e),
    }
}

/// Opens what the node in a directory leads to, if that is the volume.
pub(super) fn open(volume: &str, place: &Path) -> io::Result<Option<File>> {
    // For reading, which is enough to give it away and to sync it: when one closes that was written to, udev looks into it anew.
    match open_device(&node(place), false) {
        Ok(device) if name_of(&device)?.as_deref() == Some(volume) => Ok(Some(device)),
        Ok(_) => Ok(None),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes the node in a directory lead to the volume. One that belongs to a machine keeps nothing of that: the caller gives it
/// anew.
pub(super) fn show(volume: &str, place: &Path) -> Result<(), StorageError> {
    let node = node(place);
    let failed = |source| StorageError::Create { path: node.clone(), source };
    let number = wait(volume)?;
    hide(place).map_err(failed)?;
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, &node, FileType::BlockDevice, mode, number).map_err(|e| failed(e.into()))?;
    let denied = |e: io::Error| match e.kind() {
        // Root may open whatever is no device.
        ErrorKind::PermissionDenied => {
            failed(odd("no device can be opened there: it is mounted `nodev`"))
        }
        _ => failed(e),
    };
    match is_shown(volume, place).map_err(denied)? {
        true => Ok(()),
        false => {
            Err(StorageError::Pool { problem: format!("{volume} has just got another device") })
        }
    }
}

/// Removes the node in a directory, whatever it leads to by now.
pub(super) fn hide(place: &Path) -> io::Result<()> {
    let node = node(place);
    match tree::look(&node)? {
        Some(meta) if meta.file_type().is_block_device() => match fs::remove_file(&node) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Waits for a volume's device; answers its number.
fn wait(volume: &str) -> Result<u64, StorageError> {
    let end = Instant::now() + NAMED_WITHIN;
    loop {
        if let Some(number) = number_of(volume).unwrap_or(None) {
            return Ok(number);
        }
        if Instant::now() > end {
            let problem = format!(
                "{volume} has no device {DEVICES}/{volume} after {} s: see that udev runs, with its rules for volumes",
                NAMED_WITHIN.as_secs()
            );
            return Err(StorageError::Pool { problem });
        }
        std::thread::sleep(POLL);
    }
}

/// The number of a volume's device, if udev has named it, and not a former one.
fn number_of(volume: &str) -> io::Result<Option<u64>> {
    // A link of udev's, which is followed.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = match rustix::fs::open(Path::new(DEVICES).join(volume), flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(e) if is_gone(&e.into()) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let meta = device.metadata()?;
    let is_it = meta.file_type().is_block_device() && name_of(&device)?.as_deref() == Some(volume);
    Ok(is_it.then_some(meta.rdev()))
}

/// The volume that a device is; `None` if it is another device.
fn name_of(device: &File) -> io::Result<Option<String>> {
    // SAFETY: it writes a name of at most that many bytes, with a zero behind it, into the array, and reads nothing.
    let answer = unsafe { ioctl(device.as_fd(), Getter::<NAME, [u8; NAME_BYTES]>::new()) };
    let name = match answer {
        Ok(name) => name,
        Err(rustix::io::Errno::NOTTY | rustix::io::Errno::INVAL) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let len = name.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
    Ok(Some(String::from_utf8_lossy(&name[..len]).into_owned()))
}

/// Whether there is no such name, or no device of that number (any more).
fn is_gone(e: &io::Error) -> bool {
    let gone = [rustix::io::Errno::NXIO, rustix::io::Errno::NODEV, rustix::io::Errno::NOENT];
    gone.iter().any(|errno| e.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::makedev;

    #[test]
    fn a_node_of_another_device_is_none_of_ours_and_goes_and_a_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path();
        let is_nothing = || {
            assert!(!is_shown("p/v/7.0", place).unwrap());
            assert!(open("p/v/7.0", place).unwrap().is_none());
        };
        is_nothing();
        hide(place).unwrap();
        // Block devices that are never there (`devices.txt` of the kernel's documentation: for experiments).
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, node(place), FileType::BlockDevice, mode, makedev(240, 1)).unwrap();
        is_nothing();
        hide(place).unwrap();
        assert!(!node(place).exists());
        fs::write(node(place), "foreign").unwrap();
        assert!(!is_shown("p/v/7.0", place).unwrap());
        assert_eq!(open("p/v/7.0", place).unwrap_err().kind(), ErrorKind::InvalidInput);
        hide(place).unwrap();
        assert!(node(place).exists());
        assert_eq!(number_of("p/v/7.0").unwrap(), None);
    }
}
