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
/// Clusters in a word of bits.
const WORD: u64 = 64;
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
    used: Used,
    refcount_table_clusters: u64,
    refcount_blocks: u64,
    l1_clusters: u64,
    /// The next cluster of the image.
    next: u64,
    /// The next cluster of the disk that may have data.
    next_data: u64,
}

/// Which clusters of the disk have data: a bit for each, which is 2 MiB for a TiB of disk, however the data lies.
struct Used {
    bits: Vec<u64>,
    /// Tables of level 2 that have data, in rising order, each with the number of clusters with data before it.
    tables: Vec<(u64, u64)>,
    number: u64,
}

impl Used {
    fn of(file: &File, size: u64) -> io::Result<Self> {
        let clusters = size.div_ceil(CLUSTER);
        let words = usize::try_from(clusters.div_ceil(WORD)).map_err(io::Error::other)?;
        let mut bits = vec![0_u64; words];
        let mut at = 0;
        while let Some((start, end)) = data(file, at, size)? {
            for cluster in start / CLUSTER..end.div_ceil(CLUSTER) {
                bits[(cluster / WORD) as usize] |= 1 << (cluster % WORD);
            }
            at = end;
        }
        let (mut tables, mut number) = (Vec::new(), 0);
        for (table, bits) in (0..).zip(bits.chunks((ENTRIES / WORD) as usize)) {
            let used: u64 = bits.iter().map(|word| u64::from(word.count_ones())).sum();
            if used > 0 {
                tables.push((table, number));
                number += used;
            }
        }
        Ok(Self { bits, tables, number })
    }

    /// Those with data from the cluster `first` on, in rising order.
    fn from(&self, first: u64) -> impl Iterator<Item = u64> {
        let word = first / WORD;
        let begin =
            self.bits.get(word as usize).map_or(0, |bits| bits & (u64::MAX << (first % WORD)));
        let rest = self.bits.iter().copied().skip(word as usize + 1);
        (word..).zip(std::iter::once(begin).chain(rest)).flat_map(|(word, bits)| {
            (0..WORD).filter(move |bit| (bits >> bit) & 1 == 1).map(move |bit| word * WORD + bit)
        })
    }
}

impl Image {
    pub(super) fn of(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let used = Used::of(&file, size)?;
        let l1_clusters = size.div_ceil(CLUSTER * ENTRIES).max(1).div_ceil(ENTRIES);
        let others = 1 + l1_clusters + used.tables.len() as u64 + used.number;
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
            used,
            refcount_table_clusters,
            refcount_blocks,
            l1_clusters,
            next: 0,
            next_data: 0,
        })
    }

    /// Its length.
    pub(super) fn bytes(&self) -> u64 {
        (self.data_at() + self.used.number) * CLUSTER
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
        self.tables_at() + self.used.tables.len() as u64
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
        let all = self.data_at() + self.used.number;
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
        let tables = self.used.tables.iter().map(|(table, _)| *table);
        let places = tables.zip(self.tables_at()..);
        Self::sparse_table(first, places.filter(|(table, _)| table / ENTRIES == number))
    }

    fn l2(&self, (table, before): (u64, u64)) -> Vec<u8> {
        let first = table * ENTRIES;
        let clusters = self.used.from(first).take_while(|cluster| *cluster < first + ENTRIES);
        Self::sparse_table(first, clusters.zip(self.data_at() + before..))
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
            self.l2(self.used.tables[(number - self.tables_at()) as usize])
        } else {
            let next = self.used.from(self.next_data).next();
            let Some(cluster) = next else { return Ok(()) };
            self.next_data = cluster + 1;
            self.data(cluster)?
        };
        block.resize(CLUSTER as usize, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_in_mind_is_a_bit_for_each_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create_new(dir.path().join("disk")).unwrap();
        // Data here and there, in words and tables of their own, at the very end, too.
        let size = (3 * ENTRIES + 70) * CLUSTER + 512;
        file.set_len(size).unwrap();
        let wanted = [0, 1, 63, 64, 130, ENTRIES - 1, ENTRIES, 3 * ENTRIES + 5, 3 * ENTRIES + 70];
        for cluster in wanted {
            file.write_all_at(b"x", cluster * CLUSTER).unwrap();
        }
        let file = File::open(dir.path().join("disk")).unwrap();
        let used = Used::of(&file, size).unwrap();
        assert_eq!(used.from(0).collect::<Vec<_>>(), wanted);
        assert_eq!(used.from(64).collect::<Vec<_>>(), wanted[3..]);
        assert_eq!(used.from(65).collect::<Vec<_>>(), wanted[4..]);
        assert_eq!(used.from(10 * ENTRIES).count(), 0);
        assert_eq!((used.tables, used.number), (vec![(0, 0), (1, 6), (3, 7)], 9));
        assert_eq!(used.bits.len() as u64, (3 * ENTRIES + 71).div_ceil(WORD));
        // Of a large one that is 16 MiB.
        let size = 8 << 40;
        File::options().write(true).open(dir.path().join("disk")).unwrap().set_len(size).unwrap();
        let used = Used::of(&File::open(dir.path().join("disk")).unwrap(), size).unwrap();
        assert_eq!((used.number, used.bits.len()), (9, 2 << 20));
    }
}
