//! That the largest records and changes that the model allows fit the store.

use super::*;
use crate::{TXN_BYTES_MAX, Txn, VALUE_BYTES_MAX};
use std::net::Ipv6Addr;
use tt_model::check::{
    BLACKLIST_MAX, NAME_BYTES_MAX, PORTS_PER_ENV_MAX, PORTS_PER_VM_MAX, SNAPSHOTS_PER_VM_MAX,
    TEMPLATE_NAME_BYTES_MAX, VMS_PER_ENV_MAX,
};
use tt_model::login::{SSH_KEYS_BYTES_MAX, USER_DATA_BYTES_MAX};
use tt_model::plan::{AddPlan, LAYERS_MAX};
use tt_model::{
    Disk, ErrorCode, InnerPort, Protocol, Snapshot, SnapshotState, StorageKind, VmResource,
    VmState, names,
};

/// Longer than any chain of causes that the host writes down.
const WHY_BYTES: usize = 1024;

fn name(kind: &str, number: u32) -> String {
    format!("{kind:a<width$}{number:08}", width = NAME_BYTES_MAX - 8)
}

/// Longest in every way at once, also in those that exclude each other.
fn snapshot(id: VmId, number: u32) -> Snapshot {
    let trouble =
        Trouble { code: ErrorCode::Unsupported, why: "w".repeat(WHY_BYTES), retry: false };
    Snapshot {
        name: name("s", number),
        path: names::runtime_image(StorageKind::Qcow2, id, u32::MAX),
        meta_path: names::meta(id, u32::MAX),
        life_time: Some(u64::MAX),
        epoch: Some(u32::MAX),
        with_memory: false,
        memory: Some(names::memory(id, u32::MAX)),
        engine_version: Some("v".repeat(64)),
        start_timestamp: u64::MAX,
        state: SnapshotState::Failed(trouble),
    }
}

fn largest(index: u32, ports: usize) -> Vm {
    let sample = sample::vm(u64::from(u32::MAX - index), "fake", StorageKind::Qcow2);
    let id = sample.id;
    let address = |n: usize| Ipv6Addr::from_bits(u128::MAX - n as u128).into();
    let port = |n: usize| {
        let inner = InnerPort { port: u16::MAX - n as u16, protocol: Protocol::Udp };
        (inner, u16::MAX - (ports * index as usize + n) as u16)
    };
    // Each snapshot's disk lies over disks of its own that no snapshot has any more.
    let disks = (0..(SNAPSHOTS_PER_VM_MAX + 1) * LAYERS_MAX).map(|n| u32::MAX - n as u32);
    let snapshots = (0..SNAPSHOTS_PER_VM_MAX as u32).map(|n| snapshot(id, n));
    Vm {
        name: name("v", index),
        env_name: name("e", 0),
        template: VmTemplate {
            name: "t".repeat(TEMPLATE_NAME_BYTES_MAX),
            memo: Some("m".repeat(WHY_BYTES)),
            ..sample.template.clone()
        },
        disks: disks
            .map(|epoch| (epoch, Disk { parent: Some(u32::MAX), is_frozen: true }))
            .collect(),
        snapshots: snapshots.map(|snapshot| (snapshot.name.clone(), snapshot)).collect(),
        // An Env's list and the member's own.
        state: VmState {
            net_blacklist: (0..2 * BLACKLIST_MAX).map(address).collect(),
            ..sample.state
        },
        ssh_keys: vec!["k".repeat(SSH_KEYS_BYTES_MAX)],
        // What JSON writes with two bytes.
        user_data: Some("\n".repeat(USER_DATA_BYTES_MAX)),
        resource: VmResource { port_map: (0..ports).map(port).collect(), ..sample.resource },
        ..sample
    }
}

fn bytes(vm: &Vm) -> usize {
    encode("vm", vm).unwrap().len()
}

#[test]
fn the_largest_vm_is_a_value() {
    let vm = largest(0, PORTS_PER_VM_MAX);
    assert!(bytes(&vm) <= VALUE_BYTES_MAX, "{} bytes", bytes(&vm));
    let tables = Tables::new(Arc::new(MemoryKv::new()));
    let read = Row { value: sample::vm(vm.id.0, "fake", vm.storage), revision: Revision(1) };
    let first = Txn::new().put(Key::Vm(vm.id).path(), b"as read".to_vec());
    assert_eq!(tables.kv.commit(&first).unwrap(), crate::Outcome::Done(read.revision));
    // All of its ports are new.
    let change = Change::new().replace_vm(&read, &vm).unwrap();
    assert!(matches!(tables.commit(&change).unwrap(), Committed::Done(_)));
    assert_eq!(tables.vm(vm.id).unwrap().unwrap().value, vm);
}

/// Every member with as many snapshots as it may have, taken, all changed at once.
#[test]
fn the_largest_env_is_a_transaction() {
    let member = |index| {
        let mut vm = largest(index, PORTS_PER_VM_MAX);
        vm.disks = vm.disks.into_iter().take(SNAPSHOTS_PER_VM_MAX + LAYERS_MAX).collect();
        vm.snapshots.values_mut().for_each(|s| s.state = SnapshotState::Ready);
        vm
    };
    let bytes = bytes(&member(0)) * VMS_PER_ENV_MAX;
    assert!(bytes <= TXN_BYTES_MAX, "{bytes} bytes");
}

#[test]
fn as_many_members_and_ports_as_an_env_may_have_join_in_one_transaction() {
    let tables = Tables::new(Arc::new(MemoryKv::new()));
    let id = create(&tables, "a", 1).unwrap();
    let mut env = tables.env(id).unwrap().unwrap();
    let each = PORTS_PER_ENV_MAX as usize / VMS_PER_ENV_MAX;
    let mut vms: Vec<Vm> = (0..VMS_PER_ENV_MAX as u32).map(|n| largest(n, each)).collect();
    for vm in &mut vms {
        // New ones have neither snapshots nor layers.
        (vm.snapshots, vm.disks) = (BTreeMap::new(), [(0, Disk::default())].into());
    }
    env.value.vm_set.extend(vms.iter().map(|vm| vm.id));
    let plan = AddPlan { vms, usage: Usage::default(), next_id: 1 << 40 };
    let (usage, next_id) = (tables.usage(HostId(1)).unwrap(), tables.next_id().unwrap());
    let change = Change::new().add_vms(&plan, &env, usage.as_ref(), next_id.as_ref()).unwrap();
    assert!(matches!(tables.commit(&change).unwrap(), Committed::Done(_)));
    assert_eq!(tables.vms().unwrap().len(), VMS_PER_ENV_MAX + 1);
}
