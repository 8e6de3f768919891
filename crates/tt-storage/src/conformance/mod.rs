//! What every back end must do, as assertions that panic. A back end runs them all with one call of [`run`] from a test.

use crate::{Storage, StorageError, TEMPLATE_DISK};
use std::any::Any;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use tt_model::names::runtime_image;
use tt_model::{Layout, StorageKind, Vm, VmResource, VmTemplate, sample};

mod export;
mod kept;
mod life;
mod snapshots;
mod trouble;

pub use life::{Life, live_at_random};

/// Size of the disks in the suite, in MB.
pub const DISK_MB: u32 = 8;
/// Size of their template's disk, in MB: bytes at its beginning and its end, and a hole between.
pub const TEMPLATE_MB: u32 = 4;
/// What the template begins with.
pub const TEMPLATE_BEGIN: &[u8] = b"begin of the template";
/// What the template ends with.
pub const TEMPLATE_END: &[u8] = b"end of the template";

/// What the suite needs beside the contract: a look at the images from outside, as a guest would see them.
pub trait Rig {
    /// The back end, made anew as by a daemon that was restarted.
    fn storage(&self) -> Arc<dyn Storage>;

    /// Where its images lie; `None` if they are no files.
    fn layout(&self) -> Option<&Layout>;

    /// Size of an image in MB; `None` if it is absent or not complete.
    fn size_mb(&self, vm: &Vm) -> Option<u64>;

    /// Part of an image's content; `None` if this back end has none.
    fn read(&self, vm: &Vm, offset: u64, len: usize) -> Option<Vec<u8>>;

    /// What an image is, as one number: equal for equal contents, whatever zeros follow. `None` if it is absent or not
    /// complete.
    fn content(&self, vm: &Vm) -> Option<u64>;

    /// Fills `len` bytes of an image with `byte`, as its guest would.
    fn fill(&self, vm: &Vm, offset: u64, len: usize, byte: u8);

    /// Leaves what a create that was killed leaves.
    fn interrupt(&self, vm: &Vm);

    /// Puts something that no back end made where the disk of `vm` is to be. Answers whether that is possible.
    fn plant(&self, _vm: &Vm) -> bool {
        false
    }

    /// The same where the volume of the suite's template is to be.
    fn plant_template(&self) -> bool {
        false
    }

    /// Takes all room but a little less than [`RESERVE_MB`](crate::RESERVE_MB) until the value is dropped; `None` if others use it, too.
    fn crowd(&self) -> Option<Box<dyn Any>> {
        None
    }

    /// Lets the pool do at once what it does later by itself.
    fn settle(&self) {}

    /// Takes the pool away until the value is dropped, as for a daemon that starts before it was imported; `None` if the
    /// data directory goes with it.
    fn lose_pool(&self) -> Option<Box<dyn Any>> {
        None
    }

    /// User, group and mode of a disk; `None` if it is nothing that could be opened.
    fn rights(&self, vm: &Vm) -> Option<(u32, u32, u32)> {
        let meta = fs::metadata(self.layout()?.disk(vm)).ok()?;
        Some((meta.uid(), meta.gid(), meta.mode() & 0o7777))
    }

    /// Whether the disk of a snapshot could be opened by whoever had the right.
    fn is_frozen_a_file(&self) -> bool {
        true
    }

