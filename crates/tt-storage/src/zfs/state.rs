//! The data sets and snapshots of one Vm, and what is to be done so that only wanted ones are left. It runs nothing.

use std::collections::{BTreeMap, BTreeSet};
use tt_model::VmId;

/// Behind a Vm's id in the name of its first disk's data set.
pub(super) const FIRST: &str = ".0";

/// What a Vm has in the pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Its data sets, by epoch, with the full names of the snapshots that they were made from.
    pub(super) sets: BTreeMap<u32, String>,
    /// Its snapshots, older ones of each data set first: the epoch of the data set, and the name behind the `@`.
    pub(super) snapshots: Vec<(u32, String)>,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Remove a snapshot.
    DropSnapshot(u32, String),
    /// Remove a data set that has no snapshot.
    DropSet(u32),
    /// Let a data set own the snapshot that it was made from: then the one that had it can go.
    Promote(u32),
}

impl State {
    /// Reads what `zfs list` printed of data sets below `vms`: those of one Vm.
    pub(super) fn parse(vms: &str, id: VmId, printed: &str) -> Self {
        let mut state = Self::default();
        for line in printed.lines() {
            let Some((name, origin)) = line.split_once('\t') else { continue };
            let (set, snapshot) = match name.split_once('@') {
                Some((set, snapshot)) => (set, Some(snapshot)),
                None => (name, None),
            };
            // Others are somebody else's; they go with the Vm.
            let Some(epoch) = epoch_of(vms, id, set) else { continue };
            match snapshot {
                Some(snapshot) => state.snapshots.push((epoch, snapshot.to_owned())),
                None => drop(state.sets.insert(epoch, origin.to_owned())),
            }
        }
        state
    }

    /// The data set that has a snapshot of that name.
    pub(super) fn holder(&self, snapshot: &str) -> Option<u32> {
        self.snapshots.iter().find(|(_, name)| name == snapshot).map(|(epoch, _)| *epoch)
    }

    /// What is to be done next so that of the Vm, whose data sets lie below `vms`, only the disks in `stay` are left, and what they
    /// can not be without. `pinned`: snapshots that something elsewhere was made from.
    pub(super) fn next_step(
        &self,
        vms: &str,
        id: VmId,
        stay: &BTreeSet<u32>,
        pinned: &BTreeSet<String>,
    ) -> Option<Step> {
        let wanted: BTreeSet<String> = stay.iter().map(|epoch| snapshot_name(id, *epoch)).collect();
        let clone_of = |epoch: u32, snapshot: &str| {
            let full = format!("{}@{snapshot}", disk_set(vms, id, epoch));
            self.sets.iter().find(|(_, origin)| **origin == full).map(|(epoch, _)| *epoch)
        };
        for (epoch, name) in &self.snapshots {
            if !wanted.contains(name) && !pinned.contains(name) && clone_of(*epoch, name).is_none()
            {
                return Some(Step::DropSnapshot(*epoch, name.clone()));
            }
        }
        for epoch in self.sets.keys().filter(|epoch| !stay.contains(epoch)) {
            let latest = self.snapshots.iter().rfind(|(of, _)| of == epoch);
            let Some((_, latest)) = latest else { return Some(Step::DropSet(*epoch)) };
            if let Some(clone) = clone_of(*epoch, latest) {
                return Some(Step::Promote(clone));
            }
        }
        None
    }
}

/// The data set of a disk, below the one of all Vms. The first disk, which most Vms never leave, needs none above it: to make
/// one more takes as long again.
pub(super) fn disk_set(vms: &str, id: VmId, epoch: u32) -> String {
    match epoch {
        0 => format!("{vms}/{id}{FIRST}"),
        epoch => format!("{vms}/{id}/{epoch}"),
    }
}

fn epoch_of(vms: &str, id: VmId, set: &str) -> Option<u32> {
    let epoch = set.rsplit_once('/').and_then(|(_, last)| last.parse().ok()).unwrap_or(0);
    (disk_set(vms, id, epoch) == set).then_some(epoch)
}

