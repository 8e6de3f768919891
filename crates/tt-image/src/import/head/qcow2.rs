//! The header of a qcow2 disk, after the format's specification (docs/interop/qcow2.rst of QEMU). One that needs anything
//! but itself is refused, and so is one whose tables are larger than its disk needs.

use super::{Head, array, ensure};

const L1_BYTES_MAX: u64 = 32 << 20;
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// Room for header and extensions: QEMU's own take less than 1 KiB.
const EXTENSIONS_BYTES_MAX: usize = 64 << 10;
const EXTENSIONS_MAX: usize = 64;
const HEADER_BYTES_MAX: usize = 4096;
/// A name of another file that holds the data, and a header of LUKS.
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;
/// Features without which it can not be read: not closed, corrupt, data in another file, another compression, and
/// clusters in parts.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

pub(super) fn size_bytes(head: &Head) -> Result<u64, String> {
    let version = head.be32(4)?;
    ensure(matches!(version, 2 | 3), "its version is neither 2 nor 3")?;
    ensure(
        head.be64(8)? == 0 && head.be32(16)? == 0,
        "it has a backing file; make it whole by `qemu-img convert -O qcow2`",
    )?;
    ensure(head.be32(32)? == 0, "it is encrypted")?;
    ensure(
        head.be32(60)? == 0,
        "it has snapshots inside; leave them behind by `qemu-img convert -O qcow2`",
    )?;
    let features = if version == 3 { head.be64(72)? } else { 0 };
    ensure(features & CORRUPT == 0, "it is marked as corrupt")?;
    ensure(features & DATA_FILE == 0, "its data is in another file")?;
    let known = DIRTY | COMPRESSION | EXTENDED_L2;
    ensure(features & !known == 0, "it has features that are not known")?;
    tables(head, version, features)?;
    extensions(head, version)?;
    head.be64(24)
}

fn tables(head: &Head, version: u32, features: u64) -> Result<(), String> {
    let cluster_bits = head.be32(20)?;
    ensure((9..=21).contains(&cluster_bits), "its clusters are not of 512 bytes to 2 MiB")?;
    let cluster = 1_u64 << cluster_bits;
    let size = head.be64(24)?;
    ensure(size > 0 && size <= i64::MAX as u64, "its disk has no size, or an absurd one")?;
    let entry_bytes = if features & EXTENDED_L2 != 0 { 16 } else { 8 };
    // A table of level 2 is one cluster.
    let behind_one = u128::from(cluster) * u128::from(cluster / entry_bytes);
    let needed = u128::from(size).div_ceil(behind_one);
    let (l1_entries, l1_at) = (u64::from(head.be32(36)?), head.be64(40)?);
    ensure(u128::from(l1_entries) >= needed, "its first table is too small for its disk")?;
    ensure(l1_entries * 8 <= L1_BYTES_MAX, "its first table is larger than 32 MiB")?;
    ensure(
        l1_at.is_multiple_of(cluster) && head.holds(l1_at, l1_entries * 8),
        "its first table is not in the file",
    )?;
    let (refcounts_at, clusters) = (head.be64(48)?, u64::from(head.be32(56)?));
    let refcount_bytes = clusters * cluster;
    ensure(refcount_bytes <= REFCOUNT_TABLE_BYTES_MAX, "its reference table is larger than 8 MiB")?;
    ensure(
        refcounts_at.is_multiple_of(cluster) && head.holds(refcounts_at, refcount_bytes),
        "its reference table is not in the file",
    )?;
    ensure(version == 2 || head.be32(96)? <= 6, "its reference counts have more than 64 bits")
}

fn extensions(head: &Head, version: u32) -> Result<(), String> {
    let mut at = match version {
        2 => 72,
        _ => head.be32(100)? as usize,
    };
    let is_plausible = version == 2 || (104..=HEADER_BYTES_MAX).contains(&at);
    ensure(is_plausible, "its header has an absurd length")?;
    for _ in 0..EXTENSIONS_MAX {
        // A file that ends here has none.
        let Some(kind) = array(&head.begin, at).map(u32::from_be_bytes) else { return Ok(()) };
        let bytes = head.be32(at + 4)? as usize;
        match kind {
            0 => return Ok(()),
            EXTENSION_DATA_FILE => return Err("its data is in another file".into()),
            EXTENSION_ENCRYPTION => return Err("it is encrypted".into()),
            _ => {}
        }
        let next = bytes.checked_next_multiple_of(8).and_then(|bytes| at.checked_add(8 + bytes));
        match next.filter(|next| *next <= EXTENSIONS_BYTES_MAX) {
            Some(next) => at = next,
            None => return Err("its header goes on beyond 64 KiB".into()),
        }
    }
    Err("its header has more than 64 extensions".into())
}
