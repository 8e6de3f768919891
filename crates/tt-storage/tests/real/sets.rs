//! Disks in data sets of ZFS: where they are looked for, and what is in the pool beside them.

use crate::common::{Files, has_qemu_img};
use crate::machines::Open;
use crate::pool::{Pool, Sets, names, zfs};
use std::cell::RefCell;
use std::fs;
use std::time::Duration;
use tt_model::StorageKind::{File as Raw, Qcow2, Zfs};
use tt_model::names::runtime_image;
use tt_model::{Vm, VmId};
use tt_storage::conformance::{Life, Rig, vm};
use tt_storage::{StorageError, choose, open, open_in};

#[test]
fn a_data_directory_in_a_pool_gets_data_sets() {
    let test = "a_data_directory_in_a_pool_gets_data_sets";
    let Some(pool) = Pool::try_new(256, test) else { return };
    let data = pool.set("data").join("tt");
    fs::create_dir(&data).unwrap();
    // Of somebody else.
    zfs(&["create", "-o", "mountpoint=none", "tt-test-pool/data/tt-probe-results"]).unwrap();
    let (before, found) = (names(), tt_storage::Pool::find(None, &data).unwrap().unwrap());
    assert_eq!((found.name.as_str(), found.is_configured), ("tt-test-pool/data", false));
    // By a probe that was killed.
    zfs(&["create", "-p", "-o", "mountpoint=none", "tt-test-pool/data/tt-probe-4194305/first"])
        .unwrap();
    let choice = choose(&data, crate::QEMU.as_ref(), Some(&found)).unwrap();
    assert_eq!((choice.kind, choice.trouble), (Zfs, None), "{}", choice.reason);
    assert_eq!(names(), before, "the probe left something");
    let files = Files::new(&data, Zfs);
    let storage = open_in(Some(&found), Zfs, &files.layout);
    storage.create_image(&vm(1, Zfs)).unwrap();
    assert!(names().contains(&"tt-test-pool/data/tt/0007/v/1.0".to_owned()));
    storage.destroy_image(&vm(1, Zfs)).unwrap();
    storage.collect_templates(&|_| false).unwrap();
    // Nobody told it of a pool.
    let error = open(Zfs, &files.layout).create_image(&vm(1, Zfs)).unwrap_err();
    assert!(matches!(error, StorageError::Pool { .. }) && error.is_retryable(), "{error:?}");
    let none = tt_storage::Pool { name: "tt-test-pool/none".into(), is_configured: true };
    let trouble = none.trouble(Zfs, &data);
    assert_eq!(
        trouble.as_deref(),
        Some("tt-test-pool/none is not there: import it (`zpool import`)")
    );
}

#[test]
fn disks_are_found_unmounted_and_where_the_data_directory_was_once() {
    let test = "disks_are_found_unmounted_and_where_the_data_directory_was_once";
    let Some(pool) = Pool::try_new(256, test) else { return };
    let mut sets = Sets::new(&pool);
    let mut life = Life::new(&sets, 1);
    life.write();
    assert!(life.take("a"));
    let set = format!("{}/v/1.0", sets.root());
    zfs(&["umount", &set]).unwrap();
    create(&sets, &life.vm);
    life.check();
    zfs(&["umount", &set]).unwrap();
    let record = life.vm.clone();
    let content = {
        create(&sets, &record);
        sets.content(&record)
    };
    zfs(&["umount", &set]).unwrap();
    let moved = sets.files.layout.data.with_file_name("moved");
    fs::rename(&sets.files.layout.data, &moved).unwrap();
    sets.files.layout.data = moved;
    create(&sets, &record);
    assert_eq!(sets.content(&record), content);
    sets.storage().destroy_image(&record).unwrap();
}

#[test]
fn a_disk_whose_directory_was_lost_is_kept_and_never_made_anew() {
    let test = "a_disk_whose_directory_was_lost_is_kept_and_never_made_anew";
    let Some(pool) = Pool::try_new(256, test) else { return };
    let sets = Sets::new(&pool);
    let mut life = Life::new(&sets, 1);
    life.write();
    let content = sets.content(&life.vm);
    let set = format!("{}/v/1.0", sets.root());
    let lose = || {
        zfs(&["umount", &set]).unwrap();
        let dir = sets.files.layout.images_of(life.vm.id);
        // Only what is empty, and once the server has heard of the unmount, see `create`.
        let is_lost =
            || fs::remove_dir(dir.join("0.zfs")).and_then(|()| fs::remove_dir(&dir)).is_ok();
        let lost = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            is_lost()
        });
        assert!(
            lost,
            "{:?}",
            fs::read_dir(&dir).map(|all| all.flatten().map(|e| e.path()).collect::<Vec<_>>())
        );
    };
    lose();
    // Refused because the disk has another size than what was asked for: what was there is no new disk.
    let mut smaller = life.vm.clone();
    smaller.resource.disk_size = 1;
    for _ in 0..20 {
        let refused = sets.storage().create_image(&smaller);
        match refused.unwrap_err() {
            StorageError::Pool { .. } => std::thread::sleep(Duration::from_millis(50)),
            _ => break,
        }
    }
    create(&sets, &life.vm);
    assert_eq!(sets.content(&life.vm), content);
    lose();
    assert!(sets.storage().keep_image(&life.vm).unwrap());
    assert_eq!(sets.content(&life.vm), content);
    sets.storage().remove_stray(life.vm.id).unwrap();
}

