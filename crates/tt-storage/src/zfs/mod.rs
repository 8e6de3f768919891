//! The back ends `zfs` and `zvol`: each disk is a raw file in a data set of its own, or a volume, `POOL/tt/INSTANCE/v/VM.0`
//! and later `v/VM/EPOCH`, mounted where the disk's name says, or with a node there; a snapshot is a snapshot of it. It never
//! touches a data set outside of `POOL/tt/INSTANCE`, and never takes one for lost while its pool is not there.
//!
//! A directory of a disk's name is made before anything of the disk is in the pool, and goes after it: looking at
//! directories tells what there may be. A template's disk is `POOL/tt/INSTANCE/t/DIGEST@base`, with the directory
//! `volumes/DIGEST.zfs`; that of volumes is `t/DIGEST.zvol@base`, with `volumes/DIGEST.zvol`.

use crate::images::files::{Owner, TEMPORARY, make_dir, make_dirs, sync_dir};
use crate::images::{Disks, Job};
use crate::layers::parse_name;
use crate::shelf::Shelf;
use crate::source::{Origin, Source};
use crate::{Space, StorageError, tree};
use command::{Refused, Zfs};
use form::Seen;
use mounts::set_of;
use pool::Pool;
use reader::Reader;
use state::snapshot_name;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use tt_model::{Instance, StorageKind, Vm, VmId};

mod command;
mod form;
mod make;
mod mounts;
mod pool;
mod probe;
mod reader;
mod state;
mod volume;

pub(crate) use form::Form;
pub use probe::check_pool;
pub(crate) use probe::{pool_of, probe, probe_volumes};

/// Disks in a pool, of one form.
#[derive(Debug)]
pub(crate) struct DataSets {
    form: Form,
    /// `None` if no pool is configured.
    pool: Option<Pool>,
}

impl DataSets {
    pub(crate) fn new(form: Form, pool: Option<&str>, instance: Instance) -> Self {
        Self { form, pool: pool.map(|name| Pool::new(name, instance)) }
    }

    fn pool(&self) -> Result<&Pool, StorageError> {
        command::answers()?;
        self.pool.as_ref().ok_or_else(|| StorageError::Pool {
            problem: "none is configured: name one (`pool` in the table `zfs`)".into(),
        })
    }

    /// The name of a disk's directory in that of its Vm.
    fn disk_dir(&self, epoch: u32) -> String {
        format!("{epoch}{}", self.form.ending())
    }

    /// The disk whose directory has that name.
    fn epoch_in(&self, name: &OsStr) -> Option<u32> {
        name.to_str()?.strip_suffix(self.form.ending())?.parse().ok()
    }
}

impl Disks for DataSets {
    fn kind(&self) -> StorageKind {
        self.form.kind()
    }

    fn open(&self, job: &Job) -> Result<Option<File>, StorageError> {
        // Before anything of the pool is looked at: who touches a pool that hangs, hangs.
        command::answers()?;
        let place = place_of(&job.path);
        let failed = |source| StorageError::List { path: place.into(), source };
        let Some(meta) = tree::look(place).map_err(failed)? else { return Ok(None) };
        if !meta.is_dir() {
            return Err(damaged(place, "it is no directory"));
        }
        let (id, epoch) = named(&job.name)?;
        let set = self.pool()?.disk_set(id, epoch);
        match self.form.look(&set, place, &meta).map_err(failed)? {
            Seen::Disk => {}
            Seen::Other => return Err(damaged(place, "something else is mounted there")),
            Seen::Nothing if self.pool()?.state(id)?.sets.contains_key(&epoch) => {
                self.form.show(&set, place)?;
            }
            Seen::Nothing => {
                self.form.let_go(place)?;
                return foreign(place).map_err(failed)?.map_or(Ok(None), Err);
            }
        }
        let disk = self.form.open(&set, &job.path)?;
        disk.map(Some).ok_or_else(|| damaged(place, "it holds no disk"))
    }

    fn find(&self, job: &Job) -> Result<Option<File>, StorageError> {
        if let Some(image) = self.open(job)? {
            return Ok(Some(image));
        }
        let (id, epoch) = named(&job.name)?;
        if !self.pool()?.state(id)?.sets.contains_key(&epoch) {
            return Ok(None);
        }
        let place = place_of(&job.path);
        make_dirs(job.data, place.parent().unwrap_or(job.data))
            .and_then(|_| make_dir(place))
            .map_err(|e| job.failed(0, e))?;
        self.open(job)
    }

    fn has(&self, job: &Job) -> Result<bool, StorageError> {
        command::answers()?;
        let place = place_of(&job.path);
        let failed = |source| StorageError::List { path: place.into(), source };
        if tree::look(place).map_err(failed)?.is_none() {
            return Ok(false);
        }
        let (id, epoch) = named(&job.name)?;
        let state = self.pool()?.state(id)?;
        Ok(state.sets.contains_key(&epoch) || state.holder(&snapshot_name(id, epoch)).is_some())
    }

