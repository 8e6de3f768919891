//! A storage in memory that fails, or dies, at any side effect on demand. It never touches a disk.

use crate::layers::{missing, parse_name};
use crate::{Merging, RESERVE_MB, Space, Storage, StorageError};
use disk::{of_template, room_mb};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tt_model::fault::{Fault, FaultHook, Moment, no_fault};
use tt_model::names::runtime_image;
use tt_model::{Snapshot, SnapshotState, StorageKind, Vm, VmId};

mod disk;
mod merging;

pub use disk::{FakeDisk, FakeImage};

/// The side effects that the hook is asked about. A new image is CREATE, then COMMIT; a snapshot that is a clone is
/// CREATE, then SNAPSHOT.
pub mod effect {
    /// A half-done image exists under a temporary name.
    pub const CREATE: &str = "image.create";
    /// The image is complete and has its name.
    pub const COMMIT: &str = "image.commit";
    /// The image has its new size.
    pub const GROW: &str = "image.grow";
    /// The snapshot's disk is complete, or frozen.
    pub const SNAPSHOT: &str = "image.snapshot";
    /// A disk survives a power loss.
    pub const SYNC: &str = "image.sync";
    /// A half-done merge exists under a temporary name.
    pub const COPY: &str = "image.copy";
    /// A merge is complete and has its name.
    pub const MERGE: &str = "image.merge";
    /// A layer lies on what the record says.
    pub const RELINK: &str = "image.relink";
    /// One disk that the record does not name is gone.
    pub const DROP: &str = "image.drop";
    /// What is kept belongs to no machine any more.
    pub const KEEP: &str = "image.keep";
    /// All images of a Vm are gone.
    pub const DESTROY: &str = "image.destroy";
}

/// The fake. Another one on the same disk is a restarted daemon.
pub struct FakeStorage {
    kind: StorageKind,
    disk: Arc<FakeDisk>,
    hook: FaultHook,
    died: Arc<AtomicBool>,
}

impl FakeStorage {
    /// A fake of kind `file` on `disk` that asks `hook` before and after each of its [side effects](effect).
    #[must_use]
    pub fn new(disk: Arc<FakeDisk>, hook: FaultHook) -> Self {
        Self { kind: StorageKind::File, disk, hook, died: Arc::default() }
    }

    /// The same as a back end of another kind: layered like it, or not.
    #[must_use]
    pub fn with_kind(mut self, kind: StorageKind) -> Self {
        self.kind = kind;
        self
    }

    /// A fake that never fails.
    #[must_use]
    pub fn reliable(disk: Arc<FakeDisk>) -> Self {
        Self::new(disk, no_fault())
    }

    /// Its disk.
    #[must_use]
    pub fn disk(&self) -> &Arc<FakeDisk> {
        &self.disk
    }

    /// Behaves from now on as if the daemon had been started again.
    pub fn revive(&self) {
        self.died.store(false, Ordering::SeqCst);
    }

    fn ask(&self, moment: Moment, effect: &'static str) -> Result<(), StorageError> {
        match (self.hook)(moment, effect) {
            Fault::None => Ok(()),
            Fault::Fail => Err(StorageError::Fault { effect }),
            Fault::Die => {
                self.died.store(true, Ordering::SeqCst);
                Err(StorageError::Died { effect })
            }
        }
    }

    /// Commits one side effect, with the hook on both sides.
    fn act(
        &self,
        effect: &'static str,
        change: impl FnOnce(&FakeDisk),
    ) -> Result<(), StorageError> {
        self.alive(effect)?;
        self.ask(Moment::Before, effect)?;
        change(&self.disk);
        self.ask(Moment::After, effect)
    }

    fn alive(&self, effect: &'static str) -> Result<(), StorageError> {
        if self.died.load(Ordering::SeqCst) { Err(StorageError::Died { effect }) } else { Ok(()) }
    }

