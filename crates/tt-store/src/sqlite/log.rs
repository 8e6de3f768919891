//! The log of commits: what watches from the past read. It keeps what [`Retention`] asks for, and
//! forgets a bounded number of commits at a time. Its last row also says the store's revision, so
//! it never forgets the last commit.

use std::collections::VecDeque;

use rusqlite::{Connection, Transaction, params};

use super::ORDINAL_BITS;
use crate::{Batch, Change, Retention, Revision, check};

/// Most commits forgotten by one commit, so that none has to wait long for it. More than one is
/// forgotten only after an unusually large commit.
const COMPACT_MAX: u32 = 64;

const ENDS: &str = "SELECT (SELECT min(id) FROM log), (SELECT max(id) FROM log), \
                    (SELECT sum(length(key) + ifnull(length(value), 0)) FROM log)";
const LAST: &str = "SELECT max(id) FROM log";
const APPEND: &str = "INSERT INTO log (id, key, value) VALUES (?1, ?2, ?3)";
const READ: &str =
    "SELECT id, key, value FROM log WHERE id >= ?1 AND key >= ?2 AND key < ?3 ORDER BY id";
const SIZE: &str =
    "SELECT sum(length(key) + ifnull(length(value), 0)) FROM log WHERE id >= ?1 AND id < ?2";
const FORGET: &str = "DELETE FROM log WHERE id >= ?1 AND id < ?2";

/// What the log holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Log {
    /// The oldest revision in it, or the one that will be.
    pub(super) first: Revision,
    /// The newest revision, which is the store's.
    pub(super) current: Revision,
    bytes: u64,
}

impl Log {
    /// Looks at the table; takes as long as it is large.
    pub(super) fn load(conn: &Connection) -> rusqlite::Result<Self> {
        conn.prepare_cached(ENDS)?.query_row([], |row| {
            let (first, last): (Option<i64>, Option<i64>) = (row.get(0)?, row.get(1)?);
            Ok(Self {
                first: first.map_or(Revision(1), revision_of),
                current: last.map_or(Revision(0), revision_of),
                bytes: row.get::<_, Option<i64>>(2)?.unwrap_or(0).cast_unsigned(),
            })
        })
    }

    /// Adds a commit.
    pub(super) fn append(self, sql: &Transaction<'_>, batch: &Batch) -> rusqlite::Result<Self> {
        let mut append = sql.prepare_cached(APPEND)?;
        for (id, change) in (first_id(batch.revision)..).zip(&batch.changes) {
            append.execute(params![id, change.key, change.value])?;
        }
        Ok(Self { current: batch.revision, bytes: self.bytes + batch.bytes(), ..self })
    }

    /// Forgets the oldest commits while there are more than have to be kept.
    pub(super) fn compact(
        mut self,
        sql: &Transaction<'_>,
        keep: Retention,
    ) -> rusqlite::Result<Self> {
        for _ in 0..COMPACT_MAX {
            if !keep.exceeded_by(self.current.0 - self.first.0 + 1, self.bytes) {
                break;
            }
            let next = Revision(self.first.0 + 1);
            let rows = params![first_id(self.first), first_id(next)];
            let bytes: Option<i64> = sql.prepare_cached(SIZE)?.query_row(rows, |row| row.get(0))?;
            sql.prepare_cached(FORGET)?.execute(rows)?;
            self.bytes = self.bytes.saturating_sub(bytes.unwrap_or(0).cast_unsigned());
            self.first = next;
        }
        Ok(self)
    }
}

/// The store's revision, as the connection sees it.
pub(super) fn current(conn: &Connection) -> rusqlite::Result<Revision> {
    let last: Option<i64> = conn.prepare_cached(LAST)?.query_row([], |row| row.get(0))?;
    Ok(last.map_or(Revision(0), revision_of))
}

/// The commits after `after`, as far as they touch keys under `prefix`.
pub(super) fn read(
    conn: &Connection,
    prefix: &str,
    after: Revision,
) -> rusqlite::Result<VecDeque<Batch>> {
    let mut statement = conn.prepare_cached(READ)?;
    let mut rows =
        statement.query(params![first_id(Revision(after.0 + 1)), prefix, check::end(prefix)])?;
    let mut batches: VecDeque<Batch> = VecDeque::new();
    while let Some(row) = rows.next()? {
        let revision = revision_of(row.get(0)?);
        let change = Change { key: row.get(1)?, value: row.get(2)?, revision };
        match batches.back_mut() {
            Some(batch) if batch.revision == revision => batch.changes.push(change),
            _ => batches.push_back(Batch { revision, changes: vec![change] }),
        }
    }
    Ok(batches)
}

fn first_id(revision: Revision) -> i64 {
    (revision.0 << ORDINAL_BITS).cast_signed()
}

fn revision_of(id: i64) -> Revision {
    Revision((id >> ORDINAL_BITS).cast_unsigned())
}
