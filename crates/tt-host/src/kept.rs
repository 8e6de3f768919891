//! Removes the kept images that are not wanted any more. The record goes last.

use crate::meta::Metas;
use crate::{Drivers, HostError, Queue, layers};
use tt_model::{VmId, names};
use tt_store::tables::{Change, Tables};

/// Matches this host's kept images to their records.
#[derive(Debug)]
pub(crate) struct ImageRemover {
    pub(crate) tables: Tables,
    pub(crate) drivers: Drivers,
    pub(crate) metas: Metas,
}

impl ImageRemover {
    /// Works until the queue is closed.
    pub(crate) fn run(&self, queue: &Queue<VmId>) {
        while let Some(id) = queue.take() {
            match self.visit(id) {
                Ok(()) => queue.done(&id, None),
                Err(error) => {
                    tracing::error!(image = %id, error = layers::chain(&error), "not removed");
                    queue.failed(&id);
                }
            }
        }
    }

    fn visit(&self, id: VmId) -> Result<(), HostError> {
        let Some(row) = self.tables.image(id)?.filter(|row| !row.value.is_wanted) else {
            return Ok(());
        };
        let storages = self.drivers.storages.iter();
        for storage in storages.filter(|storage| storage.kind() == row.value.storage) {
            let removed = storage.remove_stray(id);
            removed.map_err(|source| HostError::RemoveImage { id, source })?;
        }
        self.metas.remove(&names::image_meta(id))?;
        // A record that was changed meanwhile comes here again.
        self.tables.commit(&Change::new().remove_image(&row))?;
        Ok(())
    }
}
