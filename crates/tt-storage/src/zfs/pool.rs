//! What of TT is in a pool: data sets and snapshots by name, found by looking. It knows nothing of directories, and touches
//! nothing outside of `POOL/tt/INSTANCE`.

use super::command::{Refused, Zfs};
use super::form::Form;
use super::state::{FIRST, State, Step, disk_set};
use crate::layers::parse_id;
use crate::{Space, StorageError};
use std::collections::BTreeSet;
use tt_model::{Instance, VmId};

/// More steps than any Vm's data sets and snapshots need: who waits for an end that never comes is told.
const STEPS_MAX: usize = 4096;

/// The data sets of one daemon.
#[derive(Debug)]
pub(super) struct Pool {
    /// The data set that TT's lie below.
    name: String,
    /// The one that holds all of this daemon.
    root: String,
}

impl Pool {
    pub(super) fn new(name: &str, instance: Instance) -> Self {
        Self { name: name.to_owned(), root: format!("{name}/tt/{instance}") }
    }

    /// What the data sets of all Vms lie below.
    fn vms_set(&self) -> String {
        format!("{}/v", self.root)
    }

    /// The data set of all disks of a Vm but the first.
    pub(super) fn vm_set(&self, id: VmId) -> String {
        format!("{}/v/{id}", self.root)
    }

    /// The data set of a disk.
    pub(super) fn disk_set(&self, id: VmId, epoch: u32) -> String {
        disk_set(&self.vms_set(), id, epoch)
    }

    /// The data set by which a snapshot is read. It lies among those of Vms, which let it own what it was made from when they go.
    pub(super) fn reader_set(&self, name: &str) -> String {
        format!("{}/{name}", self.vms_set())
    }

    /// The data set, or the volume, of a template's disk.
    pub(super) fn template_set(&self, form: Form, digest: &str) -> String {
        let ending = if form == Form::Volume { form.ending() } else { "" };
        format!("{}/t/{digest}{ending}", self.root)
    }

