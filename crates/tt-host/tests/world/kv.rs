//! A store on which the daemon can die before and after each commit.

use std::sync::Arc;
use tt_model::fault::{Fault, FaultHook, Moment};
use tt_store::memory::MemoryKv;
use tt_store::{Entry, Kv, Outcome, Page, Range, Result, Revision, StoreError, Txn, Watch};

pub struct DyingKv {
    pub inner: Arc<MemoryKv>,
    pub hook: FaultHook,
}

impl std::fmt::Debug for DyingKv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DyingKv")
    }
}

impl DyingKv {
    fn step(&self, moment: Moment) -> Result<()> {
        match (self.hook)(moment, "store.commit") {
            Fault::Die => Err(StoreError::Watch),
            Fault::None | Fault::Fail => Ok(()),
        }
    }
}

impl Kv for DyingKv {
    fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.inner.get(key)
    }

    fn scan(&self, range: &Range) -> Result<Page> {
        self.inner.scan(range)
    }

    fn commit(&self, txn: &Txn) -> Result<Outcome> {
        self.step(Moment::Before)?;
        let outcome = self.inner.commit(txn)?;
        self.step(Moment::After)?;
        Ok(outcome)
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch> {
        self.inner.watch(prefix, after)
    }
}
