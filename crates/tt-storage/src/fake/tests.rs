//! Tests of the fake.

use super::*;
use crate::conformance::{self, DISK_MB, Life, Rig, vm};
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
        conformance::run(&World { disk: FakeDisk::new(8 << 20), kind }, |_, _| ());
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

/// The records of a life, one after the other.
fn records(kind: StorageKind) -> Vec<Vm> {
    let world = World { disk: FakeDisk::new(8 << 20), kind };
    let mut life = Life::new(&world, 1);
    let mut records = vec![life.vm.clone()];
    life.grow(1);
    records.push(life.vm.clone());
    for name in ["a", "b"] {
        assert!(life.plan_take(name));
        records.push(life.vm.clone());
        life.take_planned(name);
        records.push(life.vm.clone());
    }
    life.plan_apply("a");
    records.push(life.vm.clone());
    life.apply_planned("a");
    life.drop("b");
    records.push(life.vm.clone());
    records
}

/// What a daemon does about a record.
fn match_record(storage: &FakeStorage, vm: &Vm) -> Result<(), StorageError> {
    match vm.wanted_snapshots().next() {
        Some(snapshot) => {
            storage.create_snapshot(vm, snapshot)?;
            storage.sync_disk(vm, snapshot.epoch.unwrap_or(vm.epoch))
        }
        None => storage.create_image(vm),
    }?;
    storage.destroy_snapshot(vm)
}

#[test]
fn it_converges_after_dying_at_any_side_of_any_effect() {
    for kind in [StorageKind::File, StorageKind::Qcow2] {
        let records = records(kind);
        let mut died_at = BTreeSet::new();
        for dies_at in 0.. {
            let asked = AtomicUsize::new(0);
            let hook: FaultHook = Arc::new(move |_, _| {
                let is_due = asked.fetch_add(1, Ordering::SeqCst) == dies_at;
                if is_due { Fault::Die } else { Fault::None }
            });
            let storage = FakeStorage::new(FakeDisk::new(1 << 20), hook).with_kind(kind);
            let mut deaths = 0;
            // A daemon that died is started again and does the same.
            let mut act = |act: &dyn Fn() -> Result<(), StorageError>| {
                if let Err(StorageError::Died { effect }) = act() {
                    assert!(matches!(storage.images(), Err(StorageError::Died { .. })));
                    died_at.insert(effect);
                    deaths += 1;
                    storage.revive();
                    act().unwrap();
                }
            };
            for vm in &records {
                act(&|| match_record(&storage, vm));
                let disks = storage.disk().images_of(vm.id);
                assert!(disks.keys().eq(vm.disks.keys()), "{dies_at}: {disks:?} {:?}", vm.disks);
                for epoch in disks.keys() {
                    let content = storage.disk().content(vm.id, *epoch);
                    assert_eq!(content, Some(of_template("sample")), "{dies_at}");
                }
            }
            let last = &records[records.len() - 1];
            act(&|| storage.keep_image(last).map(|kept| assert!(kept)));
            assert!(storage.disk().content(last.id, last.epoch).is_some());
            act(&|| storage.destroy_image(last));
            assert!(storage.disk().is_empty());
            if deaths == 0 {
                break;
            }
        }
        let all = [
            effect::COMMIT,
            effect::CREATE,
            effect::DESTROY,
            effect::DROP,
            effect::GROW,
            effect::KEEP,
            effect::SNAPSHOT,
            effect::SYNC,
        ];
        // What a layer lies on was on disk before.
        let all = all.iter().filter(|at| !kind.is_layered() || **at != effect::SYNC);
        assert!(died_at.iter().eq(all), "{died_at:?}");
    }
}

#[test]
fn what_a_machine_has_open_is_grown_by_its_engine() {
    let storage = FakeStorage::reliable(FakeDisk::new(1 << 20));
    let mut vm = vm(1, StorageKind::File);
    storage.create_image(&vm).unwrap();
    storage.disk().open(vm.id, vm.epoch);
    vm.resource.disk_size += 1;
    let error = storage.create_image(&vm);
    assert!(matches!(error, Err(StorageError::InUse { .. })), "{error:?}");
    storage.disk().grow(vm.id, vm.epoch, vm.resource.disk_size);
    storage.create_image(&vm).unwrap();
    storage.disk().close(vm.id);
    vm.resource.disk_size += 1;
    storage.create_image(&vm).unwrap();
    assert_eq!(storage.disk().images_of(vm.id)[&0].size_mb, DISK_MB + 2);
}

#[test]
fn a_full_disk_is_refused() {
    let storage = FakeStorage::reliable(FakeDisk::new(RESERVE_MB + u64::from(DISK_MB)));
    storage.create_image(&vm(1, StorageKind::File)).unwrap();
    let error = storage.create_image(&vm(2, StorageKind::File));
    assert!(matches!(error, Err(StorageError::NoSpace { .. })), "{error:?}");
    assert!(storage.disk().images_of(VmId(2)).is_empty());
}
