//! The header and empty tables of a new qcow2 image, after the format's specification (docs/interop/qcow2.rst of QEMU,
//! version 3). All numbers are big endian. It never reads or writes a file.

/// Bytes of the header before its extensions, without the optional compression type.
pub(super) const HEADER_BYTES: usize = 104;
/// Where the size that a guest sees lies in the header.
pub(super) const SIZE_OFFSET: u64 = 24;
/// Largest disk: QEMU refuses an L1 table above 32 MiB, 2^22 entries of 512 MiB each.
pub(super) const SIZE_BYTES_MAX: u64 = L1_BYTES_MAX / 8 * L1_ENTRY_BYTES;
/// Largest first table.
pub(super) const L1_BYTES_MAX: u64 = 32 << 20;
/// Bytes at a file's beginning that are written at once or not at all: a sector of a disk.
pub(super) const SECTOR_BYTES: usize = 512;
pub(crate) const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// Table entries of 8 bytes in a cluster.
pub(super) const ENTRIES_PER_CLUSTER: u64 = CLUSTER_BYTES / 8;
/// Part of the disk behind one L1 entry: an L2 table of one cluster.
pub(super) const L1_ENTRY_BYTES: u64 = ENTRIES_PER_CLUSTER * CLUSTER_BYTES;
/// Longest name of a backing file: so that the header with it is written at once or not at all.
pub(super) const BACKING_FILE_BYTES_MAX: usize = SECTOR_BYTES - HEADER_BYTES - 32;

const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
const VERSION: u32 = 3;
const CLUSTER_BITS: u32 = 16;
/// Reference counts of 2 bytes in a cluster.
const COUNTS_PER_CLUSTER: u64 = CLUSTER_BYTES / 2;
/// Reference counts of 2^4 bits, the only width that version 2 had.
const REFCOUNT_ORDER: u32 = 4;
/// Extension that says the format of the backing file, so that QEMU never guesses it from content a guest wrote.
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

// Cluster 0 is the header, then follows the L1 table, and behind everything else stand the reference counts.
const L1_CLUSTER: u64 = 1;

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

    /// The length of its first table.
    pub(super) fn l1_bytes(&self) -> u64 {
        u64::from(self.l1_entries) * 8
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

    /// The first cluster behind its first table.
    pub(super) fn first_free_cluster(&self) -> u64 {
        L1_CLUSTER + self.l1_clusters
    }

    /// Where its first table lies.
    pub(super) fn l1_offset(&self) -> u64 {
        L1_CLUSTER * CLUSTER_BYTES
    }

    /// The head of a file whose references are counted in `counts`.
    pub(super) fn with_counts(&self, counts: &Counts) -> Vec<u8> {
        let mut bytes = [0; HEADER_BYTES];
        let mut put =
            |at: usize, number: &[u8]| bytes[at..at + number.len()].copy_from_slice(number);
        put(0, &MAGIC.to_be_bytes());
        put(4, &VERSION.to_be_bytes());
        put(20, &CLUSTER_BITS.to_be_bytes());
        put(SIZE_OFFSET as usize, &self.size_bytes.to_be_bytes());
        put(36, &((self.l1_clusters * ENTRIES_PER_CLUSTER) as u32).to_be_bytes());
        put(40, &self.l1_offset().to_be_bytes());
        put(48, &counts.table_offset().to_be_bytes());
        put(56, &(counts.table_clusters as u32).to_be_bytes());
        // Without encryption (32), internal snapshots (60, 64) and feature bits (72, 80, 88).
        put(96, &REFCOUNT_ORDER.to_be_bytes());
        with_backing(&bytes, self.backing_file, self.backing_format)
    }
}

/// The reference counts of a file whose clusters are each used once.
pub(super) struct Counts {
    /// Clusters before them.
    used: u64,
    block_clusters: u64,
    table_clusters: u64,
}

impl Counts {
    /// Those of a file with so many clusters, and of themselves, behind them.
    pub(super) fn of(used: u64) -> Self {
        let mut counts = Self { used, block_clusters: 1, table_clusters: 1 };
        while counts.clusters() > counts.block_clusters * COUNTS_PER_CLUSTER {
            counts.block_clusters = counts.clusters().div_ceil(COUNTS_PER_CLUSTER);
            counts.table_clusters = counts.block_clusters.div_ceil(ENTRIES_PER_CLUSTER);
        }
        counts
    }

    fn clusters(&self) -> u64 {
        self.used + self.block_clusters + self.table_clusters
    }

    /// The whole file's length.
    pub(super) fn file_bytes(&self) -> u64 {
        self.clusters() * CLUSTER_BYTES
    }

    /// Where the counts themselves lie.
    pub(super) fn blocks_offset(&self) -> u64 {
        self.used * CLUSTER_BYTES
    }

    /// The counts, without the zeros behind them.
    pub(super) fn blocks(&self) -> Vec<u8> {
        1_u16.to_be_bytes().repeat(self.clusters() as usize)
    }

    /// Where their table lies.
    pub(super) fn table_offset(&self) -> u64 {
        (self.used + self.block_clusters) * CLUSTER_BYTES
    }

    /// Their table, without the zeros behind it.
    pub(super) fn table(&self) -> Vec<u8> {
        let places = (self.used..self.used + self.block_clusters).map(|c| c * CLUSTER_BYTES);
        places.flat_map(u64::to_be_bytes).collect()
    }
}

/// A header that names another backing file. Of `header` everything else stays, but its extensions: none of them matters
/// to content.
pub(super) fn with_backing(
    header: &[u8; HEADER_BYTES],
    backing_file: &str,
    backing_format: &str,
) -> Vec<u8> {
    let padded_bytes = backing_format.len().next_multiple_of(8);
    // Two heads of 8 bytes: the format's, and that of the extension that ends the list.
    let backing_offset = (HEADER_BYTES + 8 + padded_bytes + 8) as u64;
    let mut bytes = header.to_vec();
    bytes[8..16].copy_from_slice(&backing_offset.to_be_bytes());
    bytes[16..20].copy_from_slice(&(backing_file.len() as u32).to_be_bytes());
    bytes[100..104].copy_from_slice(&(HEADER_BYTES as u32).to_be_bytes());
    bytes.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
    bytes.extend((backing_format.len() as u32).to_be_bytes());
    bytes.extend(backing_format.as_bytes());
    bytes.resize(backing_offset as usize, 0);
    bytes.extend(backing_file.as_bytes());
    bytes
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
