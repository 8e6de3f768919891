//! Turns a passed `end_timestamp` into the Env's chosen end, and a passed `life_time` into a
//! dropped snapshot: first in the record, then, as with every other change, on the host. Both are
//! told by one clock.

use crate::visit::COMMIT_TRIES;
use crate::{Clock, HostError, layers};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tt_model::plan::{Policy, plan_drop_expired, plan_end};
use tt_model::template::Origin;
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
        // Read once: what is due must not be too early a moment later, and then be forgotten.
        let now = self.clock.now();
        for (end, key) in self.due(now) {
            let ended = match key {
                Mortal::Env(id) => self.end(id, now).map(|()| true),
                Mortal::Snapshot(id) => self.drop_snapshots(id, now),
            };
            match ended {
                Ok(true) => self.forget(key, end),
                // It stays due: the next tick looks, or tries, again.
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(what = ?key, error = layers::chain(&error), "could not end");
                }
            }
        }
    }

    fn due(&self, now: u64) -> Vec<(u64, Mortal)> {
        self.ends().by_time.iter().take_while(|(end, _)| *end <= now).copied().collect()
    }

    /// Drops those whose time has come, but what a template is being published from. Answers whether none is left.
    fn drop_snapshots(&self, id: VmId, now: u64) -> Result<bool, HostError> {
        for _ in 0..COMMIT_TRIES {
            let Some(mut row) = self.tables.vm(id)? else { return Ok(true) };
            let held = self.published(id)?;
            let is_changed = plan_drop_expired(&mut row.value, now, |name| held.contains(name));
            let is_done = !row.value.snapshots.values().any(|snapshot| snapshot.is_expired(now));
            if !is_changed {
                return Ok(is_done);
            }
            if let Committed::Done(_) = self.tables.commit(&Change::new().vm(&row)?)? {
                tracing::info!(vm = row.value.full_name(), "lifetime of a snapshot is over");
                return Ok(is_done);
            }
        }
        Err(HostError::Contended { what: format!("vm {id}"), tries: COMMIT_TRIES })
    }

    /// The snapshots of a Vm that templates are being published from.
    fn published(&self, id: VmId) -> Result<BTreeSet<String>, HostError> {
        let origins = self.tables.templates()?.into_iter().filter_map(|row| row.value.origin);
        let snapshot = |origin| match origin {
            Origin::Snapshot { vm, snapshot, .. } if vm == id => Some(snapshot),
            Origin::Snapshot { .. } | Origin::Image { .. } => None,
        };
        Ok(origins.filter_map(snapshot).collect())
    }

    fn end(&self, id: EnvId, now: u64) -> Result<(), HostError> {
        let Some(host) = self.tables.host(self.host)? else { return Ok(()) };
        for _ in 0..COMMIT_TRIES {
            let Some(mut env) = self.tables.env(id)? else { break };
            let mut rows = self.tables.vms_of(&env.value)?;
            let mut vms: Vec<Vm> = rows.iter().map(|row| row.value.clone()).collect();
            if !plan_end(&mut env.value, &mut vms, &host.value, now, &self.policy) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use tt_model::plan::EnvPlan;
    use tt_model::sample;
    use tt_model::{AtEnd, Env, EnvState, Goal, Snapshot, SnapshotState, StorageKind, Usage};
    use tt_store::memory::MemoryKv;
    use tt_store::tables::TemplateRecord;

    /// Tells these times, in seconds, one at each look; the last one for ever.
    #[derive(Debug, Default)]
    struct Times(Mutex<Vec<u64>>);

    impl Times {
        fn tell(&self, times: &[u64]) {
            *self.0.lock().unwrap() = times.iter().rev().copied().collect();
        }
    }

    impl Clock for Times {
        fn now_ms(&self) -> u64 {
            let mut times = self.0.lock().unwrap();
            let now = times.last().copied().unwrap_or_default();
            if times.len() > 1 {
                times.pop();
            }
            now * 1000
        }
    }

    struct Rig {
        tables: Tables,
        clock: Arc<Times>,
        expirer: Expirer,
    }

    const ENV: EnvId = EnvId(1);
    const VM: VmId = VmId(2);

    impl Rig {
        /// An Env that stops at 1000, with a snapshot that ends at 900.
        fn new() -> Self {
            let tables = Tables::new(Arc::new(MemoryKv::new()));
            let mut vm = sample::vm(VM.0, "qemu", StorageKind::File);
            let mut snapshot = Snapshot::newx("brief".into(), Some(100), "meta/2/1.json".into());
            (snapshot.start_timestamp, snapshot.state) = (800, SnapshotState::Ready);
            vm.snapshots.insert("brief".into(), snapshot);
            let env = Env {
                id: ENV,
                name: "shop".into(),
                start_timestamp: 1,
                end_timestamp: 1000,
                vm_set: [VM].into(),
                state: EnvState::default(),
                at_end: AtEnd::Stop,
                request_key: "k".into(),
                is_created: true,
                is_ending: false,
                failure: None,
            };
            let change = Change::new().host(&sample::host("qemu")).unwrap();
            let plan = EnvPlan { env, vms: vec![vm], usage: Usage::default(), next_id: 3 };
            let change = change.create_env(&plan, None, None).unwrap();
            assert!(matches!(tables.commit(&change).unwrap(), Committed::Done(_)));
            let clock = Arc::new(Times::default());
            let expirer = expirer(&tables, &clock);
            Self { tables, clock, expirer }
        }

        /// Whether the snapshot is there and the Vm runs, after a tick at these times.
        fn tick(&self, times: &[u64]) -> (bool, bool) {
            self.clock.tell(times);
            self.expirer.tick();
            let vm = self.tables.vm(VM).unwrap().unwrap().value;
            (vm.snapshots.contains_key("brief"), vm.goal == Goal::Running)
        }
    }

    /// As a daemon has it that has just started.
    fn expirer(tables: &Tables, clock: &Arc<Times>) -> Expirer {
        let policy = Policy::default();
        let expirer = Expirer::new(tables.clone(), clock.clone(), policy, HostId(1));
        expirer.changed(ENV).unwrap();
        expirer.vm_changed(VM).unwrap();
        expirer
    }

    #[test]
    fn one_clock_ends_snapshots_and_envs_wherever_it_jumps() {
        let rig = Rig::new();
        assert_eq!(rig.tick(&[899]), (true, true));
        assert_eq!(rig.tick(&[10]), (true, true), "set back, it ends nothing");
        assert_eq!(rig.tick(&[901]), (false, true));
        assert_eq!(rig.tick(&[500]), (false, true));
        assert_eq!(rig.tick(&[5_000_000]), (false, false));
        let env = rig.tables.env(ENV).unwrap().unwrap().value;
        assert!(env.state.is_stopped && !env.is_ending);
        assert_eq!(rig.tables.vm(VM).unwrap().unwrap().value.goal, Goal::Suspended);
    }

    #[test]
    fn what_is_being_published_outlives_its_end_until_it_is() {
        let rig = Rig::new();
        let record = TemplateRecord {
            name: "t".into(),
            source: None,
            origin: Some(Origin::Snapshot {
                vm: VM,
                snapshot: "brief".into(),
                is_temporary: false,
                template: "micro".into(),
            }),
            memo: None,
            host: HostId(1),
            is_wanted: true,
            template: None,
            step: None,
            progress: None,
            trouble: None,
            push: None,
        };
        let change = Change::new().new_template(&record).unwrap();
        assert!(matches!(rig.tables.commit(&change).unwrap(), Committed::Done(_)));
        assert_eq!(rig.tick(&[901]), (true, true));
        assert_eq!(rig.tick(&[902]), (true, true));
        let mut row = rig.tables.template("t").unwrap().unwrap();
        row.value.origin = None;
        rig.tables.commit(&Change::new().template(&row).unwrap()).unwrap();
        assert_eq!(rig.tick(&[903]), (false, true), "nothing else tells of its end");
    }

    #[test]
    fn a_clock_that_jumps_back_meanwhile_lets_nothing_live_for_ever() {
        let rig = Rig::new();
        rig.tick(&[1000, 10, 10, 10]);
        assert_eq!(rig.tick(&[1001]), (false, false));
    }

    #[test]
    fn what_ended_while_no_daemon_ran_ends_with_the_next_one() {
        let mut rig = Rig::new();
        assert_eq!(rig.tick(&[10]), (true, true));
        rig.expirer = expirer(&rig.tables, &rig.clock);
        assert_eq!(rig.tick(&[2000]), (false, false));
    }
}
