//! Tests of planning merges: what a machine wrote, as lists of numbers.

use super::*;
use crate::plan::{plan_frozen, plan_take, plan_take_failed, plan_taken};
use crate::{ErrorCode, Snapshot, StorageKind, Trouble, sample};
use proptest::prelude::*;

/// A Vm on paper, with what is in its disks and what has to be.
struct Paper {
    vm: Vm,
    /// What was written to each disk.
    disks: BTreeMap<u32, Vec<u32>>,
    /// The disk that its machine writes to.
    open: u32,
    /// What each snapshot holds.
    frozen: BTreeMap<String, Vec<u32>>,
    written: Vec<u32>,
    writes: u32,
    copied_mb: u64,
}

impl Paper {
    fn new() -> Self {
        let vm = sample::vm(1, "qemu", StorageKind::Qcow2);
        let (disks, frozen) = ([(0, Vec::new())].into(), BTreeMap::new());
        Self { vm, disks, open: 0, frozen, written: Vec::new(), writes: 0, copied_mb: 0 }
    }

    fn write(&mut self) {
        self.writes += 1;
        self.written.push(self.writes);
        self.disks.entry(self.open).or_default().push(self.writes);
    }

    /// What a disk holds with all that it lies on.
    fn view(&self, epoch: u32) -> Vec<u32> {
        self.vm.chain(epoch).iter().rev().flat_map(|epoch| self.disks[epoch].clone()).collect()
    }

    fn want(&mut self, name: &str) -> bool {
        let is_new = !self.frozen.contains_key(name) && self.vm.snapshots.len() < 8;
        if is_new {
            let wanted = Snapshot { name: name.into(), ..Snapshot::default() };
            self.vm.snapshots.insert(name.into(), wanted);
            plan_take(&mut self.vm, name);
            self.disks.insert(self.vm.epoch, Vec::new());
        }
        is_new
    }

    fn take(&mut self, name: &str) {
        if self.want(name) {
            plan_taken(&mut self.vm, name, None, 1);
            self.settle();
            self.frozen.insert(name.into(), self.written.clone());
        }
    }

    /// A visit sees to it that the machine writes to the runtime image.
    fn settle(&mut self) {
        self.open = self.vm.epoch;
        plan_frozen(&mut self.vm);
    }

    /// The machine never came to be switched to the new layer.
    fn fail(&mut self, name: &str) {
        if self.want(name) {
            let trouble =
                Trouble { code: ErrorCode::SnapshotCreate, why: "w".into(), retry: false };
            plan_take_failed(&mut self.vm, name, trouble);
            self.vm.snapshots.remove(name);
        }
    }

    fn apply(&mut self, name: &str) {
        let Some(content) = self.frozen.get(name).cloned() else { return };
        let (epoch, parent) = (self.vm.take_epoch(), self.vm.snapshots[name].epoch);
        self.vm.turn_to_disk(epoch, parent);
        self.vm.drop_disks();
        self.disks.insert(epoch, Vec::new());
        (self.open, self.written) = (epoch, content);
        plan_frozen(&mut self.vm);
    }

    fn drop(&mut self, name: &str) {
        self.frozen.remove(name);
        self.vm.snapshots.remove(name);
        self.vm.drop_disks();
    }

    fn plan(&mut self) -> bool {
        let mb = |(epoch, writes): (&u32, &Vec<u32>)| (*epoch, writes.len() as u64);
        plan_merge(&mut self.vm, &self.disks.iter().map(mb).collect())
    }

    fn merge(&mut self) {
        let Some(Merge { epoch, top, bottom }) = self.vm.merge else { return };
        assert!(![top, bottom].contains(&self.open), "what is merged is still written");
        assert_ne!(self.vm.parent(self.open), Some(top), "what is written would be moved");
        let both = [&self.disks[&bottom][..], &self.disks[&top]].concat();
        self.copied_mb += both.len() as u64;
        self.disks.insert(epoch, both);
        assert!(plan_merged(&mut self.vm));
    }

