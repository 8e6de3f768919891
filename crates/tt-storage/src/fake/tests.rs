//! Tests of the fake.

use super::*;
use crate::conformance::{self, DISK_MB, Rig, vm};
use std::sync::atomic::AtomicUsize;
use tt_model::Layout;

struct World {
    disk: Arc<FakeDisk>,
    kind: StorageKind,
}

impl Rig for World {
    fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(FakeStorage::reliable(Arc::clone(&self.disk)).with_kind(self.kind))
    }

    fn layout(&self) -> Option<&Layout> {
        None
    }

    fn size_mb(&self, vm: &Vm) -> Option<u64> {
        let image = self.disk.get(vm.id, vm.epoch)?;
        Some(image.size_mb.into())
    }

    fn read(&self, _: &Vm, _: u64, _: usize) -> Option<Vec<u8>> {
        None
    }

    fn fill(&self, vm: &Vm, _: u64, _: usize, _: u8) {
        assert!(self.disk.write(vm.id, vm.epoch), "{} has no such disk", vm.id);
    }

    fn content(&self, vm: &Vm) -> Option<u64> {
        self.disk.content(vm.id, vm.epoch)
    }

    fn interrupt(&self, vm: &Vm) {
        let hook: FaultHook = Arc::new(|moment, effect| match (moment, effect) {
            (Moment::After, effect::CREATE) => Fault::Die,
            _ => Fault::None,
        });
        let storage = FakeStorage::new(Arc::clone(&self.disk), hook).with_kind(self.kind);
        assert!(storage.create_image(vm).is_err());
    }
}

#[test]
fn the_fake_conforms() {
    for kind in [StorageKind::File, StorageKind::Qcow2] {
        conformance::run(&World { disk: FakeDisk::new(8 << 20), kind });
    }
}

#[test]
fn random_lives_keep_every_content() {
    for seed in 0..1000 {
        for kind in [StorageKind::File, StorageKind::Qcow2] {
            let world = World { disk: FakeDisk::new(8 << 20), kind };
            conformance::live_at_random(&world, seed, 40);
            assert!(world.disk.is_empty());
        }
    }
}

#[test]
fn it_converges_after_dying_at_any_side() {
    let vm = vm(1, StorageKind::File);
    // Two effects of a create, one of a destroy, each with two sides.
    for dies_at in 0..6 {
        let asked = AtomicUsize::new(0);
        let hook: FaultHook = Arc::new(move |_, _| {
            if asked.fetch_add(1, Ordering::SeqCst) == dies_at { Fault::Die } else { Fault::None }
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
