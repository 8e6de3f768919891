//! The suite that every store runs with one line. It judges by the contract in `lib.rs` alone, and
//! knows no store.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::{Batch, Entry, Kv, Outcome, Result, Revision, Txn, Watch};

mod commits;
mod ranges;
#[cfg(test)]
mod tests;
mod watches;

/// How long a commit may take to reach a watch before the suite calls it lost.
const DEADLINE: Duration = Duration::from_secs(60);
/// How many threads the clauses about concurrency use.
const THREADS: usize = 8;

/// One sentence of the contract.
type Clause = fn(&dyn Kv) -> Result<()>;

/// Runs every clause, each on a store of its own.
///
/// `open` gives an empty store. The suite makes some thousand commits and goes on committing, up to
/// 20,000 times, until the log's beginning is forgotten; open a durable store with a short
/// [`crate::Retention`], though no shorter than 1,000 revisions.
///
/// # Panics
/// If the store breaks the contract; the message names the clause.
pub fn run(open: &dyn Fn() -> Arc<dyn Kv>) {
    for (name, clause) in [commits::CLAUSES, ranges::CLAUSES, watches::CLAUSES].concat() {
        tracing::debug!(name, "clause");
        if let Err(error) = clause(&*open()) {
            panic!("{name}: {error}");
        }
    }
}

/// Commits what has no reason to conflict.
fn done(kv: &dyn Kv, txn: &Txn) -> Result<Revision> {
    match kv.commit(txn)? {
        Outcome::Done(revision) => Ok(revision),
        Outcome::Conflict { key } => panic!("unexpected conflict at {key}"),
    }
}

fn put(kv: &dyn Kv, key: &str, value: &str) -> Result<Revision> {
    done(kv, &Txn::new().put(key, value))
}

fn now(kv: &dyn Kv) -> Result<Revision> {
    done(kv, &Txn::new())
}

fn existing(kv: &dyn Kv, key: &str) -> Result<Entry> {
    Ok(kv.get(key)?.unwrap_or_else(|| panic!("{key} is not there")))
}

fn keys(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.key.as_str()).collect()
}

/// Reads up to `count` commits, fewer only if the watch ends, and gives the watch back.
fn take(mut watch: Watch, count: usize) -> (Watch, Vec<Batch>) {
    let (answer, answered) = mpsc::channel();
    thread::spawn(move || {
        let batches = (0..count).map_while(|_| watch.blocking_next()).collect();
        // Nobody listens any more once the deadline has passed.
        let _ = answer.send((watch, batches));
    });
    answered
        .recv_timeout(DEADLINE)
        .unwrap_or_else(|_| panic!("a watch gave fewer than {count} commits in {DEADLINE:?}"))
}

/// A start within a range.
fn at(key: &str) -> Bound<String> {
    Bound::Included(key.to_owned())
}
