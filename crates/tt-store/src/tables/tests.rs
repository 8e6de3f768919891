//! Tests of the tables on the memory store.

use super::*;
use crate::memory::MemoryKv;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use tt_model::plan::{Policy, World, needs, plan_env};
use tt_model::{EngineFacts, EnvSpec, StorageKind, VmSpec, feat};

fn host() -> Host {
    Host {
        id: HostId(1),
        name: "h".into(),
        version: "0".into(),
        start_timestamp: 0,
        public_addr: Ipv4Addr::LOCALHOST,
        range: "10.0.0.0/8".parse().unwrap(),
        block: "10.0.0.0/24".parse().unwrap(),
        port_min: 20000,
        port_max: 20009,
        cpu_num: 4,
        mem_size: 1 << 20,
        disk_size: 1 << 20,
        storage: StorageKind::File,
        storage_reason: String::new(),
        engines: vec![EngineFacts {
            name: "fake".into(),
            version: String::new(),
            detail: String::new(),
            features: feat::NAT,
            unusable: None,
        }],
    }
}

fn create(tables: &Tables, name: &str, count: u32) -> Option<EnvId> {
    let host = host();
    let template = VmTemplate {
        name: "micro".into(),
        compatible_engines: vec!["fake".into()],
        ..VmTemplate::default()
    };
    let vm = VmSpec {
        count: Some(count),
        ports: vec!["80".parse().unwrap()],
        disk_size: Some(1),
        ..VmSpec::new("micro")
    };
    let spec = EnvSpec { vms: vec![vm], ..EnvSpec::default() };
    let needs = needs(&spec);
    let usage = tables.usage(host.id).unwrap();
    let next_id = tables.next_id().unwrap();
    let used = usage.clone().map(|row| row.value).unwrap_or_default();
    let addresses = tables.free_addresses(&host, used.addr_cursor, needs.addresses).unwrap();
    let ports = tables.free_ports(&host, used.port_cursor, needs.ports, |_| true).unwrap();
    let world = World {
        now: 1,
        policy: &Policy::default(),
        host: &host,
        usage: &used,
        next_id: next_id.as_ref().map_or(1, |row| row.value),
        templates: &[("micro".to_owned(), template)].into(),
        free_addresses: &addresses,
        free_ports: &ports,
        random: &vec![7; needs.random_bytes],
    };
    let plan = plan_env(name, "k", &spec, &world).ok()?;
    let change = Change::new().create_env(&plan, usage.as_ref(), next_id.as_ref()).unwrap();
    matches!(tables.commit(&change).unwrap(), Committed::Done(_)).then_some(plan.env.id)
}

fn erase(tables: &Tables, id: VmId) {
    let vm = tables.vm(id).unwrap().unwrap();
    let mut env = tables.env(vm.value.env_id).unwrap().unwrap();
    let mut usage = tables.usage(vm.value.host).unwrap().unwrap();
    env.value.is_ending = true;
    env.value.vm_set.remove(&id);
    usage.value.vm_num -= 1;
    let change = Change::new().erase_vm(&vm, &env, &usage).unwrap();
    assert!(matches!(tables.commit(&change).unwrap(), Committed::Done(_)));
}

#[test]
fn an_env_comes_and_goes_without_a_trace() {
    let kv = Arc::new(MemoryKv::new());
    let tables = Tables::new(kv.clone());
    let id = create(&tables, "a", 3).unwrap();
    assert_eq!(create(&tables, "a", 1), None, "the name is taken");
    let env = tables.env_by_name("a").unwrap().unwrap();
    assert_eq!(env.value.id, id);
    let vms = tables.vms_of(&env.value).unwrap();
    assert_eq!(vms.len(), 3);
    for vm in &vms {
        erase(&tables, vm.value.id);
    }
    let left = kv.range("", None, 100).unwrap();
    let keys: Vec<_> = left.entries.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["next-id", "usage/0000000000000001"]);
    // Ids, and for a while addresses and ports, are not used again.
    create(&tables, "a", 1).unwrap();
    let again = tables.vms().unwrap();
    assert!(vms.iter().all(|vm| vm.value.id < again[0].value.id));
    assert!(vms.iter().all(|vm| vm.value.resource.ip_addr != again[0].value.resource.ip_addr));
}

#[test]
fn addresses_and_ports_wrap_around_and_run_out() {
    let tables = Tables::new(Arc::new(MemoryKv::new()));
    for round in 0..30 {
        let ids: Vec<_> =
            (0..10).map(|n| create(&tables, &format!("e{round}-{n}"), 1).unwrap()).collect();
        assert_eq!(create(&tables, "one-more", 1), None, "ten ports, ten Vms");
        let vms = tables.vms().unwrap();
        let ports: BTreeSet<_> =
            vms.iter().flat_map(|vm| vm.value.resource.port_map.values().copied()).collect();
        assert_eq!(ports.len(), ids.len());
        vms.iter().for_each(|vm| erase(&tables, vm.value.id));
    }
    assert_eq!(tables.envs().unwrap(), []);
}

#[test]
fn a_port_that_something_listens_on_is_not_handed_out() {
    let tables = Tables::new(Arc::new(MemoryKv::new()));
    let free = tables.free_ports(&host(), 20008, 4, |port| port != 20009).unwrap();
    assert_eq!(free, [20008, 20000, 20001, 20002]);
}

#[test]
fn a_status_does_not_outlive_its_vm() {
    let tables = Tables::new(Arc::new(MemoryKv::new()));
    let status = VmStatus {
        phase: tt_model::Phase::Ready,
        generation: 1,
        since_ms: 0,
        ready_ms: None,
        trouble: None,
    };
    let change = Change::new().status(VmId(9), &status).unwrap();
    assert_eq!(tables.commit(&change).unwrap(), Committed::Conflict);
}

#[test]
fn records_that_can_not_be_read_are_named() {
    let kv = Arc::new(MemoryKv::new());
    let tables = Tables::new(kv.clone());
    let key = Key::Vm(VmId(3)).path();
    let _ = kv.commit(&crate::Txn::new().put(key.clone(), b"{}".to_vec())).unwrap();
    assert!(tables.vm(VmId(3)).unwrap_err().to_string().contains(&key));
    let _ = kv.commit(&crate::Txn::new().put(key, br#"{"v":99,"record":1}"#.to_vec())).unwrap();
    assert!(matches!(tables.vm(VmId(3)), Err(TablesError::Newer { version: 99, .. })));
}

#[test]
fn keys_are_read_back() {
    for key in [
        Key::Env(EnvId(1)),
        Key::Vm(VmId(u64::MAX)),
        Key::Status(VmId(2)),
        Key::Template("a/b".into()),
    ] {
        assert_eq!(Key::parse(&key.path()), Some(key));
    }
}