/// A `zfs-fuse` that has not heard of the last unmount yet may undo a mount that follows at once: that is tried again, as a host
/// does.
fn create(sets: &Sets<'_>, vm: &Vm) {
    for _ in 0..20 {
        match sets.storage().create_image(vm) {
            Err(StorageError::Pool { .. }) => std::thread::sleep(Duration::from_millis(50)),
            made => return made.unwrap(),
        }
    }
    sets.storage().create_image(vm).unwrap();
}

#[test]
fn a_kept_image_is_snapshotted_once_and_outlives_who_was_made_from_it() {
    let test = "a_kept_image_is_snapshotted_once_and_outlives_who_was_made_from_it";
    let Some(pool) = Pool::try_new(256, test) else { return };
    let sets = Sets::new(&pool);
    let kept = vm(1, Zfs);
    sets.storage().create_image(&kept).unwrap();
    assert!(sets.storage().keep_image(&kept).unwrap());
    let root = sets.root();
    let based = |id| Vm { base: Some(runtime_image(Zfs, VmId(1), 0)), ..vm(id, Zfs) };
    for id in 2..5 {
        sets.storage().create_image(&based(id)).unwrap();
        sets.storage().destroy_image(&based(id)).unwrap();
    }
    let of_vms = |name: &String| name.starts_with(&format!("{root}/v/"));
    let left: Vec<String> = names().into_iter().filter(of_vms).collect();
    assert_eq!(left, [format!("{root}/v/1.0"), format!("{root}/v/1.0@1-0")]);
    // It goes while others, which were made from it, live on.
    for id in [5, 6] {
        sets.storage().create_image(&based(id)).unwrap();
    }
    let content = sets.content(&based(5));
    sets.storage().remove_stray(VmId(1)).unwrap();
    for id in [5, 6] {
        assert_eq!(sets.content(&based(id)), content);
        sets.storage().destroy_snapshot(&based(id)).unwrap();
        sets.storage().destroy_image(&based(id)).unwrap();
    }
    assert_eq!(names().into_iter().filter(of_vms).count(), 0);
}

#[test]
fn a_template_whose_directory_was_lost_is_found_in_the_pool() {
    let test = "a_template_whose_directory_was_lost_is_found_in_the_pool";
    let Some(pool) = Pool::try_new(256, test) else { return };
    let sets = Sets::new(&pool);
    let vms = [1, 2, 3].map(|id| vm(id, Zfs));
    create(&sets, &vms[0]);
    let volume = sets.files.layout.data.join("volumes/sample.zfs");
    let set = format!("{}/t/sample", sets.root());
    fs::remove_dir(&volume).unwrap();
    create(&sets, &vms[1]);
    assert_eq!(sets.content(&vms[1]), sets.content(&vms[0]));
    assert!(volume.is_dir());
    // By a daemon that was killed before it was mounted nowhere, and its directory lost.
    let half = volume.with_extension("zfs.tmp");
    fs::rename(&volume, &half).unwrap();
    zfs(&["set", &format!("mountpoint={}", half.display()), &set]).unwrap();
    sets.storage().collect_templates(&|_| false).unwrap();
    assert_eq!(sets.templates(), [set.clone(), "sample.zfs".to_owned()]);
    create(&sets, &vms[2]);
    assert_eq!(sets.content(&vms[2]), sets.content(&vms[0]));
    assert_eq!(sets.templates(), [set.clone(), "sample.zfs".to_owned()]);
    vms.iter().for_each(|vm| sets.storage().destroy_image(vm).unwrap());
    sets.storage().collect_templates(&|_| false).unwrap();
    assert!(sets.templates().is_empty());
}

