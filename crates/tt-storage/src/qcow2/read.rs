//! Reads a qcow2 image piece by piece, from its beginning to its end. It never follows what lies below.

use super::header::{CLUSTER_BYTES, ENTRIES_PER_CLUSTER};
use super::table::{Cluster, Layer};
use crate::StorageError;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// An image that is read.
pub(crate) struct Reader {
    layer: Layer,
    /// The clusters behind the entry of the first table that was used last, with its number.
    clusters: Option<(usize, Option<Vec<Cluster>>)>,
}

impl Reader {
    pub(crate) fn open(path: PathBuf, file: File) -> Result<Self, StorageError> {
        Ok(Self { layer: Layer::open(path, file)?, clusters: None })
    }

    /// The size that a guest sees.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.layer.size_bytes()
    }

    /// What there is at `at`, which is below the size.
    pub(crate) fn find(&mut self, at: u64) -> Result<Cluster, StorageError> {
        let cluster = at / CLUSTER_BYTES;
        let number = (cluster / ENTRIES_PER_CLUSTER) as usize;
        if self.clusters.as_ref().is_none_or(|(loaded, _)| *loaded != number) {
            self.clusters = Some((number, self.layer.clusters(number)?));
        }
        let clusters = self.clusters.as_ref().and_then(|(_, clusters)| clusters.as_ref());
        let found = clusters.and_then(|c| c.get((cluster % ENTRIES_PER_CLUSTER) as usize));
        Ok(found.copied().unwrap_or(Cluster::Absent))
    }

    /// Reads from a cluster; the last one of a file may be cut where nothing more was written.
    pub(crate) fn read(&self, offset: u64, piece: &mut [u8]) -> io::Result<()> {
        let left = self.layer.file_bytes().saturating_sub(offset);
        let len = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.layer.file().read_exact_at(&mut piece[..len], offset)?;
        piece[len..].fill(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::header::{Counts, Header};
    use proptest::prelude::*;

    /// An image without content; where its first table lies.
    fn image(size_bytes: u64) -> (tempfile::TempDir, PathBuf, u64) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.qcow2");
        let file = File::create(&path).unwrap();
        let header = Header::new(size_bytes, "below.raw", "raw");
        let counts = Counts::of(header.first_free_cluster());
        file.write_all_at(&header.with_counts(&counts), 0).unwrap();
        file.write_all_at(&counts.blocks(), counts.blocks_offset()).unwrap();
        file.write_all_at(&counts.table(), counts.table_offset()).unwrap();
        file.set_len(counts.file_bytes()).unwrap();
        (dir, path, header.l1_offset())
    }

    /// What a machine could write there, now and then a place in the file.
    fn entry() -> impl Strategy<Value = u64> {
        prop_oneof![any::<u64>(), (0..8_u64).prop_map(|number| number * CLUSTER_BYTES)]
    }

    proptest! {
        /// Whatever a machine writes into the tables, reading ends with clusters of the file or an error.
        #[test]
        fn hostile_tables_lead_nowhere(entries in prop::collection::vec(entry(), 1..6)) {
            let (_dir, path, l1_offset) = image(4 << 30);
            let file = File::options().read(true).write(true).open(&path).unwrap();
            let bytes = file.metadata().unwrap().len();
            for (number, entry) in entries.iter().enumerate() {
                file.write_all_at(&entry.to_be_bytes(), l1_offset + 8 * number as u64).unwrap();
            }
            let mut reader = Reader::open(path, file).unwrap();
            for number in 0..8_u64 {
                if let Ok(Cluster::At(offset)) = reader.find(number * (512 << 20)) {
                    prop_assert!(offset < bytes);
                    let _ = reader.read(offset, &mut [0; 100]);
                }
            }
        }
    }
}
