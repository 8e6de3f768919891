//! The tables of a qcow2 image as this program makes it and QEMU fills it (docs/interop/qcow2.rst of QEMU): which clusters
//! it has, and where. A guest's machine wrote them: what a file says of itself is believed only as far as it stays within
//! the file. It never writes.

use super::header::{self, CLUSTER_BYTES, ENTRIES_PER_CLUSTER, Found};
use crate::StorageError;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Bits of an entry that are an offset in the file, see the format's specification.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is compressed: this program never asks QEMU for that.
const COMPRESSED: u64 = 1 << 62;
/// The reference count is one: it says nothing about content.
const COPIED: u64 = 1 << 63;
/// The cluster reads as zeros.
const ZERO: u64 = 1;

/// What there is of one cluster of a guest's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cluster {
    /// Nothing: what lies below is seen.
    Absent,
    /// Zeros, whatever lies below.
    Zeros,
    /// It lies in the file, at this offset.
    At(u64),
}

/// One image.
#[derive(Debug)]
pub(super) struct Layer {
    path: PathBuf,
    file: File,
    header: Found,
    l1: Vec<u64>,
    file_bytes: u64,
}

impl Layer {
    /// Reads the first table of an image.
    pub(super) fn open(path: PathBuf, file: File) -> Result<Self, StorageError> {
        let header = super::read_header(&path, &file)?;
        let mut layer = Self { path, file, header, l1: Vec::new(), file_bytes: 0 };
        let meta = layer.file.metadata();
        layer.file_bytes = meta.map_err(|e| layer.damaged(&e.to_string()))?.len();
        let l1_bytes = layer.header.l1_bytes();
        if l1_bytes > header::L1_BYTES_MAX || layer.header.capacity_bytes() < layer.size_bytes() {
            return Err(layer.damaged("its first table does not fit its size"));
        }
        layer.l1 = layer.read_table(layer.header.l1_offset, l1_bytes)?;
        Ok(layer)
    }

    /// The size that a guest sees.
    pub(super) fn size_bytes(&self) -> u64 {
        self.header.size_bytes
    }

    /// The file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The file's length.
    pub(super) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Most clusters that it can hold: an honest image has each place in its file once.
    pub(super) fn clusters_max(&self) -> u64 {
        self.file_bytes.div_ceil(CLUSTER_BYTES)
    }

    /// The clusters behind one entry of the first table; `None` if none of them is there.
    pub(super) fn clusters(&self, l1_index: usize) -> Result<Option<Vec<Cluster>>, StorageError> {
        let entry = self.l1.get(l1_index).copied().unwrap_or(0);
        match entry & !COPIED {
            0 => Ok(None),
            offset if offset & !OFFSET_MASK != 0 => {
                Err(self.damaged("an entry of its first table is odd"))
            }
            offset => {
                let table = self.read_table(offset, CLUSTER_BYTES)?;
                let first = l1_index as u64 * ENTRIES_PER_CLUSTER;
                let clusters = table.iter().zip(first..).map(|(entry, number)| {
                    let is_inside = number * CLUSTER_BYTES < self.size_bytes();
                    if is_inside { self.cluster(*entry) } else { Ok(Cluster::Absent) }
                });
                clusters.collect::<Result<_, _>>().map(Some)
            }
        }
    }

    fn cluster(&self, entry: u64) -> Result<Cluster, StorageError> {
        let entry = entry & !COPIED;
        let offset = entry & OFFSET_MASK;
        if entry & COMPRESSED != 0 || entry & !OFFSET_MASK & !ZERO != 0 {
            return Err(self.damaged("it has clusters of a kind that this program never makes"));
        }
        match (entry & ZERO, offset) {
            (0, 0) => Ok(Cluster::Absent),
            (0, offset) => self.check_place(offset).map(|()| Cluster::At(offset)),
            _ => Ok(Cluster::Zeros),
        }
    }

    fn read_table(&self, offset: u64, bytes: u64) -> Result<Vec<u64>, StorageError> {
        self.check_place(offset)?;
        let mut table = vec![0; bytes as usize];
        let read = self.file.read_exact_at(&mut table, offset);
        read.map_err(|e| self.damaged(&format!("a table at {offset} can not be read: {e}")))?;
        let entry = |bytes: &[u8]| bytes.iter().fold(0, |number, b| number << 8 | u64::from(*b));
        Ok(table.chunks_exact(8).map(entry).collect())
    }

    /// Refuses what does not begin a cluster in the file.
    fn check_place(&self, offset: u64) -> Result<(), StorageError> {
        match offset.is_multiple_of(CLUSTER_BYTES) && offset != 0 && offset < self.file_bytes {
            true => Ok(()),
            false => Err(self.damaged(&format!("a table points to {offset}"))),
        }
    }

    /// The error for an image that is not what this program and QEMU made.
    pub(super) fn damaged(&self, problem: &str) -> StorageError {
        StorageError::Damaged { path: self.path.clone(), problem: problem.to_owned() }
    }
}
