//! The database file: made whole or not at all, checked before use, never replaced. It knows the
//! schema's version and nothing of what the store does with its rows.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::{Result, StoreError};

const FILE: &str = "store.db";
const SCHEMA_VERSION: i64 = 1;
/// Only an operator's `sqlite3` can hold the database; a commit waits this long for one to let go.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The write-ahead log moves into the database every 4 MiB: the one commit in some dozen that does it
/// then takes milliseconds, and recovery after a crash reads no more than that.
const CHECKPOINT_PAGES: u32 = 256;
/// The write-ahead log shrinks back to this after a burst, so that it does not keep the disk.
const WAL_KEPT_BYTES: u64 = 16 << 20;

/// `log.id` is the revision shifted left by [`super::ORDINAL_BITS`], plus the place of the change
/// within its commit. A page of 16 KiB holds records of up to 4,086 bytes in place; with pages of
/// 4 KiB a usual record of 1 to 2 KiB takes one of its own, and reading a range twice as long.
const SCHEMA: &str = "
PRAGMA page_size = 16384;
BEGIN;
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE kv (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    create_revision INTEGER NOT NULL,
    mod_revision INTEGER NOT NULL,
    version INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE log (
    id INTEGER PRIMARY KEY,
    revision INTEGER GENERATED ALWAYS AS (id >> 12) VIRTUAL,
    key TEXT NOT NULL,
    value BLOB
);
INSERT INTO meta (name, value) VALUES ('schema_version', 1);
COMMIT;
";

/// What a call was for, when SQLite failed it.
#[derive(Debug, Clone, Copy)]
pub(super) enum During {
    Open,
    Read,
    Commit,
}

/// A database file that exists and was found sound.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
}

impl Database {
    /// Makes `dir` if need be, only for this user: the records are nobody else's.
    pub(super) fn prepare_dir(dir: &Path) -> Result<()> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|source| StoreError::Prepare { path: dir.to_owned(), source })
    }

    /// Opens the database of `dir`, or makes it, and gives the connection that writes.
    pub(super) fn open(dir: &Path) -> Result<(Self, Connection)> {
        let database = Self { path: dir.join(FILE) };
        let exists = database.path.try_exists().map_err(|source| database.unusable(source))?;
        if !exists {
            database.refuse_orphaned_log()?;
            database.create(dir)?;
        }
        let access = OpenFlags::SQLITE_OPEN_READ_WRITE;
        let writer =
            database.connect(access).map_err(|source| database.fault(During::Open, source))?;
        database.check(&writer)?;
        database.make_durable(&writer)?;
        Ok((database, writer))
    }

    /// One more connection, that can only read.
    pub(super) fn reader(&self) -> Result<Connection> {
        self.connect(OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(|source| self.fault(During::Open, source))
    }

    /// Says what a failure of SQLite means for the caller.
    pub(super) fn fault(&self, during: During, source: rusqlite::Error) -> StoreError {
        let path = self.path.clone();
        match (source.sqlite_error_code(), during) {
            (Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase), _) => {
                StoreError::Damaged { path, detail: source.to_string() }
            }
            (Some(ErrorCode::DiskFull), _) => StoreError::Full { path, source },
            (_, During::Open) => StoreError::Open { path, source },
            (_, During::Read) => StoreError::Read { path, source },
            (_, During::Commit) => StoreError::Commit { path, source },
        }
    }

    /// A write-ahead log without its database holds commits that a new database would lose.
    fn refuse_orphaned_log(&self) -> Result<()> {
        match fs::metadata(self.beside("-wal")) {
            Ok(wal) if wal.len() > 0 => {
                Err(self.damaged("the file is missing, but its write-ahead log is there"))
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(self.unusable(source)),
        }
    }

    /// Makes the file under another name first, so that whatever stands under its own name is a
    /// whole store.
    fn create(&self, dir: &Path) -> Result<()> {
        let new = self.beside(".new");
        for stale in [new.clone(), self.beside(".new-journal")] {
            match fs::remove_file(stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.unusable(error));
                }
                _ => {}
            }
        }
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
        made.map_err(|source| self.unusable(source))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let filled = Connection::open_with_flags(&new, flags).and_then(|conn| {
            conn.execute_batch(SCHEMA)?;
            conn.close().map_err(|(_, error)| error)
        });
        filled.map_err(|source| self.fault(During::Open, source))?;
        let named = fs::rename(&new, &self.path).and_then(|()| File::open(dir)?.sync_all());
        named.map_err(|source| self.unusable(source))
    }

    /// Has every commit synced before it is answered.
    fn make_durable(&self, conn: &Connection) -> Result<()> {
        let set = || {
            let mode: String = conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
            conn.pragma_update(None, "synchronous", "FULL")?;
            conn.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
            conn.pragma_update(None, "journal_size_limit", WAL_KEPT_BYTES.cast_signed())?;
            Ok(mode)
        };
        let mode = set().map_err(|source| self.fault(During::Open, source))?;
        if mode == "wal" {
            Ok(())
        } else {
            let unsupported = io::Error::new(
                io::ErrorKind::Unsupported,
                "its file system cannot carry SQLite's write-ahead log: use a local one",
            );
            Err(self.unusable(unsupported))
        }
    }

    fn connect(&self, access: OpenFlags) -> rusqlite::Result<Connection> {
        let conn =
            Connection::open_with_flags(&self.path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        conn.pragma_update(None, "cell_size_check", true)?;
        Ok(conn)
    }

    /// Refuses a file that is no sound store of a version that is known here.
    fn check(&self, conn: &Connection) -> Result<()> {
        let opened = |source| self.fault(During::Open, source);
        let verdict: String =
            conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(opened)?;
        if verdict != "ok" {
            return Err(self.damaged(&verdict));
        }
        let tables = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'meta'";
        let tables: i64 = conn.query_row(tables, [], |row| row.get(0)).map_err(opened)?;
        if tables == 0 {
            return Err(self.damaged("it is not a store of this program"));
        }
        let version = "SELECT max(value) FROM meta WHERE name = 'schema_version'";
        let version: Option<i64> = conn.query_row(version, [], |row| row.get(0)).map_err(opened)?;
        match version {
            Some(SCHEMA_VERSION) => Ok(()),
            Some(found) if found > SCHEMA_VERSION => {
                Err(StoreError::Schema { path: self.path.clone(), found, known: SCHEMA_VERSION })
            }
            _ => Err(self.damaged("it does not say its schema version")),
        }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    fn damaged(&self, detail: &str) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), detail: detail.to_owned() }
    }

    fn unusable(&self, source: io::Error) -> StoreError {
        StoreError::Prepare { path: self.path.clone(), source }
    }
}
