//! The little that has to be known of 64-bit little-endian ELF files (System V ABI, "Object Files"). It never trusts an
//! offset: what lies outside of the file is not there.

const MAGIC: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
const PROGRAM_HEADER_BYTES: usize = 56;
const SECTION_HEADER_BYTES: usize = 64;
/// A program header that names the dynamic loader.
const PT_INTERP: u64 = 3;

/// Whether `bytes` begin like such a file.
pub(crate) fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Whether it is a program that runs without a dynamic loader and its libraries.
pub(crate) fn is_static_program(bytes: &[u8]) -> bool {
    let Some(headers) = table(bytes, 0x20, 0x38, PROGRAM_HEADER_BYTES) else {
        return false;
    };
    let mut kinds = headers.map(|header| number(header, 0, 4));
    is_elf(bytes) && kinds.all(|kind| kind != Some(PT_INTERP))
}

/// The modules that a kernel module needs, from the `depends` entry of its `.modinfo` section.
pub(crate) fn module_depends(module: &[u8]) -> Option<Vec<String>> {
    let info = section(module, ".modinfo")?;
    let depends =
        info.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"depends="))?;
    let names = std::str::from_utf8(depends).ok()?.split(',');
    Some(names.filter(|n| !n.is_empty()).map(str::to_owned).collect())
}

fn section<'a>(bytes: &'a [u8], name: &str) -> Option<&'a [u8]> {
    if !is_elf(bytes) {
        return None;
    }
    let content = |header: &[u8]| {
        let (at, len) = (number(header, 0x18, 8)?, number(header, 0x20, 8)?);
        slice(bytes, at, len)
    };
    let names = number(bytes, 0x3e, 2)?;
    let names = table(bytes, 0x28, 0x3c, SECTION_HEADER_BYTES)?.nth(names as usize)?;
    let names = content(names)?;
    let mut headers = table(bytes, 0x28, 0x3c, SECTION_HEADER_BYTES)?;
    let header = headers.find(|header| {
        let at = number(header, 0, 4).unwrap_or(u64::MAX) as usize;
        let found = names.get(at..).and_then(|rest| rest.split(|byte| *byte == 0).next());
        found == Some(name.as_bytes())
    })?;
    content(header)
}

/// The headers whose offset and number lie at these places of the file's header.
fn table(
    bytes: &[u8],
    offset_at: usize,
    count_at: usize,
    header_bytes: usize,
) -> Option<std::slice::ChunksExact<'_, u8>> {
    let offset = number(bytes, offset_at, 8)?;
    let count = number(bytes, count_at, 2)?;
    let headers = slice(bytes, offset, count * header_bytes as u64)?;
    Some(headers.chunks_exact(header_bytes))
}

fn slice(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    bytes.get(at..at.checked_add(usize::try_from(len).ok()?)?)
}

fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + len)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn static_and_dynamic_programs_are_told_apart() {
        // Every test program is linked against the C library; busybox-static is not.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(is_elf(&own) && !is_static_program(&own));
        match std::fs::read("/bin/busybox") {
            Ok(busybox) => assert!(is_static_program(&busybox)),
            Err(e) => println!("SKIPPED half of static_and_dynamic_programs: /bin/busybox: {e}"),
        }
        assert!(!is_static_program(b"#!/bin/sh\n"));
    }

    proptest! {
        #[test]
        fn no_input_crashes_it(mut bytes in prop::collection::vec(any::<u8>(), 64..400)) {
            bytes[..6].copy_from_slice(&MAGIC);
            let _ = (is_static_program(&bytes), module_depends(&bytes));
        }
    }
}
