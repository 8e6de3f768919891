//! Tests of planning snapshots.

use super::*;
use crate::plan::create::tests::planned;
use crate::{EngineFacts, StorageKind, sample};
use proptest::prelude::*;

const NOW: u64 = 2000;

fn spec(name: &str) -> SnapshotSpec {
    SnapshotSpec { name: name.into(), life_time: None, with_memory: true }
}

fn policy() -> Policy {
    Policy { mgmt_interval: 0, ..Policy::default() }
}

fn shop(storage: StorageKind) -> (Env, Vec<Vm>) {
    let (mut env, mut vms) = planned(2);
    env.is_created = true;
    for vm in &mut vms {
        vm.storage = storage;
        vm.turn_to_disk(0, None);
    }
    (env, vms)
}

fn want(env: &mut Env, vms: &mut [Vm], name: &str) -> Result<(), Refusal> {
    plan_snapshot(env, vms, &spec(name), &sample::host("qemu"), NOW, &policy())
}

fn take(vm: &mut Vm, name: &str) {
    plan_take(vm, name);
    plan_taken(vm, name, Some("qemu 1".into()), NOW);
}

fn apply_all(env: &mut Env, vms: &mut [Vm], name: &str) -> Result<(), Refusal> {
    let frozen = vms.to_vec();
    let host = sample::host("qemu");
    let world = ApplyWorld { now: NOW, policy: &policy(), host: &host, free_ports: &[] };
    plan_apply(env, vms, &frozen, name, &mut Usage::default(), &world)
}

#[test]
fn layers_of_the_kept_image_below_count() {
    let (mut env, mut vms) = shop(StorageKind::Qcow2);
    vms[0].base_layers = LAYERS_MAX as u32 - 2;
    want(&mut env, &mut vms, "a").unwrap();
    vms.iter_mut().for_each(|vm| take(vm, "a"));
    let refused = want(&mut env, &mut vms, "b").unwrap_err();
    assert_eq!(refused.code, ErrorCode::InUse);
    assert!(refused.problem.contains("64 layers"), "{}", refused.problem);
}

#[test]
fn what_is_wrong_in_itself_is_said_though_it_is_too_soon() {
    let (mut env, mut vms) = shop(StorageKind::File);
    env.state.last_mgmt_timestamp = NOW;
    let too_long = SnapshotSpec { life_time: Some(policy().life_time_max + 1), ..spec("a") };
    let endless = SnapshotSpec { life_time: Some(0), ..spec("a") };
    for (spec, code) in [
        (spec("a/b"), ErrorCode::Invalid),
        (endless, ErrorCode::Invalid),
        (too_long, ErrorCode::LifeTime),
        (spec("a"), ErrorCode::TooSoon),
    ] {
        let (host, policy) = (sample::host("qemu"), Policy::default());
        let refused = plan_snapshot(&mut env, &mut vms, &spec, &host, NOW, &policy).unwrap_err();
        assert_eq!(refused.code, code, "{spec:?}");
    }
}

#[test]
fn memory_is_kept_of_members_whose_engine_can() {
    let (mut env, mut vms) = shop(StorageKind::File);
    vms[1].engine = "box".into();
    let mut host = sample::host("qemu");
    let boxes = EngineFacts { name: "box".into(), ..host.engines[0].clone() };
    let boxes = EngineFacts { features: boxes.features & !feat::MEMORY_SNAPSHOT, ..boxes };
    host.engines.push(boxes);
    plan_snapshot(&mut env, &mut vms, &spec("a"), &host, NOW, &policy()).unwrap();
    assert_eq!([0, 1].map(|n: usize| vms[n].snapshots["a"].with_memory), [true, false]);
    let disks = SnapshotSpec { with_memory: false, ..spec("b") };
    plan_snapshot(&mut env, &mut vms, &disks, &host, NOW, &policy()).unwrap();
    assert!(vms.iter().all(|vm| !vm.snapshots["b"].with_memory));

    host.engines[1].features = 0;
    let before = vms.clone();
    let refused = plan_snapshot(&mut env, &mut vms, &spec("c"), &host, NOW, &policy());
    let refused = refused.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unsupported);
    assert!(refused.to_string().contains("engine box can not"), "{refused}");
    assert_eq!(vms, before);
}

