//! Volumes of ZFS: what a pool without them is told, and what becomes of their devices.

use crate::common::{Files, has_qemu_img, tool};
use crate::machines::Open;
use crate::pool::{NAME, Pool, Sets, has_module, names, wait_for, zfs};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use tt_model::StorageKind::{File as Raw, Zfs, Zvol};
use tt_model::{Vm, VmId};
use tt_storage::conformance::{Life, Rig, vm};
use tt_storage::{StorageError, choose};

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_pool_without_volumes_is_told_and_left_as_it_was() {
    let test = "a_pool_without_volumes_is_told_and_left_as_it_was";
    let Some(pool) = Pool::try_new(256, test) else { return };
    let sets = Sets::volumes(&pool);
    let data = &sets.files.layout.data;
    let named = tt_storage::Pool { name: NAME.into(), is_configured: true };
    // By a probe that was killed.
    fs::create_dir(data.join(".tt-probe-4194305")).unwrap();
    let (before, in_data) = (names(), count(data) - 1);
    let trouble = named.trouble(Zvol, data);
    assert_eq!((names(), count(data)), (before, in_data), "the probe left something");
    assert_eq!(named.trouble(Zfs, data), None);
    // Nobody gets volumes who did not ask for them.
    assert_eq!(choose(data, crate::QEMU.as_ref(), Some(&named)).unwrap().kind, Zfs);
    if has_module() {
        return assert_eq!(trouble, None);
    }
    let trouble = trouble.unwrap();
    println!("{trouble}");
    assert!(trouble.starts_with("it can not have volumes (") && trouble.contains("storage `zfs`"));
    let error = sets.storage().create_image(&vm(1, Zvol)).unwrap_err();
    assert!(matches!(error, StorageError::Pool { .. }) && error.is_retryable(), "{error:?}");
    assert!(error.to_string().contains("or configure storage `zfs`"), "{error}");
    assert_eq!(sets.storage().images().unwrap(), []);
    assert!(!names().iter().any(|name| name.contains("/v/") || name.contains("/t/")));
}

#[test]
fn a_node_leads_to_its_own_volume_or_nowhere() {
    let test = "a_node_leads_to_its_own_volume_or_nowhere";
    let Some(pool) = Pool::with_volumes(256, test) else { return };
    let sets = Sets::volumes(&pool);
    let mut life = Life::new(&sets, 1);
    life.write();
    let (other, content) = (vm(2, Zvol), sets.content(&life.vm));
    sets.storage().create_image(&other).unwrap();
    let [node, another] = [&life.vm, &other].map(|vm| sets.files.layout.disk(vm));
    let number = |node: &Path| fs::symlink_metadata(node).unwrap().rdev();
    assert!(fs::symlink_metadata(&node).unwrap().file_type().is_block_device());
    let own = number(&node);
    // As another import of the pool may leave it.
    fs::remove_file(&node).unwrap();
    mknodat(CWD, &node, FileType::BlockDevice, Mode::RUSR, number(&another)).unwrap();
    sets.storage().create_image(&life.vm).unwrap();
    assert_eq!((number(&node), sets.content(&life.vm)), (own, content));
    let uid = sets.files.layout.uid(life.vm.id);
    assert_eq!(sets.rights(&life.vm), Some((uid, uid, 0o600)));
    // Lost with its directory, and found in the pool.
    fs::remove_dir_all(sets.files.layout.images_of(life.vm.id)).unwrap();
    assert!(sets.storage().keep_image(&life.vm).unwrap());
    assert_eq!(sets.content(&life.vm), content);
    sets.storage().remove_stray(life.vm.id).unwrap();
    sets.storage().destroy_image(&other).unwrap();
    // What is gone is told, and its node with it.
    let mut life = Life::new(&sets, 3);
    life.write();
    life.settle();
    wait_for(|| zfs(&["destroy", &format!("{}/v/3.0", sets.root())]).is_ok());
    let error = sets.storage().create_image(&life.vm).unwrap_err();
    assert!(matches!(error, StorageError::Lost { .. }), "{error:?}");
    assert!(!sets.files.layout.disk(&life.vm).exists());
    life.end();
}

