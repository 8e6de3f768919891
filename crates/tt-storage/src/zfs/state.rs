//! The data sets and snapshots of one Vm, and what is to be done so that only wanted ones are left. It runs nothing.

use std::collections::{BTreeMap, BTreeSet};
use tt_model::VmId;

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
    /// Reads what `zfs list` printed of the data set `root`, the Vm's.
    pub(super) fn parse(root: &str, printed: &str) -> Self {
        let mut state = Self::default();
        for line in printed.lines() {
            let Some((name, origin)) = line.split_once('\t') else { continue };
            let below = name.strip_prefix(root).and_then(|rest| rest.strip_prefix('/'));
            let Some(below) = below else { continue };
            let (epoch, snapshot) = match below.split_once('@') {
                Some((epoch, snapshot)) => (epoch, Some(snapshot)),
                None => (below, None),
            };
            match (epoch.parse(), snapshot) {
                (Ok(epoch), Some(snapshot)) => state.snapshots.push((epoch, snapshot.to_owned())),
                (Ok(epoch), None) => drop(state.sets.insert(epoch, origin.to_owned())),
                // Somebody else's; it goes with the Vm.
                (Err(_), _) => {}
            }
        }
        state
    }

    /// The data set that has a snapshot of that name.
    pub(super) fn holder(&self, snapshot: &str) -> Option<u32> {
        self.snapshots.iter().find(|(_, name)| name == snapshot).map(|(epoch, _)| *epoch)
    }

    /// What is to be done next so that of the Vm, whose data set is `root`, only the disks in `stay` are left, and what they
    /// can not be without. `pinned`: snapshots that something elsewhere was made from.
    pub(super) fn next_step(
        &self,
        root: &str,
        id: VmId,
        stay: &BTreeSet<u32>,
        pinned: &BTreeSet<String>,
    ) -> Option<Step> {
        let wanted: BTreeSet<String> = stay.iter().map(|epoch| snapshot_name(id, *epoch)).collect();
        let clone_of = |epoch: u32, snapshot: &str| {
            let full = format!("{root}/{epoch}@{snapshot}");
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

/// What the snapshot is called that is the disk `epoch` of a Vm, or that this disk was made from: no other Vm's has the same
/// name, for snapshots go from one data set to another.
pub(super) fn snapshot_name(id: VmId, epoch: u32) -> String {
    format!("{id}-{epoch}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "p/tt/0007/v/7";

    fn state(lines: &[&str]) -> State {
        State::parse(ROOT, &lines.join("\n").replace("ROOT", ROOT))
    }

    /// The steps, done on paper.
    fn steps(mut state: State, stay: &[u32], pinned: &[&str]) -> (State, Vec<Step>) {
        let (stay, pinned) =
            (stay.iter().copied().collect(), pinned.iter().map(|p| (*p).to_owned()).collect());
        let mut steps = Vec::new();
        while let Some(step) = state.next_step(ROOT, VmId(7), &stay, &pinned) {
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
        let (from, name): (u32, String) =
            (from.rsplit_once('/').unwrap().1.parse().unwrap(), name.into());
        let until = state.snapshots.iter().position(|s| *s == (from, name.clone())).unwrap();
        for (number, (epoch, moved)) in state.snapshots.iter_mut().enumerate() {
            if number <= until && *epoch == from {
                *epoch = clone;
                for origin in state.sets.values_mut() {
                    if *origin == format!("{ROOT}/{from}@{moved}") {
                        *origin = format!("{ROOT}/{clone}@{moved}");
                    }
                }
            }
        }
        let old = state.sets.insert(clone, state.sets[&from].clone());
        assert!(old.is_some());
        state.sets.insert(from, format!("{ROOT}/{clone}@{name}"));
    }

    #[test]
    fn what_is_printed_is_read() {
        let state = state(&[
            "ROOT\t-",
            "ROOT/0\tp/tt/0007/t/d@base",
            "ROOT/0@7-1\t-",
            "ROOT/2\tROOT/0@7-1",
            "ROOT/foreign\t-",
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
