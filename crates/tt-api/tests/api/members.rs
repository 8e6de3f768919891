//! Members: added, changed, denied, removed.

use crate::common::{commit, server, settled};
use crate::routes::code;
use std::collections::BTreeSet;
use tt_api::client::EnvEvent;
use tt_model::{ErrorCode, Goal, HostId, Phase, StopMode, VmSpec, VmUpdate};
use tt_store::tables::Change;

fn named(name: &str) -> VmSpec {
    let ports = vec!["80".parse().unwrap()];
    VmSpec { name: Some(name.into()), mem_size: Some(32), ports, ..VmSpec::new("micro") }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_join_and_a_repeated_request_adds_none() {
    let server = server();
    let client = &server.client;
    let env = server.ready_env("shop", 1).await;
    let added = client.add_vm("shop", "k", &named("web")).await.unwrap().vms;
    assert_eq!((added.len(), added[0].vm.name.as_str()), (1, "web"));
    let revision = server.tables.revision().unwrap();
    assert_eq!(client.add_vm("shop", "k", &named("web")).await.unwrap().vms, added);
    // Whoever asks for the same under another key asks for another member of its name.
    let again = client.add_vm("shop", "other", &named("web")).await;
    assert_eq!(code(again), ErrorCode::Exists);
    assert_eq!(server.tables.revision().unwrap(), revision);

    let three = VmSpec { count: Some(3), ..named("db") };
    let added = client.add_vm("shop", "three", &three).await.unwrap().vms;
    assert_eq!(client.add_vm("shop", "three", &three).await.unwrap().vms, added);
    // Without a name each request is another one.
    let nameless = VmSpec { mem_size: Some(32), ..VmSpec::new("micro") };
    let first = client.add_vm("shop", "first", &nameless).await.unwrap().vms;
    assert_eq!(client.add_vm("shop", "first", &nameless).await.unwrap().vms, first);
    let second = client.add_vm("shop", "second", &nameless).await.unwrap().vms;
    assert_ne!(first[0].vm.name, second[0].vm.name);

    let now = client.env("shop").await.unwrap();
    assert_eq!((now.vms.len(), now.env.vm_set.len()), (7, 7));
    assert_eq!(now.vms[0], env.vms[0]);
    let distinct = |values: Vec<String>| values.into_iter().collect::<BTreeSet<_>>().len();
    let address = |view: &tt_api::views::VmView| view.vm.resource.ip_addr.to_string();
    assert_eq!(distinct(now.vms.iter().map(address).collect()), 7);
    let usage = server.tables.usage(HostId(1)).unwrap().unwrap().value;
    assert_eq!((usage.vm_num, usage.mem_size), (7, 7 * 32));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_member_at_once_is_one() {
    let server = server();
    server.ready_env("shop", 1).await;
    let calls = (0..8).map(|_| {
        let client = server.client.clone();
        tokio::spawn(async move { client.add_vm("shop", "k", &named("web")).await.unwrap() })
    });
    let mut ids = BTreeSet::new();
    for call in calls.collect::<Vec<_>>() {
        ids.insert(call.await.unwrap().vms[0].vm.id);
    }
    assert_eq!((ids.len(), server.tables.vms().unwrap().len()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_env_has_no_more_ports_than_it_may() {
    let server = server();
    let client = &server.client;
    server.ready_env("shop", 1).await;
    let ports: Vec<_> = (1..=250).map(|n: u16| n.to_string().parse().unwrap()).collect();
    let many = VmSpec { count: Some(4), ports: ports.clone(), ..named("web") };
    let error = client.add_vm("shop", "many", &many).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Invalid));
    assert!(error.to_string().contains("1001 published ports"), "{error}");
    let many = VmSpec { count: Some(3), ..many };
    client.add_vm("shop", "many", &many).await.unwrap();
    let update = VmUpdate { ports: Some(ports), ..VmUpdate::default() };
    client.update_vm("shop", "micro", &update).await.unwrap();
    server.later();
    let more = (1..=251).map(|n: u16| n.to_string().parse().unwrap()).collect();
    let update = VmUpdate { ports: Some(more), ..VmUpdate::default() };
    assert_eq!(code(client.update_vm("shop", "micro", &update).await), ErrorCode::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_says_what_waits_for_a_restart() {
    let server = server();
    let client = &server.client;
    let env = server.ready_env("shop", 2).await;
    let public = *env.vms[0].vm.resource.port_map.values().next().unwrap();
    let update = VmUpdate {
        cpu_num: Some(2),
        mem_size: Some(64),
        disk_size: Some(20),
        ports: Some(vec!["80".parse().unwrap(), "53/udp".parse().unwrap()]),
        net_blacklist: Some(vec![[198, 51, 100, 2].into(), [198, 51, 100, 1].into()]),
        deny_outgoing: Some(true),
        keep_image: Some(true),
        ..VmUpdate::default()
    };
    let view = client.update_vm("shop", "micro-1", &update).await.unwrap();
    assert!(view.needs_restart && !view.is_settled);
    assert_eq!((view.vm.machine.cpu_num, view.vm.resource.cpu_num), (1, 2));
    assert_eq!(view.vm.resource.disk_size, 20);
    assert_eq!(view.vm.resource.port_map.len(), 2);
    assert_eq!(view.vm.resource.port_map[&"80".parse().unwrap()], public);
    assert!(view.vm.deny_outgoing && view.vm.state.keep_image);
    assert_eq!(view.vm.state.net_blacklist.len(), 2);
    assert_eq!(server.tables.usage(HostId(1)).unwrap().unwrap().value.mem_size, 96);
    assert_eq!(client.vm("shop", "micro-1").await.unwrap(), view);

    assert_eq!(code(client.update_vm("shop", "micro-1", &update).await), ErrorCode::TooSoon);
    server.later();
    client.stop_vm("shop", "micro-1", Some(StopMode::Kill)).await.unwrap();
    server.later();
    let view = client.start_vm("shop", "micro-1").await.unwrap();
    assert!(!view.needs_restart && view.vm.machine.cpu_num == 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_member_is_found_under_its_new_name_alone() {
    let server = server();
    let client = &server.client;
    let env = server.ready_env("shop", 2).await;
    let read = server.tables.env_by_name("shop").unwrap().unwrap().revision;
    let update = VmUpdate { name: Some("web".into()), ..VmUpdate::default() };
    let view = client.update_vm("shop", "micro-1", &update).await.unwrap();
    assert_eq!((view.vm.id, view.vm.name.as_str()), (env.vms[0].vm.id, "web"));
    assert_eq!(client.vm("shop", "web").await.unwrap(), view);
    assert_eq!(code(client.vm("shop", "micro-1").await), ErrorCode::NotFound);
    // The Env's record was written, so that its network is told the names.
    assert!(server.tables.env_by_name("shop").unwrap().unwrap().revision > read);
    server.later();
    assert_eq!(code(client.update_vm("shop", "micro-2", &update).await), ErrorCode::Exists);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_goes_and_what_goes_is_left_alone() {
    let server = server();
    let client = &server.client;
    let env = server.ready_env("shop", 2).await;
    let mut events = client.events("shop").await.unwrap();
    events.next().await.unwrap().unwrap();
    let going = client.remove_vm("shop", "micro-1").await.unwrap();
    assert_eq!(going.vm.goal, Goal::Gone);
    let revision = server.tables.revision().unwrap();
    assert_eq!(client.remove_vm("shop", "micro-1").await.unwrap(), going);
    let update = VmUpdate { cpu_num: Some(2), ..VmUpdate::default() };
    assert_eq!(code(client.update_vm("shop", "micro-1", &update).await), ErrorCode::State);
    assert_eq!(code(client.start_vm("shop", "micro-1").await), ErrorCode::State);
    assert_eq!(code(client.set_vm_outgoing("shop", "micro-1", true).await), ErrorCode::State);
    assert_eq!(code(client.remove_vm("shop", "micro-2").await), ErrorCode::State);
    assert_eq!(server.tables.revision().unwrap(), revision);
    // What is asked of all calls none back.
    client.stop_env("shop", Some(StopMode::Kill)).await.unwrap();
    server.later();
    let started = client.start_env("shop").await.unwrap();
    assert_eq!(started.vms[0].vm.goal, Goal::Gone);
    assert_eq!(started.vms[1].vm.goal, Goal::Running);

    server.erase_vm(env.vms[0].vm.id, 5);
    loop {
        match events.next().await.unwrap() {
            Some(EnvEvent::Env(view)) if view.vms.len() == 1 => break,
            Some(EnvEvent::Env(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(code(client.remove_vm("shop", "micro-1").await), ErrorCode::NotFound);
    assert_eq!(client.env("shop").await.unwrap().vms.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_last_members_do_not_go_at_once() {
    let server = server();
    server.ready_env("shop", 2).await;
    let calls = ["micro-1", "micro-2"].map(|name| {
        let client = server.client.clone();
        tokio::spawn(async move { client.remove_vm("shop", name).await.is_ok() })
    });
    let mut gone = 0;
    for call in calls {
        gone += usize::from(call.await.unwrap());
    }
    assert_eq!(gone, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn outgoing_traffic_is_denied_to_one_and_to_all() {
    let server = server();
    let client = &server.client;
    let env = server.ready_env("shop", 2).await;
    let denied = client.set_vm_outgoing("shop", "micro-1", true).await.unwrap();
    assert!(denied.vm.deny_outgoing && !denied.is_settled);
    let now = client.env("shop").await.unwrap();
    assert!(!now.env.state.deny_outgoing && now.vms[1] == env.vms[1]);
    let all = client.set_env_outgoing("shop", true).await.unwrap();
    assert!(all.env.state.deny_outgoing && all.vms.iter().all(|view| view.vm.deny_outgoing));
    let change = Change::new().status(all.vms[0].vm.id, &settled(&all.vms[0].vm, Phase::Ready));
    commit(&server.tables, &change.unwrap());
    assert!(client.vm("shop", "micro-1").await.unwrap().is_settled);
    // Later members follow.
    assert!(client.add_vm("shop", "k", &named("web")).await.unwrap().vms[0].vm.deny_outgoing);
    let revision = server.tables.revision().unwrap();
    client.set_env_outgoing("shop", true).await.unwrap();
    assert_eq!(server.tables.revision().unwrap(), revision);
    let all = client.set_env_outgoing("shop", false).await.unwrap();
    assert!(!all.env.state.deny_outgoing && !all.vms.iter().any(|view| view.vm.deny_outgoing));
}
