//! The stores of this crate, held to the contract: by the suite, and by a model that is nothing but
//! a map.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;

use super::{run, take};
use crate::memory::MemoryKv;
use crate::sqlite::SqliteKv;
use crate::{Entry, Guard, Kv, Outcome, Retention, Revision, Txn, Write};

/// Short, so that the suite soon sees its end.
const RETENTION: Retention = Retention { revisions: 1000, bytes: 64 << 20 };

#[test]
fn memory_keeps_the_contract() {
    run(&|| Arc::new(MemoryKv::new()));
    run(&|| Arc::new(MemoryKv::with_retention(RETENTION)));
}

#[test]
fn sqlite_keeps_the_contract() {
    let dirs = RefCell::new(Vec::new());
    run(&|| {
        let dir = TempDir::new().unwrap();
        let kv = SqliteKv::with_retention(dir.path(), RETENTION).unwrap();
        dirs.borrow_mut().push(dir);
        Arc::new(kv)
    });
}

/// What a store has to be: a map that counts.
#[derive(Default)]
struct Model {
    entries: BTreeMap<String, Entry>,
    revision: Revision,
}

impl Model {
    fn commit(&mut self, txn: &Txn) -> Outcome {
        let found = |guard: &Guard| self.entries.get(guard.key()).map(|entry| entry.mod_revision);
        if let Some(guard) = txn.guards.iter().find(|guard| !guard.holds(found(guard))) {
            return Outcome::Conflict { key: guard.key().to_owned() };
        }
        let next = Revision(self.revision.0 + 1);
        for write in &txn.writes {
            let old = self.entries.remove(write.key());
            match write {
                Write::Delete(_) if old.is_none() => continue,
                Write::Delete(_) => {}
                Write::Put(key, value) => {
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: old.as_ref().map_or(next, |old| old.create_revision),
                        mod_revision: next,
                        version: old.map_or(1, |old| old.version + 1),
                    };
                    self.entries.insert(key.clone(), entry);
                }
            }
            self.revision = next;
        }
        Outcome::Done(self.revision)
    }
}

/// Few and nested keys, so that operations meet.
fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "a/", "a/1", "a/2", "a0", "b", "b/1"]).prop_map(str::to_owned)
}

fn guard() -> impl Strategy<Value = Guard> {
    prop_oneof![
        key().prop_map(Guard::Absent),
        key().prop_map(Guard::Present),
        (key(), 0..30_u64).prop_map(|(key, revision)| Guard::Revision(key, Revision(revision))),
    ]
}

fn txn() -> impl Strategy<Value = Txn> {
    let value = prop::option::weighted(0.7, prop::collection::vec(any::<u8>(), 0..20));
    let writes = prop::collection::btree_map(key(), value, 0..4);
    let write = |(key, value)| match value {
        Some(value) => Write::Put(key, value),
        None => Write::Delete(key),
    };
    (prop::collection::vec(guard(), 0..2), writes).prop_map(move |(guards, writes)| Txn {
        guards,
        writes: writes.into_iter().map(write).collect(),
    })
}

/// Does the same to a store and to the model, and finds no difference: not in an answer, not in
/// what is stored, and not in what a watch from the beginning replays.
fn agree(kv: &dyn Kv, txns: &[Txn]) -> Result<(), TestCaseError> {
    let mut model = Model::default();
    let mut changes = Vec::new();
    for txn in txns {
        let before = model.revision;
        let outcome = model.commit(txn);
        prop_assert_eq!(kv.commit(txn).unwrap(), outcome);
        if model.revision > before {
            changes.push(model.revision);
        }
    }
    for prefix in ["", "a", "a/", "b", "c"] {
        let page = kv.range(prefix, None, 100).unwrap();
        let expected: Vec<_> =
            model.entries.values().filter(|entry| entry.key.starts_with(prefix)).cloned().collect();
        prop_assert_eq!((page.entries, page.revision), (expected, model.revision));
    }
    let (_, batches) = take(kv.watch("", Revision(0)).unwrap(), changes.len());
    prop_assert!(batches.iter().map(|batch| batch.revision).eq(changes));
    let mut replayed = BTreeMap::new();
    for change in batches.into_iter().flat_map(|batch| batch.changes) {
        match change.value {
            Some(value) => replayed.insert(change.key, (value, change.revision)),
            None => replayed.remove(&change.key),
        };
    }
    let stored =
        model.entries.into_iter().map(|(key, entry)| (key, (entry.value, entry.mod_revision)));
    prop_assert_eq!(replayed, stored.collect());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn memory_agrees_with_the_model(txns in prop::collection::vec(txn(), 0..30)) {
        agree(&MemoryKv::new(), &txns)?;
    }
}

proptest! {
    // Each case makes a database and syncs some dozen commits.
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn sqlite_agrees_with_the_model(txns in prop::collection::vec(txn(), 0..30)) {
        let dir = TempDir::new().unwrap();
        agree(&SqliteKv::open(dir.path()).unwrap(), &txns)?;
    }
}