/// What the snapshot is called that is the disk `epoch` of a Vm, or that this disk was made from: no other Vm's has the same
/// name, for snapshots go from one data set to another.
pub(super) fn snapshot_name(id: VmId, epoch: u32) -> String {
    format!("{id}-{epoch}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const VMS: &str = "p/tt/0007/v";

    fn state(lines: &[&str]) -> State {
        let printed = lines.join("\n").replace("ROOT/0", "VMS/7.0").replace("ROOT", "VMS/7");
        State::parse(VMS, VmId(7), &printed.replace("VMS", VMS))
    }

    /// The steps, done on paper.
    fn steps(mut state: State, stay: &[u32], pinned: &[&str]) -> (State, Vec<Step>) {
        let (stay, pinned) =
            (stay.iter().copied().collect(), pinned.iter().map(|p| (*p).to_owned()).collect());
        let mut steps = Vec::new();
        while let Some(step) = state.next_step(VMS, VmId(7), &stay, &pinned) {
            assert!(steps.len() < 20, "{steps:?}");
            match &step {
                Step::DropSnapshot(epoch, name) => {
                    state.snapshots.retain(|s| *s != (*epoch, name.clone()))
                }
                Step::DropSet(epoch) => drop(state.sets.remove(epoch)),
                Step::Promote(clone) => promote(&mut state, *clone),
            }
            steps.push(step);
        }
        (state, steps)
    }

    fn promote(state: &mut State, clone: u32) {
        let (from, name) = state.sets[&clone].rsplit_once('@').unwrap();
        let (from, name) = (epoch_of(VMS, VmId(7), from).unwrap(), name.to_owned());
        let until = state.snapshots.iter().position(|s| *s == (from, name.clone())).unwrap();
        for (number, (epoch, moved)) in state.snapshots.iter_mut().enumerate() {
            if number <= until && *epoch == from {
                *epoch = clone;
                for origin in state.sets.values_mut() {
                    if *origin == format!("{}@{moved}", disk_set(VMS, VmId(7), from)) {
                        *origin = format!("{}@{moved}", disk_set(VMS, VmId(7), clone));
                    }
                }
            }
        }
        let old = state.sets.insert(clone, state.sets[&from].clone());
        assert!(old.is_some());
        state.sets.insert(from, format!("{}@{name}", disk_set(VMS, VmId(7), clone)));
    }

    #[test]
    fn what_is_printed_is_read() {
        let state = state(&[
            "ROOT\t-",
            "ROOT/0\tp/tt/0007/t/d@base",
            "ROOT/0@7-1\t-",
            "ROOT/2\tROOT/0@7-1",
            "ROOT/foreign\t-",
            "ROOT/02\t-",
            "ROOT/2/3\t-",
            "VMS/70.0\t-",
            "p/other/0\t-",
        ]);
        assert_eq!(state.sets.len(), 2);
        assert_eq!(state.holder("7-1"), Some(0));
        assert_eq!(state.holder("7-2"), None);
    }

    #[test]
    fn an_apply_lets_the_old_disk_go_and_keeps_its_snapshots() {
        let before = state(&["ROOT/0\tp/t@base", "ROOT/0@7-1\t-", "ROOT/2\tROOT/0@7-1"]);
        let (after, steps) = steps(before, &[1, 2], &[]);
        assert_eq!(steps, [Step::Promote(2), Step::DropSet(0)]);
        assert_eq!(after.snapshots, [(2, "7-1".to_owned())]);
    }

    #[test]
    fn a_disk_under_a_younger_snapshot_is_hidden_until_that_goes() {
        let before =
            state(&["ROOT/0\tp/t@base", "ROOT/0@7-1\t-", "ROOT/0@7-2\t-", "ROOT/3\tROOT/0@7-1"]);
        let (after, done) = steps(before.clone(), &[1, 2, 3], &[]);
        assert_eq!((after, done), (before.clone(), vec![]));
        let (after, _) = steps(before, &[3], &[]);
        assert_eq!(after.sets.keys().collect::<Vec<_>>(), [&3]);
        assert_eq!(after.snapshots, []);
    }

    #[test]
    fn what_others_were_made_from_stays() {
        let before = state(&["ROOT/3\tp/t@base", "ROOT/3@8-0\t-"]);
        let (after, done) = steps(before.clone(), &[], &["8-0"]);
        assert_eq!((after, done), (before.clone(), vec![]));
        let (after, _) = steps(before, &[3], &[]);
        assert_eq!(after.snapshots, []);
    }
}
