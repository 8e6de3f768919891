//! Merges layers of disks that nothing names any more, one after the other. No visit waits for it: it holds a Vm up only
//! while it begins and ends, never while it copies.

use crate::visit::COMMIT_TRIES;
use crate::{HostError, Next, Queue, Visitor, failpoint, layers};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tt_model::plan::{needs_merge, plan_merge, plan_merged, plan_unmerged};
use tt_model::{HostId, Merge, Vm, VmId};
use tt_storage::{Merging, StorageError};
use tt_store::tables::{Change, Committed, Tables};

/// Why layers of which Vms could not be merged, the last time it was tried.
#[derive(Debug, Default)]
pub struct Unmerged(Mutex<BTreeMap<VmId, String>>);

impl Unmerged {
    /// All of them, one sentence each.
    pub fn all(&self) -> BTreeMap<VmId, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, id: VmId, why: Option<String>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => drop(all.insert(id, why)),
            None => drop(all.remove(&id)),
        }
    }
}

/// Makes the merges of one host.
#[derive(Debug)]
pub struct LayerMerger {
    tables: Tables,
    visitor: Arc<Visitor>,
    host: HostId,
    /// The queue of visits: a Vm is not visited while a merge of it begins or ends.
    vms: Arc<Queue<VmId>>,
    unmerged: Arc<Unmerged>,
    is_stopping: Arc<AtomicBool>,
}

/// Keeps a Vm from being visited until it is dropped.
struct Claim<'a> {
    vms: &'a Queue<VmId>,
    id: VmId,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.vms.free(&[self.id]);
    }
}

impl LayerMerger {
    /// See the fields' types. Once `is_stopping` is set, what is under way is given up.
    pub fn new(
        tables: Tables,
        visitor: Arc<Visitor>,
        host: HostId,
        vms: Arc<Queue<VmId>>,
        unmerged: Arc<Unmerged>,
        is_stopping: Arc<AtomicBool>,
    ) -> Self {
        Self { tables, visitor, host, vms, unmerged, is_stopping }
    }

    /// Works until the queue is closed.
    pub(crate) fn run(&self, ids: &Queue<VmId>) {
        while let Some(id) = ids.take() {
            match self.visit(id) {
                Next::Never => ids.done(&id, None),
                Next::Settled(delay) => ids.done(&id, Some(delay)),
                Next::Wait(delay) => ids.wait(&id, delay),
                Next::BackOff => ids.failed(&id),
            }
        }
    }

    /// Makes one merge of a Vm, if there is one to be made.
    pub fn visit(&self, id: VmId) -> Next {
        match self.try_visit(id) {
            Ok(next) => {
                self.unmerged.set(id, None);
                next
            }
            Err(HostError::Merge { source: StorageError::Died { .. }, .. }) => Next::Never,
            Err(error) => {
                let why = layers::chain(&error);
                tracing::warn!(vm = %id, error = why, "no layers merged");
                self.unmerged.set(id, Some(why));
                Next::BackOff
            }
        }
    }

    fn try_visit(&self, id: VmId) -> Result<Next, HostError> {
        let Some(merge) = self.plan(id)? else { return Ok(Next::Never) };
        let made = self.make(id, merge);
        if let Err(HostError::Merge { source, .. }) = &made
            && !matches!(source, StorageError::Died { .. })
        {
            self.give_up(id, merge)?;
        }
        if made? {
            tracing::info!(vm = %id, top = merge.top, bottom = merge.bottom, "layers merged");
            return Ok(Next::Settled(Duration::ZERO));
        }
        // Its record says something else by now, which has caused a visit.
        Ok(Next::Never)
    }

