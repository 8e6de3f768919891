//! Which disks of a Vm an image needs, from the record alone. It never looks at a disk itself.

use crate::StorageError;
use tt_model::names::runtime_image;
use tt_model::{StorageKind, Vm, VmId};

/// The runtime image, which is not there, and those below it that are not there either, in the order in which they are
/// to be made: tries that were interrupted may have planned several of them. `lost` is the error for a disk that can
/// not be made.
pub(crate) fn missing(
    vm: &Vm,
    is_there: impl Fn(u32) -> Result<bool, StorageError>,
    lost: impl Fn(u32) -> StorageError,
) -> Result<Vec<u32>, StorageError> {
    let mut missing = Vec::new();
    let mut next = Some(vm.epoch);
    while let Some(epoch) = next {
        if epoch != vm.epoch && is_there(epoch)? {
            break;
        }
        let disk = vm.disks.get(&epoch).filter(|disk| disk.parent.is_some() || epoch == 0);
        // A record that goes in circles ends here as well.
        let is_new = !vm.was_made(epoch) && !missing.contains(&epoch);
        match disk.filter(|_| is_new) {
            Some(disk) => {
                missing.push(epoch);
                next = disk.parent;
            }
            None => return Err(lost(epoch)),
        }
    }
    missing.reverse();
    Ok(missing)
}

/// The parts of a runtime image's name.
pub(crate) fn parse_name(name: &str) -> Option<(VmId, u32, StorageKind)> {
    let (id, file) = name.strip_prefix("images/")?.split_once('/')?;
    let (id, epoch) = (parse_id(id)?, file.split_once('.')?.0.parse().ok()?);
    let kinds = StorageKind::ALL.into_iter();
    let kind = kinds.into_iter().find(|kind| runtime_image(*kind, id, epoch) == name)?;
    Some((id, epoch, kind))
}

/// Only what `VmId` itself writes: `007` and `+7` are not `7`.
pub(crate) fn parse_id(name: &str) -> Option<VmId> {
    name.parse().ok().filter(|id: &VmId| id.to_string() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tt_model::{Disk, Snapshot, SnapshotState, sample};

    #[test]
    fn only_images_have_names_of_images() {
        assert_eq!(parse_name("images/7/0.raw"), Some((VmId(7), 0, StorageKind::File)));
        assert_eq!(parse_name("images/7/12.qcow2"), Some((VmId(7), 12, StorageKind::Qcow2)));
        let volume = "images/7/1.btrfs/disk.raw";
        assert_eq!(parse_name(volume), Some((VmId(7), 1, StorageKind::Btrfs)));
        for name in [
            "",
            "images",
            "images/7/1.btrfs",
            "images/7/1.btrfs/other",
            "images/7/1.raw/disk.raw",
            "images/7",
            "images/7/0",
            "images/7/0.img",
            "images/../0.raw",
            "images/7/../7/0.raw",
            "images/7/00.raw",
            "images/+7/0.raw",
            "/images/7/0.raw",
            "templates/x/disk.raw",
            "images/7/0.raw.tmp",
        ] {
            assert_eq!(parse_name(name), None, "{name:?}");
        }
    }

    #[test]
    fn what_can_not_be_made_again_is_lost() {
        let mut vm = sample::vm(1, "qemu", StorageKind::Qcow2);
        let lost = |epoch: u32| StorageError::Lost { path: epoch.to_string().into() };
        let missing = |vm: &Vm| missing(vm, |epoch| Ok(epoch == 9), lost).ok();
        assert_eq!(missing(&vm), Some(vec![0]));
        let parent = |parent| Disk { parent, is_frozen: false };
        vm.disks.extend([(2, parent(Some(1))), (1, parent(Some(0)))]);
        vm.epoch = 2;
        assert_eq!(missing(&vm), Some(vec![0, 1, 2]));
        vm.disks.insert(1, parent(Some(9)));
        assert_eq!(missing(&vm), Some(vec![1, 2]));
        let ready = SnapshotState::Ready;
        vm.snapshots
            .insert("s".into(), Snapshot { epoch: Some(1), state: ready, ..Snapshot::default() });
        assert_eq!(missing(&vm), None, "a snapshot's disk is not made again");
        vm.snapshots.clear();
        vm.made_epoch = Some(1);
        assert_eq!(missing(&vm), None, "nor one that a guest wrote to");
        vm.made_epoch = Some(9);
        assert_eq!(missing(&vm), Some(vec![1, 2]));
        for (epoch, disk) in [(1, parent(None)), (1, parent(Some(2))), (2, parent(Some(2)))] {
            vm.disks.insert(epoch, disk);
            assert_eq!(missing(&vm), None);
        }
    }
}
