//! What must hold of a disk's content that is written elsewhere.

use super::life::Life;
use super::{DISK_MB, Outcome, Rig, TEMPLATE_BEGIN, TEMPLATE_END, must, template_end};
use std::fs::File;
use std::os::unix::fs::FileExt;
use tt_model::layers;

/// Runs this part of the suite.
pub(super) fn run(rig: &dyn Rig) -> Outcome {
    what_a_snapshot_had_is_written(rig);
    what_is_gone_or_unwanted_is_not(rig);
    Ok(())
}

fn what_a_snapshot_had_is_written(rig: &dyn Rig) {
    let mut life = Life::new(rig, 60);
    rig.fill(&life.vm, 1 << 20, 4096, 7);
    assert!(life.take("a"));
    rig.fill(&life.vm, 2 << 20, 70_000, 8);
    assert!(life.take("b"));
    rig.fill(&life.vm, 2 << 20, 70_000, 9);
    let (vm, storage) = (&life.vm, rig.storage());
    let epoch = vm.snapshots["b"].epoch.unwrap_or_default();
    let names = must(layers::of_vm(vm, epoch, &[]).ok_or("no layers"));
    let file = must(tempfile());
    must(storage.export(&names, &file, &|_, total| total == u64::from(DISK_MB) << 20));
    assert_eq!(must(file.metadata()).len(), u64::from(DISK_MB) << 20);
    // The fake has no content.
    if rig.read(vm, 0, 1).is_some() {
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            must(file.read_exact_at(&mut bytes, at));
            bytes
        };
        assert_eq!(read(0, TEMPLATE_BEGIN.len()), TEMPLATE_BEGIN);
        assert_eq!(read(template_end(), TEMPLATE_END.len()), TEMPLATE_END);
        assert_eq!(read(1 << 20, 4096), [7; 4096]);
        assert_eq!(read(2 << 20, 70_000), [8; 70_000]);
        assert_eq!(read((2 << 20) + 70_000, 4096), [0; 4096]);
    }
    must(storage.remove_stray(life.vm.id));
}

fn what_is_gone_or_unwanted_is_not(rig: &dyn Rig) {
    let life = Life::new(rig, 61);
    let storage = rig.storage();
    let names = must(layers::of_vm(&life.vm, 0, &[]).ok_or("no layers"));
    let file = must(tempfile());
    assert!(
        storage.export(&names, &file, &|_, _| false).is_err() || must(file.metadata()).len() > 0
    );
    must(storage.remove_stray(life.vm.id));
    assert!(storage.export(&names, &must(tempfile()), &|_, _| true).is_err());
    assert!(storage.export(&[], &must(tempfile()), &|_, _| true).is_err());
    for name in ["/etc/hostname", "../x", "images/../../x"] {
        assert!(storage.export(&[name.to_owned()], &must(tempfile()), &|_, _| true).is_err());
    }
}

/// A file without a name.
fn tempfile() -> std::io::Result<File> {
    let dir = std::env::temp_dir();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::TMPFILE;
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    Ok(rustix::fs::open(dir, flags, mode)?.into())
}
