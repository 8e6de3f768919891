//! A storage in memory that fails, or dies, at any side effect on demand. It never touches a disk.

use crate::{RESERVE_MB, Space, Storage, StorageError};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tt_model::fault::{Fault, FaultHook, Moment, no_fault};
use tt_model::{StorageKind, Vm, VmId};

/// The side effects that the hook is asked about, in the order in which a create and a destroy commit them.
pub mod effect {
    /// A half-done image exists under a temporary name.
    pub const CREATE: &str = "image.create";
    /// The image is complete and has its name.
    pub const COMMIT: &str = "image.commit";
    /// The image has its new size.
    pub const GROW: &str = "image.grow";
    /// All images of a Vm are gone.
    pub const DESTROY: &str = "image.destroy";
}

/// One image of the fake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeImage {
    /// Its size, in MB (2^20 bytes).
    pub size_mb: u32,
    /// Digest of the template that it was cloned from.
    pub digest: String,
    /// Whether it has its name; otherwise it is what an interrupted create left.
    pub complete: bool,
}

/// What is on the fake's disk. It outlives a [`FakeStorage`], as a disk outlives a daemon.
#[derive(Debug)]
pub struct FakeDisk {
    total_mb: u64,
    images: Mutex<BTreeMap<VmId, BTreeMap<u32, FakeImage>>>,
}

impl FakeDisk {
    /// An empty disk of `total_mb` MB (2^20 bytes).
    #[must_use]
    pub fn new(total_mb: u64) -> Arc<Self> {
        Arc::new(Self { total_mb, images: Mutex::default() })
    }

    /// All images of a Vm by epoch, half-done ones too.
    #[must_use]
    pub fn images_of(&self, id: VmId) -> BTreeMap<u32, FakeImage> {
        self.lock().get(&id).cloned().unwrap_or_default()
    }

    /// Whether nothing is left on it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, BTreeMap<u32, FakeImage>>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn free_mb(&self) -> u64 {
        let taken: u64 = self
            .lock()
            .values()
            .flat_map(BTreeMap::values)
            .map(|image| u64::from(image.size_mb))
            .sum();
        self.total_mb.saturating_sub(taken)
    }
}

/// The fake. Another one on the same disk is a restarted daemon.
pub struct FakeStorage {
    disk: Arc<FakeDisk>,
    hook: FaultHook,
    died: AtomicBool,
}

