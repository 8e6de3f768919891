//! Records of disks that grow by layers and merges, as plans make them.

use tt_model::{Disk, Vm, names};

/// The Vm with one more layer on its disk.
pub fn with_layer(vm: &Vm) -> Vm {
    let mut layered = vm.clone();
    layered.epoch = vm.next_epoch;
    layered.next_epoch += 1;
    layered.runtime_image = names::runtime_image(vm.storage, vm.id, layered.epoch);
    layered.disks.insert(layered.epoch, Disk { parent: Some(vm.epoch), is_frozen: false });
    layered
}

/// The Vm with its two lowest layers as one: the new one, the upper and the lower one.
pub fn with_merge(vm: &Vm) -> (Vm, [u32; 3]) {
    let chain = vm.chain(vm.epoch);
    let [.., top, bottom] = chain[..] else { panic!("{chain:?} has nothing to merge") };
    let mut merged = vm.clone();
    let new = merged.next_epoch;
    merged.next_epoch += 1;
    merged.disks.retain(|epoch, _| ![top, bottom].contains(epoch));
    for disk in merged.disks.values_mut().filter(|disk| disk.parent == Some(top)) {
        disk.parent = Some(new);
    }
    merged.disks.insert(new, Disk { parent: None, is_frozen: true });
    (merged, [new, top, bottom])
}
