//! A store in memory, for tests and dry runs. It keeps the whole contract except that nothing
//! outlives it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::check::{self, Interval};
use crate::watch::{Hub, concerning};
use crate::{
    Batch, Change, Entry, Kv, Outcome, PAGE_BYTES_MAX, Page, Range, Result, Retention, Revision,
    Txn, Watch, Write,
};

/// A [`Kv`] that is gone when it is dropped.
#[derive(Debug, Default)]
pub struct MemoryKv {
    state: Mutex<State>,
    retention: Retention,
}

impl MemoryKv {
    /// An empty store with the usual [`Retention`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store that keeps as much of its log as `retention` says.
    #[must_use]
    pub fn with_retention(retention: Retention) -> Self {
        Self { state: Mutex::default(), retention }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kv for MemoryKv {
    fn get(&self, key: &str) -> Result<Option<Entry>> {
        check::key(key)?;
        Ok(self.lock().entries.get(key).cloned())
    }

    fn scan(&self, range: &Range) -> Result<Page> {
        let Interval { start, end } = check::interval(range)?;
        let state = self.lock();
        let mut page = Page { entries: Vec::new(), revision: state.revision, more: false };
        let mut bytes = 0;
        for entry in state.entries.range((start, Bound::Excluded(end))).map(|(_, entry)| entry) {
            if page.entries.len() == range.limit || bytes > PAGE_BYTES_MAX {
                page.more = true;
                break;
            }
            bytes += entry.value.len();
            page.entries.push(entry.clone());
        }
        Ok(page)
    }

    fn commit(&self, txn: &Txn) -> Result<Outcome> {
        check::txn(txn)?;
        let mut state = self.lock();
        for guard in &txn.guards {
            if !guard.holds(state.entries.get(guard.key()).map(|entry| entry.mod_revision)) {
                return Ok(Outcome::Conflict { key: guard.key().to_owned() });
            }
        }
        let revision = Revision(state.revision.0 + 1);
        let changes: Vec<_> =
            txn.writes.iter().filter_map(|write| state.write(write, revision)).collect();
        if changes.is_empty() {
            return Ok(Outcome::Done(state.revision));
        }
        state.revision = revision;
        let batch = Batch { revision, changes };
        state.hub.publish(&batch);
        state.append(batch, self.retention);
        Ok(Outcome::Done(revision))
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch> {
        check::prefix(prefix)?;
        let mut state = self.lock();
        check::follows(after, state.first(), state.revision)?;
        let missed = state.log.iter().filter(|batch| batch.revision > after);
        let past = missed.filter_map(|batch| concerning(batch, prefix)).collect();
        state.hub.watch(prefix, past)
    }
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<String, Entry>,
    revision: Revision,
    log: VecDeque<Batch>,
    log_bytes: u64,
    hub: Hub,
}

impl State {
    /// Applies one write and says what it changed.
    fn write(&mut self, write: &Write, revision: Revision) -> Option<Change> {
        let change = |key: &String, value| Change { key: key.clone(), value, revision };
        match write {
            Write::Delete(key) => self.entries.remove(key).map(|_| change(key, None)),
            Write::Put(key, value) => {
                let made = || Entry {
                    key: key.clone(),
                    value: vec![],
                    create_revision: revision,
                    mod_revision: revision,
                    version: 0,
                };
                let entry = self.entries.entry(key.clone()).or_insert_with(made);
                entry.value.clone_from(value);
                entry.mod_revision = revision;
                entry.version += 1;
                Some(change(key, Some(value.clone())))
            }
        }
    }

    /// Adds a commit to the log and lets go of the oldest that need not be kept.
    fn append(&mut self, batch: Batch, retention: Retention) {
        self.log_bytes += batch.bytes();
        self.log.push_back(batch);
        while retention.exceeded_by(self.log.len() as u64, self.log_bytes) {
            self.log_bytes -= self.log.pop_front().map_or(0, |batch| batch.bytes());
        }
    }

    /// The oldest revision in the log, or the one that will be.
    fn first(&self) -> Revision {
        self.log.front().map_or(Revision(self.revision.0 + 1), |batch| batch.revision)
    }
}