impl FakeStorage {
    /// A fake on `disk` that asks `hook` before and after each of its [side effects](effect).
    #[must_use]
    pub fn new(disk: Arc<FakeDisk>, hook: FaultHook) -> Self {
        Self { disk, hook, died: AtomicBool::new(false) }
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

    fn create_new(&self, vm: &Vm) -> Result<(), StorageError> {
        let want_mb = vm.resource.disk_size;
        let need_mb = u64::from(want_mb) + RESERVE_MB;
        let free_mb = self.disk.free_mb();
        if need_mb > free_mb {
            return Err(StorageError::NoSpace {
                path: PathBuf::from(&vm.runtime_image),
                need_mb,
                free_mb,
            });
        }
        let image =
            FakeImage { size_mb: want_mb, digest: vm.template.digest.clone(), complete: false };
        self.act(effect::CREATE, |disk| {
            disk.lock().entry(vm.id).or_default().insert(vm.epoch, image);
        })?;
        self.act(effect::COMMIT, |disk| {
            with_image(disk, vm, |image| image.complete = true);
        })
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
        StorageKind::File
    }

    fn create_image(&self, vm: &Vm) -> Result<(), StorageError> {
        self.alive(effect::CREATE)?;
        let path = PathBuf::from(&vm.runtime_image);
        let want_mb = vm.resource.disk_size;
        if want_mb < vm.template.disk_size {
            return Err(StorageError::BelowTemplate {
                path,
                template_mb: vm.template.disk_size.into(),
                want_mb,
            });
        }
        let found = self.disk.images_of(vm.id).remove(&vm.epoch);
        match found.filter(|image| image.complete) {
            None => self.create_new(vm),
            Some(image) if image.size_mb == want_mb => Ok(()),
            Some(image) if image.size_mb > want_mb => Err(StorageError::Shrink {
                path,
                have_bytes: u64::from(image.size_mb) << 20,
                want_mb,
            }),
            Some(_) => self.act(effect::GROW, |disk| {
                with_image(disk, vm, |image| image.size_mb = want_mb);
            }),
        }
    }

    fn destroy_image(&self, vm: &Vm) -> Result<(), StorageError> {
        self.remove_stray(vm.id)
    }

    fn images(&self) -> Result<Vec<VmId>, StorageError> {
        self.alive("image.list")?;
        Ok(self.disk.lock().keys().copied().collect())
    }

    fn remove_stray(&self, id: VmId) -> Result<(), StorageError> {
        self.alive(effect::DESTROY)?;
        if self.disk.images_of(id).is_empty() {
            return Ok(());
        }
        self.act(effect::DESTROY, |disk| {
            disk.lock().remove(&id);
        })
    }

    fn space(&self) -> Result<Space, StorageError> {
        self.alive("image.space")?;
        Ok(Space { total_mb: self.disk.total_mb, free_mb: self.disk.free_mb() })
    }
}

fn with_image(disk: &FakeDisk, vm: &Vm, change: impl FnOnce(&mut FakeImage)) {
    if let Some(image) = disk.lock().get_mut(&vm.id).and_then(|epochs| epochs.get_mut(&vm.epoch)) {
        change(image);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, DISK_MB, Rig, vm};
    use std::sync::atomic::AtomicUsize;
    use tt_model::Layout;

    struct World(Arc<FakeDisk>);

    impl Rig for World {
        fn storage(&self) -> Arc<dyn Storage> {
            Arc::new(FakeStorage::reliable(Arc::clone(&self.0)))
        }

        fn layout(&self) -> Option<&Layout> {
            None
        }

        fn size_mb(&self, vm: &Vm) -> Option<u64> {
            let image = self.0.images_of(vm.id).remove(&vm.epoch)?;
            image.complete.then(|| image.size_mb.into())
        }

        fn read(&self, _: &Vm, _: u64, _: usize) -> Option<Vec<u8>> {
            None
        }

        fn fill(&self, _: &Vm, _: u64, _: usize, _: u8) {}

        fn interrupt(&self, vm: &Vm) {
            let hook: FaultHook = Arc::new(|moment, effect| match (moment, effect) {
                (Moment::After, effect::CREATE) => Fault::Die,
                _ => Fault::None,
            });
            let storage = FakeStorage::new(Arc::clone(&self.0), hook);
            assert!(storage.create_image(vm).is_err());
        }
    }

    #[test]
    fn the_fake_conforms() {
        conformance::run(&World(FakeDisk::new(8 << 20)));
    }

    #[test]
    fn it_converges_after_dying_at_any_side() {
        let vm = vm(1, StorageKind::File);
        // Two effects of a create, one of a destroy, each with two sides.
        for dies_at in 0..6 {
            let asked = AtomicUsize::new(0);
            let hook: FaultHook = Arc::new(move |_, _| {
                if asked.fetch_add(1, Ordering::SeqCst) == dies_at {
                    Fault::Die
                } else {
                    Fault::None
                }
            });
            let storage = FakeStorage::new(FakeDisk::new(1 << 20), hook);
            let first = storage.create_image(&vm).and_then(|()| storage.destroy_image(&vm));
            assert!(matches!(first, Err(StorageError::Died { .. })), "{dies_at}");
            for later in
                [storage.images().map(drop), storage.space().map(drop), storage.create_image(&vm)]
            {
                assert!(matches!(later, Err(StorageError::Died { .. })), "{dies_at}");
            }
            storage.revive();
            storage.create_image(&vm).unwrap();
            assert_eq!(storage.disk().images_of(vm.id)[&0].size_mb, DISK_MB);
            storage.destroy_image(&vm).unwrap();
            assert!(storage.disk().is_empty());
        }
    }

    #[test]
    fn a_full_disk_is_refused() {
        let storage = FakeStorage::reliable(FakeDisk::new(RESERVE_MB + u64::from(DISK_MB)));
        storage.create_image(&vm(1, StorageKind::File)).unwrap();
        let error = storage.create_image(&vm(2, StorageKind::File));
        assert!(matches!(error, Err(StorageError::NoSpace { .. })), "{error:?}");
        assert!(storage.disk().images_of(VmId(2)).is_empty());
    }
}