    /// Plans the next merge unless one is planned.
    fn plan(&self, id: VmId) -> Result<Option<Merge>, HostError> {
        let Some(_claim) = self.claim(id) else { return Ok(None) };
        for _ in 0..COMMIT_TRIES {
            let row = self.tables.vm(id)?.filter(|row| row.value.host == self.host);
            let Some(mut row) = row.filter(|row| needs_merge(&row.value)) else { return Ok(None) };
            let storage = match self.visitor.storage(&row.value) {
                Ok(storage) => storage,
                // The visits say so.
                Err(_) => return Ok(None),
            };
            let is_news = row.value.merge.is_none();
            let taken_mb = storage.taken_mb(&row.value).map_err(|e| failed(id, e))?;
            if !plan_merge(&mut row.value, &taken_mb) {
                return Ok(None);
            }
            let committed = is_news.then(|| self.tables.commit(&Change::new().vm(&row)?));
            match (committed.transpose()?, row.value.merge) {
                (None | Some(Committed::Done(_)), merge) => return Ok(merge),
                (Some(Committed::Conflict), _) => {}
            }
        }
        Err(contended(id))
    }

    /// Makes a merge that is planned; false if it is not wanted any more.
    fn make(&self, id: VmId, merge: Merge) -> Result<bool, HostError> {
        let Some(mut merging) = self.begin(id, merge)? else { return Ok(false) };
        failpoint::reached("merge", "copy", "before");
        let copied = merging.copy(&|| self.goes_on(id, merge)).map_err(|e| failed(id, e))?;
        failpoint::reached("merge", "copy", "after");
        Ok(copied && self.finish(id, merge, merging)?)
    }

    fn begin(&self, id: VmId, merge: Merge) -> Result<Option<Box<dyn Merging>>, HostError> {
        let Some(_claim) = self.claim(id) else { return Ok(None) };
        let row = self.tables.vm(id)?.filter(|row| wants(&row.value, merge));
        let Some(vm) = row.map(|row| row.value) else { return Ok(None) };
        let Ok(storage) = self.visitor.storage(&vm) else { return Ok(None) };
        storage.begin_merge(&vm).map(Some).map_err(|e| failed(id, e))
    }

    /// Takes back a merge that could not be made: another one may be smaller by the next try.
    fn give_up(&self, id: VmId, merge: Merge) -> Result<(), HostError> {
        for _ in 0..COMMIT_TRIES {
            let Some(mut row) = self.tables.vm(id)? else { return Ok(()) };
            if !plan_unmerged(&mut row.value, merge) {
                return Ok(());
            }
            if let Committed::Done(_) = self.tables.commit(&Change::new().vm(&row)?)? {
                return Ok(());
            }
        }
        Err(contended(id))
    }

    /// Lets a merge that is copied take its place; false if it is not wanted any more.
    fn finish(&self, id: VmId, merge: Merge, merging: Box<dyn Merging>) -> Result<bool, HostError> {
        let Some(_claim) = self.claim(id) else { return Ok(false) };
        if !self.goes_on(id, merge) {
            return Ok(false);
        }
        merging.finish().map_err(|e| failed(id, e))?;
        failpoint::reached("merge", "finish", "after");
        for _ in 0..COMMIT_TRIES {
            let Some(mut row) = self.tables.vm(id)?.filter(|row| wants(&row.value, merge)) else {
                return Ok(false);
            };
            plan_merged(&mut row.value);
            if let Committed::Done(_) = self.tables.commit(&Change::new().vm(&row)?)? {
                return Ok(true);
            }
        }
        Err(contended(id))
    }

    /// Waits for whoever visits a Vm; `None` when the host is stopping.
    fn claim(&self, id: VmId) -> Option<Claim<'_>> {
        let claimed = self.vms.claim(&[id]);
        claimed.then_some(Claim { vms: &self.vms, id })
    }

    fn goes_on(&self, id: VmId, merge: Merge) -> bool {
        let is_wanted =
            || self.tables.vm(id).ok().flatten().is_some_and(|row| wants(&row.value, merge));
        !self.is_stopping.load(Ordering::Relaxed) && is_wanted()
    }
}

fn wants(vm: &Vm, merge: Merge) -> bool {
    needs_merge(vm) && vm.merge == Some(merge)
}

fn contended(id: VmId) -> HostError {
    HostError::Contended { what: format!("vm {id}"), tries: COMMIT_TRIES }
}

fn failed(id: VmId, source: StorageError) -> HostError {
    HostError::Merge { id, source }
}
