//! A qcow2 image of a plain file, cluster by cluster in the order of the image, after the format's specification
//! (docs/interop/qcow2.rst of QEMU, version 3). It needs no second look and no temporary file: where everything lies is
//! known before the first byte is sent.

use super::{Blocks, data};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const ENTRIES: u64 = CLUSTER / 8;
/// Reference counts of 2^4 bits.
const REFCOUNT_ORDER: u32 = 4;
const REFCOUNTS: u64 = CLUSTER / 2;
const HEADER_BYTES: u32 = 104;
/// The cluster is in use once, so that it may be written in place.
const COPIED: u64 = 1 << 63;

/// The image, while it is sent.
pub(super) struct Image {
    file: File,
    size: u64,
    /// Which clusters of the disk have data, in rising order.
    clusters: Vec<u64>,
    /// Which tables of level 2 there are, in rising order.
    tables: Vec<u64>,
    refcount_table_clusters: u64,
    refcount_blocks: u64,
    l1_clusters: u64,
    /// The next cluster of the image.
    next: u64,
}

impl Image {
    pub(super) fn of(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let mut clusters = Vec::new();
        let mut at = 0;
        while let Some((start, end)) = data(&file, at, size)? {
            let first = (start / CLUSTER).max(clusters.last().map_or(0, |last| last + 1));
            clusters.extend(first..end.div_ceil(CLUSTER));
            at = end;
        }
        let mut tables: Vec<u64> = clusters.iter().map(|cluster| cluster / ENTRIES).collect();
        tables.dedup();
        let l1_clusters = size.div_ceil(CLUSTER * ENTRIES).max(1).div_ceil(ENTRIES);
        let others = 1 + l1_clusters + tables.len() as u64 + clusters.len() as u64;
        let (mut refcount_blocks, mut refcount_table_clusters) = (1, 1);
        // More blocks need more counts, which may need one more block.
        loop {
            let blocks = (others + refcount_blocks + refcount_table_clusters).div_ceil(REFCOUNTS);
            let table = blocks.div_ceil(ENTRIES);
            if (blocks, table) == (refcount_blocks, refcount_table_clusters) {
                break;
            }
            (refcount_blocks, refcount_table_clusters) = (blocks, table);
        }
        Ok(Self {
            file,
            size,
            clusters,
            tables,
            refcount_table_clusters,
            refcount_blocks,
            l1_clusters,
            next: 0,
        })
    }

    /// Its length.
    pub(super) fn bytes(&self) -> u64 {
        (self.data_at() + self.clusters.len() as u64) * CLUSTER
    }

    // The header, the reference table and its blocks, the tables of both levels, the data.

    fn blocks_at(&self) -> u64 {
        1 + self.refcount_table_clusters
    }

    fn l1_at(&self) -> u64 {
        self.blocks_at() + self.refcount_blocks
    }

    fn tables_at(&self) -> u64 {
        self.l1_at() + self.l1_clusters
    }

    fn data_at(&self) -> u64 {
        self.tables_at() + self.tables.len() as u64
    }

    fn header(&self) -> Vec<u8> {
        let mut header = Vec::with_capacity(CLUSTER as usize);
        let mut put = |number: &[u8]| header.extend_from_slice(number);
        put(b"QFI\xfb");
        put(&3_u32.to_be_bytes());
        // No backing file.
        put(&[0; 12]);
        put(&CLUSTER_BITS.to_be_bytes());
        put(&self.size.to_be_bytes());
        // No encryption.
        put(&[0; 4]);
        put(&((self.l1_clusters * ENTRIES) as u32).to_be_bytes());
        put(&(self.l1_at() * CLUSTER).to_be_bytes());
        put(&CLUSTER.to_be_bytes());
        put(&(self.refcount_table_clusters as u32).to_be_bytes());
        // No snapshots: their number and place; no feature bits of any of three kinds.
        put(&[0; 4 + 8 + 3 * 8]);
        put(&REFCOUNT_ORDER.to_be_bytes());
        put(&HEADER_BYTES.to_be_bytes());
        header
    }

    /// Entries of a table that begins with the cluster `first` of those that it tells of.
    fn entries(first: u64, number: u64, flags: u64) -> impl Iterator<Item = u8> {
        (first..first + number).flat_map(move |cluster| ((cluster * CLUSTER) | flags).to_be_bytes())
    }

    fn refcounts(&self, block: u64) -> Vec<u8> {
        let all = self.data_at() + self.clusters.len() as u64;
        let used = all.saturating_sub(block * REFCOUNTS).min(REFCOUNTS);
        1_u16.to_be_bytes().repeat(used as usize)
    }

    /// A table that has entries for some numbers only: `places` are those from `first` on, each with where it leads.
    fn sparse_table(first: u64, places: impl Iterator<Item = (u64, u64)>) -> Vec<u8> {
        let mut table = vec![0; CLUSTER as usize];
        for (number, cluster) in places {
            let at = ((number - first) * 8) as usize;
            table[at..at + 8].copy_from_slice(&((cluster * CLUSTER) | COPIED).to_be_bytes());
        }
        table
    }

    fn l1(&self, number: u64) -> Vec<u8> {
        let first = number * ENTRIES;
        let places = self.tables.iter().copied().zip(self.tables_at()..);
        Self::sparse_table(first, places.filter(|(table, _)| table / ENTRIES == number))
    }

    fn l2(&self, table: u64) -> Vec<u8> {
        let first = table * ENTRIES;
        let from = self.clusters.partition_point(|cluster| *cluster < first);
        let to = self.clusters.partition_point(|cluster| *cluster < first + ENTRIES);
        let places = self.clusters[from..to].iter().copied().zip(self.data_at() + from as u64..);
        Self::sparse_table(first, places)
    }

    fn data(&self, cluster: u64) -> io::Result<Vec<u8>> {
        let at = cluster * CLUSTER;
        let mut content = vec![0; CLUSTER.min(self.size - at) as usize];
        self.file.read_exact_at(&mut content, at)?;
        Ok(content)
    }
}

impl Blocks for Image {
    fn next(&mut self, block: &mut Vec<u8>) -> io::Result<()> {
        let number = self.next;
        self.next += 1;
        *block = if number == 0 {
            self.header()
        } else if number < self.blocks_at() {
            let first = (number - 1) * ENTRIES;
            let count = self.refcount_blocks.saturating_sub(first).min(ENTRIES);
            Self::entries(self.blocks_at() + first, count, 0).collect()
        } else if number < self.l1_at() {
            self.refcounts(number - self.blocks_at())
        } else if number < self.tables_at() {
            self.l1(number - self.l1_at())
        } else if number < self.data_at() {
            self.l2(self.tables[(number - self.tables_at()) as usize])
        } else {
            match self.clusters.get((number - self.data_at()) as usize) {
                Some(cluster) => self.data(*cluster)?,
                None => return Ok(()),
            }
        };
        block.resize(CLUSTER as usize, 0);
        Ok(())
    }
}
