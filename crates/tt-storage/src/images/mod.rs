//! The images below a data directory, whatever their format: `images/<vm>/<epoch>.<format>`, and beside them what an
//! interrupted create left. It never writes under an image's final name before the image is complete.

use crate::export::export;
use crate::layers::{missing, needed, parse_id};
use crate::source::Source;
use crate::{Space, Storage, StorageError, tree};
use files::{Owner, Temporary, give, lock, make_dirs, open_image, remove_others, space, sync_dir};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use tt_model::names::runtime_image;
use tt_model::{Layout, Snapshot, SnapshotState, StorageKind, Vm, VmId};

pub(crate) mod files;
mod job;

pub(crate) use job::Job;

/// What one format does differently.
pub(crate) trait Format: Send + Sync + std::fmt::Debug {
    /// Which back end it is.
    fn kind(&self) -> StorageKind;

    /// Makes `image`, an empty file, a clone of `source` with `job.want_bytes`, which is no less than `source` has. Asks
    /// [`Job::reserve`] before it writes data. The caller removes the file after an error, and syncs it otherwise.
    fn clone_source(&self, job: &Job, source: &Source, image: &File) -> Result<(), StorageError>;

    /// The size that a guest sees.
    fn size_bytes(&self, path: &Path, image: &File) -> Result<u64, StorageError>;

    /// Gives a smaller image, which no machine has open, the size that is wanted.
    fn grow(&self, job: &Job, image: &File) -> Result<(), StorageError>;
}

/// How the disks of one back end come to be below `images/<vm>/`.
pub(crate) trait Disks: Send + Sync + std::fmt::Debug {
    /// Which back end it is.
    fn kind(&self) -> StorageKind;

    /// A disk, if it is there and complete.
    fn open(&self, job: &Job) -> Result<Option<File>, StorageError> {
        open_image(&job.path)
    }

    /// Makes one disk, which is not there, with `job.want_bytes`, no less than `source` has; or nothing. It is on disk then.
    fn write(&self, job: &Job, source: &Source, vm: &Vm, owner: Owner) -> Result<(), StorageError>;

    /// Makes the disk of a snapshot: what `source`, the runtime image, is at this moment. What has its name is replaced.
    /// A guest waits for it: it is on disk after [`Disks::sync`].
    fn freeze(&self, job: &Job, source: &Source, vm: &Vm) -> Result<(), StorageError>;

    /// Brings to disk what a disk holds, a machine's (`is_runtime`) or a snapshot's, and its name.
    fn sync(&self, job: &Job, is_runtime: bool) -> Result<(), StorageError>;

    /// The size that a guest sees.
    fn size_bytes(&self, path: &Path, image: &File) -> Result<u64, StorageError> {
        let meta =
            image.metadata().map_err(|source| StorageError::List { path: path.into(), source })?;
        Ok(meta.len())
    }

    /// Gives a smaller disk, which no machine has open, the size that is wanted.
    fn grow(&self, job: &Job, image: &File) -> Result<(), StorageError>;

    /// Removes what it keeps of templates that are not `in_use`.
    fn collect(&self, data: &Path, in_use: &dyn Fn(&str) -> bool) -> Result<(), StorageError>;
}

/// Disks that are files of some format.
#[derive(Debug)]
pub(crate) struct Files<F>(pub(crate) F);

impl<F: Format> Disks for Files<F> {
    fn kind(&self) -> StorageKind {
        self.0.kind()
    }

    fn write(&self, job: &Job, source: &Source, _: &Vm, owner: Owner) -> Result<(), StorageError> {
        let (temporary, changed) = self.draw(job, source, owner)?;
        temporary
            .file
            .sync_all()
            .and_then(|()| temporary.commit(&job.path))
            // Inner ones first: most file systems then have written the outer ones already.
            .and_then(|()| changed.iter().try_for_each(|dir| sync_dir(dir)))
            .map_err(|e| job.failed(0, e))
    }

    fn freeze(&self, job: &Job, source: &Source, _: &Vm) -> Result<(), StorageError> {
        let (temporary, _) = self.draw(job, source, Owner::Daemon)?;
        temporary.commit(&job.path).map_err(|e| job.failed(0, e))
    }

    fn sync(&self, job: &Job, _: bool) -> Result<(), StorageError> {
        let image = open_image(&job.path)?.ok_or_else(|| job.lost())?;
        let dirs = [job.path.parent().unwrap_or(job.data), &job.data.join("images")];
        image
            .sync_all()
            .and_then(|()| dirs.iter().try_for_each(|dir| sync_dir(dir)))
            .map_err(|e| job.not_synced(e))
    }

    fn size_bytes(&self, path: &Path, image: &File) -> Result<u64, StorageError> {
        self.0.size_bytes(path, image)
    }

    fn grow(&self, job: &Job, image: &File) -> Result<(), StorageError> {
        self.0.grow(job, image)
    }

    fn collect(&self, _: &Path, _: &dyn Fn(&str) -> bool) -> Result<(), StorageError> {
        Ok(())
    }
}

