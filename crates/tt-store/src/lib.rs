//! The store: the only place where the parts of TT meet, and the contract that every store keeps.
//!
//! Its shape is etcd's: a flat map of keys, one revision per commit, commits guarded by revisions,
//! watches from a revision. It never looks into a value, never spawns a task, and never answers
//! from anything but committed state.

use std::fmt;
use std::ops::Bound;

mod check;
pub mod conformance;
mod error;
pub mod memory;
mod retention;
pub mod sqlite;
pub mod tables;
mod txn;
mod watch;

pub use error::{Result, StoreError};
pub use retention::Retention;
pub use txn::{Guard, Outcome, Txn, Write};
pub use watch::{Batch, Change, WATCH_QUEUE, WATCHES_MAX, Watch};

/// Longest key, in bytes. A key is 1 to this many printable ASCII characters, none of them white
/// space.
pub const KEY_BYTES_MAX: usize = 512;
/// Largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most guards and writes, together, in one [`Txn`].
pub const TXN_OPS_MAX: usize = 4096;
/// Most bytes of keys and values that one [`Txn`] writes: what a watcher must be able to hold at
/// once. The largest Env, all of its members changed together, takes 50 MiB.
pub const TXN_BYTES_MAX: usize = 56 << 20;
/// Most entries that one [`Page`] can be asked for.
pub const PAGE_ENTRIES_MAX: usize = 10_000;
/// A page ends early, with `more` set, once its values pass this many bytes.
pub const PAGE_BYTES_MAX: usize = 64 << 20;

/// The store's logical clock: 0 when nothing was ever committed, greater after every commit that
/// changes something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One key as it was at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// What was last put there.
    pub value: Vec<u8>,
    /// The commit that made the key. A key that is deleted and put again is a new one.
    pub create_revision: Revision,
    /// The commit that last put the key: what [`Guard::Revision`] compares with.
    pub mod_revision: Revision,
    /// How often the key was put since it was made, from 1.
    pub version: u64,
}

/// A window of keys, for [`Kv::scan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// Only keys that begin with this text. Empty for all keys; `a/` does not match `ab`.
    pub prefix: String,
    /// Where to begin; a bound below the prefix begins at the prefix, one beyond it finds nothing.
    pub from: Bound<String>,
    /// Most entries to return, 1 to [`PAGE_ENTRIES_MAX`].
    pub limit: usize,
}

/// Part of a range, in byte order of the keys, read at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// What was found.
    pub entries: Vec<Entry>,
    /// The store's revision when the page was read. Who pages and then watches, watches from the
    /// *first* page's.
    pub revision: Revision,
    /// Whether the range goes on after the last entry.
    pub more: bool,
}

/// A store. Calls block; any number of threads may make them at once.
///
/// A commit that was answered is durable to the degree the store promises, and every later read, in
/// any thread, sees it. A commit that failed with an error may or may not have happened: read, or
/// repeat it with its guards.
pub trait Kv: Send + Sync + fmt::Debug {
    /// Reads one key.
    ///
    /// # Errors
    /// A malformed key, or a store that cannot be read.
    fn get(&self, key: &str) -> Result<Option<Entry>>;

    /// Reads a window of keys at one revision.
    ///
    /// # Errors
    /// A malformed prefix or bound, a limit out of range, or a store that cannot be read.
    fn scan(&self, range: &Range) -> Result<Page>;

    /// Makes all of the writes, under one new revision, if every guard holds; else none of them.
    ///
    /// A transaction that changes nothing (no writes, or only deletes of absent keys) makes no
    /// revision and answers the current one.
    ///
    /// # Errors
    /// A transaction that breaks a bound of this crate (nothing is changed), a full disk, a store
    /// that cannot be written. A guard that does not hold is no error but [`Outcome::Conflict`].
    fn commit(&self, txn: &Txn) -> Result<Outcome>;

    /// Follows the keys under `prefix`: every commit after `after` that touches one, in order, each
    /// once.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if the log no longer reaches back to `after` and
    /// [`StoreError::Ahead`] if the store never reached it: read everything and watch from there. A
    /// malformed prefix; too many watches.
    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch>;

    /// Reads the keys under `prefix` that follow `after`, at most `limit`: [`Kv::scan`] for who
    /// pages.
    ///
    /// # Errors
    /// As [`Kv::scan`].
    fn range(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page> {
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.to_owned()));
        self.scan(&Range { prefix: prefix.to_owned(), from, limit })
    }
}
