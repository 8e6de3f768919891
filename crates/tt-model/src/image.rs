//! The kept image: a disk that outlives its Vm.

use crate::vm::Disk;
use crate::{StorageKind, Vm, VmId, VmTemplate};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A disk that outlives its Vm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct KeptImage {
    /// Id of the Vm that it was the runtime image of.
    pub id: VmId,
    /// `ENV/VM` as that Vm was called.
    pub name: String,
    /// What it was once cloned from.
    pub template: VmTemplate,
    /// Which back end holds it.
    pub storage: StorageKind,
    /// A path relative to the host's data directory.
    pub runtime_image: String,
    /// It and what it is layered on, by epoch.
    #[cfg_attr(feature = "schema", schema(value_type = BTreeMap<String, Disk>))]
    pub disks: BTreeMap<u32, Disk>,
    /// The kept image that its lowest layer lies on, if that is not the template's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// How many layers `base` has, itself and all that it lies on but a template's disk.
    #[serde(default, skip_serializing_if = "crate::vm::is_zero")]
    pub base_layers: u32,
    /// Its size in MB (2^20 bytes).
    pub disk_size: u32,
    /// When its Vm went, seconds since the epoch.
    pub kept_timestamp: u64,
    /// Whether it should exist; if not, its host removes it and the record goes last.
    pub is_wanted: bool,
}

impl KeptImage {
    /// What is kept of `vm`, which goes at `now` (seconds since the epoch).
    pub fn of(vm: &Vm, now: u64) -> Self {
        Self {
            id: vm.id,
            name: vm.full_name(),
            template: vm.template.clone(),
            storage: vm.storage,
            runtime_image: vm.runtime_image.clone(),
            disks: needed(vm),
            base: vm.base.clone(),
            base_layers: vm.base_layers,
            disk_size: vm.resource.disk_size,
            kept_timestamp: now,
            is_wanted: true,
        }
    }

    /// How many layers it has, itself and all that it lies on but a template's disk; none if its disks are not layered.
    pub fn layers(&self) -> u32 {
        match self.storage.is_layered() {
            true => self.base_layers.saturating_add(self.disks.len() as u32),
            false => 0,
        }
    }
}

/// The runtime image of `vm` and what it is layered on; disks of snapshots go with the Vm.
fn needed(vm: &Vm) -> BTreeMap<u32, Disk> {
    let chain = vm.chain(vm.epoch);
    let parents = chain.iter().skip(1).copied().map(Some).chain([None]);
    chain
        .iter()
        .zip(parents)
        .map(|(epoch, parent)| (*epoch, Disk { parent, is_frozen: true }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn only_disks_that_stay_are_named() {
        let disk = |parent| Disk { parent, is_frozen: true };
        for (storage, kept) in [
            (StorageKind::File, BTreeMap::from([(3, disk(None))])),
            (StorageKind::Qcow2, BTreeMap::from([(0, disk(None)), (3, disk(Some(0)))])),
        ] {
            let mut vm = sample::vm(7, "qemu", storage);
            vm.disks.extend([(1, disk(Some(0))), (3, disk(Some(0)))]);
            vm.epoch = 3;
            assert_eq!(KeptImage::of(&vm, 1).disks, kept, "{storage:?}");
        }
    }
}
