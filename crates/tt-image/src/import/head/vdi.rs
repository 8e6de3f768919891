//! The header of a vdi disk, as VirtualBox writes it (`VDIHEADER1PLUS` in its VDICore.h). One that is the difference to
//! another disk is refused.

use super::{Head, ensure};

const VERSION: u32 = 0x0001_0001;
const BLOCK_BYTES: u64 = 1 << 20;
/// QEMU's own bound.
const BLOCKS_MAX: u64 = 0x1fff_ffff;
const NONE: [u8; 16] = [0; 16];

pub(super) fn size_bytes(head: &Head) -> Result<u64, String> {
    ensure(head.le32(0x44)? == VERSION, "its version is not 1.1")?;
    ensure(
        matches!(head.le32(0x4c)?, 1 | 2),
        "it is the difference to another disk; clone it in VirtualBox first",
    )?;
    let is_alone = head.array::<16>(0x1a8)? == NONE && head.array::<16>(0x1b8)? == NONE;
    ensure(is_alone, "it lies on another disk; clone it in VirtualBox first")?;
    ensure(head.le32(0x168)? == 512, "its sectors have not 512 bytes")?;
    ensure(u64::from(head.le32(0x178)?) == BLOCK_BYTES, "its blocks have not 1 MiB")?;
    ensure(head.le32(0x17c)? == 0, "its blocks have data of their own")?;
    let size = head.le64(0x170)?;
    ensure(size > 0 && size <= i64::MAX as u64, "its disk has no size, or an absurd one")?;
    let blocks = u64::from(head.le32(0x180)?);
    ensure(
        blocks == size.div_ceil(BLOCK_BYTES) && blocks <= BLOCKS_MAX,
        "the number of its blocks does not fit its size",
    )?;
    let allocated = u64::from(head.le32(0x184)?);
    ensure(allocated <= blocks, "it has more blocks than it has room for")?;
    let (map, data) = (u64::from(head.le32(0x154)?), u64::from(head.le32(0x158)?));
    ensure(
        map.is_multiple_of(512) && head.holds(map, blocks * 4) && map + blocks * 4 <= data,
        "its map is not in the file",
    )?;
    ensure(head.holds(data, allocated * BLOCK_BYTES), "it is cut off within its data")?;
    Ok(size)
}