    fn path(&self, vm: &Vm, epoch: u32) -> PathBuf {
        runtime_image(self.kind, vm.id, epoch).into()
    }

    fn lost(&self, vm: &Vm, epoch: u32) -> StorageError {
        StorageError::Lost { path: self.path(vm, epoch) }
    }

    fn create(&self, vm: &Vm) -> Result<(), StorageError> {
        let is_there = |epoch| Ok(self.disk.get(vm.id, epoch).is_some());
        for epoch in missing(vm, is_there, |epoch| self.lost(vm, epoch))? {
            let image = self.made_from(vm, epoch)?;
            if let Some((_, parent)) = image.under.filter(|(id, _)| *id == vm.id) {
                self.disk.change(vm.id, parent, |image| image.frozen = true);
            }
            self.write(vm, epoch, image, effect::COMMIT)?;
        }
        Ok(())
    }

    /// The image of `epoch` as it begins.
    fn made_from(&self, vm: &Vm, epoch: u32) -> Result<FakeImage, StorageError> {
        let parent = vm.disks.get(&epoch).and_then(|disk| disk.parent);
        let below = match (parent, &vm.base) {
            (Some(parent), _) => Some((vm.id, parent)),
            (None, Some(base)) => Some(parse_name(base).map(|(id, epoch, _)| (id, epoch)).ok_or(
                StorageError::CheckName { path: base.clone(), right: "images/ID/EPOCH".into() },
            )?),
            (None, None) => None,
        };
        let lost =
            |(id, epoch)| StorageError::Lost { path: runtime_image(self.kind, id, epoch).into() };
        let below = match below {
            Some(at) => Some((at, self.disk.get(at.0, at.1).ok_or_else(|| lost(at))?)),
            None => None,
        };
        let source_mb = below.as_ref().map_or(vm.template.disk_size, |(_, image)| image.size_mb);
        let want_mb = vm.resource.disk_size;
        if want_mb < source_mb {
            let path = self.path(vm, epoch);
            return Err(StorageError::BelowSource { path, source_mb: source_mb.into(), want_mb });
        }
        let at = below.as_ref().map(|(at, _)| *at);
        let content = at.and_then(|(id, epoch)| self.disk.content(id, epoch));
        Ok(FakeImage {
            size_mb: want_mb,
            digest: vm.template.digest.clone(),
            kind: self.kind,
            under: at.filter(|_| self.kind.is_layered()),
            origin: content.unwrap_or_else(|| of_template(&vm.template.digest)),
            written: Vec::new(),
            complete: false,
            frozen: false,
            synced: false,
        })
    }

    /// Makes one image, in two steps.
    fn write(
        &self,
        vm: &Vm,
        epoch: u32,
        image: FakeImage,
        commit: &'static str,
    ) -> Result<(), StorageError> {
        let need_mb = room_mb(&image) + RESERVE_MB;
        let free_mb = self.disk.free_mb();
        if need_mb > free_mb {
            return Err(StorageError::NoSpace { path: self.path(vm, epoch), need_mb, free_mb });
        }
        self.act(effect::CREATE, |disk| {
            disk.lock().images.entry(vm.id).or_default().insert(epoch, image);
        })?;
        self.act(commit, |disk| {
            disk.change(vm.id, epoch, |image| {
                image.complete = true;
                image.synced = commit == effect::COMMIT;
            });
        })
    }

    /// Removes the images of `vm` but these.
    fn keep_only(&self, vm: &Vm, stay: &BTreeSet<u32>) -> Result<(), StorageError> {
        for (epoch, image) in self.disk.images_of(vm.id) {
            let is_merge = vm.merge.is_some_and(|merge| merge.epoch == epoch);
            if !stay.contains(&epoch) || !(image.complete || is_merge) {
                self.act(effect::DROP, |disk| {
                    let mut state = disk.lock();
                    if let Some(epochs) = state.images.get_mut(&vm.id) {
                        epochs.remove(&epoch);
                    }
                })?;
            }
        }
        Ok(())
    }

