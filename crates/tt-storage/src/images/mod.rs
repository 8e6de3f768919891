//! The images below a data directory, whatever their format: `images/<vm>/<epoch>.<format>`, and beside them what an
//! interrupted create left. It never writes under an image's final name before the image is complete.

use crate::export::export;
use crate::layers::{missing, parse_id};
use crate::source::{self, Source};
use crate::{Merging, Space, Storage, StorageError};
use files::{Owner, give, lock, sync_dir};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use tt_model::names::runtime_image;
use tt_model::{Layout, Snapshot, SnapshotState, StorageKind, Vm, VmId};

mod disks;
pub(crate) mod files;
mod job;
mod merging;
mod plain;

pub(crate) use disks::Disks;
pub(crate) use job::Job;
pub(crate) use plain::{Files, Format};

/// The back end: one kind of disks below one data directory.
#[derive(Debug)]
pub(crate) struct Images {
    layout: Layout,
    disks: Box<dyn Disks>,
}

impl Images {
    pub(crate) fn new(layout: Layout, disks: Box<dyn Disks>) -> Self {
        Self { layout, disks }
    }

    fn is_layered(&self) -> bool {
        self.disks.kind().is_layered()
    }

    /// The image of `vm` in `epoch`, with the size of the record.
    fn job(&self, vm: &Vm, epoch: u32) -> Job<'_> {
        let name = runtime_image(self.disks.kind(), vm.id, epoch);
        let path = self.layout.data.join(&name);
        let want_bytes = u64::from(vm.resource.disk_size) << 20;
        Job { name, path, data: &self.layout.data, want_bytes }
    }

    /// The runtime image; refuses a record that names another one.
    fn runtime_job(&self, vm: &Vm) -> Result<Job<'_>, StorageError> {
        let job = self.job(vm, vm.epoch);
        check_name(&vm.runtime_image, &job.name)?;
        Ok(job)
    }

    /// The disk of a snapshot; refuses a record that names another one, or the runtime image.
    fn snapshot_job(&self, vm: &Vm, snapshot: &Snapshot) -> Result<Job<'_>, StorageError> {
        let epoch = snapshot.epoch.filter(|epoch| *epoch != vm.epoch);
        let job = self.job(vm, epoch.unwrap_or(vm.next_epoch));
        check_name(&snapshot.path, &job.name)?;
        Ok(job)
    }

    /// Brings an image that exists to its size and owner.
    fn adjust(&self, vm: &Vm, job: &Job, image: &File) -> Result<(), StorageError> {
        let have_bytes = self.disks.size_bytes(&job.path, image)?;
        if have_bytes > job.want_bytes {
            let want_mb = job.want_mb();
            return Err(StorageError::Shrink { path: job.path.clone(), have_bytes, want_mb });
        }
        if have_bytes < job.want_bytes {
            // QEMU has the size in memory: it would not see ours, or write its own over it. That of a device is the kernel's.
            if !self.disks.kind().is_device() && !lock(image).map_err(|e| job.not_grown(e))? {
                return Err(StorageError::InUse { path: job.path.clone() });
            }
            self.disks.grow(job, image)?;
            image.sync_all().map_err(|e| job.not_grown(e))?;
        }
        let owner = Owner::Machine(self.layout.uid(vm.id));
        give(image, owner).map_err(|e| job.not_given(e))?;
        Ok(())
    }

    /// Makes the runtime image, which is not there, and before it what is missing of what it is made from.
    fn create(&self, vm: &Vm) -> Result<(), StorageError> {
        let is_there = |epoch| self.disks.has(&self.job(vm, epoch));
        for epoch in missing(vm, is_there, |epoch| self.job(vm, epoch).lost())? {
            let job = self.job(vm, epoch);
            self.disks.make(&job, vm, epoch, Owner::Machine(self.layout.uid(vm.id)))?;
        }
        Ok(())
    }

    /// The clone of a disk that goes on changing. A guest waits for it: it is on disk after [`Storage::sync_disk`].
    fn clone_runtime(&self, vm: &Vm, mut job: Job) -> Result<(), StorageError> {
        let source = Source::own(job.data, self.disks.kind(), vm, vm.epoch)?;
        // The size that it has, which may not be the one that is wanted yet.
        job.want_bytes = source.size_bytes;
        self.disks.freeze(&job, &source, vm)
    }

    /// Gives the disk of a layered snapshot, which must be there, to its readers.
    fn freeze(&self, vm: &Vm, job: &Job) -> Result<(), StorageError> {
        let image = self.disks.open(job)?.ok_or_else(|| job.lost())?;
        give(&image, Owner::Frozen(self.layout.uid(vm.id)))
            .and_then(|_| image.sync_all())
            .map_err(|e| job.not_given(e))
    }

    /// Lets every layer say what it lies on as the record does: it may be a merge by now, and a machine could have
    /// written anything there. One that a machine writes to is left for later; one that it reads it has read long ago.
    fn relink(&self, vm: &Vm) -> Result<(), StorageError> {
        for (epoch, disk) in vm.disks.iter().filter(|_| self.is_layered()) {
            let job = self.job(vm, *epoch);
            let Some(image) = self.disks.open(&job)? else { continue };
            if disk.is_frozen || lock(&image).map_err(|e| job.not_given(e))? {
                let (name, format) = source::origin(self.disks.kind(), vm, *epoch)?;
                self.disks.relink(&job, (&name, format), &image)?;
            }
        }
        Ok(())
    }

    /// Whether a Vm's directory holds anything but these epochs.
    fn has_others(&self, vm: &Vm, epochs: &BTreeSet<u32>) -> Result<bool, StorageError> {
        let dir = self.layout.images_of(vm.id);
        let failed = |source| StorageError::List { path: dir.clone(), source };
        let names = self.disks.file_names(epochs);
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            if !entry.map_err(failed)?.file_name().to_str().is_some_and(|name| names.contains(name))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Refuses while a disk is not there that was once, by what the record says.
    fn check_made(&self, vm: &Vm) -> Result<(), StorageError> {
        for epoch in vm.disks.keys().filter(|epoch| vm.was_made(**epoch)) {
            let job = self.job(vm, *epoch);
            if !self.disks.has(&job)? {
                return Err(StorageError::Away { path: job.path });
            }
        }
        Ok(())
    }

    /// Removes from a Vm's directory everything but these epochs, and a merge that is under way.
    fn keep_only(&self, vm: &Vm, epochs: &BTreeSet<u32>) -> Result<(), StorageError> {
        self.disks.keep_only(&self.layout.images_of(vm.id), vm.id, epochs)
    }
}