impl<F: Format> Files<F> {
    /// Makes one image under its temporary name. Answers the directories, too, that are to be synced with it.
    fn draw(
        &self,
        job: &Job,
        source: &Source,
        owner: Owner,
    ) -> Result<(Temporary, Vec<PathBuf>), StorageError> {
        let failed = |e| job.failed(0, e);
        let dir = job.path.parent().unwrap_or(job.data);
        let changed = make_dirs(job.data, dir).map_err(failed)?;
        let temporary = Temporary::create(&job.path).map_err(failed)?;
        self.0.clone_source(job, source, &temporary.file)?;
        give(&temporary.file, owner).map_err(failed)?;
        Ok((temporary, changed))
    }
}

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
            // QEMU has the size in memory: it would not see ours, or write its own over it.
            if !lock(image).map_err(|e| job.not_grown(e))? {
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
        let is_there = |epoch| self.disks.open(&self.job(vm, epoch)).map(|image| image.is_some());
        for epoch in missing(vm, is_there, |epoch| self.job(vm, epoch).lost())? {
            let job = self.job(vm, epoch);
            // Opened before anything is made: a source that is missing or too large changes nothing.
            let source = Source::open(&job, self.disks.kind(), vm, epoch)?;
            job.reserve(0)?;
            if self.is_layered() {
                source.freeze(self.layout.uid(vm.id))?;
            }
            self.disks.write(&job, &source, vm, Owner::Machine(self.layout.uid(vm.id)))?;
        }
        Ok(())
    }

    /// The clone of a disk that goes on changing. A guest waits for it: it is on disk after [`Storage::sync_disk`].
    fn clone_runtime(&self, vm: &Vm, mut job: Job) -> Result<(), StorageError> {
        let source = Source::own(job.data, self.disks.kind(), vm, vm.epoch)?;
        // The size that it has, which may not be the one that is wanted yet.
        job.want_bytes = source.size_bytes;
        job.reserve(0)?;
        self.disks.freeze(&job, &source, vm)
    }

    /// Gives the disk of a layered snapshot, which must be there, to its readers.
    fn freeze(&self, vm: &Vm, job: &Job) -> Result<(), StorageError> {
        let image = self.disks.open(job)?.ok_or_else(|| job.lost())?;
        give(&image, Owner::Frozen(self.layout.uid(vm.id)))
            .and_then(|_| image.sync_all())
            .map_err(|e| job.not_given(e))
    }

    /// Removes from a Vm's directory everything but these epochs.
    fn keep_only(&self, vm: &Vm, epochs: &BTreeSet<u32>) -> Result<(), StorageError> {
        let dir = self.layout.images_of(vm.id);
        let file_name = |epoch: &u32| format!("{epoch}.{}", self.disks.kind().extension());
        let stay: BTreeSet<String> = epochs.iter().map(file_name).collect();
        remove_others(&dir, |name| stay.contains(name))
            .map_err(|source| StorageError::Destroy { path: dir, source })
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
            self.disks.open(&job)?.map(drop).ok_or_else(|| job.lost())
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
        export(&self.layout.data, layers, to, goes_on)
    }

    fn apply_snapshot(&self, vm: &Vm, snapshot: &Snapshot) -> Result<(), StorageError> {
        let job = self.snapshot_job(vm, snapshot)?;
        let runtime = self.runtime_job(vm)?;
        if self.disks.open(&runtime)?.is_none() && self.disks.open(&job)?.is_none() {
            return Err(job.lost());
        }
        self.create_image(vm)
    }

    fn destroy_snapshot(&self, vm: &Vm) -> Result<(), StorageError> {
        self.keep_only(vm, &vm.disks.keys().copied().collect())
    }

    fn keep_image(&self, vm: &Vm) -> Result<bool, StorageError> {
        let job = self.runtime_job(vm)?;
        if self.disks.open(&job)?.is_none() {
            if vm.disks.get(&vm.epoch).is_none_or(|disk| disk.parent.is_none()) {
                self.remove_stray(vm.id)?;
                return Ok(false);
            }
            self.create(vm)?;
        }
        let needed = needed(vm);
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
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
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
        ids.sort_unstable();
        Ok(ids)
    }

    fn remove_stray(&self, id: VmId) -> Result<(), StorageError> {
        let path = self.layout.images_of(id);
        // What another back end has mounted there is left to it.
        tree::remove(&path).map(drop).map_err(|source| StorageError::Destroy { path, source })
    }

    fn collect_templates(&self, in_use: &dyn Fn(&str) -> bool) -> Result<(), StorageError> {
        self.disks.collect(&self.layout.data, in_use)
    }

    fn space(&self) -> Result<Space, StorageError> {
        space(&self.layout.data)
    }
}

/// Whether the record names what this back end would name.
fn check_name(name: &str, right: &str) -> Result<(), StorageError> {
    if name == right {
        return Ok(());
    }
    Err(StorageError::CheckName { path: name.to_owned(), right: right.to_owned() })
}