#[test]
fn who_reads_a_snapshot_holds_up_neither_other_readers_nor_its_vm() {
    let test = "who_reads_a_snapshot_holds_up_neither_other_readers_nor_its_vm";
    let Some(pool) = Pool::try_new(256, test) else { return };
    let sets = Sets::new(&pool);
    let life = RefCell::new(Life::new(&sets, 1));
    life.borrow_mut().write();
    let want = {
        let disk = sets.files.layout.disk(&life.borrow().vm);
        fs::read(disk).unwrap()
    };
    for name in ["a", "b"] {
        assert!(life.borrow_mut().take(name));
    }
    life.borrow_mut().write();
    let layers = |name: &str| {
        let vm = &life.borrow().vm;
        tt_model::layers::of_vm(vm, vm.snapshots[name].epoch.unwrap(), &[]).unwrap()
    };
    let export = |layers: &[String], meanwhile: &dyn Fn()| {
        let to = tempfile::NamedTempFile::new().unwrap();
        let goes_on = |done, _| {
            if done == 0 {
                meanwhile();
            }
            true
        };
        sets.storage().export(layers, to.as_file(), &goes_on).unwrap();
        assert!(fs::read(to.path()).unwrap() == want);
    };
    let (a, b) = (layers("a"), layers("b"));
    let of_vms = || names().into_iter().filter(|name| name.contains("/v/")).collect::<Vec<_>>();
    export(&a, &|| {
        export(&a, &|| ());
        // The snapshot goes while it is read.
        life.borrow_mut().drop("a");
        life.borrow().check();
        sets.storage().collect_templates(&|_| true).unwrap();
    });
    assert!(!of_vms().iter().any(|name| name.contains("1-1") || name.contains("read")));
    let meanwhile = || sets.storage().destroy_image(&life.borrow().vm).unwrap();
    export(&b, &meanwhile);
    assert_eq!((of_vms(), sets.storage().images().unwrap()), (vec![], vec![]));

    // By one that was killed.
    let life = Life::new(&sets, 2);
    let (left, root) = ("read-4194305-0", sets.root());
    let volumes = sets.files.layout.data.join("volumes");
    fs::create_dir(volumes.join(left)).unwrap();
    zfs(&["snapshot", &format!("{root}/v/2.0@2-1")]).unwrap();
    let mountpoint = format!("mountpoint={}", volumes.join(left).display());
    let set = format!("{root}/v/{left}");
    zfs(&["clone", "-o", &mountpoint, &format!("{root}/v/2.0@2-1"), &set]).unwrap();
    fs::create_dir(volumes.join("read-of-somebody")).unwrap();
    sets.storage().collect_templates(&|_| true).unwrap();
    assert!(!names().contains(&set) && !volumes.join(left).exists());
    assert!(volumes.join("read-of-somebody").exists());
    life.end();
}

#[test]
fn a_disk_that_a_machine_has_open_is_left_to_a_later_call() {
    let test = "a_disk_that_a_machine_has_open_is_left_to_a_later_call";
    if !has_qemu_img() {
        return println!("SKIPPED {test}: qemu-img is not installed");
    }
    let Some(pool) = Pool::try_new(256, test) else { return };
    let sets = Sets::new(&pool);
    // With a younger snapshot the old disk is hidden, without one it goes.
    for (younger, locks) in [(false, true), (true, true), (false, false)] {
        let mut life = Life::new(&sets, 1);
        assert!(life.take("a"));
        life.write();
        assert!(!younger || life.take("b"));
        let path = sets.files.layout.disk(&life.vm);
        // Not every machine locks what it has open.
        let plain = (!locks).then(|| fs::File::open(&path).unwrap());
        let old = locks.then(|| Open::new("raw", &path));
        let dir = sets.files.layout.images_of(life.vm.id);
        let count = || fs::read_dir(&dir).unwrap().count();
        life.apply("a");
        assert_eq!(count(), life.vm.disks.len() + 1);
        drop((old, plain));
        sets.storage().destroy_snapshot(&life.vm).unwrap();
        let is_there = names().contains(&format!("{}/v/1.0", sets.root()));
        assert_eq!((count(), is_there), (life.vm.disks.len(), younger));
        // An image is kept alone, or not yet.
        let old = Open::new("raw", &sets.files.layout.disk(&life.vm));
        life.apply("a");
        let error = sets.storage().keep_image(&life.vm);
        assert!(matches!(error, Err(StorageError::InUse { .. })), "{error:?}");
        drop(old);
        assert!(sets.storage().keep_image(&life.vm).unwrap());
        assert_eq!(count(), 1);
        life.check_runtime();
        sets.storage().remove_stray(life.vm.id).unwrap();
    }
}

#[test]
fn data_sets_and_files_serve_one_host() {
    let test = "data_sets_and_files_serve_one_host";
    let Some(pool) = Pool::try_new(256, test) else { return };
    let data = pool.data();
    let all = [Raw, Qcow2, Zfs].map(|kind| Files::new(&data, kind));
    let vms: Vec<Vm> = all.iter().zip(1..).map(|(files, id)| vm(id, files.kind)).collect();
    for (files, vm) in all.iter().zip(&vms) {
        files.storage().create_image(vm).unwrap();
    }
    // Those that are not of ZFS see directories, it sees its pool, too.
    for files in &all {
        assert_eq!(files.storage().images().unwrap(), [VmId(1), VmId(2), VmId(3)]);
    }
    // The sweep asks all of them about each; a pool that is away holds up its own alone.
    let sets = Sets::new(&pool);
    let away = sets.lose_pool();
    all.iter().for_each(|files| files.storage().remove_stray(VmId(1)).unwrap());
    assert_eq!(all[0].storage().images().unwrap(), [VmId(2), VmId(3)]);
    drop(away);
    for vm in &vms {
        all.iter().for_each(|files| files.storage().remove_stray(vm.id).unwrap());
    }
    for files in &all {
        files.storage().collect_templates(&|_| false).unwrap();
        assert_eq!(files.storage().images().unwrap(), []);
    }
    assert!(!names().iter().any(|name| name.contains("/v/") || name.contains("/t/")));
}