impl Storage for Images {
    fn kind(&self) -> StorageKind {
        self.disks.kind()
    }

    fn create_image(&self, vm: &Vm) -> Result<(), StorageError> {
        let job = self.runtime_job(vm)?;
        match self.disks.open(&job)? {
            Some(image) => self.adjust(vm, &job, &image),
            None => self.create(vm),
        }
    }

    fn create_snapshot(&self, vm: &Vm, snapshot: &Snapshot) -> Result<(), StorageError> {
        let runtime = self.runtime_job(vm)?;
        let job = self.snapshot_job(vm, snapshot)?;
        let is_wanted = snapshot.state == SnapshotState::Wanted;
        if is_wanted && self.disks.open(&runtime)?.is_none() {
            self.create(vm)?;
        }
        if self.is_layered() {
            self.freeze(vm, &job)
        } else if is_wanted {
            self.clone_runtime(vm, job)
        } else {
            if self.disks.has(&job)? { Ok(()) } else { Err(job.lost()) }
        }
    }

    fn sync_disk(&self, vm: &Vm, epoch: u32) -> Result<(), StorageError> {
        let job = self.job(vm, epoch);
        self.disks.sync(&job, epoch == vm.epoch)
    }

    fn export(
        &self,
        layers: &[String],
        to: &File,
        goes_on: &dyn Fn(u64, u64) -> bool,
    ) -> Result<(), StorageError> {
        let data = &self.layout.data;
        self.disks.show(data, layers, &|layers| export(data, layers, to, goes_on))
    }

    fn apply_snapshot(&self, vm: &Vm, snapshot: &Snapshot) -> Result<(), StorageError> {
        let job = self.snapshot_job(vm, snapshot)?;
        let runtime = self.runtime_job(vm)?;
        if self.disks.open(&runtime)?.is_none() && !self.disks.has(&job)? {
            return Err(job.lost());
        }
        self.create_image(vm)
    }