    fn check(&self) {
        assert_eq!(self.view(self.vm.epoch), self.written);
        for (name, content) in &self.frozen {
            let snapshot = &self.vm.snapshots[name];
            let epoch = snapshot.epoch.unwrap();
            assert_eq!(&self.view(epoch), content, "{name}");
            let path = names::runtime_image(StorageKind::Qcow2, self.vm.id, epoch);
            assert_eq!(snapshot.path, path);
        }
    }
}

proptest! {
    /// Whatever is written, taken, applied, dropped and merged, at whatever moment a merge is
    /// planned and made: every snapshot and the machine see what they saw, and no machine writes to
    /// what is merged.
    #[test]
    fn no_merge_changes_what_anybody_sees(
        steps in proptest::collection::vec((0_u8..11, 0_u8..6), 1..80),
    ) {
        let mut paper = Paper::new();
        for (act, name) in steps {
            let name = format!("s{name}");
            match act {
                0 | 1 => paper.write(),
                2..=4 => paper.take(&name),
                5 => paper.fail(&name),
                6 => paper.apply(&name),
                7 => paper.drop(&name),
                8 => drop(paper.plan()),
                9 => paper.settle(),
                _ => paper.merge(),
            }
            paper.check();
        }
        paper.settle();
        while paper.plan() {
            paper.merge();
            paper.check();
        }
        prop_assert!(mergeable(&paper.vm).len() <= HIDDEN_MAX);
    }
}

#[test]
fn hundreds_of_snapshots_that_come_and_go_leave_a_short_chain() {
    for kept in [1, 5] {
        let mut paper = Paper::new();
        let first = 2000;
        (0..first).for_each(|_| paper.write());
        for round in 0..400 {
            paper.take(&format!("s{round}"));
            paper.write();
            if round >= kept {
                paper.drop(&format!("s{}", round - kept));
            }
            while paper.plan() {
                paper.merge();
            }
            let most = HIDDEN_MAX + kept + 3;
            assert!(paper.vm.disks.len() <= most, "{round}: {:?}", paper.vm.disks);
        }
        paper.check();
        // The large layer of the beginning is not copied for each little one.
        assert!(paper.copied_mb < 20_000 + 2 * first, "{} MB were copied", paper.copied_mb);
    }
}

#[test]
fn what_is_needed_by_more_than_one_or_written_is_left_alone() {
    let mut paper = Paper::new();
    paper.take("a");
    for name in 0..=HIDDEN_MAX {
        paper.apply("a");
        paper.take(&format!("s{name}"));
    }
    paper.drop("a");
    assert!(!needs_merge(&paper.vm), "all lie on one: {:?}", paper.vm.disks);
    let mut paper = Paper::new();
    (0..20).for_each(|number| paper.fail(&format!("s{number}")));
    assert!(!needs_merge(&paper.vm), "its machine writes to the lowest one");
    paper.settle();
    assert!(needs_merge(&paper.vm));
    paper.vm.storage = StorageKind::File;
    assert!(mergeable(&paper.vm).is_empty());
}

#[test]
fn a_merge_is_given_up_with_what_it_was_for() {
    let mut paper = Paper::new();
    for number in 0..8 {
        paper.take(&format!("s{number}"));
    }
    (0..7).for_each(|number| paper.drop(&format!("s{number}")));
    assert!(paper.plan() && paper.plan(), "planned once, and still to be made");
    let Some(merge) = paper.vm.merge else { panic!("no merge") };
    assert!(paper.vm.epochs().any(|epoch| epoch == merge.epoch));
    let mut dropped = paper.vm.clone();
    dropped.disks.clear();
    dropped.drop_disks();
    assert_eq!(dropped.merge, None);
    paper.vm.set_goal(Goal::Gone, 0);
    assert!(!needs_merge(&paper.vm) && !paper.plan());
    paper.vm.merge = None;
    assert!(!plan_merged(&mut paper.vm));
}