    fn make(&self, job: &Job, vm: &Vm, epoch: u32, owner: Owner) -> Result<(), StorageError> {
        if let Some(base) = vm.base.as_ref().filter(|_| epoch == 0) {
            // So that it is mounted, and can be looked at.
            if parse_name(base).is_some_and(|(_, _, kind)| kind == self.kind()) {
                self.open(&Job { name: base.clone(), path: job.data.join(base), ..*job })?;
            }
        }
        let is_own = vm.disks.get(&epoch).is_some_and(|disk| disk.parent.is_some());
        let source = if is_own { None } else { Some(Source::open(job, self.kind(), vm, epoch)?) };
        let is_new = match source.filter(|source| source.origin == Origin::Template) {
            Some(template) => self.clone_template(job, vm, epoch, &template)?,
            None => {
                let from = self.origin(job, vm, epoch)?;
                self.clone_set(job, vm.id, epoch, &from)?
            }
        };
        let set = self.pool()?.disk_set(vm.id, epoch);
        let made = self.finish(job, &set, owner);
        if made.is_err() && is_new {
            // It was made now, so it can not have been in use.
            drop(self.form.let_go(place_of(&job.path)).and_then(|()| self.pool()?.destroy(&set)));
            self.forget(vm.id, place_of(&job.path));
        }
        made
    }

    fn freeze(&self, job: &Job, source: &Source, vm: &Vm) -> Result<(), StorageError> {
        let place = place_of(&job.path);
        self.reserve(job, &source.file, 0)?;
        if self.form == Form::Volume {
            // What was written to a device may still be in memory; a file's is in the pool.
            source.file.sync_all().map_err(|e| job.not_synced(e))?;
        }
        let (id, epoch) = named(&job.name)?;
        let pool = self.pool()?;
        let snapshot = format!("{}@{}", pool.disk_set(id, vm.epoch), snapshot_name(id, epoch));
        let failed = |e| job.failed(0, e);
        if tree::look(place).map_err(failed)?.is_some() {
            // Of another try.
            pool.destroy(&snapshot)?;
        }
        make_dir(place).map_err(failed)?;
        let frozen = match Zfs::snapshot(&snapshot).run() {
            Ok(_) => Ok(()),
            Err(Refused::Absent) => pool.check().and(Err(job.lost())),
            Err(refused) => Err(make::refused(job, refused)),
        };
        if frozen.is_err() {
            self.forget(vm.id, place);
        }
        frozen
    }

    fn sync(&self, job: &Job, is_runtime: bool) -> Result<(), StorageError> {
        let synced = match is_runtime {
            true => self.open(job)?.ok_or_else(|| job.lost())?.sync_all(),
            // A snapshot is on disk once it is made.
            false if self.has(job)? => Ok(()),
            false => return Err(job.lost()),
        };
        // Its name is a directory on the file system of the data directory.
        let dir = place_of(&job.path).parent().unwrap_or(job.data);
        let dirs = [dir, &job.data.join("images")];
        synced
            .and_then(|()| dirs.iter().try_for_each(|dir| sync_dir(dir)))
            .map_err(|e| job.not_synced(e))
    }

    fn grow(&self, job: &Job, image: &File) -> Result<(), StorageError> {
        let (id, epoch) = named(&job.name)?;
        self.resize(job, &self.pool()?.disk_set(id, epoch), image)
    }

    fn show(
        &self,
        data: &Path,
        layers: &[String],
        read: &dyn Fn(&[String]) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let found = layers.first().and_then(|name| Some((name, parse_name(name)?)));
        let found = found.filter(|(_, (_, _, kind))| *kind == self.kind());
        let Some((name, (id, epoch, _))) = found else { return read(layers) };
        let pool = self.pool()?;
        let state = pool.state(id)?;
        let frozen = snapshot_name(id, epoch);
        let job = Job { name: name.clone(), path: data.join(name), data, want_bytes: 0 };
        let holder = match state.holder(&frozen) {
            Some(holder) if !state.sets.contains_key(&epoch) => holder,
            _ => return self.open(&job).and_then(|_| read(layers)),
        };
        // A snapshot is no file, but a clone of it is.
        let from = format!("{}@{frozen}", pool.disk_set(id, holder));
        let reader = Reader::open(self.form, pool, data, &from)?;
        let done = read(&[reader.disk(data)]);
        drop(reader);
        if tree::look(place_of(&job.path)).is_ok_and(|place| place.is_none()) {
            // It was removed meanwhile, as far as that went. What can not go now goes with the Vm.
            let holder = pool.state(id).ok().and_then(|state| state.holder(&frozen));
            let snapshot = holder.map(|holder| format!("{}@{frozen}", pool.disk_set(id, holder)));
            drop(snapshot.map(|snapshot| pool.destroy(&snapshot)));
        }
        done
    }

