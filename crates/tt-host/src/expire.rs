//! Turns a passed `end_timestamp` into the Env's chosen end, and a passed `life_time` into a
//! dropped snapshot: first in the record, then, as with every other change, on the host. Both are
//! told by one clock.

use crate::visit::COMMIT_TRIES;
use crate::{Clock, HostError, layers};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tt_model::plan::{Policy, plan_drop_expired, plan_end};
use tt_model::{EnvId, HostId, Vm, VmId};
use tt_store::tables::{Change, Committed, Tables};

/// Knows when which Env or snapshot ends. A look costs the same however many there are.
#[derive(Debug)]
pub(crate) struct Expirer {
    tables: Tables,
    clock: Arc<dyn Clock>,
    policy: Policy,
    host: HostId,
    ends: Mutex<Ends>,
}

/// What has an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Mortal {
    /// An Env.
    Env(EnvId),
    /// The snapshots of a Vm: the first of them to end.
    Snapshot(VmId),
}

#[derive(Debug, Default)]
struct Ends {
    by_time: BTreeSet<(u64, Mortal)>,
    by_key: HashMap<Mortal, u64>,
}

impl Ends {
    fn set(&mut self, key: Mortal, end: Option<u64>) {
        let old = match end {
            Some(end) => self.by_key.insert(key, end),
            None => self.by_key.remove(&key),
        };
        if let Some(old) = old {
            self.by_time.remove(&(old, key));
        }
        if let Some(end) = end {
            self.by_time.insert((end, key));
        }
    }
}

impl Expirer {
    pub(crate) fn new(tables: Tables, clock: Arc<dyn Clock>, policy: Policy, host: HostId) -> Self {
        Self { tables, clock, policy, host, ends: Mutex::default() }
    }

    /// An Env was made, changed or removed.
    pub(crate) fn changed(&self, id: EnvId) -> Result<(), HostError> {
        let env = self.tables.env(id)?;
        let end = env.filter(|row| !row.value.is_ending).map(|row| row.value.end_timestamp);
        self.ends().set(Mortal::Env(id), end);
        Ok(())
    }

    /// A Vm was made, changed or removed.
    pub(crate) fn vm_changed(&self, id: VmId) -> Result<(), HostError> {
        let vm = self.tables.vm(id)?;
        let end = vm.and_then(|row| {
            row.value.snapshots.values().filter_map(tt_model::Snapshot::end_timestamp).min()
        });
        self.ends().set(Mortal::Snapshot(id), end);
        Ok(())
    }

    /// Ends everything whose time has come.
    pub(crate) fn tick(&self) {
        for (end, key) in self.due() {
            let ended = match key {
                Mortal::Env(id) => self.end(id),
                Mortal::Snapshot(id) => self.drop_snapshots(id),
            };
            match ended {
                Ok(()) => self.forget(key, end),
                // It stays due: the next tick tries again.
                Err(error) => {
                    tracing::error!(what = ?key, error = layers::chain(&error), "could not end");
                }
            }
        }
    }

    fn due(&self) -> Vec<(u64, Mortal)> {
        let now = self.clock.now();
        self.ends().by_time.iter().take_while(|(end, _)| *end <= now).copied().collect()
    }

    fn drop_snapshots(&self, id: VmId) -> Result<(), HostError> {
        for _ in 0..COMMIT_TRIES {
            let Some(mut row) = self.tables.vm(id)? else { return Ok(()) };
            if !plan_drop_expired(&mut row.value, self.clock.now()) {
                return Ok(());
            }
            if let Committed::Done(_) = self.tables.commit(&Change::new().vm(&row)?)? {
                tracing::info!(vm = row.value.full_name(), "lifetime of a snapshot is over");
                return Ok(());
            }
        }
        Err(HostError::Contended { what: format!("vm {id}"), tries: COMMIT_TRIES })
    }

    fn end(&self, id: EnvId) -> Result<(), HostError> {
        let Some(host) = self.tables.host(self.host)? else { return Ok(()) };
        for _ in 0..COMMIT_TRIES {
            let Some(mut env) = self.tables.env(id)? else { break };
            let mut rows = self.tables.vms_of(&env.value)?;
            let mut vms: Vec<Vm> = rows.iter().map(|row| row.value.clone()).collect();
            if !plan_end(&mut env.value, &mut vms, &host.value, self.clock.now(), &self.policy) {
                break;
            }
            rows.iter_mut().zip(vms).for_each(|(row, vm)| row.value = vm);
            let change = Change::new().env(&env)?.vms(&rows)?;
            if let Committed::Done(_) = self.tables.commit(&change)? {
                tracing::info!(env = env.value.name, at_end = ?env.value.at_end, "lifetime is over");
                break;
            }
        }
        Ok(())
    }

    /// What has had its end is not looked at again before its record changes; a newer end that
    /// came meanwhile stays.
    fn forget(&self, key: Mortal, end: u64) {
        let mut ends = self.ends();
        if ends.by_key.get(&key) == Some(&end) {
            ends.by_key.remove(&key);
        }
        ends.by_time.remove(&(end, key));
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
