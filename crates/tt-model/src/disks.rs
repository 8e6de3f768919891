//! The disks of a Vm in its record: which lies on which, and which of them anything needs. It never looks at one.

use crate::names::runtime_image;
use crate::{Disk, Merge, SnapshotState, Vm};
use std::collections::BTreeSet;

impl Vm {
    /// Makes `epoch` of `parent` and lets it be the runtime image.
    pub(crate) fn turn_to_disk(&mut self, epoch: u32, parent: Option<u32>) {
        self.disks.insert(epoch, Disk { parent, is_frozen: false });
        self.epoch = epoch;
        self.runtime_image = runtime_image(self.storage, self.id, epoch);
    }

    /// A number that it has never used for a disk, a meta or memory.
    pub(crate) fn take_epoch(&mut self) -> u32 {
        let epoch = self.next_epoch;
        self.next_epoch += 1;
        epoch
    }

    /// Strikes the disks off the list that neither runtime image nor snapshots need.
    pub(crate) fn drop_disks(&mut self) {
        let mut needed = BTreeSet::new();
        let roots = self.snapshots.values().filter_map(|s| s.epoch).chain([self.epoch]);
        for root in roots {
            let mut next = Some(root);
            while let Some(epoch) = next.filter(|epoch| needed.insert(*epoch)) {
                next = self.disks.get(&epoch).and_then(|disk| disk.parent);
            }
        }
        self.disks.retain(|epoch, _| needed.contains(epoch));
        let is_left = |merge: &Merge| {
            self.parent(merge.top) == Some(merge.bottom) && self.is_below_frozen(merge.top)
        };
        self.merge = self.merge.filter(is_left);
    }

    /// Whether no machine writes to the disk `epoch`, or to one that lies on it, any more.
    pub(crate) fn is_below_frozen(&self, epoch: u32) -> bool {
        let is_at = |at: u32, disk: &Disk| at == epoch || disk.parent == Some(epoch);
        self.disks.iter().all(|(at, disk)| !is_at(*at, disk) || disk.is_frozen)
    }

    /// What the disk `epoch` lies on, if that is a disk of this Vm.
    pub(crate) fn parent(&self, epoch: u32) -> Option<u32> {
        self.disks.get(&epoch).and_then(|disk| disk.parent)
    }

    /// Notes that no machine writes to `epoch`, or to what it lies on, any more.
    pub(crate) fn freeze_disks(&mut self, epoch: u32) {
        let mut next = Some(epoch);
        while let Some(disk) = next.and_then(|epoch| self.disks.get_mut(&epoch)) {
            next = disk.parent.filter(|_| !disk.is_frozen);
            disk.is_frozen = true;
        }
    }

    /// Whether the disk `epoch` was complete once: it is not to come again with another content. Of one of which the
    /// record does not say so it may have been, too.
    #[must_use]
    pub fn was_made(&self, epoch: u32) -> bool {
        let is_frozen = self.disks.get(&epoch).is_some_and(|disk| disk.is_frozen);
        let mut snapshots = self.snapshots.values();
        let is_ready = snapshots.any(|s| s.state == SnapshotState::Ready && s.epoch == Some(epoch));
        is_frozen || is_ready || self.made_epoch == Some(epoch)
    }

    /// The epochs of all disks that it has or is to have: its `disks`, and that of a merge.
    pub fn epochs(&self) -> impl Iterator<Item = u32> {
        self.disks.keys().copied().chain(self.merge.map(|merge| merge.epoch))
    }

    /// The disk `epoch` and what it is layered on, as far as they are disks of this Vm: upper ones
    /// first. Of a Vm whose disks are not layered only that disk.
    pub fn chain(&self, epoch: u32) -> Vec<u32> {
        let mut chain = Vec::new();
        let mut next = Some(epoch);
        // A record that goes in circles ends here as well.
        while let Some(epoch) = next.filter(|epoch| !chain.contains(epoch)) {
            chain.push(epoch);
            next = self.parent(epoch).filter(|_| self.storage.is_layered());
        }
        chain
    }
}
