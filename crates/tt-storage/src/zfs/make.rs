//! How data sets of disks and templates are made: by clones of snapshots, a template's from its file once. Each is complete
//! or absent. It never changes what it clones.

use super::command::{Refused, Zfs};
use super::probe::HAVE_VOLUMES;
use super::state::snapshot_name;
use super::{DataSets, Form, damaged, foreign, place_of};
use crate::file::{clone_or_copy, copy_data};
use crate::images::files::{
    DIR_MODE, Owner, give, make_dir, make_dirs, open_device, size_bytes, temporary_name,
};
use crate::images::{Disks, Job};
use crate::layers::parse_name;
use crate::shelf::Shelf;
use crate::source::Source;
use crate::{RESERVE_MB, StorageError, tree};
use rustix::io::Errno;
use std::cell::Cell;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use tt_model::{Vm, VmId};

/// The snapshot of a template's data set that disks are made from.
const BASE: &str = "base";

impl DataSets {
    /// Makes the data set of a disk from a snapshot, mounted at the disk's name. False if it was there: it may hold what a
    /// guest wrote.
    pub(super) fn clone_set(
        &self,
        job: &Job,
        id: VmId,
        epoch: u32,
        from: &str,
    ) -> Result<bool, StorageError> {
        let place = place_of(&job.path);
        let failed = |e| job.failed(0, e);
        // Not synced: what is in the pool is found without it.
        make_dirs(job.data, place.parent().unwrap_or(job.data)).map_err(failed)?;
        make_dir(place).map_err(failed)?;
        let set = self.pool()?.disk_set(id, epoch);
        let cloned = match self.form.clone_set(from, &set, place) {
            Ok(is_new) if self.form.is_shown(&set, place).unwrap_or(false) => Ok(is_new),
            Ok(is_new) => self.form.show(&set, place).map(|()| is_new),
            Err(Refused::Exists) => self.form.show(&set, place).map(|()| false),
            Err(Refused::Absent) => {
                self.pool()?.check().and(Err(StorageError::Lost { path: from.into() }))
            }
            Err(e) => Err(refused(job, e)),
        };
        if cloned.is_err() {
            self.forget(id, place);
        }
        cloned
    }

    /// Removes what was made for a disk that was not made, as far as it is empty.
    pub(super) fn forget(&self, id: VmId, place: &Path) {
        // Where this fails something else of the Vm is there, or the next create or destroy finds it.
        if let Ok(pool) = self.pool() {
            drop(Zfs::destroy_empty(&pool.vm_set(id)).run());
        }
        if fs::remove_dir(place).is_ok() {
            place.parent().map(fs::remove_dir).into_iter().for_each(drop);
        }
    }

    /// The full name of the snapshot that the disk `epoch`, which is not made from a template, is to be made from.
    pub(super) fn origin(&self, job: &Job, vm: &Vm, epoch: u32) -> Result<String, StorageError> {
        let parent = vm.disks.get(&epoch).and_then(|disk| disk.parent);
        let kept = || parse_name(vm.base.as_ref()?).map(|(id, from, _)| (id, from));
        let from = parent.map(|parent| (vm.id, parent)).or_else(kept);
        let (id, from) = from.ok_or_else(|| job.lost())?;
        let pool = self.pool()?;
        let state = pool.state(id)?;
        let frozen = snapshot_name(id, from);
        if let Some(holder) = state.holder(&frozen) {
            return Ok(format!("{}@{frozen}", pool.disk_set(id, holder)));
        }
        if !state.sets.contains_key(&from) {
            return Err(job.lost());
        }
        // One of a kept image serves all that are made from it.
        let name = if parent.is_some() { snapshot_name(id, epoch) } else { frozen };
        let snapshot = format!("{}@{name}", pool.disk_set(id, from));
        match Zfs::snapshot(&snapshot).run() {
            // By a create that was killed: what it is of is not written any more.
            Ok(_) | Err(Refused::Exists) => Ok(snapshot),
            Err(e) => Err(refused(job, e)),
        }
    }

