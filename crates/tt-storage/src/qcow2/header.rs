//! The header and empty tables of a new qcow2 image, after the format's specification (docs/interop/qcow2.rst of QEMU,
//! version 3). All numbers are big endian. It never reads or writes a file.

/// Bytes of the header before its extensions, without the optional compression type.
pub(super) const HEADER_BYTES: usize = 104;
/// Where the size that a guest sees lies in the header.
pub(super) const SIZE_OFFSET: u64 = 24;
/// Largest disk: QEMU refuses an L1 table above 32 MiB, 2^22 entries of 512 MiB each.
pub(super) const SIZE_BYTES_MAX: u64 = L1_ENTRIES_MAX * L1_ENTRY_BYTES;
/// Longest name of a backing file, from the specification.
pub(super) const BACKING_FILE_BYTES_MAX: usize = 1023;

const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
const VERSION: u32 = 3;
const CLUSTER_BITS: u32 = 16;
pub(crate) const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// Table entries of 8 bytes in a cluster.
pub(super) const ENTRIES_PER_CLUSTER: u64 = CLUSTER_BYTES / 8;
/// Part of the disk behind one L1 entry: an L2 table of one cluster.
const L1_ENTRY_BYTES: u64 = ENTRIES_PER_CLUSTER * CLUSTER_BYTES;
const L1_ENTRIES_MAX: u64 = (32 << 20) / 8;
/// Reference counts of 2^4 bits, the only width that version 2 had.
const REFCOUNT_ORDER: u32 = 4;
/// Extension that says the format of the backing file, so that QEMU never guesses it from content a guest wrote.
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

// Cluster 0 is the header, then follow the reference table, its first block and the L1 table.
const REFCOUNT_TABLE_CLUSTER: u64 = 1;
const REFCOUNT_BLOCK_CLUSTER: u64 = 2;
const L1_CLUSTER: u64 = 3;

/// A new image.
pub(super) struct Header<'a> {
    size_bytes: u64,
    backing_file: &'a str,
    backing_format: &'a str,
    l1_clusters: u64,
}

/// What an image says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The size that a guest sees.
    pub(super) size_bytes: u64,
    /// Entries of its first table, and where that lies.
    pub(super) l1_entries: u32,
    pub(super) l1_offset: u64,
}

impl Found {
    /// The largest size that its L1 table has room for.
    pub(super) fn capacity_bytes(&self) -> u64 {
        u64::from(self.l1_entries) * L1_ENTRY_BYTES
    }
}

impl<'a> Header<'a> {
    /// An image of `size_bytes` over `backing_file`, which is named relative to the image and has `backing_format`.
    pub(super) fn new(size_bytes: u64, backing_file: &'a str, backing_format: &'a str) -> Self {
        // Whole clusters (4 TiB each) leave room to grow by changing the size alone.
        let l1_entries = size_bytes.div_ceil(L1_ENTRY_BYTES).max(1);
        let l1_clusters = l1_entries.div_ceil(ENTRIES_PER_CLUSTER);
        Self { size_bytes, backing_file, backing_format, l1_clusters }
    }

    /// The file's length: its clusters, of which all but a few bytes are holes.
    pub(super) fn metadata_bytes(&self) -> u64 {
        (L1_CLUSTER + self.l1_clusters) * CLUSTER_BYTES
    }

    /// Everything that is not zero, with its place.
    pub(super) fn sections(&self) -> [(u64, Vec<u8>); 3] {
        let clusters = L1_CLUSTER + self.l1_clusters;
        [
            (0, self.header()),
            (
                REFCOUNT_TABLE_CLUSTER * CLUSTER_BYTES,
                (REFCOUNT_BLOCK_CLUSTER * CLUSTER_BYTES).to_be_bytes().into(),
            ),
            (REFCOUNT_BLOCK_CLUSTER * CLUSTER_BYTES, 1_u16.to_be_bytes().repeat(clusters as usize)),
        ]
    }

    fn header(&self) -> Vec<u8> {
        let format_bytes = self.backing_format.len();
        let padded_bytes = format_bytes.next_multiple_of(8);
        // Two heads of 8 bytes: the format's, and that of the extension that ends the list.
        let extensions_bytes = 8 + padded_bytes + 8;
        let mut bytes =
            Vec::with_capacity(HEADER_BYTES + extensions_bytes + BACKING_FILE_BYTES_MAX);
        let backing_offset = (HEADER_BYTES + extensions_bytes) as u64;
        let mut put = |number: &[u8]| bytes.extend_from_slice(number);
        put(&MAGIC.to_be_bytes());
        put(&VERSION.to_be_bytes());
        put(&backing_offset.to_be_bytes());
        put(&(self.backing_file.len() as u32).to_be_bytes());
        put(&CLUSTER_BITS.to_be_bytes());
        put(&self.size_bytes.to_be_bytes());
        // No encryption.
        put(&0_u32.to_be_bytes());
        put(&((self.l1_clusters * ENTRIES_PER_CLUSTER) as u32).to_be_bytes());
        put(&(L1_CLUSTER * CLUSTER_BYTES).to_be_bytes());
        put(&(REFCOUNT_TABLE_CLUSTER * CLUSTER_BYTES).to_be_bytes());
        // One cluster of reference table.
        put(&1_u32.to_be_bytes());
        // No snapshots: their number and place; no feature bits: incompatible, compatible, autoclear.
        put(&[0; 4 + 8 + 3 * 8]);
        put(&REFCOUNT_ORDER.to_be_bytes());
        put(&(HEADER_BYTES as u32).to_be_bytes());
        put(&EXTENSION_BACKING_FORMAT.to_be_bytes());
        put(&(format_bytes as u32).to_be_bytes());
        put(self.backing_format.as_bytes());
        put(&vec![0; padded_bytes - format_bytes + 8]);
        put(self.backing_file.as_bytes());
        bytes
    }
}

/// Reads a header as this module writes it; says what is wrong with another one.
pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Found, &'static str> {
    if be32(bytes, 0) != MAGIC || be32(bytes, 4) != VERSION {
        return Err("it is no qcow2 image of version 3");
    }
    if be32(bytes, 20) != CLUSTER_BITS || be32(bytes, 32) != 0 {
        return Err("its cluster size or encryption is not of this program");
    }
    if be32(bytes, 60) != 0 {
        return Err("it has internal snapshots, which this program never makes");
    }
    // Bits 0 and 1 say that it was not closed, or that QEMU found it corrupt; any other needs what is not here.
    if be64(bytes, 72) & !1 != 0 {
        return Err("it is marked corrupt, or has features that this program never uses");
    }
    Ok(Found {
        size_bytes: be64(bytes, SIZE_OFFSET as usize),
        l1_entries: be32(bytes, 36),
        l1_offset: be64(bytes, 40),
    })
}

fn be32(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn be64(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}
