//! Two layers as one: a new image that holds what the upper one holds, and lies on what the lower one lies on. It
//! writes nothing but that image, and never opens what the two lie on.

use super::header::{self, CLUSTER_BYTES, ENTRIES_PER_CLUSTER, Header};
use super::table::{Cluster, Layer};
use crate::StorageError;
use crate::images::Job;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

/// How much is copied at once, in bytes.
const RUN_BYTES_MAX: u64 = 1 << 20;
/// After how many bytes they are written to disk: guests that sync meanwhile wait for no more than these.
const SYNC_BYTES: u64 = 32 << 20;
/// Longest pause after a run: as long as the run took, so that guests have half of the disk.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The entry of a cluster that reads as zeros.
const ZERO_ENTRY: u64 = 1;
/// Says that the reference count is one.
const COPIED: u64 = 1 << 63;

/// Writes `image`, an empty file, from `top` and `bottom`, which it lies on. `goes_on` is asked between the runs.
/// Answers whether it is complete; the caller brings it to disk.
pub(super) fn merge(
    job: &Job,
    top: &Layer,
    bottom: &Layer,
    backing: (&str, &str),
    image: &File,
    goes_on: &dyn Fn() -> bool,
) -> Result<bool, StorageError> {
    if top.size_bytes() < bottom.size_bytes() {
        return Err(top.damaged("it is smaller than what it lies on"));
    }
    let clusters_max = top.clusters_max() + bottom.clusters_max();
    let header = Header::new(top.size_bytes(), backing.0, backing.1);
    let l1_entries = top.size_bytes().div_ceil(header::L1_ENTRY_BYTES);
    let clusters = header.first_free_cluster() + count(top, bottom, l1_entries, clusters_max)?;
    job.reserve(header::Counts::of(clusters).file_bytes())?;
    let mut draft = Draft::new(job, image, header.first_free_cluster(), clusters_max);
    let mut l1 = Vec::new();
    for index in 0..l1_entries as usize {
        let Some(clusters) = overlay(top.clusters(index)?, bottom.clusters(index)?) else {
            l1.push(0);
            continue;
        };
        let place = draft.take_cluster(top)?;
        l1.push(place | COPIED);
        let mut table = Vec::with_capacity(ENTRIES_PER_CLUSTER as usize);
        for (is_top, cluster) in clusters {
            let layer = if is_top { top } else { bottom };
            table.push(match cluster {
                Cluster::Absent => 0,
                Cluster::Zeros => ZERO_ENTRY,
                Cluster::At(offset) => draft.copy(layer, offset)? | COPIED,
            });
            if !draft.goes_on(goes_on) {
                return Ok(false);
            }
        }
        draft.flush()?;
        draft.write(place, &to_bytes(&table))?;
        // A table of zeros copies nothing.
        draft.is_due = true;
    }
    draft.write(header.l1_offset(), &to_bytes(&l1))?;
    draft.complete(&header)?;
    Ok(goes_on())
}

/// How many clusters, data and tables, are seen of two layers: `max` at most.
fn count(top: &Layer, bottom: &Layer, l1_entries: u64, max: u64) -> Result<u64, StorageError> {
    let mut clusters = 0;
    for index in 0..l1_entries as usize {
        if let Some(table) = overlay(top.clusters(index)?, bottom.clusters(index)?) {
            let has_data = |(_, cluster): &&(bool, Cluster)| matches!(cluster, Cluster::At(_));
            clusters += 1 + table.iter().filter(has_data).count() as u64;
        }
        if clusters >= max {
            return Ok(max);
        }
    }
    Ok(clusters)
}

/// What is seen of two tables that lie one on the other, and whether it is of the upper one.
fn overlay(
    top: Option<Vec<Cluster>>,
    bottom: Option<Vec<Cluster>>,
) -> Option<Vec<(bool, Cluster)>> {
    let all = |table: Vec<Cluster>, is_top| table.into_iter().map(move |c| (is_top, c)).collect();
    match (top, bottom) {
        (None, None) => None,
        (Some(top), None) => Some(all(top, true)),
        (None, Some(bottom)) => Some(all(bottom, false)),
        (Some(top), Some(bottom)) => {
            let seen = |(top, bottom)| match top {
                Cluster::Absent => (false, bottom),
                top => (true, top),
            };
            Some(top.into_iter().zip(bottom).map(seen).collect())
        }
    }
}

