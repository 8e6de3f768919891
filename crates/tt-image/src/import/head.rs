//! What the first bytes of a file say that it is, and whether it is fit to be opened by a converter. Everything is decided
//! from bytes that were read before: it opens nothing, follows no name and never panics, whatever the bytes are.

mod qcow2;
mod vdi;
mod vmdk;

use super::Format;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// As much of the beginning as decides.
pub(super) const HEAD_BYTES: usize = 1 << 20;
/// As much of the end: marker, footer and end marker of a streamed vmdk.
const TAIL_BYTES: usize = 3 * 512;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A disk, whole as it lies there or in a format.
    Disk(Format),
    /// A root file system without a partition table: ext2, ext3 or ext4.
    BareRoot,
    /// Something else within.
    Packed(Packing),
    /// A tar archive.
    Tar,
}

/// How something is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Xz,
    Zstd,
}

/// The beginning and end of a file, and its length.
#[derive(Debug)]
pub(super) struct Head {
    begin: Vec<u8>,
    tail: Vec<u8>,
    bytes: u64,
}

impl Head {
    /// Of a file.
    pub(super) fn read(file: &File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut begin = vec![0; len.min(HEAD_BYTES)];
        file.read_exact_at(&mut begin, 0)?;
        let mut tail = vec![0; len.min(TAIL_BYTES)];
        let tail_at = bytes - tail.len() as u64;
        file.read_exact_at(&mut tail, tail_at)?;
        Ok(Self { begin, tail, bytes })
    }

    /// What it is, if it is anything that is known.
    pub(super) fn kind(&self) -> Option<Kind> {
        let has = |at: usize, magic: &[u8]| {
            self.begin.get(at..).is_some_and(|rest| rest.starts_with(magic))
        };
        let known: [(usize, &[u8], Kind); 14] = [
            (0, b"QFI\xfb", Kind::Disk(Format::Qcow2)),
            (0, b"KDMV", Kind::Disk(Format::Vmdk)),
            (0, b"COWD", Kind::Disk(Format::Vmdk)),
            (0, b"# Disk DescriptorFile", Kind::Disk(Format::Vmdk)),
            (0x40, &0xbeda_107f_u32.to_le_bytes(), Kind::Disk(Format::Vdi)),
            (0, &[0x1f, 0x8b], Kind::Packed(Packing::Gzip)),
            (0, &[0xfd, b'7', b'z', b'X', b'Z', 0], Kind::Packed(Packing::Xz)),
            (0, &[0x28, 0xb5, 0x2f, 0xfd], Kind::Packed(Packing::Zstd)),
            (257, b"ustar", Kind::Tar),
            // What firmware boots from: the end of a boot sector, a partition table of the newer kind.
            (510, &[0x55, 0xaa], Kind::Disk(Format::Raw)),
            (512, b"EFI PART", Kind::Disk(Format::Raw)),
            (1080, &[0x53, 0xef], Kind::BareRoot),
            // File systems that a guest with a boot loader of its own may have right at its beginning.
            (0x8001, b"CD001", Kind::Disk(Format::Raw)),
            (0x1_0040, b"_BHRfS_M", Kind::Disk(Format::Raw)),
        ];
        known.into_iter().find(|(at, magic, _)| has(*at, magic)).map(|(.., kind)| kind)
    }

    /// The size that a guest would see of a disk of that format, if the file stands for itself and its tables are of a
    /// sound size; what is wrong with it otherwise.
    pub(super) fn disk_bytes(&self, format: Format) -> Result<u64, String> {
        match format {
            Format::Raw => Ok(self.bytes.next_multiple_of(512)),
            Format::Qcow2 => qcow2::size_bytes(self),
            Format::Vmdk => vmdk::size_bytes(self),
            Format::Vdi => vdi::size_bytes(self),
        }
    }

    /// Whether `bytes` from `at` on lie in the file.
    fn holds(&self, at: u64, bytes: u64) -> bool {
        at.checked_add(bytes).is_some_and(|end| end <= self.bytes)
    }

    fn be32(&self, at: usize) -> Result<u32, String> {
        self.array(at).map(u32::from_be_bytes)
    }

    fn be64(&self, at: usize) -> Result<u64, String> {
        self.array(at).map(u64::from_be_bytes)
    }

    fn le32(&self, at: usize) -> Result<u32, String> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn le64(&self, at: usize) -> Result<u64, String> {
        self.array(at).map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], String> {
        array(&self.begin, at).ok_or_else(|| "it is cut off within its header".to_owned())
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// An error unless `is_right`.
fn ensure(is_right: bool, problem: &str) -> Result<(), String> {
    if is_right { Ok(()) } else { Err(problem.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in super::super) fn head(bytes: &[u8]) -> Head {
        let begin = bytes[..bytes.len().min(HEAD_BYTES)].to_vec();
        let tail = bytes[bytes.len().saturating_sub(TAIL_BYTES)..].to_vec();
        Head { begin, tail, bytes: bytes.len() as u64 }
    }

    #[test]
    fn kinds_are_known_by_their_content() {
        let at = |place: usize, magic: &[u8]| [&vec![0; place], magic, &[0; 100]].concat();
        for (bytes, kind) in [
            (at(0, b"QFI\xfb"), Some(Kind::Disk(Format::Qcow2))),
            (at(0, b"KDMV"), Some(Kind::Disk(Format::Vmdk))),
            (at(64, &[0x7f, 0x10, 0xda, 0xbe]), Some(Kind::Disk(Format::Vdi))),
            (at(510, &[0x55, 0xaa]), Some(Kind::Disk(Format::Raw))),
            (at(1080, &[0x53, 0xef]), Some(Kind::BareRoot)),
            (at(257, b"ustar"), Some(Kind::Tar)),
            (at(0, &[0x1f, 0x8b]), Some(Kind::Packed(Packing::Gzip))),
            (at(0, b"conectix"), None),
            (Vec::new(), None),
            (b"hello".to_vec(), None),
        ] {
            assert_eq!(head(&bytes).kind(), kind);
        }
    }

    proptest! {
        /// Whatever bytes follow a format's magic, the answer is a size or a reason.
        #[test]
        fn no_bytes_make_it_panic(
            which in 0_usize..4,
            mut bytes in prop::collection::vec(any::<u8>(), 0..2048),
            tail in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let magics: [(usize, &[u8]); 4] =
                [(0, b"QFI\xfb\0\0\0\x03"), (0, b"KDMV\x01\0\0\0"), (0x40, b"\x7f\x10\xda\xbe"), (0, b"")];
            let (at, magic) = magics[which];
            if bytes.len() >= at + magic.len() {
                bytes[at..at + magic.len()].copy_from_slice(magic);
            }
            bytes.extend(tail);
            let head = head(&bytes);
            let _ = head.kind();
            for format in [Format::Raw, Format::Qcow2, Format::Vmdk, Format::Vdi] {
                if let Err(problem) = head.disk_bytes(format) {
                    prop_assert!(!problem.is_empty() && problem.len() < 500);
                }
            }
        }
    }
}
