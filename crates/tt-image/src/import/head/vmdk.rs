//! The header of a vmdk disk, after VMware's "Virtual Disk Format 5.0". Only disks that are one file are let in: a
//! descriptor may name any other file of the host as a part or a parent.

use super::{Head, array, ensure};

const SECTOR: u64 = 512;
/// Where a streamed disk says that its tables are found through the footer.
const AT_END: u64 = u64::MAX;
/// Entries of a table; the format has no other number.
const TABLE_ENTRIES: u32 = 512;
const GRAIN_SECTORS_MAX: u64 = 2048;
const DESCRIPTOR_SECTORS_MAX: u64 = 1024;
const EXTENT_ACCESS: [&str; 3] = ["RW", "RDONLY", "NOACCESS"];

pub(super) fn size_bytes(head: &Head) -> Result<u64, String> {
    ensure(
        head.begin.starts_with(b"KDMV"),
        "it is a descriptor that names other files, or of an old kind; make it one file by \
         `qemu-img convert -O qcow2`",
    )?;
    ensure((1..=3).contains(&head.le32(4)?), "its version is not 1 to 3")?;
    let capacity = head.le64(12)?;
    ensure(capacity > 0, "its parts are in other files")?;
    let size = capacity.checked_mul(SECTOR).filter(|size| *size <= i64::MAX as u64);
    let size = size.ok_or("its disk has an absurd size")?;
    let grain = head.le64(20)?;
    ensure(
        (1..=GRAIN_SECTORS_MAX).contains(&grain) && grain.is_power_of_two(),
        "its grains are not of 512 bytes to 1 MiB",
    )?;
    ensure(head.le32(44)? == TABLE_ENTRIES, "its tables have not 512 entries")?;
    // One table for each 512 grains; QEMU takes no more in memory than this.
    ensure(capacity.div_ceil(grain * 512) <= 512 << 10, "it has too many tables")?;
    let directory = head.le64(56)?;
    let is_inside = directory.checked_mul(SECTOR).is_some_and(|at| head.holds(at, SECTOR));
    ensure(directory == AT_END || is_inside, "its tables are not in the file")?;
    let (at, sectors) = (head.le64(28)?, head.le64(36)?);
    if directory == AT_END {
        footer(head, capacity, at)?;
    }
    ensure(
        at > 0 && (1..=DESCRIPTOR_SECTORS_MAX).contains(&sectors),
        "it has no descriptor of its own",
    )?;
    let bytes = at.checked_mul(SECTOR).zip(at.checked_add(sectors)).and_then(|(from, end)| {
        let range = usize::try_from(from).ok()?..usize::try_from(end.checked_mul(SECTOR)?).ok()?;
        head.begin.get(range)
    });
    descriptor(bytes.ok_or("its descriptor is not at its beginning")?)?;
    Ok(size)
}

/// A streamed disk has a second header at its end, which counts instead of the first.
fn footer(head: &Head, capacity: u64, descriptor_at: u64) -> Result<(), String> {
    let number = |at: usize| array(&head.tail, SECTOR as usize + at).map(u64::from_le_bytes);
    let is_same = head.tail.get(512..516) == Some(b"KDMV")
        && number(12) == Some(capacity)
        && number(28) == Some(descriptor_at)
        && number(56)
            .is_some_and(|at| at.checked_mul(SECTOR).is_some_and(|at| head.holds(at, SECTOR)));
    ensure(is_same, "its end is missing, or says something else than its beginning")
}

fn descriptor(bytes: &[u8]) -> Result<(), String> {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(text).map_err(|_| "its descriptor is no text")?;
    let (mut extents, mut has_type, mut has_parent) = (0, false, true);
    for line in text.lines().map(str::trim) {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        let value = value.trim().trim_matches('"');
        match name.trim() {
            "parentFileNameHint" => return Err("it lies on another disk".into()),
            "parentCID" => has_parent = !value.eq_ignore_ascii_case("ffffffff"),
            "createType" => {
                ensure(
                    matches!(value, "monolithicSparse" | "streamOptimized"),
                    "its parts are in other files",
                )?;
                has_type = true;
            }
            _ => {}
        }
        let mut words = line.split_whitespace();
        if words.next().is_some_and(|word| EXTENT_ACCESS.contains(&word)) {
            extents += 1;
            let kind = words.nth(1);
            ensure(kind == Some("SPARSE"), "its parts are in other files")?;
        }
    }
    ensure(!has_parent, "it lies on another disk")?;
    ensure(has_type && extents == 1, "its parts are in other files")
}