/// Neighbours that are copied at once.
struct Run<'a> {
    from: &'a Layer,
    at: u64,
    to: u64,
    bytes: u64,
}

/// The image that is being written.
struct Draft<'a> {
    job: &'a Job<'a>,
    image: &'a File,
    /// Clusters that it has so far.
    clusters: u64,
    clusters_max: u64,
    run: Option<Run<'a>>,
    unsynced: u64,
    /// Whether a run was written since its caller was asked last.
    is_due: bool,
}

impl<'a> Draft<'a> {
    /// `taken`: clusters that it has; `more_max`: those that the two layers have.
    fn new(job: &'a Job<'a>, image: &'a File, taken: u64, more_max: u64) -> Self {
        let clusters_max = taken + more_max;
        Self { job, image, clusters: taken, clusters_max, run: None, unsynced: 0, is_due: true }
    }

    /// The place of a new cluster, for one of `from`, data or a table: each has its own there.
    fn take_cluster(&mut self, from: &Layer) -> Result<u64, StorageError> {
        if self.clusters == self.clusters_max {
            return Err(from.damaged("it has the same place of its file more than once"));
        }
        self.clusters += 1;
        Ok((self.clusters - 1) * CLUSTER_BYTES)
    }

    /// Copies a cluster, at the latest with the next [`Draft::flush`]. Answers its place.
    fn copy(&mut self, from: &'a Layer, at: u64) -> Result<u64, StorageError> {
        let to = self.take_cluster(from)?;
        if let Some(run) = &mut self.run
            && std::ptr::eq(run.from, from)
            && (run.at + run.bytes, run.to + run.bytes) == (at, to)
            && run.bytes < RUN_BYTES_MAX
        {
            run.bytes += CLUSTER_BYTES;
            return Ok(to);
        }
        self.flush()?;
        self.run = Some(Run { from, at, to, bytes: CLUSTER_BYTES });
        Ok(to)
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        let Some(Run { from, at, to, bytes }) = self.run.take() else { return Ok(()) };
        let begin = Instant::now();
        copy_range(from.file(), at, self.image, to, bytes)
            .map_err(|e| self.job.failed(bytes, e))?;
        self.unsynced += bytes;
        if self.unsynced >= SYNC_BYTES {
            self.image.sync_data().map_err(|e| self.job.failed(bytes, e))?;
            self.unsynced = 0;
        }
        self.is_due = true;
        thread::sleep(begin.elapsed().min(PAUSE_MAX));
        Ok(())
    }

    fn goes_on(&mut self, goes_on: &dyn Fn() -> bool) -> bool {
        !std::mem::take(&mut self.is_due) || goes_on()
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let written = self.image.write_all_at(bytes, at);
        written.map_err(|e| self.job.failed(bytes.len() as u64, e))
    }

    /// Counts every cluster once, and writes the header last.
    fn complete(&mut self, header: &Header) -> Result<(), StorageError> {
        let counts = header::Counts::of(self.clusters);
        self.write(counts.blocks_offset(), &counts.blocks())?;
        self.write(counts.table_offset(), &counts.table())?;
        let bytes = counts.file_bytes();
        self.image.set_len(bytes).map_err(|e| self.job.failed(0, e))?;
        self.write(0, &header.with_counts(&counts))
    }
}

fn to_bytes(table: &[u64]) -> Vec<u8> {
    table.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

/// Copies bytes from one file to another one; what lies behind the end of `from` is zeros.
fn copy_range(from: &File, mut at: u64, to: &File, mut to_at: u64, bytes: u64) -> io::Result<()> {
    let mut left = bytes;
    while left > 0 {
        let (mut off_in, mut off_out) = (at, to_at);
        let copied = rustix::fs::copy_file_range(
            from,
            Some(&mut off_in),
            to,
            Some(&mut off_out),
            left as usize,
        );
        let copied = match copied {
            Ok(0) => return Ok(()),
            Ok(copied) => copied as u64,
            Err(rustix::io::Errno::INTR) => continue,
            // Not on this file system, or not across two of them.
            Err(_) => return copy_through_memory(from, at, to, to_at, left),
        };
        (at, to_at, left) = (at + copied, to_at + copied, left - copied);
    }
    Ok(())
}

fn copy_through_memory(from: &File, at: u64, to: &File, to_at: u64, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; bytes as usize];
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    to.write_all_at(&buffer[..filled], to_at)
}