#[test]
fn a_volume_that_a_machine_has_open_grows_and_goes_later() {
    let test = "a_volume_that_a_machine_has_open_grows_and_goes_later";
    if !has_qemu_img() {
        return println!("SKIPPED {test}: qemu-img is not installed");
    }
    let Some(pool) = Pool::with_volumes(256, test) else { return };
    let sets = Sets::volumes(&pool);
    let mut life = Life::new(&sets, 1);
    assert!(life.take("a"));
    life.write();
    let open = Open::new("raw", &sets.files.layout.disk(&life.vm));
    life.grow(1);
    assert_eq!(sets.size_mb(&life.vm), Some(life.vm.resource.disk_size.into()));
    let dir = sets.files.layout.images_of(life.vm.id);
    life.apply("a");
    assert_eq!(count(&dir), life.vm.disks.len() + 1);
    drop(open);
    sets.storage().destroy_snapshot(&life.vm).unwrap();
    assert_eq!(count(&dir), life.vm.disks.len());
    assert!(!names().contains(&format!("{}/v/1.0", sets.root())));
    life.check();
    life.end();
}

#[test]
fn a_snapshot_of_a_volume_is_read_while_it_goes() {
    let test = "a_snapshot_of_a_volume_is_read_while_it_goes";
    let Some(pool) = Pool::with_volumes(256, test) else { return };
    let sets = Sets::volumes(&pool);
    let mut life = Life::new(&sets, 1);
    life.write();
    let want = fs::read(sets.files.layout.disk(&life.vm)).unwrap();
    assert!(life.take("a"));
    life.write();
    let epoch = life.vm.snapshots["a"].epoch.unwrap();
    let layers = tt_model::layers::of_vm(&life.vm, epoch, &[]).unwrap();
    let to = tempfile::NamedTempFile::new().unwrap();
    let life = std::cell::RefCell::new(life);
    let goes_on = |done, _| {
        if done == 0 {
            life.borrow_mut().drop("a");
            sets.storage().collect_templates(&|_| true).unwrap();
        }
        true
    };
    sets.storage().export(&layers, to.as_file(), &goes_on).unwrap();
    assert!(fs::read(to.path()).unwrap() == want);
    assert!(!names().iter().any(|name| name.contains("@1-1") || name.contains("read-")));
    life.into_inner().end();
}

#[test]
fn volumes_data_sets_and_files_serve_one_host() {
    let test = "volumes_data_sets_and_files_serve_one_host";
    let Some(pool) = Pool::with_volumes(256, test) else { return };
    let data = pool.data();
    let all = [Raw, Zfs, Zvol].map(|kind| Files::new(&data, kind));
    let vms: Vec<Vm> = all.iter().zip(1..).map(|(files, id)| vm(id, files.kind)).collect();
    for (files, vm) in all.iter().zip(&vms) {
        files.storage().create_image(vm).unwrap();
    }
    let space = all[2].storage().space().unwrap();
    assert_eq!(space.total_mb, all[1].storage().space().unwrap().total_mb);
    for files in &all {
        assert_eq!(files.storage().images().unwrap(), [1, 2, 3].map(VmId));
    }
    // In whatever order the sweep asks them.
    for vm in &vms {
        all.iter().for_each(|files| files.storage().remove_stray(vm.id).unwrap());
    }
    for files in &all {
        files.storage().collect_templates(&|_| false).unwrap();
        assert_eq!(files.storage().images().unwrap(), []);
    }
    assert!(!names().iter().any(|name| name.contains("/v/") || name.contains("/t/")));
    tool(Command::new("zpool").args(["status", "-x", NAME])).unwrap();
}