    /// Whether the pool is there: what is absent in it is absent then, and not only out of reach.
    pub(super) fn check(&self) -> Result<(), StorageError> {
        match Zfs::look(&self.name).run() {
            Ok(_) => Ok(()),
            Err(Refused::Absent) => Err(StorageError::Pool {
                problem: format!("{} is not there: import it (`zpool import`)", self.name),
            }),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Makes what all data sets lie below. None of these is mounted where the pool's own place would have it: the data
    /// directory may lie there.
    pub(super) fn prepare(&self) -> Result<(), Refused> {
        let root = &self.root;
        for set in [format!("{}/tt", self.name), root.clone(), format!("{root}/t"), self.vms_set()]
        {
            match Zfs::create(&set, None).run() {
                Ok(_) | Err(Refused::Exists) => {}
                Err(refused) => return Err(refused),
            }
        }
        Ok(())
    }

    /// What a Vm has.
    pub(super) fn state(&self, id: VmId) -> Result<State, StorageError> {
        let mut printed = String::new();
        for set in [self.disk_set(id, 0), self.vm_set(id)] {
            match Zfs::list(&set).run() {
                Ok(more) => printed.push_str(&more),
                Err(Refused::Absent) => {}
                Err(refused) => return Err(refused.into()),
            }
        }
        if printed.is_empty() {
            self.check()?;
        }
        Ok(State::parse(&self.vms_set(), id, &printed))
    }

    /// Removes a data set with all below it, or a snapshot. One that is not there is fine.
    pub(super) fn destroy(&self, name: &str) -> Result<(), StorageError> {
        match Zfs::destroy(name).run() {
            Ok(_) => Ok(()),
            Err(Refused::Absent) => self.check(),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Removes all disks of a Vm but those in `stay`, and what these can not be without.
    pub(super) fn drop_others(&self, id: VmId, stay: &BTreeSet<u32>) -> Result<(), StorageError> {
        let (set, vms) = (self.vm_set(id), self.vms_set());
        let mut pinned = BTreeSet::new();
        for _ in 0..STEPS_MAX {
            let Some(step) = self.state(id)?.next_step(&vms, id, stay, &pinned) else {
                return Ok(());
            };
            match step {
                Step::DropSnapshot(epoch, name) => {
                    let snapshot = format!("{}@{name}", self.disk_set(id, epoch));
                    match self.destroy(&snapshot) {
                        Err(StorageError::HasClones) => drop(pinned.insert(name)),
                        dropped => dropped?,
                    }
                }
                Step::DropSet(epoch) => self.destroy(&self.disk_set(id, epoch))?,
                Step::Promote(epoch) => drop(Zfs::promote(&self.disk_set(id, epoch)).run()?),
            }
        }
        Err(StorageError::Pool { problem: format!("{set} does not come to rest") })
    }

    /// Removes all that a Vm has. What was made from it for other Vms goes on.
    pub(super) fn drop_all(&self, id: VmId) -> Result<(), StorageError> {
        if self.drop_sets(id)? {
            return Ok(());
        }
        // They hold each other, or are held by other Vms' disks.
        self.drop_others(id, &BTreeSet::new())?;
        self.part(id)?;
        self.drop_others(id, &BTreeSet::new())?;
        if self.drop_sets(id)? { Ok(()) } else { Err(StorageError::HasClones) }
    }

    /// Removes a Vm's data sets as they are. Answers whether nothing holds them.
    fn drop_sets(&self, id: VmId) -> Result<bool, StorageError> {
        let (mut is_free, mut is_absent) = (true, true);
        for set in [self.vm_set(id), self.disk_set(id, 0)] {
            match Zfs::destroy(&set).run() {
                Ok(_) => is_absent = false,
                Err(Refused::Absent) => {}
                Err(Refused::HasClones) => (is_free, is_absent) = (false, false),
                Err(refused) => return Err(refused.into()),
            }
        }
        if is_absent {
            self.check()?;
        }
        Ok(is_free)
    }

    /// Removes the data set of a reader. What it owns by now, and others were made from, goes to them.
    pub(super) fn drop_reader(&self, set: &str) -> Result<(), StorageError> {
        let snapshots = format!("{set}@");
        for _ in 0..STEPS_MAX {
            match self.destroy(set) {
                Err(StorageError::HasClones) => {}
                dropped => return dropped,
            }
            let printed = Zfs::list(&self.vms_set()).run()?;
            let mut pairs = printed.lines().filter_map(|line| line.split_once('\t'));
            let clone = pairs.rfind(|(_, origin)| origin.starts_with(&snapshots));
            let (clone, _) = clone.ok_or(StorageError::HasClones)?;
            Zfs::promote(clone).run()?;
        }
        Err(StorageError::Pool { problem: format!("{set} does not come to rest") })
    }

    /// Lets the disks of other Vms, and readers, which were made from that one's, own what they were made from.
    fn part(&self, id: VmId) -> Result<(), StorageError> {
        let first = self.disk_set(id, 0);
        let others = format!("{}/", self.vm_set(id));
        let is_own = |name: &str| {
            name.starts_with(&others) || name.split('@').next() == Some(first.as_str())
        };
        for _ in 0..STEPS_MAX {
            let printed = Zfs::list(&self.vms_set()).run()?;
            let mut pairs = printed.lines().filter_map(|line| line.split_once('\t'));
            let is_clone = |(name, origin): &(&str, &str)| is_own(origin) && !is_own(name);
            let Some((clone, _)) = pairs.rfind(is_clone) else { return Ok(()) };
            Zfs::promote(clone).run()?;
        }
        Err(StorageError::Pool { problem: format!("{first} does not come to rest") })
    }

    /// The Vms that have something.
    pub(super) fn vms(&self) -> Vec<VmId> {
        let all = self.vms_set();
        match Zfs::children(&all).run() {
            Ok(printed) => {
                let id = |name: &str| {
                    let name = name.strip_prefix(&all)?.strip_prefix('/')?;
                    parse_id(name.strip_suffix(FIRST).unwrap_or(name))
                };
                printed.lines().filter_map(id).collect()
            }
            // Nothing was made yet, or the pool is away: directories tell what there may be.
            Err(Refused::Absent) => Vec::new(),
            Err(refused) => {
                let error = StorageError::from(refused);
                tracing::warn!(root = self.root, %error, "the pool could not be looked at");
                Vec::new()
            }
        }
    }

    /// Room in the pool, as far as it is this daemon's.
    pub(super) fn space(&self) -> Result<Space, StorageError> {
        let printed = match Zfs::room(&self.root).run() {
            Err(Refused::Absent) => {
                self.check()?;
                Zfs::room(&self.name).run()
            }
            printed => printed,
        }?;
        let mut bytes = printed.split_whitespace().map(|word| word.parse::<u64>().unwrap_or(0));
        let (used, free) = (bytes.next().unwrap_or(0), bytes.next().unwrap_or(0));
        Ok(Space { total_mb: used.saturating_add(free) >> 20, free_mb: free >> 20 })
    }
}

impl From<Refused> for StorageError {
    fn from(refused: Refused) -> Self {
        let problem = match refused {
            Refused::HasClones => return Self::HasClones,
            Refused::Absent => "a data set is not there".into(),
            Refused::Exists => "a data set of that name is there already".into(),
            Refused::Full => "it is full".into(),
            Refused::Busy(problem) => return Self::Held { problem },
            Refused::Said(said) => said,
        };
        Self::Pool { problem }
    }
}
