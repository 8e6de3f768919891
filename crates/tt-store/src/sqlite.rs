//! The embedded store: one SQLite database in a directory of its own. A commit is on the disk
//! before it is answered.
//!
//! One connection writes, under a lock that also orders what watches see; a few others read beside
//! it. It never repairs or replaces a database by itself.

use std::fmt;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

mod database;
mod lock;
mod log;
mod readers;
#[cfg(test)]
mod tests;

use crate::check::{self, Interval};
use crate::watch::Hub;
use crate::{
    Batch, Change, Entry, Guard, Kv, Outcome, PAGE_BYTES_MAX, Page, Range, Result, Retention,
    Revision, Txn, Watch, Write,
};
use database::{Database, During};
use lock::DirLock;
pub use lock::lock_exclusive;
use log::Log;
use readers::{READERS, Readers};

/// The low bits of a log row's id: the place of a change within its commit, below
/// [`crate::TXN_OPS_MAX`].
const ORDINAL_BITS: u32 = 12;

const GET: &str =
    "SELECT key, value, create_revision, mod_revision, version FROM kv WHERE key = ?1";
const SCAN_AT: &str = "SELECT key, value, create_revision, mod_revision, version FROM kv \
                       WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT ?3";
const SCAN_AFTER: &str = "SELECT key, value, create_revision, mod_revision, version FROM kv \
                          WHERE key > ?1 AND key < ?2 ORDER BY key LIMIT ?3";
const LOOK: &str = "SELECT mod_revision FROM kv WHERE key = ?1";
const PUT: &str = "INSERT INTO kv (key, value, create_revision, mod_revision, version) VALUES (?1, ?2, ?3, ?3, 1) \
                   ON CONFLICT (key) DO UPDATE SET value = excluded.value, mod_revision = excluded.mod_revision, \
                   version = version + 1";
const DELETE: &str = "DELETE FROM kv WHERE key = ?1";

/// A [`Kv`] that outlives its process, in a directory that it alone uses.
pub struct SqliteKv {
    // Dropped first: the writer, as the last to close, then tidies up the write-ahead log.
    readers: Readers,
    writer: Mutex<Writer>,
    database: Database,
    retention: Retention,
    _lock: DirLock,
}

impl fmt::Debug for SqliteKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteKv").field("database", &self.database).finish_non_exhaustive()
    }
}

