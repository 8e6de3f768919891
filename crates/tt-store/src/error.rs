//! Why a store refused or failed. Each says whether a retry helps.

use std::io;
use std::path::PathBuf;

use crate::{
    KEY_BYTES_MAX, PAGE_ENTRIES_MAX, Revision, TXN_BYTES_MAX, TXN_OPS_MAX, VALUE_BYTES_MAX,
    WATCHES_MAX,
};

/// What the calls of this crate answer.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A call that a store refused, or could not carry out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The key, prefix or bound of a range is malformed. Nothing was changed.
    #[error(
        "store key {key:?} ({len} bytes) is malformed: it takes 1 to {KEY_BYTES_MAX} printable ASCII characters \
         without white space"
    )]
    CheckKey {
        /// The beginning of the key.
        key: String,
        /// Its length in bytes.
        len: usize,
    },
    /// A value is too large. Nothing was changed.
    #[error("value of store key {key:?} has {len} bytes: at most {VALUE_BYTES_MAX} are allowed")]
    CheckValue {
        /// The key it was to be put at.
        key: String,
        /// Its length in bytes.
        len: usize,
    },
    /// A transaction has too many guards and writes. Nothing was changed.
    #[error("transaction has {ops} guards and writes: at most {TXN_OPS_MAX} are allowed")]
    CheckOps {
        /// How many it has.
        ops: usize,
    },
    /// A transaction writes too much at once. Nothing was changed.
    #[error("transaction writes {len} bytes: at most {TXN_BYTES_MAX} are allowed")]
    CheckBytes {
        /// The bytes of its keys and values.
        len: usize,
    },
    /// A transaction writes one key twice. Nothing was changed.
    #[error("transaction writes store key {key:?} more than once: each key may be written once")]
    CheckDuplicate {
        /// The key.
        key: String,
    },
    /// A page of no or too many entries was asked for.
    #[error("a page of {limit} entries was asked for: 1 to {PAGE_ENTRIES_MAX} are allowed")]
    CheckLimit {
        /// What was asked for.
        limit: usize,
    },
    /// The log no longer reaches back to the revision a watch was to follow. Read everything, then
    /// watch from there.
    #[error(
        "the store's log begins at revision {first}: read everything and watch from the revision of that read"
    )]
    Compacted {
        /// The oldest revision that is still in the log.
        first: Revision,
    },
    /// A watch was to follow a revision that this store never reached, so it came from another one.
    #[error(
        "the store is at revision {current} and never reached {after}: read everything and watch from there"
    )]
    Ahead {
        /// What was asked for.
        after: Revision,
        /// Where the store is.
        current: Revision,
    },
    /// Too many watches are open.
    #[error("{WATCHES_MAX} watches are open already: close one first")]
    Watch,
    /// Another process, or another part of this one, has the data directory.
    #[error(
        "store directory {} is in use by {}: stop it, or use another directory",
        dir.display(),
        pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    Lock {
        /// The directory.
        dir: PathBuf,
        /// Who holds it, if it said so.
        pid: Option<u32>,
    },
    /// The data directory or a file in it cannot be used.
    #[error("store cannot use {}", path.display())]
    Prepare {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database cannot be opened.
    #[error("store database {} cannot be opened", path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The database is damaged. It is left as it is, for repair or for `tt recover`.
    #[error("store database {} is damaged: {detail}; restore a copy of it, or move it away", path.display())]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The database was written by a newer version of this program. It is left as it is.
    #[error(
        "store database {} has schema version {found}, this program knows up to {known}: use the newer program",
        path.display()
    )]
    Schema {
        /// The database file.
        path: PathBuf,
        /// The version it has.
        found: i64,
        /// The newest version that is known here.
        known: i64,
    },
    /// The disk is full. Nothing was changed and nothing that was committed is lost.
    #[error("no space left for store database {}: make room and retry", path.display())]
    Full {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The database cannot be read.
    #[error("store database {} cannot be read", path.display())]
    Read {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A commit failed; if the disk failed while it was synced, it may still have happened.
    #[error("store database {} cannot be written", path.display())]
    Commit {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl StoreError {
    /// Whether the same call may succeed later without its caller changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Watch
            | Self::Lock { .. }
            | Self::Full { .. }
            | Self::Prepare { .. }
            | Self::Open { .. }
            | Self::Read { .. }
            | Self::Commit { .. } => true,
            Self::CheckKey { .. }
            | Self::CheckValue { .. }
            | Self::CheckOps { .. }
            | Self::CheckBytes { .. }
            | Self::CheckDuplicate { .. }
            | Self::CheckLimit { .. }
            | Self::Compacted { .. }
            | Self::Ahead { .. }
            | Self::Damaged { .. }
            | Self::Schema { .. } => false,
        }
    }
}