    fn keep_only(&self, dir: &Path, id: VmId, stay: &BTreeSet<u32>) -> Result<(), StorageError> {
        let failed = |source| StorageError::Destroy { path: dir.into(), source };
        command::answers()?;
        let names: BTreeSet<String> = stay.iter().map(|epoch| self.disk_dir(*epoch)).collect();
        let mut others = entries(dir, |name| !names.contains(name)).map_err(failed)?;
        if others.is_empty() {
            return Ok(());
        }
        // Nothing can be done about a data set while a machine has its disk open.
        let mut spared = stay.clone();
        let mut open = None;
        let pool = self.pool()?;
        others.retain(|name| {
            let path = dir.join(name);
            let epoch = self.epoch_in(name);
            match epoch.filter(|epoch| self.form.is_open(&pool.disk_set(id, *epoch), &path)) {
                None => true,
                Some(epoch) => {
                    spared.insert(epoch);
                    open = Some(StorageError::InUse { path });
                    false
                }
            }
        });
        others.iter().try_for_each(|name| self.form.let_go(&dir.join(name)))?;
        pool.drop_others(id, &spared)?;
        for name in others {
            let path = dir.join(name);
            if tree::remove(&path).map_err(failed)? {
                continue;
            }
            // A disk that one of those that stay can not be without: nobody sees it any more.
            if let Some(hidden) = set_of(&path).map_err(failed)? {
                Zfs::mount_at(&hidden, None).run()?;
            }
            tree::remove(&path).map_err(failed)?;
        }
        open.map_or(Ok(()), Err)
    }

    fn remove_all(&self, dir: &Path, id: VmId) -> Result<(), StorageError> {
        let failed = |source| StorageError::Destroy { path: dir.into(), source };
        let is_there = tree::look(dir).map_err(failed)?.is_some();
        let ending = self.form.ending();
        let own = entries(dir, |name| name.trim_end_matches(TEMPORARY).ends_with(ending));
        let own = own.map_err(failed)?;
        // The Vms of other back ends have nothing in the pool. What has lost its directory is found there, too, once the pool
        // is: it holds up no sweep before.
        let may_have = !is_there && self.pool.as_ref().is_some_and(|pool| pool.check().is_ok());
        if !own.is_empty() || may_have {
            let pool = self.pool()?;
            own.iter().try_for_each(|name| self.form.let_go(&dir.join(name)))?;
            pool.drop_all(id)?;
        }
        // What another back end has mounted there is left to it.
        tree::remove(dir).map(drop).map_err(failed)
    }

    fn found(&self) -> Result<Vec<VmId>, StorageError> {
        Ok(self.pool.as_ref().map(Pool::vms).unwrap_or_default())
    }

    fn collect(&self, data: &Path, in_use: &dyn Fn(&str) -> bool) -> Result<(), StorageError> {
        let Some(pool) = &self.pool else { return Ok(()) };
        reader::sweep(self.form, pool, data)?;
        Shelf::new(data, self.kind()).collect(in_use, |dir| {
            let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let digest = name.split('.').next().unwrap_or_default();
            let set = pool.template_set(self.form, digest);
            let failed = |source| StorageError::Destroy { path: dir.into(), source };
            if name.ends_with(TEMPORARY) && self.is_whole(&set)? {
                // Only its last step is missing; whether it is in use the next call asks.
                self.form.hide(&set, dir)?;
                return fs::rename(dir, dir.with_extension("")).map_err(failed);
            }
            self.form.let_go(dir)?;
            match pool.destroy(&set) {
                // Disks that were made from it go on needing it.
                Err(StorageError::HasClones) => return Ok(()),
                destroyed => destroyed?,
            }
            tree::remove(dir).map(drop).map_err(failed)
        })
    }

    fn space(&self, _: &Path) -> Result<Space, StorageError> {
        self.pool()?.space()
    }
}

/// The directory where a disk's data set is mounted.
fn place_of(disk: &Path) -> &Path {
    disk.parent().unwrap_or(disk)
}

fn named(name: &str) -> Result<(VmId, u32), StorageError> {
    let found = parse_name(name).map(|(id, epoch, _)| (id, epoch));
    found.ok_or_else(|| StorageError::CheckPath { path: name.into() })
}

/// The names in a directory that are meant; none if there is no directory.
fn entries(dir: &Path, is_meant: impl Fn(&str) -> bool) -> io::Result<Vec<OsString>> {
    let found = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        found => found?,
    };
    let mut names = Vec::new();
    for entry in found {
        let name = entry?.file_name();
        if is_meant(&name.to_string_lossy()) {
            names.push(name);
        }
    }
    Ok(names)
}

/// What is wrong with a directory that must be empty.
fn foreign(dir: &Path) -> io::Result<Option<StorageError>> {
    let is_empty = fs::read_dir(dir)?.next().is_none();
    Ok((!is_empty).then(|| damaged(dir, "it holds what no data set has")))
}

fn damaged(place: &Path, problem: &str) -> StorageError {
    StorageError::Damaged { path: place.into(), problem: problem.into() }
}
