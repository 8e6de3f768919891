//! Reads the clusters of a qcow2 image as this program makes them and QEMU fills them, after the format's specification
//! (docs/interop/qcow2.rst of QEMU). A guest's machine wrote its tables: every offset is checked, none is followed out of
//! the file.

use super::header::{self, CLUSTER_BYTES, ENTRIES_PER_CLUSTER};
use super::read_header;
use crate::StorageError;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Where a table or cluster lies, in an entry of a table.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZEROS: u64 = 1;

/// One cluster of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cluster {
    /// The image has none.
    Absent,
    Zeros,
    /// At this offset of the file.
    At(u64),
}

/// An image that is read.
pub(crate) struct Reader {
    file: File,
    header: header::Found,
    bytes: u64,
    /// The table of level 2 that was used last, with its number.
    table: Option<(u64, Vec<u8>)>,
}

impl Reader {
    pub(crate) fn open(path: PathBuf, file: File) -> Result<Self, StorageError> {
        let header = read_header(&path, &file)?;
        let bytes =
            file.metadata().map_err(|source| StorageError::OpenDisk { path, source })?.len();
        Ok(Self { file, header, bytes, table: None })
    }

    /// The size that a guest sees.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.header.size_bytes
    }

    /// What there is at `at`, which is below the size.
    pub(crate) fn find(&mut self, at: u64) -> io::Result<Cluster> {
        let cluster = at / CLUSTER_BYTES;
        let number = cluster / ENTRIES_PER_CLUSTER;
        if self.table.as_ref().is_none_or(|(loaded, _)| *loaded != number) {
            let table = self.load(number)?;
            self.table = Some((number, table));
        }
        let Some((_, table)) = &self.table else { return Ok(Cluster::Absent) };
        // An absent table has no clusters.
        if table.is_empty() {
            return Ok(Cluster::Absent);
        }
        let entry = be64(table, (cluster % ENTRIES_PER_CLUSTER) as usize * 8);
        if entry & COMPRESSED != 0 {
            return Err(damaged("a cluster is compressed, which this program never does"));
        }
        if entry & ZEROS != 0 {
            return Ok(Cluster::Zeros);
        }
        match self.place(entry)? {
            0 => Ok(Cluster::Absent),
            offset => Ok(Cluster::At(offset)),
        }
    }

    /// Reads from a cluster; the last one of a file may be cut where nothing more was written.
    pub(crate) fn read(&self, offset: u64, piece: &mut [u8]) -> io::Result<()> {
        let there = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = piece.len().min(there);
        self.file.read_exact_at(&mut piece[..len], offset)?;
        piece[len..].fill(0);
        Ok(())
    }

    fn load(&self, number: u64) -> io::Result<Vec<u8>> {
        if number >= u64::from(self.header.l1_entries) {
            return Err(damaged("its first table is too small"));
        }
        let mut entry = [0; 8];
        let at = self.header.l1_offset.checked_add(number * 8);
        let at = at.ok_or_else(|| damaged("its first table lies beyond it"))?;
        self.file.read_exact_at(&mut entry, at)?;
        let offset = self.place(u64::from_be_bytes(entry))?;
        if offset == 0 {
            return Ok(Vec::new());
        }
        let mut table = vec![0; CLUSTER_BYTES as usize];
        self.file.read_exact_at(&mut table, offset)?;
        Ok(table)
    }

    /// Where an entry leads; 0 is nowhere.
    fn place(&self, entry: u64) -> io::Result<u64> {
        let offset = entry & OFFSET_MASK;
        if offset.is_multiple_of(CLUSTER_BYTES) && offset <= self.bytes {
            return Ok(offset);
        }
        Err(damaged("an entry of its tables leads out of it"))
    }
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn damaged(problem: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::header::Header;
    use proptest::prelude::*;

    fn image(size_bytes: u64) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.qcow2");
        let file = File::create(&path).unwrap();
        let header = Header::new(size_bytes, "below.raw", "raw");
        for (offset, bytes) in header.sections() {
            file.write_all_at(&bytes, offset).unwrap();
        }
        file.set_len(header.metadata_bytes()).unwrap();
        (dir, path)
    }

    proptest! {
        /// Whatever a machine writes into the tables, reading ends with clusters of the file or an error.
        #[test]
        fn hostile_tables_lead_nowhere(entries in prop::collection::vec(any::<u64>(), 1..6)) {
            let (_dir, path) = image(4 << 30);
            let file = File::options().read(true).write(true).open(&path).unwrap();
            let bytes = file.metadata().unwrap().len();
            for (number, entry) in entries.iter().enumerate() {
                file.write_all_at(&entry.to_be_bytes(), 3 * CLUSTER_BYTES + 8 * number as u64).unwrap();
            }
            let mut reader = Reader::open(path, file).unwrap();
            for number in 0..8_u64 {
                if let Ok(Cluster::At(offset)) = reader.find(number * (512 << 20)) {
                    prop_assert!(offset <= bytes);
                    let _ = reader.read(offset, &mut [0; 100]);
                }
            }
        }
    }
}
