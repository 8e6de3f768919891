//! Makes a template of a Vm's disk at one moment, or of a kept image. The moment is a snapshot that the records name; the
//! disk is read through the storage's contract, whatever kind it is. It never touches a guest.

use crate::templates::Halt;
use crate::{HostError, layers};
use std::cell::RefCell;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use tt_image::{Catalogue, DISK, Facts, ImageError, Progress};
use tt_model::plan::plan_published;
use tt_model::status::Trouble;
use tt_model::template::Origin;
use tt_model::{ErrorCode, KeptImage, SnapshotState, StorageKind, VmTemplate};
use tt_storage::Storage;
use tt_store::tables::{Change, Tables, TemplateRecord};

/// What publishing needs of a host.
pub(crate) struct Publisher<'a> {
    pub(crate) tables: &'a Tables,
    pub(crate) catalogue: &'a Catalogue,
    pub(crate) storages: &'a [Arc<dyn Storage>],
}

/// A disk that nothing writes to any more.
struct Still {
    storage: StorageKind,
    /// It and what it lies on.
    layers: Vec<String>,
    /// What it was once cloned from.
    template: VmTemplate,
}

impl Publisher<'_> {
    /// Makes the template, once the moment that it is of has been kept.
    pub(crate) fn publish(
        &self,
        record: &TemplateRecord,
        facts: Facts,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, Halt> {
        let mut still = self.still(record.origin.as_ref())?;
        let storage = self.storages.iter().find(|storage| storage.kind() == still.storage);
        let storage = storage.ok_or_else(|| {
            trouble(ErrorCode::Host, format!("this host has no {} images", still.storage.name()))
        })?;
        let draft = self.catalogue.draft(&record.name, progress)?;
        draft.forget_made()?;
        let facts = Facts { arch: still.template.arch.clone(), ..facts };
        if still.storage == StorageKind::Docker {
            progress.step("copying the image");
            copy(&**storage, &still, &draft.source(), progress)?;
            return Ok(self.catalogue.install_image(&draft, &draft.source(), &facts, progress)?);
        }
        progress.step("copying the disk");
        while let Err(halt) = copy(&**storage, &still, &draft.dir().join(DISK), progress) {
            // Layers may have been merged, and be gone, before they were opened; the others hold the same.
            let named = std::mem::replace(&mut still, self.still(record.origin.as_ref())?);
            if named.layers == still.layers {
                return Err(halt);
            }
        }
        let inside = self.catalogue.carry_over(&draft, &still.template, progress)?;
        let facts = Facts { inside, ..facts };
        Ok(self.catalogue.finish(&draft, &facts, progress)?)
    }

    /// Adds to `change` that what was taken for the template of `record` alone is dropped.
    pub(crate) fn give_back(
        &self,
        record: &TemplateRecord,
        change: Change,
    ) -> Result<Change, HostError> {
        let Some(origin @ Origin::Snapshot { vm, .. }) = &record.origin else { return Ok(change) };
        let Some(mut row) = self.tables.vm(*vm)? else { return Ok(change) };
        if plan_published(&mut row.value, origin) { Ok(change.vm(&row)?) } else { Ok(change) }
    }

    fn still(&self, origin: Option<&Origin>) -> Result<Still, Halt> {
        let gone = |what: String| trouble(ErrorCode::NotFound, format!("{what} is gone"));
        let kept = || -> Result<Vec<KeptImage>, Halt> {
            let rows = self.tables.images().map_err(HostError::from)?;
            Ok(rows.into_iter().map(|row| row.value).collect())
        };
        let torn = || trouble(ErrorCode::Internal, "what its disk lies on has no record".into());
        match origin {
            None => Err(trouble(ErrorCode::Internal, "it is not known which moment".into())),
            Some(Origin::Snapshot { vm, snapshot, .. }) => {
                let row = self.tables.vm(*vm).map_err(HostError::from)?;
                let vm = row.ok_or_else(|| gone(format!("vm {vm}")))?.value;
                let taken = vm.snapshots.get(snapshot);
                let taken = taken.ok_or_else(|| gone(format!("snapshot {snapshot}")))?;
                match &taken.state {
                    SnapshotState::Ready => {}
                    SnapshotState::Wanted => return Err(Halt::NotYet),
                    SnapshotState::Failed(why) => return Err(Halt::Trouble(why.clone())),
                }
                let epoch = taken.epoch.ok_or_else(torn)?;
                let layers = tt_model::layers::of_vm(&vm, epoch, &kept()?).ok_or_else(torn)?;
                Ok(Still { storage: vm.storage, layers, template: vm.template })
            }
            Some(Origin::Image { image, .. }) => {
                let row = self.tables.image(*image).map_err(HostError::from)?;
                let image = row.ok_or_else(|| gone(format!("image {image}")))?.value;
                let layers = tt_model::layers::of_image(&image, &kept()?).ok_or_else(torn)?;
                Ok(Still { storage: image.storage, layers, template: image.template })
            }
        }
    }
}

fn copy(
    storage: &dyn Storage,
    still: &Still,
    path: &Path,
    progress: &dyn Progress,
) -> Result<(), Halt> {
    let not_written = |source| ImageError::Write { path: path.to_owned(), source };
    if path.exists() {
        std::fs::remove_file(path).map_err(not_written)?;
    }
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(not_written)?;
    let ended = RefCell::new(None);
    let goes_on = |done, total| {
        progress.bytes(done, Some(total));
        progress.check().map_err(|why| ended.replace(Some(why))).is_ok()
    };
    let copied = storage.export(&still.layers, &file, &goes_on);
    match (copied, ended.take()) {
        (_, Some(why)) => Err(why.into()),
        (Ok(()), None) => Ok(()),
        (Err(error), None) => Err(Halt::Trouble(Trouble {
            code: error.code(),
            why: layers::chain(&error),
            retry: error.is_retryable(),
        })),
    }
}

fn trouble(code: ErrorCode, why: String) -> Halt {
    Halt::Trouble(Trouble { code, why, retry: false })
}
