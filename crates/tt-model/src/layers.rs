//! What the content of a disk consists of: its own name, and those of the disks that it lies on. Taken from records alone:
//! what an image says of itself may have been written by a guest.

use crate::names::runtime_image;
use crate::vm::Disk;
use crate::{KeptImage, StorageKind, Vm, VmId, VmTemplate};
use std::collections::BTreeMap;

/// Name of the disk in a template's directory.
const TEMPLATE_DISK: &str = "disk.raw";

/// Where one goes on below a disk.
struct Stack<'a> {
    storage: StorageKind,
    id: VmId,
    disks: &'a BTreeMap<u32, Disk>,
    base: Option<&'a str>,
    template: &'a VmTemplate,
}

/// The disk of `vm` in `epoch`, and below it all that it lies on, relative to the host's data directory. `kept`: all kept
/// images. None if the records do not say.
pub fn of_vm(vm: &Vm, epoch: u32, kept: &[KeptImage]) -> Option<Vec<String>> {
    let stack = Stack {
        storage: vm.storage,
        id: vm.id,
        disks: &vm.disks,
        base: vm.base.as_deref(),
        template: &vm.template,
    };
    let mut names = Vec::new();
    walk(&stack, epoch, kept, &mut names).then_some(names)
}

/// As [`of_vm`], of a kept image.
pub fn of_image(image: &KeptImage, kept: &[KeptImage]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    walk(&stack_of(image), epoch_of(&image.runtime_image)?, kept, &mut names).then_some(names)
}

fn stack_of(image: &KeptImage) -> Stack<'_> {
    Stack {
        storage: image.storage,
        id: image.id,
        disks: &image.disks,
        base: image.base.as_deref(),
        template: &image.template,
    }
}

/// Answers whether it came to the end. Records that go in circles have none.
fn walk(stack: &Stack<'_>, epoch: u32, kept: &[KeptImage], names: &mut Vec<String>) -> bool {
    let mut next = Some(epoch);
    while let Some(epoch) = next {
        let name = runtime_image(stack.storage, stack.id, epoch);
        let Some(disk) = stack.disks.get(&epoch).filter(|_| !names.contains(&name)) else {
            return false;
        };
        names.push(name);
        if !stack.storage.is_layered() {
            return true;
        }
        next = disk.parent;
    }
    let Some(base) = stack.base else {
        names.push(format!("{}/{TEMPLATE_DISK}", stack.template.path));
        return true;
    };
    let below = kept.iter().find(|image| image.runtime_image == base);
    let found = below.and_then(|image| Some((stack_of(image), epoch_of(base)?)));
    found.is_some_and(|(stack, epoch)| walk(&stack, epoch, kept, names))
}

/// The number in `images/ID/EPOCH.FORMAT`, which may be a directory with the disk in it.
fn epoch_of(name: &str) -> Option<u32> {
    name.split('/').nth(2)?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn vm(id: u64, storage: StorageKind, parents: &[(u32, Option<u32>)]) -> Vm {
        let mut vm = sample::vm(id, "qemu", storage);
        vm.disks = parents
            .iter()
            .map(|(epoch, parent)| (*epoch, Disk { parent: *parent, is_frozen: false }))
            .collect();
        vm.epoch = parents.last().map_or(0, |(epoch, _)| *epoch);
        vm.runtime_image = runtime_image(storage, vm.id, vm.epoch);
        vm
    }

    #[test]
    fn layers_are_followed_down_to_a_template() {
        let plain = vm(7, StorageKind::File, &[(0, None), (2, Some(0))]);
        assert_eq!(of_vm(&plain, 2, &[]).unwrap(), ["images/7/2.raw"]);
        let layered = vm(7, StorageKind::Qcow2, &[(0, None), (1, Some(0)), (4, Some(1))]);
        let template = format!("{}/disk.raw", layered.template.path);
        let all = ["images/7/4.qcow2", "images/7/1.qcow2", "images/7/0.qcow2", &template];
        assert_eq!(of_vm(&layered, 4, &[]).unwrap(), all);
        assert_eq!(of_vm(&layered, 0, &[]).unwrap(), all[2..]);
        let image = KeptImage::of(&layered, 1);
        assert_eq!(of_image(&image, &[]).unwrap(), all);
        let mut above = vm(9, StorageKind::Qcow2, &[(0, None)]);
        above.base = Some(image.runtime_image.clone());
        let with = of_vm(&above, 0, std::slice::from_ref(&image)).unwrap();
        assert_eq!(with, [&["images/9/0.qcow2"], &all[..]].concat());
        assert_eq!(of_vm(&above, 0, &[]), None, "its base has no record");
    }

    #[test]
    fn a_kept_image_is_read_by_its_name_whatever_its_kind() {
        for storage in StorageKind::ALL {
            let image = KeptImage::of(&vm(7, storage, &[(0, None)]), 1);
            let layers = of_image(&image, &[]).unwrap();
            assert_eq!(layers[0], image.runtime_image, "{storage:?}");
        }
    }

    #[test]
    fn records_that_lead_nowhere_or_in_circles_are_no_layers() {
        let circle = vm(7, StorageKind::Qcow2, &[(0, Some(1)), (1, Some(0))]);
        assert_eq!(of_vm(&circle, 1, &[]), None);
        let hole = vm(7, StorageKind::Qcow2, &[(1, Some(0))]);
        assert_eq!((of_vm(&hole, 1, &[]), of_vm(&hole, 9, &[])), (None, None));
        let mut image = KeptImage::of(&vm(7, StorageKind::Qcow2, &[(0, None)]), 1);
        image.base = Some(image.runtime_image.clone());
        assert_eq!(of_image(&image, std::slice::from_ref(&image)), None);
    }
}