#[test]
fn a_layered_disk_is_frozen_and_another_one_is_cloned() {
    let (mut env, mut vms) = shop(StorageKind::Qcow2);
    want(&mut env, &mut vms, "a").unwrap();
    take(&mut vms[0], "a");
    let vm = &vms[0];
    assert_eq!((vm.epoch, vm.snapshots["a"].epoch), (1, Some(0)));
    assert_eq!(vm.disks[&1].parent, Some(0));
    assert!(vm.snapshots["a"].path.ends_with("/0.qcow2"));

    let (mut env, mut vms) = shop(StorageKind::File);
    want(&mut env, &mut vms, "a").unwrap();
    take(&mut vms[0], "a");
    let vm = &vms[0];
    assert_eq!((vm.epoch, vm.snapshots["a"].epoch), (0, Some(1)));
    assert_eq!(vm.snapshots["a"].memory, Some(names::memory(vm.id, 1)));
}

#[test]
fn what_is_wanted_can_be_given_up_at_any_moment() {
    let (mut env, mut vms) = shop(StorageKind::Qcow2);
    want(&mut env, &mut vms, "a").unwrap();
    plan_drop_snapshot(&env, &mut vms, "a").unwrap();
    assert_eq!(vms[0].snapshots.len(), 0);
    want(&mut env, &mut vms, "a").unwrap();
    vms.iter_mut().for_each(|vm| plan_take(vm, "a"));
    plan_drop_snapshot(&env, &mut vms, "a").unwrap();
    assert_eq!(vms[0].disks.len(), 2, "the guest's disk may be layered on the frozen one");
    assert_eq!(apply_all(&mut env, &mut vms, "a").unwrap_err().code, ErrorCode::NotFound);
}

#[test]
fn who_was_shut_down_has_no_memory_to_keep() {
    let (mut env, mut vms) = shop(StorageKind::Qcow2);
    for (goal, wanted) in [(Goal::Stopped, false), (Goal::Suspended, true), (Goal::Paused, true)] {
        vms.iter_mut().for_each(|vm| vm.set_goal(goal, 0));
        want(&mut env, &mut vms, "a").unwrap();
        assert!(vms.iter().all(|vm| vm.snapshots["a"].with_memory == wanted), "{goal:?}");
        plan_drop_snapshot(&env, &mut vms, "a").unwrap();
    }
}

#[test]
fn a_name_is_used_once_but_a_failed_one_again() {
    let (mut env, mut vms) = shop(StorageKind::Qcow2);
    want(&mut env, &mut vms, "a").unwrap();
    assert_eq!(want(&mut env, &mut vms, "a").unwrap_err().code, ErrorCode::Exists);
    let trouble = Trouble { code: ErrorCode::SnapshotCreate, why: "w".into(), retry: false };
    for vm in &mut vms {
        plan_take(vm, "a");
        plan_take_failed(vm, "a", trouble.clone());
        assert_eq!(vm.disks.len(), 2, "the guest's disk may be layered on the frozen one");
    }
    assert_eq!(apply_all(&mut env, &mut vms, "a").unwrap_err().code, ErrorCode::State);
    want(&mut env, &mut vms, "a").unwrap();
}

