//! Tests of the tables on the memory store.

use super::*;
use crate::memory::MemoryKv;
use std::collections::{BTreeMap, BTreeSet};
use tt_model::plan::{Policy, World, needs, plan_env};
use tt_model::{EnvSpec, VmSpec, sample};

mod members;
mod sizes;

fn host() -> Host {
    Host { block: "10.0.0.0/24".parse().unwrap(), port_max: 20009, ..sample::host("fake") }
}

/// Plans with a world that is read from the tables, and commits what `plan` makes of it.
fn with_world<T>(
    tables: &Tables,
    specs: &[VmSpec],
    plan: impl FnOnce(&World<'_>, Option<&Row<Usage>>, Option<&Row<u64>>) -> Option<(T, Change)>,
) -> Option<T> {
    let host = host();
    let needs = needs(specs);
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
        templates: &[("micro".to_owned(), sample::template("fake"))].into(),
        images: &BTreeMap::new(),
        free_addresses: &addresses,
        free_ports: &ports,
        random: &vec![7; needs.random_bytes],
    };
    let (planned, change) = plan(&world, usage.as_ref(), next_id.as_ref())?;
    matches!(tables.commit(&change).unwrap(), Committed::Done(_)).then_some(planned)
}

/// Vms with one port each.
fn spec(count: u32) -> VmSpec {
    VmSpec { count: Some(count), ports: vec!["80".parse().unwrap()], ..VmSpec::new("micro") }
}

fn create(tables: &Tables, name: &str, count: u32) -> Option<EnvId> {
    let spec = EnvSpec { vms: vec![spec(count)], ..EnvSpec::default() };
    with_world(tables, &spec.vms, |world, usage, next_id| {
        let plan = plan_env(name, "k", &spec, world).ok()?;
        Some((plan.env.id, Change::new().create_env(&plan, usage, next_id).unwrap()))
    })
}

/// All records but those that only count, as places.
fn places(kv: &MemoryKv) -> Vec<String> {
    let all = kv.range("", None, 1000).unwrap().entries.into_iter().map(|entry| entry.key);
    all.filter(|key| key != "next-id" && !key.starts_with("usage/")).collect()
}

fn erase(tables: &Tables, id: VmId) {
    erase_keeping(tables, id, false);
}

fn erase_keeping(tables: &Tables, id: VmId, keep: bool) {
    let vm = tables.vm(id).unwrap().unwrap();
    let mut env = tables.env(vm.value.env_id).unwrap().unwrap();
    let mut usage = tables.usage(vm.value.host).unwrap().unwrap();
    env.value.is_ending = true;
    env.value.vm_set.remove(&id);
    usage.value.vm_num -= 1;
    let kept = keep.then(|| KeptImage::of(&vm.value, 5));
    let change = Change::new().erase_vm(&vm, &env, &usage, kept.as_ref()).unwrap();
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
    assert_eq!(places(&kv), Vec::<String>::new());
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
        Key::Image(VmId(4)),
    ] {
        assert_eq!(Key::parse(&key.path()), Some(key));
    }
}
