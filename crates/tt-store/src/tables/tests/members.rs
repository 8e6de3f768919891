//! Members that join, change and go.

use super::*;
use tt_model::plan::plan_add;
use tt_model::{InnerPort, PortMap};

fn add(tables: &Tables, id: EnvId, count: u32) -> Option<Vec<VmId>> {
    let mut env = tables.env(id).unwrap().unwrap();
    let members: Vec<Vm> =
        tables.vms_of(&env.value).unwrap().into_iter().map(|row| row.value).collect();
    let spec = spec(count);
    with_world(tables, std::slice::from_ref(&spec), |world, usage, next_id| {
        let plan = plan_add(&mut env.value, &members, None, &spec, world).ok()?;
        let ids = plan.vms.iter().map(|vm| vm.id).collect();
        Some((ids, Change::new().add_vms(&plan, &env, usage, next_id).unwrap()))
    })
}

fn only_vm(tables: &Tables, env: EnvId) -> Row<Vm> {
    let env = tables.env(env).unwrap().unwrap();
    tables.vms_of(&env.value).unwrap().remove(0)
}

fn ports(list: &[(u16, u16)]) -> PortMap {
    let inner = |port| InnerPort { port, protocol: tt_model::Protocol::Tcp };
    list.iter().map(|(port, public)| (inner(*port), *public)).collect()
}

fn port_owner(kv: &MemoryKv, public: u16) -> Option<VmId> {
    let key = Key::Port(HostId(1), public).path();
    kv.get(&key).unwrap().map(|entry| decode(&key, &entry.value).unwrap())
}

#[test]
fn members_that_join_are_committed_with_their_env_and_go_without_a_trace() {
    let kv = Arc::new(MemoryKv::new());
    let tables = Tables::new(kv.clone());
    let env = create(&tables, "a", 1).unwrap();
    let ids = add(&tables, env, 3).unwrap();
    let row = tables.env(env).unwrap().unwrap();
    assert_eq!(row.value.vm_set.len(), 4);
    assert!(ids.iter().all(|id| row.value.vm_set.contains(id)));
    assert_eq!(tables.usage(HostId(1)).unwrap().unwrap().value.vm_num, 4);
    assert_eq!(tables.next_id().unwrap().unwrap().value, ids[2].0 + 1);
    let members = tables.vms_of(&row.value).unwrap();
    members.iter().for_each(|vm| erase(&tables, vm.value.id));
    assert_eq!(places(&kv), Vec::<String>::new());
}

#[test]
fn members_join_no_env_that_changed_meanwhile() {
    let kv = Arc::new(MemoryKv::new());
    let tables = Tables::new(kv.clone());
    let id = create(&tables, "a", 1).unwrap();
    let mut env = tables.env(id).unwrap().unwrap();
    let spec = spec(2);
    let added = with_world(&tables, std::slice::from_ref(&spec), |world, usage, next_id| {
        let other = Change::new().env(&env).unwrap();
        assert!(matches!(tables.commit(&other).unwrap(), Committed::Done(_)));
        let plan = plan_add(&mut env.value, &[], None, &spec, world).ok()?;
        Some(((), Change::new().add_vms(&plan, &env, usage, next_id).unwrap()))
    });
    assert_eq!(added, None);
    assert_eq!(tables.vms().unwrap().len(), 1);
}

#[test]
fn a_changed_vm_takes_new_ports_and_frees_those_that_are_gone() {
    let kv = Arc::new(MemoryKv::new());
    let tables = Tables::new(kv.clone());
    let env = create(&tables, "a", 1).unwrap();
    let read = only_vm(&tables, env);
    let id = read.value.id;
    let mut new = read.value.clone();
    // 20000 changes its inner port only.
    new.resource.port_map = ports(&[(81, 20000), (82, 20005)]);
    let usage = tables.usage(HostId(1)).unwrap().unwrap();
    let change = Change::new().replace_vm(&read, &new).unwrap().usage(HostId(1), &usage).unwrap();
    assert!(matches!(tables.commit(&change).unwrap(), Committed::Done(_)));
    assert_eq!((port_owner(&kv, 20000), port_owner(&kv, 20005)), (Some(id), Some(id)));
    assert_eq!(tables.commit(&change).unwrap(), Committed::Conflict, "it was read before");

    let read = only_vm(&tables, env);
    assert_eq!(read.value, new);
    new.resource.port_map = ports(&[(82, 20005)]);
    let change = Change::new().replace_vm(&read, &new).unwrap();
    assert!(matches!(tables.commit(&change).unwrap(), Committed::Done(_)));
    assert_eq!((port_owner(&kv, 20000), port_owner(&kv, 20005)), (None, Some(id)));
    erase(&tables, id);
    assert_eq!(places(&kv), Vec::<String>::new());
}

#[test]
fn a_changed_vm_takes_no_port_of_another_one() {
    let kv = Arc::new(MemoryKv::new());
    let tables = Tables::new(kv.clone());
    let first = only_vm(&tables, create(&tables, "a", 1).unwrap());
    let second = only_vm(&tables, create(&tables, "b", 1).unwrap());
    let mut thief = second.value.clone();
    thief.resource.port_map = first.value.resource.port_map.clone();
    let change = Change::new().replace_vm(&second, &thief).unwrap();
    assert_eq!(tables.commit(&change).unwrap(), Committed::Conflict);
    assert_eq!(only_vm(&tables, second.value.env_id), second, "nothing is changed");
    assert_eq!(port_owner(&kv, 20000), Some(first.value.id));
}

#[test]
fn usage_changes_only_as_it_was_read() {
    let tables = Tables::new(Arc::new(MemoryKv::new()));
    create(&tables, "a", 1).unwrap();
    let mut usage = tables.usage(HostId(1)).unwrap().unwrap();
    create(&tables, "b", 1).unwrap();
    usage.value.mem_size += 1;
    let change = Change::new().usage(HostId(1), &usage).unwrap();
    assert_eq!(tables.commit(&change).unwrap(), Committed::Conflict);
}

#[test]
fn a_kept_image_takes_the_place_of_its_vm() {
    let kv = Arc::new(MemoryKv::new());
    let tables = Tables::new(kv.clone());
    let vm = only_vm(&tables, create(&tables, "a", 1).unwrap()).value;
    erase_keeping(&tables, vm.id, true);
    assert_eq!(places(&kv), [Key::Image(vm.id).path()]);
    assert_eq!(tables.keys(Table::Images).unwrap(), [Key::Image(vm.id)]);
    let mut row = tables.image(vm.id).unwrap().unwrap();
    assert_eq!(row.value, KeptImage::of(&vm, 5));
    assert_eq!(tables.images().unwrap(), [row.clone()]);

    let read = row.clone();
    row.value.is_wanted = false;
    let change = Change::new().image(&row).unwrap();
    assert!(matches!(tables.commit(&change).unwrap(), Committed::Done(_)));
    for late in [Change::new().from_image(&read), Change::new().remove_image(&read)] {
        assert_eq!(tables.commit(&late).unwrap(), Committed::Conflict);
    }
    let row = tables.image(vm.id).unwrap().unwrap();
    assert!(!row.value.is_wanted);
    let kept = tables.commit(&Change::new().from_image(&row)).unwrap();
    assert_eq!(kept, Committed::Done(row.revision), "a guard alone changes nothing");
    let removed = tables.commit(&Change::new().remove_image(&row)).unwrap();
    assert!(matches!(removed, Committed::Done(_)));
    assert_eq!(places(&kv), Vec::<String>::new());
}
