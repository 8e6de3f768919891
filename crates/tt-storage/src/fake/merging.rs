//! The fake's merge. It knows no faults of its own: it asks the storage's.

use super::{FakeImage, FakeStorage, effect};
use crate::{Merging, StorageError};
use std::sync::Arc;
use tt_model::{Merge, Vm, VmId};

/// See [`Merging`].
pub(super) struct Draft {
    storage: FakeStorage,
    id: VmId,
    merge: Merge,
    is_named: bool,
}

/// Opens what is to be merged.
pub(super) fn begin(storage: FakeStorage, vm: &Vm, merge: Merge) -> Result<Draft, StorageError> {
    storage.alive(effect::MERGE)?;
    let is_named = storage.disk.get(vm.id, merge.epoch).is_some();
    Ok(Draft { storage, id: vm.id, merge, is_named })
}

impl Draft {
    fn layer(&self, epoch: u32) -> Result<FakeImage, StorageError> {
        let path = tt_model::names::runtime_image(self.storage.kind, self.id, epoch).into();
        self.storage.disk.get(self.id, epoch).ok_or(StorageError::Lost { path })
    }
}

impl Merging for Draft {
    fn copy(&mut self, goes_on: &dyn Fn() -> bool) -> Result<bool, StorageError> {
        if self.is_named {
            return Ok(true);
        }
        let (top, bottom) = (self.layer(self.merge.top)?, self.layer(self.merge.bottom)?);
        let written = [bottom.written, top.written].concat();
        let (under, origin) = (bottom.under, bottom.origin);
        let image = FakeImage { under, origin, written, complete: false, frozen: true, ..top };
        let (id, epoch) = (self.id, self.merge.epoch);
        self.storage.act(effect::COPY, |disk| {
            // Who has lost its directory meanwhile writes to nothing.
            if let Some(epochs) = disk.lock().images.get_mut(&id) {
                epochs.insert(epoch, image);
            }
        })?;
        Ok(goes_on())
    }

    fn finish(self: Box<Self>) -> Result<(), StorageError> {
        let (id, epoch) = (self.id, self.merge.epoch);
        if self.is_named {
            return Ok(());
        }
        self.storage.act(effect::MERGE, |disk| {
            disk.change(id, epoch, |image| (image.complete, image.synced) = (true, true));
        })
    }
}

impl FakeStorage {
    /// The same fake, for what outlives a call.
    pub(super) fn again(&self) -> Self {
        Self {
            kind: self.kind,
            disk: Arc::clone(&self.disk),
            hook: Arc::clone(&self.hook),
            died: Arc::clone(&self.died),
        }
    }

    /// Lets every layer lie on what the record says.
    pub(super) fn relink(&self, vm: &Vm) -> Result<(), StorageError> {
        for (epoch, disk) in vm.disks.iter().filter(|_| self.kind.is_layered()) {
            let Some(parent) = disk.parent else { continue };
            let under = self.disk.get(vm.id, *epoch).and_then(|image| image.under);
            if under.is_some_and(|under| under != (vm.id, parent)) {
                self.act(effect::RELINK, |disk| {
                    disk.change(vm.id, *epoch, |image| image.under = Some((vm.id, parent)));
                })?;
            }
        }
        Ok(())
    }
}
