//! What must hold of kept images, and of Vms that are made from them.

use super::life::{Life, content};
use super::{DISK_MB, Outcome, Rig, must, vm};
use crate::StorageError;
use std::fs;
use std::os::unix::fs::MetadataExt;
use tt_model::names::runtime_image;
use tt_model::{Disk, Vm, VmId};

/// Runs this part of the suite.
pub(super) fn run(rig: &dyn Rig) -> Outcome {
    what_is_kept_is_the_runtime_image(rig);
    nothing_is_kept_of_nothing(rig);
    a_planned_apply_is_kept(rig);
    vms_are_made_from_kept_images(rig);
    wrong_bases_are_refused(rig);
    Ok(())
}

fn what_is_kept_is_the_runtime_image(rig: &dyn Rig) {
    let mut life = Life::new(rig, 40);
    for name in ["a", "b"] {
        life.write();
        assert!(life.take(name));
    }
    life.apply("a");
    life.write();
    keep(rig, &life.vm);
    life.check_runtime();
    if let Some(layout) = rig.layout() {
        let names: Vec<_> = must(fs::read_dir(layout.images_of(life.vm.id))).collect();
        // The template's clone in which `a` was taken, and what was written after its apply.
        let want = if rig.storage().kind().is_layered() { 2 } else { 1 };
        assert_eq!(names.len(), want, "{names:?}");
        for entry in names {
            let path = must(entry).path();
            let disk = rig.storage().kind().inner().map_or(path.clone(), |inner| path.join(inner));
            let meta = must(fs::metadata(disk));
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (0, 0, 0o600));
        }
    }
    assert_eq!(must(rig.storage().images()), [life.vm.id]);
    must(rig.storage().remove_stray(life.vm.id));
}

fn nothing_is_kept_of_nothing(rig: &dyn Rig) {
    let vm = vm(41, rig.storage().kind());
    rig.interrupt(&vm);
    assert!(!must(rig.storage().keep_image(&vm)));
    assert!(!must(rig.storage().keep_image(&vm)));
    assert_eq!(must(rig.storage().images()), []);
}

fn a_planned_apply_is_kept(rig: &dyn Rig) {
    let mut life = Life::new(rig, 42);
    life.write();
    assert!(life.take("a"));
    life.write();
    life.plan_apply("a");
    keep(rig, &life.vm);
    life.check_runtime();
    must(rig.storage().remove_stray(life.vm.id));
}

fn vms_are_made_from_kept_images(rig: &dyn Rig) {
    let mut first = Life::new(rig, 43);
    first.write();
    assert!(first.take("a"));
    first.write();
    keep(rig, &first.vm);
    // The second one lies on the first, the third on both.
    let mut bases = vec![(first.vm.clone(), content(rig, &first.vm))];
    for id in [44, 45] {
        let (base, want) = &bases[bases.len() - 1];
        let mut record = vm(id, rig.storage().kind());
        record.base = Some(base.runtime_image.clone());
        record.resource.disk_size = DISK_MB + 1;
        let mut life = Life::of(rig, record);
        assert_eq!(content(rig, &life.vm), *want);
        life.write();
        assert!(life.take("a"));
        life.write();
        life.apply("a");
        life.check();
        for (base, content) in &bases {
            assert_eq!(rig.content(base), Some(*content), "{} was written", base.runtime_image);
        }
        keep(rig, &life.vm);
        bases.push((life.vm.clone(), content(rig, &life.vm)));
    }
    let small = vm(46, rig.storage().kind());
    let small = Vm { base: Some(bases[2].0.runtime_image.clone()), ..small };
    let error = rig.storage().create_image(&small);
    assert!(matches!(error, Err(StorageError::BelowSource { .. })), "{error:?}");
    // What lies under others goes last, as the planner has it; what was cloned goes in any order.
    let order: [usize; 3] = if rig.storage().kind().is_layered() { [2, 1, 0] } else { [0, 2, 1] };
    let mut left: Vec<_> = bases.iter().collect();
    for (base, _) in order.map(|number| &bases[number]) {
        must(rig.storage().remove_stray(base.id));
        left.retain(|(other, _)| other.id != base.id);
        for (other, content) in &left {
            assert_eq!(rig.content(other), Some(*content), "{} has changed", other.runtime_image);
        }
    }
}

fn wrong_bases_are_refused(rig: &dyn Rig) {
    let storage = rig.storage();
    let good = vm(47, storage.kind());
    let with = |base: &str| Vm { base: Some(base.to_owned()), ..good.clone() };
    for base in ["", "/etc/passwd", "images/../etc", "templates/sample/disk.raw", "images/9/0"] {
        let error = storage.create_image(&with(base));
        assert!(matches!(error, Err(StorageError::CheckName { .. })), "{base}: {error:?}");
    }
    let gone = runtime_image(storage.kind(), VmId(9), 0);
    assert!(storage.create_image(&with(&gone)).is_err());
    // Epochs that no record explains.
    let odd =
        Vm { disks: [(0, Disk { parent: Some(0), is_frozen: false })].into(), ..good.clone() };
    let error = storage.create_image(&odd);
    assert!(matches!(error, Err(StorageError::Lost { .. })), "{error:?}");
    assert_eq!(must(storage.images()), []);
    // The disk of a machine is no kept image.
    if rig.layout().is_some() {
        let living = vm(48, storage.kind());
        must(storage.create_image(&living));
        let error = storage.create_image(&with(&living.runtime_image));
        assert!(matches!(error, Err(StorageError::OpenDisk { .. })), "{error:?}");
        must(storage.destroy_image(&living));
    }
}

/// Keeps a runtime image, twice, as a daemon that died does.
fn keep(rig: &dyn Rig, vm: &Vm) {
    let before = rig.content(vm);
    for _ in 0..2 {
        assert!(must(rig.storage().keep_image(vm)));
    }
    assert!(before.is_none() || rig.content(vm) == before);
}