    /// The digests of the templates of which the back end keeps something.
    fn templates(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What became of a clause: `Err` says what the back end lacks for it.
pub type Outcome = Result<(), &'static str>;

/// One promise of the contract: its name as in `docs/storage.md`, and the check, on an empty back end, which it leaves
/// empty.
pub type Clause = (&'static str, fn(&dyn Rig) -> Outcome);

/// The whole contract; what takes long comes last.
pub const CLAUSES: [Clause; 14] = [
    ("create", create),
    ("clone side by side", clones_are_independent),
    ("grow, never shrink", disks_grow_and_never_shrink),
    ("keep, make from kept", kept::run),
    ("content as a plain file", export::run),
    ("destroy in any order", destroy),
    ("names that lead elsewhere", records_that_lead_elsewhere_are_refused),
    ("something foreign in the way", trouble::what_is_foreign_is_left_alone),
    ("space", trouble::space_is_taken_and_comes_back),
    ("full pool", trouble::a_full_pool_loses_nothing),
    ("missing pool", trouble::a_missing_pool_is_waited_for),
    ("names that it does not like", trouble::odd_names_lead_nowhere),
    ("snapshot, apply in any order", snapshots::run),
    ("lives at random", lives_at_random),
];

/// Runs the whole suite on an empty back end, and leaves it empty. `told` hears of each clause at once what became of it.
pub fn run(rig: &dyn Rig, mut told: impl FnMut(&'static str, Outcome)) {
    for (name, check) in CLAUSES {
        let outcome = check(rig);
        assert_eq!(must(rig.storage().images()), [], "{name}");
        must(rig.storage().collect_templates(&|_| false));
        assert_eq!(rig.templates(), [""; 0], "{name}");
        told(name, outcome);
    }
}

fn create(rig: &dyn Rig) -> Outcome {
    create_is_complete_and_repeatable(rig);
    images_belong_to_their_machines(rig);
    interrupted_creates_are_cleared(rig);
    Ok(())
}

fn destroy(rig: &dyn Rig) -> Outcome {
    destroy_takes_everything(rig);
    templates_go_when_nothing_uses_them(rig);
    Ok(())
}

fn lives_at_random(rig: &dyn Rig) -> Outcome {
    live_at_random(rig, 1, 20);
    Ok(())
}

/// A Vm with a disk of [`DISK_MB`] from the template that [`write_template`] makes.
#[must_use]
pub fn vm(id: u64, kind: StorageKind) -> Vm {
    let sample = sample::vm(id, "qemu", kind);
    Vm {
        template: VmTemplate {
            name: "sample".into(),
            path: "templates/sample".into(),
            digest: "sample".into(),
            disk_size: TEMPLATE_MB,
            ..sample.template
        },
        resource: VmResource { disk_size: DISK_MB, ..sample.resource },
        ..sample
    }
}

/// Makes the suite's template below a data directory.
///
/// # Errors
/// What the system refused.
pub fn write_template(data: &Path) -> io::Result<()> {
    let dir = data.join("templates/sample");
    fs::create_dir_all(&dir)?;
    let disk = File::create(dir.join(TEMPLATE_DISK))?;
    disk.write_all_at(TEMPLATE_BEGIN, 0)?;
    disk.write_all_at(TEMPLATE_END, template_end())
}

fn template_end() -> u64 {
    (u64::from(TEMPLATE_MB) << 20) - TEMPLATE_END.len() as u64
}

fn create_is_complete_and_repeatable(rig: &dyn Rig) {
    let vm = vm(1, rig.storage().kind());
    assert_eq!(rig.size_mb(&vm), None);
    must(rig.storage().create_image(&vm));
    assert_eq!(rig.size_mb(&vm), Some(DISK_MB.into()));
    if let Some(begin) = rig.read(&vm, 0, TEMPLATE_BEGIN.len()) {
        assert_eq!(begin, TEMPLATE_BEGIN);
        assert_eq!(
            rig.read(&vm, template_end(), TEMPLATE_END.len()).as_deref(),
            Some(TEMPLATE_END)
        );
        let behind = u64::from(TEMPLATE_MB) << 20;
        assert_eq!(rig.read(&vm, behind, 4096), Some(vec![0; 4096]));
    }
    rig.fill(&vm, 4096, 4096, 7);
    must(rig.storage().create_image(&vm));
    assert_kept(rig, &vm);
    must(rig.storage().destroy_image(&vm));
}

fn images_belong_to_their_machines(rig: &dyn Rig) {
    let Some(layout) = rig.layout() else { return };
    let vm = vm(2, rig.storage().kind());
    must(rig.storage().create_image(&vm));
    let look = || {
        assert_eq!(rig.rights(&vm), Some((layout.uid(vm.id), layout.uid(vm.id), 0o600)));
        let dir = must(fs::metadata(layout.images_of(vm.id)));
        assert_eq!((dir.uid(), dir.mode() & 0o7777), (0, 0o711));
    };
    look();
    must(std::os::unix::fs::chown(layout.disk(&vm), Some(0), Some(0)));
    must(rig.storage().create_image(&vm));
    look();
    must(rig.storage().destroy_image(&vm));
}

fn clones_are_independent(rig: &dyn Rig) -> Outcome {
    let kind = rig.storage().kind();
    let (one, two) = (vm(3, kind), vm(4, kind));
    std::thread::scope(|scope| {
        let storage = rig.storage();
        for vm in [&one, &two] {
            let storage = Arc::clone(&storage);
            scope.spawn(move || must(storage.create_image(vm)));
        }
    });
    rig.fill(&one, 0, 4096, 9);
    if let Some(other) = rig.read(&two, 0, TEMPLATE_BEGIN.len()) {
        assert_eq!(other, TEMPLATE_BEGIN);
    }
    let three = vm(5, kind);
    must(rig.storage().create_image(&three));
    if let Some(later) = rig.read(&three, 0, TEMPLATE_BEGIN.len()) {
        assert_eq!(later, TEMPLATE_BEGIN, "the template was written into");
    }
    must(rig.storage().destroy_image(&one));
    assert_eq!(rig.size_mb(&two), Some(DISK_MB.into()));
    assert_eq!(must(rig.storage().images()), [two.id, three.id]);
    must(rig.storage().destroy_image(&two));
    must(rig.storage().destroy_image(&three));
    Ok(())
}

fn disks_grow_and_never_shrink(rig: &dyn Rig) -> Outcome {
    let mut vm = vm(6, rig.storage().kind());
    let storage = rig.storage();
    vm.resource.disk_size = TEMPLATE_MB - 1;
    let error = storage.create_image(&vm);
    assert!(matches!(error, Err(StorageError::BelowSource { .. })), "{error:?}");
    assert_eq!(rig.size_mb(&vm), None);
    vm.resource.disk_size = DISK_MB;
    must(storage.create_image(&vm));
    rig.fill(&vm, 4096, 4096, 7);
    // Sparse, so it may be larger than the file system: 3 TiB.
    for size in [DISK_MB + 1, 3 << 20] {
        vm.resource.disk_size = size;
        must(storage.create_image(&vm));
        assert_eq!(rig.size_mb(&vm), Some(size.into()));
    }
    vm.resource.disk_size = DISK_MB;
    let error = storage.create_image(&vm);
    assert!(matches!(error, Err(StorageError::Shrink { .. })), "{error:?}");
    assert_eq!(rig.size_mb(&vm), Some(3 << 20));
    must(storage.destroy_image(&vm));
    Ok(())
}

fn interrupted_creates_are_cleared(rig: &dyn Rig) {
    let vm = vm(7, rig.storage().kind());
    rig.interrupt(&vm);
    assert_eq!(rig.size_mb(&vm), None);
    assert_eq!(must(rig.storage().images()), [vm.id], "what is half done is seen");
    must(rig.storage().create_image(&vm));
    assert_eq!(rig.size_mb(&vm), Some(DISK_MB.into()));
    if let Some(layout) = rig.layout() {
        let left = must(fs::read_dir(layout.images_of(vm.id))).count();
        assert_eq!(left, 1, "the temporary file is still there");
    }
    must(rig.storage().destroy_image(&vm));
    rig.interrupt(&vm);
    must(rig.storage().remove_stray(vm.id));
    assert_eq!(must(rig.storage().images()), []);
}

fn destroy_takes_everything(rig: &dyn Rig) {
    let kind = rig.storage().kind();
    let storage = rig.storage();
    let mut vm = vm(8, kind);
    must(storage.destroy_image(&vm));
    must(storage.remove_stray(vm.id));
    must(storage.create_image(&vm));
    vm.epoch = 1;
    vm.disks.insert(1, tt_model::Disk { parent: Some(0), is_frozen: false });
    vm.runtime_image = runtime_image(kind, vm.id, 1);
    must(storage.create_image(&vm));
    assert_eq!(must(storage.images()), [vm.id]);
    must(storage.destroy_image(&vm));
    must(storage.destroy_image(&vm));
    assert_eq!(must(storage.images()), []);
    let space = must(storage.space());
    assert!(space.free_mb <= space.total_mb && space.total_mb > 0, "{space:?}");
}

fn templates_go_when_nothing_uses_them(rig: &dyn Rig) {
    let (one, two) = (vm(10, rig.storage().kind()), vm(11, rig.storage().kind()));
    let storage = rig.storage();
    must(storage.create_image(&one));
    let kept = rig.templates();
    must(storage.collect_templates(&|digest| digest == one.template.digest));
    assert_eq!(rig.templates(), kept);
    // The template goes while a disk that was made from it is still there.
    must(storage.collect_templates(&|_| false));
    must(storage.create_image(&two));
    rig.fill(&two, 4096, 4096, 7);
    must(storage.destroy_image(&one));
    must(storage.collect_templates(&|_| false));
    assert_kept(rig, &two);
    must(storage.destroy_image(&two));
    for _ in 0..2 {
        must(storage.collect_templates(&|_| false));
        assert_eq!(rig.templates(), [""; 0]);
    }
}

fn records_that_lead_elsewhere_are_refused(rig: &dyn Rig) -> Outcome {
    if rig.layout().is_none() {
        return Err("it has no names");
    }
    let kind = rig.storage().kind();
    let sample = vm(9, kind);
    let images = ["", "/etc/passwd", "images/9/../8/0.raw", "images/8/0.raw", "images/9/0.img"];
    let templates = ["", "/etc", "templates/../..", "./templates/sample"];
    let image = |name: &&str| Vm { runtime_image: (*name).into(), ..sample.clone() };
    let template = |path: &&str| {
        let mut vm = sample.clone();
        vm.template.path = (*path).into();
        vm
    };
    let bad = images.iter().map(image).chain(templates.iter().map(template));
    for vm in bad {
        let error = rig.storage().create_image(&vm);
        let refused =
            matches!(error, Err(StorageError::CheckPath { .. } | StorageError::CheckName { .. }));
        assert!(refused, "{:?} {:?}: {error:?}", vm.runtime_image, vm.template.path);
    }
    assert_eq!(must(rig.storage().images()), [], "a refused create left something");
    Ok(())
}

fn assert_kept(rig: &dyn Rig, vm: &Vm) {
    if let Some(bytes) = rig.read(vm, 4096, 4096) {
        assert_eq!(bytes, vec![7; 4096], "a repeated create lost what the guest wrote");
    }
}

#[track_caller]
fn must<T, E: std::fmt::Debug>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error:?}"),
    }
}
