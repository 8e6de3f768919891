//! Turns a passed `end_timestamp` into the Env's chosen end: first in the record, then, as with
//! every other change, on the host.

use crate::visit::COMMIT_TRIES;
use crate::{Clock, HostError, layers};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use tt_model::plan::{Policy, plan_end};
use tt_model::{EnvId, Vm};
use tt_store::tables::{Change, Committed, Tables};

/// Knows when which Env ends. A look costs the same however many Envs there are.
#[derive(Debug)]
pub(crate) struct Expirer {
    tables: Tables,
    clock: Arc<dyn Clock>,
    policy: Policy,
    ends: Mutex<Ends>,
}

#[derive(Debug, Default)]
struct Ends {
    by_time: BTreeSet<(u64, EnvId)>,
    by_env: HashMap<EnvId, u64>,
}

impl Expirer {
    pub(crate) fn new(tables: Tables, clock: Arc<dyn Clock>, policy: Policy) -> Self {
        Self { tables, clock, policy, ends: Mutex::default() }
    }

    /// An Env was made, changed or removed.
    pub(crate) fn changed(&self, id: EnvId) -> Result<(), HostError> {
        let env = self.tables.env(id)?;
        let end = env.filter(|row| !row.value.is_ending).map(|row| row.value.end_timestamp);
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let old = match end {
            Some(end) => ends.by_env.insert(id, end),
            None => ends.by_env.remove(&id),
        };
        if let Some(old) = old {
            ends.by_time.remove(&(old, id));
        }
        if let Some(end) = end {
            ends.by_time.insert((end, id));
        }
        Ok(())
    }

    /// Ends every Env whose time has come.
    pub(crate) fn tick(&self) {
        for (end, id) in self.due() {
            if let Err(error) = self.end(id, end) {
                // It stays due: the next tick tries again.
                tracing::error!(env = %id, error = layers::chain(&error), "could not end");
            }
        }
    }

    fn due(&self) -> Vec<(u64, EnvId)> {
        let now = self.clock.now();
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.by_time.iter().take_while(|(end, _)| *end <= now).copied().collect()
    }

    fn end(&self, id: EnvId, end: u64) -> Result<(), HostError> {
        for _ in 0..COMMIT_TRIES {
            let Some(mut env) = self.tables.env(id)? else { break };
            let mut rows = self.tables.vms_of(&env.value)?;
            let mut vms: Vec<Vm> = rows.iter().map(|row| row.value.clone()).collect();
            if !plan_end(&mut env.value, &mut vms, self.clock.now(), &self.policy) {
                break;
            }
            rows.iter_mut().zip(vms).for_each(|(row, vm)| row.value = vm);
            let change = Change::new().env(&env)?.vms(&rows)?;
            if let Committed::Done(_) = self.tables.commit(&change)? {
                tracing::info!(env = env.value.name, at_end = ?env.value.at_end, "lifetime is over");
                break;
            }
        }
        self.forget(id, end);
        Ok(())
    }

    /// An Env that has had its end is not looked at again before its record changes; a newer end
    /// that came meanwhile stays.
    fn forget(&self, id: EnvId, end: u64) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if ends.by_env.get(&id) == Some(&end) {
            ends.by_env.remove(&id);
        }
        ends.by_time.remove(&(end, id));
    }
}