    /// The epoch of a snapshot's disk; refuses a record that names another one.
    fn epoch_of(&self, vm: &Vm, snapshot: &Snapshot) -> Result<u32, StorageError> {
        let epoch = snapshot.epoch.filter(|epoch| *epoch != vm.epoch).unwrap_or(vm.next_epoch);
        let right = runtime_image(self.kind, vm.id, epoch);
        if snapshot.path == right {
            return Ok(epoch);
        }
        Err(StorageError::CheckName { path: snapshot.path.clone(), right })
    }
}

impl fmt::Debug for FakeStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeStorage")
            .field("disk", &self.disk)
            .field("died", &self.died)
            .finish_non_exhaustive()
    }
}

impl Storage for FakeStorage {
    fn kind(&self) -> StorageKind {
        self.kind
    }

    fn create_image(&self, vm: &Vm) -> Result<(), StorageError> {
        self.alive(effect::CREATE)?;
        let path = self.path(vm, vm.epoch);
        let want_mb = vm.resource.disk_size;
        match self.disk.get(vm.id, vm.epoch) {
            None => self.create(vm),
            Some(image) if image.size_mb == want_mb => Ok(()),
            Some(image) if image.size_mb > want_mb => Err(StorageError::Shrink {
                path,
                have_bytes: u64::from(image.size_mb) << 20,
                want_mb,
            }),
            Some(_) if self.disk.is_open(vm.id, vm.epoch) => Err(StorageError::InUse { path }),
            Some(_) => self.act(effect::GROW, |disk| {
                disk.change(vm.id, vm.epoch, |image| image.size_mb = want_mb);
            }),
        }
    }

    fn create_snapshot(&self, vm: &Vm, snapshot: &Snapshot) -> Result<(), StorageError> {
        self.alive(effect::SNAPSHOT)?;
        let epoch = self.epoch_of(vm, snapshot)?;
        let is_wanted = snapshot.state == SnapshotState::Wanted;
        if is_wanted && self.disk.get(vm.id, vm.epoch).is_none() {
            self.create(vm)?;
        }
        if is_wanted && !self.kind.is_layered() {
            let lost = || self.lost(vm, vm.epoch);
            let runtime = self.disk.get(vm.id, vm.epoch).ok_or_else(lost)?;
            let content = self.disk.content(vm.id, vm.epoch).ok_or_else(lost)?;
            let clone = FakeImage {
                origin: content,
                written: Vec::new(),
                complete: false,
                frozen: true,
                ..runtime
            };
            return self.write(vm, epoch, clone, effect::SNAPSHOT);
        }
        self.disk.get(vm.id, epoch).ok_or_else(|| self.lost(vm, epoch))?;
        if !is_wanted {
            return Ok(());
        }
        self.act(effect::SNAPSHOT, |disk| disk.change(vm.id, epoch, |image| image.frozen = true))
    }

    fn sync_disk(&self, vm: &Vm, epoch: u32) -> Result<(), StorageError> {
        self.alive(effect::SYNC)?;
        let image = self.disk.get(vm.id, epoch).ok_or_else(|| self.lost(vm, epoch))?;
        if image.synced {
            return Ok(());
        }
        self.act(effect::SYNC, |disk| disk.change(vm.id, epoch, |image| image.synced = true))
    }

    fn export(
        &self,
        layers: &[String],
        to: &std::fs::File,
        goes_on: &dyn Fn(u64, u64) -> bool,
    ) -> Result<(), StorageError> {
        self.alive("image.export")?;
        let name = layers.first().map(String::as_str).unwrap_or_default();
        let failed = |source| StorageError::Export { path: name.into(), source };
        let lost = || StorageError::Lost { path: name.into() };
        let (id, epoch, _) = parse_name(name).ok_or_else(lost)?;
        let image = self.disk.get(id, epoch).ok_or_else(lost)?;
        let bytes = u64::from(image.size_mb) << 20;
        if !goes_on(0, bytes) {
            return Err(failed(std::io::ErrorKind::Interrupted.into()));
        }
        to.set_len(bytes).map_err(failed)
    }