    fn destroy_snapshot(&self, vm: &Vm) -> Result<(), StorageError> {
        // First, so that whatever is removed is named by nothing that stays.
        self.relink(vm)?;
        let stay = vm.epochs().collect();
        if self.has_others(vm, &stay)? {
            self.check_made(vm)?;
        }
        match self.keep_only(vm, &stay) {
            // By the machine that is about to be replaced: a later call finds it gone. Not every one locks its disk.
            Err(StorageError::InUse { .. } | StorageError::Held { .. }) => Ok(()),
            dropped => dropped,
        }
    }

    fn taken_mb(&self, vm: &Vm) -> Result<BTreeMap<u32, u64>, StorageError> {
        let mut taken = BTreeMap::new();
        for epoch in vm.disks.keys() {
            let job = self.job(vm, *epoch);
            let Some(image) = self.disks.open(&job)? else { continue };
            let listed = |source| StorageError::List { path: job.path.clone(), source };
            // `st_blocks` counts 512 bytes whatever the file system's block size.
            let bytes = image.metadata().map_err(listed)?.blocks() * 512;
            taken.insert(*epoch, bytes.div_ceil(1 << 20));
        }
        Ok(taken)
    }

    fn begin_merge(&self, vm: &Vm) -> Result<Box<dyn Merging>, StorageError> {
        let Some(merge) = vm.merge.filter(|_| self.is_layered()) else {
            return Err(StorageError::NoMerge { id: vm.id });
        };
        let Job { name, path, data, .. } = self.job(vm, merge.epoch);
        merging::begin(merging::Parts {
            name,
            path,
            data: data.into(),
            dir: self.layout.images_of(vm.id),
            layers: [merge.top, merge.bottom].map(|epoch| self.job(vm, epoch).path),
            origin: source::origin(self.disks.kind(), vm, merge.bottom)?,
            owner: Owner::Frozen(self.layout.uid(vm.id)),
        })
    }

    fn keep_image(&self, vm: &Vm) -> Result<bool, StorageError> {
        let job = self.runtime_job(vm)?;
        if self.disks.find(&job)?.is_none() {
            if vm.disks.get(&vm.epoch).is_none_or(|disk| disk.parent.is_none()) {
                self.remove_stray(vm.id)?;
                return Ok(false);
            }
            // What is lost by now, its parent still is there: more than that can not be kept.
            self.create(&Vm { made_epoch: None, ..vm.clone() })?;
        }
        self.relink(vm)?;
        let needed: BTreeSet<u32> = vm.chain(vm.epoch).into_iter().collect();
        for epoch in &needed {
            let job = self.job(vm, *epoch);
            let image = self.disks.open(&job)?.ok_or_else(|| job.lost())?;
            give(&image, Owner::Daemon)
                .and_then(|_| image.sync_all())
                .map_err(|e| job.not_given(e))?;
        }
        self.keep_only(vm, &needed)?;
        sync_dir(&self.layout.images_of(vm.id)).map_err(|e| job.not_given(e))?;
        Ok(true)
    }

    fn destroy_image(&self, vm: &Vm) -> Result<(), StorageError> {
        self.remove_stray(vm.id)
    }

    fn images(&self) -> Result<Vec<VmId>, StorageError> {
        let dir = self.layout.data.join("images");
        let failed = |source: io::Error| StorageError::List { path: dir.clone(), source };
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return self.disks.found(),
            entries => entries.map_err(failed)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            match name.to_str().and_then(parse_id) {
                Some(id) => ids.push(id),
                None => {
                    tracing::warn!(?name, dir = %dir.display(), "is no image of a Vm; left alone")
                }
            }
        }
        ids.extend(self.disks.found()?);
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn remove_stray(&self, id: VmId) -> Result<(), StorageError> {
        self.disks.remove_all(&self.layout.images_of(id), id)
    }

    fn collect_templates(&self, in_use: &dyn Fn(&str) -> bool) -> Result<(), StorageError> {
        self.disks.collect(&self.layout.data, in_use)
    }

    fn space(&self) -> Result<Space, StorageError> {
        self.disks.space(&self.layout.data)
    }
}

/// Whether the record names what this back end would name.
fn check_name(name: &str, right: &str) -> Result<(), StorageError> {
    if name == right {
        return Ok(());
    }
    Err(StorageError::CheckName { path: name.to_owned(), right: right.to_owned() })
}