    /// Makes the disk from the template. False if it was there.
    pub(super) fn clone_template(
        &self,
        job: &Job,
        vm: &Vm,
        epoch: u32,
        source: &Source,
    ) -> Result<bool, StorageError> {
        let digest = &vm.template.digest;
        let set = self.pool()?.template_set(self.form, digest);
        let from = format!("{set}@{BASE}");
        let shelf = Shelf::new(job.data, self.kind());
        let is_new = Cell::new(false);
        let clone =
            |_: &Path| self.clone_set(job, vm.id, epoch, &from).map(|made| is_new.set(made));
        let make = |dir: &Path| self.make_base(&set, dir, job, source);
        match shelf.with(digest, is_dir, make, clone) {
            // The directory is there, and the pool has another past: what is kept of templates can be made again.
            Err(StorageError::Lost { .. }) => shelf.with(digest, |_| Ok(false), make, clone)?,
            made => made?,
        }
        Ok(is_new.get())
    }

    fn make_base(
        &self,
        set: &str,
        dir: &Path,
        job: &Job,
        source: &Source,
    ) -> Result<(), StorageError> {
        let failed = |e| job.failed(source.allocated_bytes, e);
        let half = temporary_name(dir);
        if self.is_whole(set)? {
            // Only its directory was lost; disks may have been made from it, and then it could not be made anew.
            self.form.hide(set, &half)?;
            tree::remove(&half).map_err(failed)?;
            return make_dir(dir).map(drop).map_err(failed);
        }
        self.form.let_go(&half)?;
        self.pool()?.destroy(set)?;
        tree::remove(&half).map_err(failed)?;
        make_dir(&half).map_err(failed)?;
        let made = self.fill_base(set, &half, job, source).and_then(|()| {
            match tree::look(dir).map_err(failed)? {
                None => fs::rename(&half, dir).map_err(failed),
                Some(_) => tree::remove(&half).map(drop).map_err(failed),
            }
        });
        if made.is_err() {
            // The next try removes what can not go now.
            drop(self.form.let_go(&half).and_then(|()| self.pool()?.destroy(set)));
            drop(tree::remove(&half));
        }
        made
    }

