//! Grows the root file system to the size of its block device, while it is mounted. It never shrinks one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::ioctl::{Setter, ioctl, opcode};

/// `EXT4_IOC_RESIZE_FS`: the wanted number of blocks.
const RESIZE: rustix::ioctl::Opcode = opcode::write::<u64>(b'f', 16);

/// Where the superblock of ext2, 3 and 4 begins, and how much of it is needed.
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_LEN: usize = 0x158;

const SECTOR_BYTES: u64 = 512;
const MIB: u64 = 1 << 20;

/// Size of a file system.
#[derive(Debug, PartialEq, Eq)]
struct Size {
    blocks: u64,
    block_bytes: u64,
}

/// Grows the root file system if it is ext4 and smaller than its device. Returns its size in MiB.
pub fn grow_root() -> io::Result<u64> {
    let device = fs::metadata("/")?.dev();
    let sys = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    // An overlay or a tmpfs has no block device, and nothing to grow.
    let (Some(name), Ok(sectors)) = (device_name(&sys), fs::read_to_string(format!("{sys}/size")))
    else {
        return mounted_mb();
    };
    let Some(size) = read_size(&File::open(format!("/dev/{name}"))?)? else { return mounted_mb() };
    let sectors: u64 = sectors.trim().parse().map_err(io::Error::other)?;
    let wanted = sectors * SECTOR_BYTES / size.block_bytes;
    if wanted <= size.blocks {
        return Ok(size.blocks * size.block_bytes / MIB);
    }
    let root = File::open("/")?;
    // SAFETY: the opcode takes a pointer to a `u64`.
    unsafe { ioctl(&root, Setter::<RESIZE, u64>::new(wanted)) }?;
    Ok(wanted * size.block_bytes / MIB)
}

fn device_name(sys: &str) -> Option<String> {
    let about = fs::read_to_string(format!("{sys}/uevent")).ok()?;
    about.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(str::to_owned)
}

/// Size in MiB of what is mounted as the root.
pub fn mounted_mb() -> io::Result<u64> {
    let about = rustix::fs::statvfs("/")?;
    Ok(about.f_blocks * about.f_frsize / MIB)
}

fn read_size(device: &File) -> io::Result<Option<Size>> {
    let mut superblock = [0; SUPERBLOCK_LEN];
    device.read_exact_at(&mut superblock, SUPERBLOCK_AT)?;
    Ok(size_in(&superblock))
}

/// The size in a superblock of ext4; `None` for any other file system.
fn size_in(superblock: &[u8; SUPERBLOCK_LEN]) -> Option<Size> {
    const HAS_64_BIT_SIZE: u32 = 0x80;
    let number = |at: usize| {
        u32::from_le_bytes([
            superblock[at],
            superblock[at + 1],
            superblock[at + 2],
            superblock[at + 3],
        ])
    };
    if superblock[0x38..0x3A] != [0x53, 0xEF] {
        return None;
    }
    let high = if number(0x60) & HAS_64_BIT_SIZE == 0 { 0 } else { number(0x150) };
    let block_bytes =
        1024u64.checked_shl(number(0x18)).filter(|bytes| (1024..=65536).contains(bytes))?;
    Some(Size { blocks: u64::from(high) << 32 | u64::from(number(4)), block_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_read_and_nothing_else_passes_for_ext4() {
        let mut superblock = [0; SUPERBLOCK_LEN];
        assert_eq!(size_in(&superblock), None);
        superblock[0x38..0x3A].copy_from_slice(&[0x53, 0xEF]);
        superblock[4..8].copy_from_slice(&7u32.to_le_bytes());
        superblock[0x18] = 2;
        superblock[0x150] = 1;
        assert_eq!(size_in(&superblock), Some(Size { blocks: 7, block_bytes: 4096 }));
        superblock[0x60] = 0x80;
        assert_eq!(size_in(&superblock), Some(Size { blocks: (1 << 32) + 7, block_bytes: 4096 }));
        superblock[0x18] = 200;
        assert_eq!(size_in(&superblock), None);
    }
}
