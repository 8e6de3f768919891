//! The `zfs` back end: each disk is a raw file in a data set of its own, `POOL/tt/INSTANCE/v/VM.0` and later
//! `v/VM/EPOCH`, mounted where the disk's name says; a snapshot is a snapshot of it. It never touches a data set outside of `POOL/tt/INSTANCE`, and never
//! takes one for lost while its pool is not there.
//!
//! A directory of a disk's name is made before anything of the disk is in the pool, and goes after it: looking at
//! directories tells what there may be. A template's disk is `POOL/tt/INSTANCE/t/DIGEST@base`, with the directory
//! `volumes/DIGEST.zfs`.

use crate::images::files::{
    Owner, TEMPORARY, lock, make_dir, make_dirs, open_image, open_plain, sync_dir,
};
use crate::images::{Disks, Job};
use crate::layers::parse_name;
use crate::shelf::Shelf;
use crate::source::{Origin, Source};
use crate::{Space, StorageError, tree};
use command::{Refused, Zfs};
use mounts::set_of;
use pool::Pool;
use reader::Reader;
use state::snapshot_name;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tt_model::{Instance, StorageKind, Vm, VmId};

mod command;
mod make;
mod mounts;
mod pool;
mod probe;
mod reader;
mod state;

pub use probe::check_pool;
pub(crate) use probe::{pool_of, probe};

/// Behind the name of a disk's directory.
const ENDING: &str = ".zfs";

/// Raw files in data sets.
#[derive(Debug)]
pub(crate) struct DataSets {
    /// `None` if no pool is configured.
    pool: Option<Pool>,
}

impl DataSets {
    pub(crate) fn new(pool: Option<&str>, instance: Instance) -> Self {
        Self { pool: pool.map(|name| Pool::new(name, instance)) }
    }

    fn pool(&self) -> Result<&Pool, StorageError> {
        command::answers()?;
        self.pool.as_ref().ok_or_else(|| StorageError::Pool {
            problem: "none is configured: name one (`pool` in the table `zfs`)".into(),
        })
    }

    /// Mounts a disk's data set where its name says.
    fn mount(&self, set: &str, place: &Path) -> Result<(), StorageError> {
        let look =
            || set_of(place).map_err(|source| StorageError::List { path: place.into(), source });
        if look()?.is_some_and(|mounted| mounted == set) {
            return Ok(());
        }
        if fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(damaged(place, "it is where a data set is to be mounted, and not empty"));
        }
        // It may be mounted where the data directory was once.
        let mounted = Zfs::mount(set).run();
        if look()?.is_none() {
            Zfs::mount_at(set, Some(place)).run()?;
        }
        match look()? {
            Some(there) if there == set => Ok(()),
            _ => match mounted {
                Err(refused) => Err(refused.into()),
                Ok(_) => Err(StorageError::Pool { problem: format!("{set} is mounted elsewhere") }),
            },
        }
    }
}