impl SqliteKv {
    /// Opens the store in `dir`, which is made if need be, with the usual [`Retention`].
    ///
    /// # Errors
    /// [`StoreError::Lock`](crate::StoreError::Lock) if another store has the directory,
    /// [`Damaged`](crate::StoreError::Damaged) and [`Schema`](crate::StoreError::Schema) if its
    /// database must not be used, a directory or file that cannot be used. What was there stays as
    /// it was.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::with_retention(dir, Retention::default())
    }

    /// As [`SqliteKv::open`], keeping as much of the log as `retention` says.
    ///
    /// # Errors
    /// As [`SqliteKv::open`].
    pub fn with_retention(dir: &Path, retention: Retention) -> Result<Self> {
        Database::prepare_dir(dir)?;
        let lock = DirLock::take(dir)?;
        let (database, conn) = Database::open(dir)?;
        let log = Log::load(&conn).map_err(|source| database.fault(During::Open, source))?;
        let readers = (0..READERS).map(|_| database.reader()).collect::<Result<_>>()?;
        tracing::debug!(dir = %dir.display(), revision = log.current.0, "store opened");
        let writer = Writer { conn, log: Some(log), hub: Hub::default() };
        Ok(Self {
            readers: Readers::new(readers),
            writer: Mutex::new(writer),
            database,
            retention,
            _lock: lock,
        })
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kv for SqliteKv {
    fn get(&self, key: &str) -> Result<Option<Entry>> {
        check::key(key)?;
        let found =
            self.readers.with(|conn| conn.prepare_cached(GET)?.query_row([key], entry).optional());
        found.map_err(|source| self.database.fault(During::Read, source))
    }

    fn scan(&self, range: &Range) -> Result<Page> {
        let interval = check::interval(range)?;
        let page = self.readers.with(|conn| read_page(conn, &interval, range.limit));
        page.map_err(|source| self.database.fault(During::Read, source))
    }

    fn commit(&self, txn: &Txn) -> Result<Outcome> {
        check::txn(txn)?;
        let outcome = self.writer().commit(txn, self.retention);
        outcome.map_err(|source| self.database.fault(During::Commit, source))
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch> {
        check::prefix(prefix)?;
        let fault = |source| self.database.fault(During::Read, source);
        let mut writer = self.writer();
        let log = writer.log().map_err(fault)?;
        check::follows(after, log.first, log.current)?;
        let past = log::read(&writer.conn, prefix, after).map_err(fault)?;
        writer.hub.watch(prefix, past)
    }
}

/// What only the holder of the lock may touch.
struct Writer {
    conn: Connection,
    /// Unknown after a commit whose end is unknown.
    log: Option<Log>,
    hub: Hub,
}

impl Writer {
    fn log(&mut self) -> rusqlite::Result<Log> {
        if let Some(log) = self.log {
            return Ok(log);
        }
        let log = Log::load(&self.conn)?;
        self.log = Some(log);
        Ok(log)
    }

    fn commit(&mut self, txn: &Txn, retention: Retention) -> rusqlite::Result<Outcome> {
        let log = self.log()?;
        let sql = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let Some(guard) = first_broken(&sql, &txn.guards)? {
            return Ok(Outcome::Conflict { key: guard.key().to_owned() });
        }
        let revision = Revision(log.current.0 + 1);
        let changes = write_all(&sql, &txn.writes, revision)?;
        if changes.is_empty() {
            return Ok(Outcome::Done(log.current));
        }
        let batch = Batch { revision, changes };
        let log = log.append(&sql, &batch)?.compact(&sql, retention)?;
        if let Err(error) = sql.commit() {
            // It may have reached the disk unseen by the watches, so they have to begin anew.
            self.log = None;
            self.hub = Hub::default();
            return Err(error);
        }
        self.log = Some(log);
        self.hub.publish(&batch);
        Ok(Outcome::Done(revision))
    }
}

fn first_broken<'a>(
    sql: &Transaction<'_>,
    guards: &'a [Guard],
) -> rusqlite::Result<Option<&'a Guard>> {
    let mut look = sql.prepare_cached(LOOK)?;
    for guard in guards {
        let found = look.query_row([guard.key()], |row| revision(row, 0)).optional()?;
        if !guard.holds(found) {
            return Ok(Some(guard));
        }
    }
    Ok(None)
}

fn write_all(
    sql: &Transaction<'_>,
    writes: &[Write],
    revision: Revision,
) -> rusqlite::Result<Vec<Change>> {
    let mut changes = Vec::with_capacity(writes.len());
    for write in writes {
        let rows = match write {
            Write::Put(key, value) => {
                sql.prepare_cached(PUT)?.execute(params![key, value, revision.0.cast_signed()])?
            }
            Write::Delete(key) => sql.prepare_cached(DELETE)?.execute([key])?,
        };
        let value = match write {
            Write::Put(_, value) => Some(value.clone()),
            Write::Delete(_) => None,
        };
        if rows > 0 {
            changes.push(Change { key: write.key().to_owned(), value, revision });
        }
    }
    Ok(changes)
}

fn read_page(conn: &mut Connection, interval: &Interval, limit: usize) -> rusqlite::Result<Page> {
    // One snapshot for the entries and the revision that they are said to be of.
    let snapshot = conn.transaction()?;
    let mut page = Page { entries: Vec::new(), revision: log::current(&snapshot)?, more: false };
    let (text, start) = match &interval.start {
        Bound::Included(start) => (SCAN_AT, start.as_str()),
        Bound::Excluded(start) => (SCAN_AFTER, start.as_str()),
        Bound::Unbounded => (SCAN_AT, ""),
    };
    let mut statement = snapshot.prepare_cached(text)?;
    // One more than asked for, to see whether the range goes on.
    let mut rows =
        statement.query(params![start, interval.end, (limit as u64 + 1).cast_signed()])?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        if page.entries.len() == limit || bytes > PAGE_BYTES_MAX {
            page.more = true;
            break;
        }
        let entry = entry(row)?;
        bytes += entry.value.len();
        page.entries.push(entry);
    }
    Ok(page)
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        key: row.get(0)?,
        value: row.get(1)?,
        create_revision: revision(row, 2)?,
        mod_revision: revision(row, 3)?,
        version: row.get::<_, i64>(4)?.cast_unsigned(),
    })
}

fn revision(row: &Row<'_>, column: usize) -> rusqlite::Result<Revision> {
    Ok(Revision(row.get::<_, i64>(column)?.cast_unsigned()))
}