#[test]
fn an_apply_brings_back_sizes_and_policies_and_keeps_identity() {
    let (mut env, mut vms) = shop(StorageKind::File);
    want(&mut env, &mut vms, "a").unwrap();
    vms.iter_mut().for_each(|vm| take(vm, "a"));
    let frozen = vms.clone();
    for vm in &mut vms {
        vm.resource.mem_size *= 2;
        vm.deny_outgoing = true;
        vm.set_goal(Goal::Stopped, 0);
    }
    let host = sample::host("qemu");
    let world = ApplyWorld { now: NOW, policy: &policy(), host: &host, free_ports: &[] };
    let mut usage = Usage { mem_size: 512, ..Usage::default() };
    plan_apply(&mut env, &mut vms, &frozen, "a", &mut usage, &world).unwrap();
    assert_eq!(usage.mem_size, 256);
    for (vm, old) in vms.iter().zip(&frozen) {
        assert_eq!((vm.id, &vm.name, &vm.resource), (old.id, &old.name, &old.resource));
        assert_eq!((vm.goal, vm.deny_outgoing), (Goal::Running, false));
        assert_eq!(vm.disks[&vm.epoch].parent, vm.snapshots["a"].epoch);
        assert_eq!((vm.incarnation, &vm.memory), (1, &vm.snapshots["a"].memory));
        assert!(!vm.disks.contains_key(&0), "the disk before the apply is needed no more");
    }
}

#[test]
fn memory_of_another_version_is_refused() {
    let (mut env, mut vms) = shop(StorageKind::File);
    want(&mut env, &mut vms, "a").unwrap();
    for vm in &mut vms {
        plan_take(vm, "a");
        plan_taken(vm, "a", Some("qemu 0".into()), NOW);
    }
    let before = vms.clone();
    assert_eq!(apply_all(&mut env, &mut vms, "a").unwrap_err().code, ErrorCode::Unsupported);
    assert_eq!(vms, before);
}

#[test]
fn a_snapshot_ends_after_its_life_time() {
    let (mut env, mut vms) = shop(StorageKind::File);
    let spec = SnapshotSpec { life_time: Some(60), ..spec("a") };
    plan_snapshot(&mut env, &mut vms, &spec, &sample::host("qemu"), NOW, &policy()).unwrap();
    assert!(!plan_drop_expired(&mut vms[0], NOW + 1000, |_| false), "it is still being taken");
    take(&mut vms[0], "a");
    assert!(!plan_drop_expired(&mut vms[0], NOW + 59, |_| false));
    assert!(!plan_drop_expired(&mut vms[0], NOW + 60, |_| true), "it is being published");
    assert!(plan_drop_expired(&mut vms[0], NOW + 60, |_| false));
    assert_eq!(vms[0].disks.len(), 1);
}

proptest! {
    /// Whatever is taken, applied and dropped, in whatever order: every snapshot's disk and all
    /// that it lies on are kept, no number is used twice, and nothing else is kept.
    #[test]
    fn no_needed_disk_is_ever_dropped(
        layered: bool,
        steps in proptest::collection::vec((0_u8..4, 0_u8..4), 1..40),
    ) {
        let storage = if layered { StorageKind::Qcow2 } else { StorageKind::File };
        let (mut env, mut vms) = shop(storage);
        vms.truncate(1);
        let mut used = std::collections::BTreeSet::from([0]);
        for (act, name) in steps {
            let name = format!("s{name}");
            let before: std::collections::BTreeSet<u32> = vms[0].disks.keys().copied().collect();
            match act {
                0 => if want(&mut env, &mut vms, &name).is_ok() { take(&mut vms[0], &name) },
                1 => drop(apply_all(&mut env, &mut vms, &name)),
                2 => drop(plan_drop_snapshot(&env, &mut vms, &name)),
                _ => drop(plan_detach(&mut vms[0])),
            }
            let vm = &vms[0];
            for epoch in vm.disks.keys().filter(|epoch| !before.contains(epoch)) {
                prop_assert!(used.insert(*epoch), "epoch {epoch} is used twice");
            }
            let roots = vm.snapshots.values().filter_map(|s| s.epoch).chain([vm.epoch]);
            let mut needed = std::collections::BTreeSet::new();
            for root in roots {
                let mut next = Some(root);
                while let Some(epoch) = next {
                    prop_assert!(vm.disks.contains_key(&epoch), "epoch {epoch} is missing");
                    needed.insert(epoch);
                    next = vm.disks[&epoch].parent;
                }
            }
            prop_assert_eq!(needed.len(), vm.disks.len());
        }
    }
}