    /// Whether a template's data set is complete: its snapshot is made last.
    pub(super) fn is_whole(&self, set: &str) -> Result<bool, StorageError> {
        match Zfs::look(&format!("{set}@{BASE}")).run() {
            Ok(_) => Ok(true),
            Err(Refused::Absent) => self.pool()?.check().map(|()| false),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Makes a template's data set, with the snapshot, by way of a directory.
    fn fill_base(
        &self,
        set: &str,
        half: &Path,
        job: &Job,
        source: &Source,
    ) -> Result<(), StorageError> {
        let failed = |e| job.failed(source.allocated_bytes, e);
        let pool = self.pool()?;
        // Whatever a file's size, a volume's is one of whole MB, as all disks are.
        let bytes = source.size_bytes.next_multiple_of(1 << 20);
        let create = match self.form {
            Form::File => Zfs::create(set, Some(half)),
            Form::Volume => Zfs::create_volume(set, bytes),
        };
        match pool.prepare().and_then(|()| create.run()) {
            Err(Refused::Absent) => return pool.check().and(Err(job.lost())),
            Err(Refused::Said(said)) if self.form == Form::Volume => {
                return Err(StorageError::Pool {
                    problem: format!("{said}; if it can have no volumes, {HAVE_VOLUMES}"),
                });
            }
            made => made.map_err(|e| refused(job, e))?,
        };
        let disk = half.join(job.path.file_name().unwrap_or_default());
        let disk = match self.form {
            Form::File => {
                fs::set_permissions(half, Permissions::from_mode(DIR_MODE)).map_err(failed)?;
                let mut open = OpenOptions::new();
                open.write(true).create_new(true).mode(0o600).open(disk).map_err(failed)?
            }
            Form::Volume => {
                self.form.show(set, half)?;
                open_device(&disk, true).map_err(failed)?
            }
        };
        self.reserve(job, &disk, source.allocated_bytes)?;
        match self.form {
            Form::File => clone_or_copy(job, source, &disk)?,
            Form::Volume => copy_data(&source.file, &disk, source.size_bytes).map_err(failed)?,
        }
        disk.sync_all().map_err(failed)?;
        drop(disk);
        Zfs::snapshot(&format!("{set}@{BASE}")).run().map_err(|e| refused(job, e))?;
        // Disks are made from the snapshot; nobody needs to see the data set itself.
        self.form.hide(set, half)
    }

    /// Gives a disk that was cloned now its size and owner; refuses what is larger than asked for.
    pub(super) fn finish(&self, job: &Job, set: &str, owner: Owner) -> Result<(), StorageError> {
        let failed = |e| job.failed(0, e);
        let place = place_of(&job.path);
        let image = self.form.open(set, &job.path)?.ok_or_else(|| {
            match self.form.is_shown(set, place) {
                // Somebody has unmounted it again.
                Ok(false) => StorageError::Pool {
                    problem: format!("{set} is not at {} any more", place.display()),
                },
                _ => damaged(place, "it holds no disk"),
            }
        })?;
        self.reserve(job, &image, 0)?;
        let have_bytes = size_bytes(&image).map_err(failed)?;
        if have_bytes > job.want_bytes {
            let (source_mb, want_mb) = (have_bytes.div_ceil(1 << 20), job.want_mb());
            return Err(StorageError::BelowSource { path: job.path.clone(), source_mb, want_mb });
        }
        if have_bytes < job.want_bytes {
            self.resize(job, set, &image)?;
        }
        // Neither is synced: what the power takes of them the next create gives again.
        give(&image, owner).map(drop).map_err(failed)
    }

    /// Gives a disk the size that is wanted.
    pub(super) fn resize(&self, job: &Job, set: &str, image: &File) -> Result<(), StorageError> {
        match self.form {
            Form::File => image.set_len(job.want_bytes).map_err(|e| job.not_grown(e)),
            Form::Volume => {
                Zfs::resize(set, job.want_bytes).run().map_err(|e| refused(job, e)).map(drop)
            }
        }
    }

    /// Refuses what would leave less than [`RESERVE_MB`] in the pool. `disk`: one that lies in it.
    pub(super) fn reserve(&self, job: &Job, disk: &File, bytes: u64) -> Result<(), StorageError> {
        let failed = |e: Errno| StorageError::Space { path: job.path.clone(), source: e.into() };
        let free_mb = match self.form {
            Form::File => {
                let stat = rustix::fs::fstatvfs(disk).map_err(failed)?;
                ((u128::from(stat.f_bavail) * u128::from(stat.f_frsize)) >> 20) as u64
            }
            Form::Volume => self.pool()?.space()?.free_mb,
        };
        let need_mb = bytes.div_ceil(1 << 20).saturating_add(RESERVE_MB);
        if need_mb > free_mb {
            return Err(StorageError::NoSpace { path: job.path.clone(), need_mb, free_mb });
        }
        Ok(())
    }
}

/// What a refusal to make something was.
pub(super) fn refused(job: &Job, refused: Refused) -> StorageError {
    match refused {
        Refused::Full => {
            StorageError::NoSpace { path: job.path.clone(), need_mb: RESERVE_MB, free_mb: 0 }
        }
        refused => refused.into(),
    }
}

/// Whether a template's directory is there, and what it is to be.
fn is_dir(dir: &Path) -> Result<bool, StorageError> {
    let failed = |source| StorageError::List { path: dir.into(), source };
    match tree::look(dir).map_err(failed)? {
        None => Ok(false),
        Some(meta) if !meta.is_dir() => Err(damaged(dir, "it is no directory")),
        Some(_) => foreign(dir).map_err(failed)?.map_or(Ok(true), Err),
    }
}