impl Disks for DataSets {
    fn kind(&self) -> StorageKind {
        StorageKind::Zfs
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
        let above = place.parent().map(fs::symlink_metadata).transpose().map_err(failed)?;
        let is_mounted = above.is_some_and(|above| above.dev() != meta.dev());
        let (id, epoch) = named(&job.name)?;
        let set = self.pool()?.disk_set(id, epoch);
        if !is_mounted {
            if !self.pool()?.state(id)?.sets.contains_key(&epoch) {
                return foreign(place).map_err(failed)?.map_or(Ok(None), Err);
            }
            self.mount(&set, place)?;
        } else if set_of(place).map_err(failed)?.is_none_or(|mounted| mounted != set) {
            return Err(damaged(place, "something else is mounted there"));
        }
        open_image(&job.path)?.map(Some).ok_or_else(|| damaged(place, "it holds no disk"))
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
            if let Some((_, _, StorageKind::Zfs)) = parse_name(base) {
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
        let made = make::finish(job, owner);
        if made.is_err() && is_new {
            // It was made now, so it can not have been in use.
            drop(self.pool()?.destroy(&self.pool()?.disk_set(vm.id, epoch)));
            self.forget(vm.id, place_of(&job.path));
        }
        made
    }

    fn freeze(&self, job: &Job, source: &Source, vm: &Vm) -> Result<(), StorageError> {
        let place = place_of(&job.path);
        make::reserve(job, &source.file, 0)?;
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
        image.set_len(job.want_bytes).map_err(|e| job.not_grown(e))
    }

    fn show(
        &self,
        data: &Path,
        layers: &[String],
        read: &dyn Fn(&[String]) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let found = layers.first().and_then(|name| Some((name, parse_name(name)?)));
        let Some((name, (id, epoch, StorageKind::Zfs))) = found else { return read(layers) };
        let pool = self.pool()?;
        let state = pool.state(id)?;
        let frozen = snapshot_name(id, epoch);
        let job = Job { name: name.clone(), path: data.join(name), data, want_bytes: 0 };
        let holder = match state.holder(&frozen) {
            Some(holder) if !state.sets.contains_key(&epoch) => holder,
            _ => return self.open(&job).and_then(|_| read(layers)),
        };
        // A snapshot is no file, but a clone of it is.
        let reader = Reader::open(pool, data, &format!("{}@{frozen}", pool.disk_set(id, holder)))?;
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
        let names: BTreeSet<String> = stay.iter().map(|epoch| format!("{epoch}{ENDING}")).collect();
        let others = entries(dir, |name| !names.contains(name)).map_err(failed)?;
        if others.is_empty() {
            return Ok(());
        }
        // Nothing can be done about a data set while a machine has its disk open.
        let mut spared = stay.clone();
        let mut open = None;
        for name in &others {
            let epoch = name.to_str().and_then(|name| name.strip_suffix(ENDING)?.parse().ok());
            if let Some(epoch) = epoch.filter(|_| is_open(&dir.join(name))) {
                spared.insert(epoch);
                open = Some(StorageError::InUse { path: dir.join(name) });
            }
        }
        self.pool()?.drop_others(id, &spared)?;
        for name in others {
            let path = dir.join(name);
            if tree::remove(&path).map_err(failed)? || is_open(&path) {
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
        let has_own = !entries(dir, |name| name.trim_end_matches(".tmp").ends_with(ENDING))
            .map_err(failed)?
            .is_empty();
        // The Vms of other back ends have nothing in the pool. What has lost its directory is found there, too, once the pool
        // is: it holds up no sweep before.
        let may_have = !is_there && self.pool.as_ref().is_some_and(|pool| pool.check().is_ok());
        if has_own || may_have {
            self.pool()?.drop_all(id)?;
        }
        // What another back end has mounted there is left to it.
        tree::remove(dir).map(drop).map_err(failed)
    }

    fn found(&self) -> Result<Vec<VmId>, StorageError> {
        Ok(self.pool.as_ref().map(Pool::vms).unwrap_or_default())
    }

    fn collect(&self, data: &Path, in_use: &dyn Fn(&str) -> bool) -> Result<(), StorageError> {
        let Some(pool) = &self.pool else { return Ok(()) };
        reader::sweep(pool, data)?;
        Shelf::new(data, self.kind()).collect(in_use, |dir| {
            let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let digest = name.split('.').next().unwrap_or_default();
            let set = pool.template_set(digest);
            let failed = |source| StorageError::Destroy { path: dir.into(), source };
            if name.ends_with(TEMPORARY) && self.is_whole(&set)? {
                // Only its last step is missing; whether it is in use the next call asks.
                Zfs::mount_at(&set, None).run()?;
                return fs::rename(dir, dir.with_extension("")).map_err(failed);
            }
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
fn entries(dir: &Path, is_meant: impl Fn(&str) -> bool) -> io::Result<Vec<std::ffi::OsString>> {
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

/// Whether a machine has the disk open that is mounted there.
fn is_open(place: &Path) -> bool {
    let disk = StorageKind::Zfs.inner().map(|inner| place.join(inner));
    let disk = disk.and_then(|disk| open_plain(&disk, true).ok());
    // One that can not be looked at is tried: whoever has it says so.
    disk.is_some_and(|disk| matches!(lock(&disk), Ok(false)))
}

/// What is wrong with a directory that must be empty.
fn foreign(dir: &Path) -> io::Result<Option<StorageError>> {
    let is_empty = fs::read_dir(dir)?.next().is_none();
    Ok((!is_empty).then(|| damaged(dir, "it holds what no data set has")))
}

fn damaged(place: &Path, problem: &str) -> StorageError {
    StorageError::Damaged { path: place.into(), problem: problem.into() }
}
