//! One ustar header, both ways. Names that do not fit go into a GNU long-name entry before it; sizes above 8 GiB are
//! written in base 256, as GNU tar does. Pure.

use super::BLOCK;
use crate::Error;

/// Longest name or link target in bytes: the kernel's `PATH_MAX` without its final zero.
pub const MAX_NAME: usize = 4095;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file with this many bytes.
    File {
        /// Length of its data.
        bytes: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points, as written; it is never followed.
        target: String,
    },
}

/// A header as it stands in the archive, before long names are put together.
pub(super) struct Raw {
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub bytes: u64,
    pub kind: u8,
}

/// Encodes an entry: its header, and long-name entries before it where they are needed.
pub(super) fn encode(name: &str, mode: u32, kind: &EntryKind) -> Vec<u8> {
    let (flag, bytes, link) = match kind {
        EntryKind::File { bytes } => (b'0', *bytes, ""),
        EntryKind::Directory => (b'5', 0, ""),
        EntryKind::Symlink { target } => (b'2', 0, target.as_str()),
    };
    let mut out = Vec::with_capacity(BLOCK);
    for (long, flag) in [(link, b'K'), (name, b'L')] {
        if long.len() > 100 {
            out.extend(block(b"././@LongLink", b"", 0, long.len() as u64 + 1, flag));
            out.extend(long.as_bytes());
            out.push(0);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
    }
    out.extend(block(cut(name), cut(link), mode, bytes, flag));
    out
}

/// Decodes a block; `None` for a block of zeros, which ends an archive.
pub(super) fn decode(block: &[u8; BLOCK]) -> Result<Option<Raw>, Error> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let malformed = |why| Error::ReadArchive { why };
    if number(&block[148..156]) != Some(u64::from(sum(block))) {
        return Err(malformed("a header's checksum does not match"));
    }
    let mut name = text(&block[..100]).to_vec();
    // GNU's own magic, `ustar` and two spaces, has no prefix field.
    if &block[257..263] == b"ustar\0" && block[345] != 0 {
        name = [text(&block[345..500]), b"/", &name].concat();
    }
    Ok(Some(Raw {
        name,
        link: text(&block[157..257]).to_vec(),
        mode: number(&block[100..108])
            .and_then(|mode| u32::try_from(mode).ok())
            .ok_or(malformed("a mode is no number"))?,
        bytes: number(&block[124..136]).ok_or(malformed("a size is no number"))?,
        kind: block[156],
    }))
}

/// Zero bytes that follow data of this length.
pub(super) fn padding(bytes: u64) -> usize {
    (BLOCK - (bytes % BLOCK as u64) as usize) % BLOCK
}

fn block(name: &[u8], link: &[u8], mode: u32, bytes: u64, flag: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    put_octal(&mut block[100..107], u64::from(mode & 0o7777));
    put_octal(&mut block[108..115], 0);
    put_octal(&mut block[116..123], 0);
    if bytes < 1 << 33 {
        put_octal(&mut block[124..135], bytes);
    } else {
        block[124] = 0x80;
        block[128..136].copy_from_slice(&bytes.to_be_bytes());
    }
    put_octal(&mut block[136..147], 0);
    block[156] = flag;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..263].copy_from_slice(b"ustar\0");
    block[263..265].copy_from_slice(b"00");
    let sum = u64::from(sum(&block));
    put_octal(&mut block[148..154], sum);
    block[155] = b' ';
    block
}

/// The checksum counts its own field as spaces.
fn sum(block: &[u8; BLOCK]) -> u32 {
    let all: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let own: u32 = block[148..156].iter().map(|byte| u32::from(*byte)).sum();
    all - own + 8 * u32::from(b' ')
}

fn put_octal(field: &mut [u8], mut value: u64) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
}

fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len().checked_sub(8)?);
        let padding_is_empty =
            high.iter().enumerate().all(|(at, byte)| *byte == if at == 0 { 0x80 } else { 0 });
        return padding_is_empty.then(|| u64::from_be_bytes(low.try_into().unwrap_or_default()));
    }
    let digits = text(field).trim_ascii();
    if digits.is_empty() {
        return Some(0);
    }
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn cut(name: &str) -> &[u8] {
    &name.as_bytes()[..name.len().min(100)]
}
