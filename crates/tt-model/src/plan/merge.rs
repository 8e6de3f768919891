//! Planning merges: a layer that nothing but one other layer needs becomes one disk with it.
//!
//! What is merged is frozen and stays as it is. The merge is another disk, with a number of its own,
//! that holds what its upper one held; once it is there, whatever named the upper one names it.

use crate::{Disk, Goal, Merge, Vm, names};
use std::collections::{BTreeMap, BTreeSet};

/// How many layers that only others need are left alone: each costs a guest's reads a little, and
/// the more there are, the less is copied for each snapshot that comes and goes.
pub const HIDDEN_MAX: usize = 4;

/// Whether a merge of `vm` is under way, or could be planned: more layers than [`HIDDEN_MAX`] are there
/// only for the sake of one other.
pub fn needs_merge(vm: &Vm) -> bool {
    vm.goal != Goal::Gone && (vm.merge.is_some() || mergeable(vm).len() > HIDDEN_MAX)
}

/// Names the next merge of `vm`: of the layers that only another one needs, the one that takes least
/// together with that other one. `taken_mb`: what each disk takes, in MB. Returns whether there is a
/// merge to be made; one that is under way stays.
pub fn plan_merge(vm: &mut Vm, taken_mb: &BTreeMap<u32, u64>) -> bool {
    if vm.merge.is_some() || !needs_merge(vm) {
        return vm.goal != Goal::Gone && vm.merge.is_some();
    }
    // What was not looked at is left for later.
    let cost = |(top, bottom): &(u32, u32)| Some(taken_mb.get(top)? + taken_mb.get(bottom)?);
    let pairs = mergeable(vm);
    let priced = pairs.iter().filter_map(|pair| Some((cost(pair)?, *pair)));
    let Some((_, (top, bottom))) =
        priced.min_by_key(|(cost, pair)| (*cost, std::cmp::Reverse(*pair)))
    else {
        return false;
    };
    let epoch = vm.take_epoch();
    vm.merge = Some(Merge { epoch, top, bottom });
    true
}

/// Notes that the merge of `vm` is made: it takes the place of its upper one. Returns whether there
/// was one.
pub fn plan_merged(vm: &mut Vm) -> bool {
    let Some(Merge { epoch, top, bottom }) = vm.merge.take() else { return false };
    let parent = vm.parent(bottom);
    for disk in vm.disks.values_mut().filter(|disk| disk.parent == Some(top)) {
        disk.parent = Some(epoch);
    }
    for snapshot in vm.snapshots.values_mut().filter(|s| s.epoch == Some(top)) {
        snapshot.epoch = Some(epoch);
        snapshot.path = names::runtime_image(vm.storage, vm.id, epoch);
    }
    vm.disks.insert(epoch, Disk { parent, is_frozen: true });
    vm.drop_disks();
    true
}

/// Takes `merge` back, which could not be made: the next one is planned anew. Returns whether it was planned.
pub fn plan_unmerged(vm: &mut Vm, merge: Merge) -> bool {
    vm.merge.take_if(|planned| *planned == merge).is_some()
}

/// Every layer that is there only for the sake of one other, which no machine writes any more: the
/// other one first. What a machine writes to goes on to lie on what it lies on: QEMU 7.2 can not be
/// told otherwise without opening it once more, which it may not.
fn mergeable(vm: &Vm) -> Vec<(u32, u32)> {
    if !vm.storage.is_layered() {
        return Vec::new();
    }
    let named: BTreeSet<u32> =
        vm.snapshots.values().filter_map(|s| s.epoch).chain([vm.epoch]).collect();
    let mut children: BTreeMap<u32, usize> = BTreeMap::new();
    for parent in vm.disks.values().filter_map(|disk| disk.parent) {
        *children.entry(parent).or_default() += 1;
    }
    let is_hidden = |epoch: &u32| !named.contains(epoch) && children.get(epoch) == Some(&1);
    let tops = vm.disks.iter().filter(|(epoch, _)| vm.is_below_frozen(**epoch));
    let pairs = tops.filter_map(|(top, disk)| Some((*top, disk.parent.filter(is_hidden)?)));
    pairs.filter(|(_, bottom)| vm.disks.contains_key(bottom)).collect()
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
