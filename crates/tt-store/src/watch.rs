//! Watches: what a reader holds, and the hub that a store hands its commits to. It never blocks a
//! commit: a reader that does not keep up is let go.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use crate::{Result, Revision, StoreError};

/// How many commits a watch may lag behind before it is ended: several seconds of the fastest
/// commits seen.
pub const WATCH_QUEUE: usize = 1024;
/// Most watches at once on one store: each costs every commit a look.
pub const WATCHES_MAX: usize = 1024;

/// One commit, as far as a watch concerns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The revision of the commit.
    pub revision: Revision,
    /// The watched keys that it changed, in the order they were written; never empty.
    pub changes: Vec<Change>,
}

impl Batch {
    /// The bytes of its keys and values.
    pub(crate) fn bytes(&self) -> u64 {
        let sizes = self
            .changes
            .iter()
            .map(|change| change.key.len() + change.value.as_ref().map_or(0, Vec::len));
        sizes.sum::<usize>() as u64
    }
}

/// One key of a [`Batch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its new value, or nothing if it was deleted.
    pub value: Option<Vec<u8>>,
    /// The revision of the commit: the key's `mod_revision` if it was put.
    pub revision: Revision,
}

/// A stream of commits. Dropping it ends the watch.
///
/// When it gives nothing more, the store was closed, the reader lagged more than [`WATCH_QUEUE`]
/// commits, or a commit failed in a way that leaves open whether it happened: read everything and
/// watch again. What it gave until then is complete and in order.
#[derive(Debug)]
pub struct Watch {
    past: VecDeque<Batch>,
    live: mpsc::Receiver<Batch>,
}

impl Watch {
    /// The next commit, when there is one. Cancel-safe.
    pub async fn next(&mut self) -> Option<Batch> {
        match self.past.pop_front() {
            Some(batch) => Some(batch),
            None => self.live.recv().await,
        }
    }

    /// As [`Watch::next`], for a thread outside of any async runtime.
    ///
    /// # Panics
    /// If called within an async task.
    pub fn blocking_next(&mut self) -> Option<Batch> {
        self.past.pop_front().or_else(|| self.live.blocking_recv())
    }
}

/// The open watches of a store. The store calls it under the lock that orders its commits.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    watchers: Vec<Watcher>,
}

#[derive(Debug)]
struct Watcher {
    prefix: String,
    queue: mpsc::Sender<Batch>,
}

impl Hub {
    /// Opens a watch that first gives `past`, the commits so far that concern it, then what is
    /// published from now on.
    pub(crate) fn watch(&mut self, prefix: &str, past: VecDeque<Batch>) -> Result<Watch> {
        self.watchers.retain(|watcher| !watcher.queue.is_closed());
        if self.watchers.len() >= WATCHES_MAX {
            return Err(StoreError::Watch);
        }
        let (queue, live) = mpsc::channel(WATCH_QUEUE);
        self.watchers.push(Watcher { prefix: prefix.to_owned(), queue });
        Ok(Watch { past, live })
    }

    /// Hands a commit to every watch that it concerns, and lets go of those that are closed or
    /// full.
    pub(crate) fn publish(&mut self, batch: &Batch) {
        self.watchers.retain(|watcher| match concerning(batch, &watcher.prefix) {
            None => !watcher.queue.is_closed(),
            Some(part) => {
                watcher.queue.try_send(part).inspect_err(|error| note(watcher, error)).is_ok()
            }
        });
    }
}

/// The part of a commit that touches keys under `prefix`, if any.
pub(crate) fn concerning(batch: &Batch, prefix: &str) -> Option<Batch> {
    let changes: Vec<_> =
        batch.changes.iter().filter(|change| change.key.starts_with(prefix)).cloned().collect();
    (!changes.is_empty()).then_some(Batch { revision: batch.revision, changes })
}

fn note(watcher: &Watcher, error: &mpsc::error::TrySendError<Batch>) {
    if let mpsc::error::TrySendError::Full(batch) = error {
        tracing::warn!(
            prefix = watcher.prefix,
            revision = batch.revision.0,
            "watch ended: its reader does not keep up"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_are_bounded_and_closed_ones_do_not_count() {
        let mut hub = Hub::default();
        let mut open: Vec<_> =
            (0..WATCHES_MAX).map(|_| hub.watch("", VecDeque::new()).unwrap()).collect();
        let error = hub.watch("", VecDeque::new()).unwrap_err();
        assert!(matches!(error, StoreError::Watch) && error.is_retryable());
        open.pop();
        assert!(hub.watch("", VecDeque::new()).is_ok());
    }

    #[test]
    fn a_watch_ends_with_its_store() {
        let mut hub = Hub::default();
        let batch = Batch {
            revision: Revision(1),
            changes: vec![Change { key: "k".to_owned(), value: None, revision: Revision(1) }],
        };
        let mut watch = hub.watch("", VecDeque::new()).unwrap();
        hub.publish(&batch);
        drop(hub);
        assert_eq!(watch.blocking_next(), Some(batch));
        assert_eq!(watch.blocking_next(), None);
    }
}