    fn apply_snapshot(&self, vm: &Vm, snapshot: &Snapshot) -> Result<(), StorageError> {
        self.alive(effect::CREATE)?;
        let epoch = self.epoch_of(vm, snapshot)?;
        let is_there = |epoch| self.disk.get(vm.id, epoch).is_some();
        if !is_there(vm.epoch) && !is_there(epoch) {
            return Err(self.lost(vm, epoch));
        }
        self.create_image(vm)
    }

    fn destroy_snapshot(&self, vm: &Vm) -> Result<(), StorageError> {
        self.alive(effect::DROP)?;
        self.relink(vm)?;
        let stay = vm.epochs().collect();
        if self.disk.images_of(vm.id).keys().any(|epoch| !BTreeSet::contains(&stay, epoch)) {
            let is_away =
                |epoch: &&u32| vm.was_made(**epoch) && self.disk.get(vm.id, **epoch).is_none();
            if let Some(epoch) = vm.disks.keys().find(is_away) {
                return Err(StorageError::Away { path: self.path(vm, *epoch) });
            }
        }
        self.keep_only(vm, &stay)
    }

    fn taken_mb(&self, vm: &Vm) -> Result<BTreeMap<u32, u64>, StorageError> {
        self.alive("image.list")?;
        let images = self.disk.images_of(vm.id).into_iter();
        Ok(images.map(|(epoch, image)| (epoch, room_mb(&image))).collect())
    }

    fn begin_merge(&self, vm: &Vm) -> Result<Box<dyn Merging>, StorageError> {
        match vm.merge.filter(|_| self.kind.is_layered()) {
            Some(merge) => Ok(Box::new(merging::begin(self.again(), vm, merge)?)),
            None => Err(StorageError::NoMerge { id: vm.id }),
        }
    }

    fn keep_image(&self, vm: &Vm) -> Result<bool, StorageError> {
        self.alive(effect::KEEP)?;
        if self.disk.get(vm.id, vm.epoch).is_none() {
            if vm.disks.get(&vm.epoch).is_none_or(|disk| disk.parent.is_none()) {
                self.remove_stray(vm.id)?;
                return Ok(false);
            }
            self.create(vm)?;
        }
        self.relink(vm)?;
        let needed: BTreeSet<u32> = vm.chain(vm.epoch).into_iter().collect();
        let is_kept = |epoch: &u32| self.disk.get(vm.id, *epoch).is_some_and(|image| image.frozen);
        if !needed.iter().all(is_kept) {
            self.act(effect::KEEP, |disk| {
                for epoch in &needed {
                    disk.change(vm.id, *epoch, |image| image.frozen = true);
                }
            })?;
        }
        self.keep_only(vm, &needed)?;
        Ok(true)
    }

    fn destroy_image(&self, vm: &Vm) -> Result<(), StorageError> {
        self.remove_stray(vm.id)
    }

    fn images(&self) -> Result<Vec<VmId>, StorageError> {
        self.alive("image.list")?;
        Ok(self.disk.lock().images.keys().copied().collect())
    }

    fn remove_stray(&self, id: VmId) -> Result<(), StorageError> {
        self.alive(effect::DESTROY)?;
        if self.disk.images_of(id).is_empty() {
            return Ok(());
        }
        self.act(effect::DESTROY, |disk| {
            disk.lock().images.remove(&id);
        })
    }

    fn collect_templates(&self, _: &dyn Fn(&str) -> bool) -> Result<(), StorageError> {
        self.alive("image.templates")
    }

    fn space(&self) -> Result<Space, StorageError> {
        self.alive("image.space")?;
        Ok(Space { total_mb: self.disk.total_mb(), free_mb: self.disk.free_mb() })
    }
}

#[cfg(test)]
mod tests;
