//! Snapshots: asked for, listed, applied, removed.

use crate::common::{Server, commit, server};
use crate::routes::code;
use std::collections::BTreeSet;
use tt_api::client::EnvEvent;
use tt_api::views::SnapshotPhase;
use tt_model::plan::plan_take_failed;
use tt_model::{EnvSpec, ErrorCode, Goal, SnapshotSpec, SnapshotState, Trouble, VmSpec, VmUpdate};
use tt_store::tables::Change;

fn spec(name: &str) -> SnapshotSpec {
    SnapshotSpec { name: name.into(), life_time: Some(60), with_memory: false }
}

/// An Env of two members that can be kept with memory.
async fn env(server: &Server) {
    let vm = VmSpec {
        engine: Some("full".into()),
        count: Some(2),
        mem_size: Some(32),
        ..VmSpec::new("micro")
    };
    let spec = EnvSpec { vms: vec![vm], ..EnvSpec::default() };
    create(server, "shop", &spec).await;
}

async fn create(server: &Server, name: &str, spec: &EnvSpec) {
    server.client.create_env(name, name, spec).await.unwrap();
    let mut env = server.tables.env_by_name(name).unwrap().unwrap();
    env.value.is_created = true;
    commit(&server.tables, &Change::new().env(&env).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_not_taken_yet_can_be_given_up() {
    let server = server();
    let client = &server.client;
    env(&server).await;
    client.create_snapshot("shop", None, &spec("s")).await.unwrap();
    server.later();
    let view = client.remove_snapshot("shop", None, "s").await.unwrap();
    assert!(view.vms.iter().all(|view| view.vm.snapshots.is_empty()));
    assert_eq!(code(client.remove_snapshot("shop", None, "s").await), ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_of_all_members_and_followers_hear_of_it() {
    let server = server();
    let client = &server.client;
    env(&server).await;
    let mut events = client.events("shop").await.unwrap();
    events.next().await.unwrap().unwrap();
    let kept = SnapshotSpec { with_memory: true, ..spec("s") };
    let view = client.create_snapshot("shop", None, &kept).await.unwrap();
    assert!(view.vms.iter().all(|view| view.vm.snapshots["s"].state == SnapshotState::Wanted));
    let Some(EnvEvent::Env(told)) = events.next().await.unwrap() else { panic!("gone") };
    assert_eq!(*told, view);

    server.later();
    assert_eq!(code(client.create_snapshot("shop", None, &kept).await), ErrorCode::Exists);
    assert_eq!(code(client.apply_snapshot("shop", None, "s").await), ErrorCode::State);
    let listed = client.snapshots("shop", None).await.unwrap().snapshots;
    assert_eq!((listed.len(), listed[0].phase), (1, SnapshotPhase::Taking));

    server.take("shop", "s", Some("full 1"));
    let Some(EnvEvent::Env(told)) = events.next().await.unwrap() else { panic!("gone") };
    assert_ne!(*told, view);
    let listed = client.snapshots("shop", None).await.unwrap().snapshots;
    assert_eq!((listed[0].phase, listed[0].missing.len()), (SnapshotPhase::Ready, 0));
    assert!(listed[0].members.iter().all(|member| member.with_memory));
    assert_eq!(listed[0].members[0].end_timestamp, Some(67));
    let one = client.snapshots("shop", Some("micro-1")).await.unwrap().snapshots;
    assert_eq!(one[0].members, listed[0].members[..1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_brings_back_what_was_and_takes_its_ports_again() {
    let server = server();
    let client = &server.client;
    env(&server).await;
    let port = |text: &str| vec![text.parse().unwrap()];
    let update = VmUpdate { ports: Some(port("80")), ..VmUpdate::default() };
    client.update_vm("shop", "micro-1", &update).await.unwrap();
    server.later();
    client.create_snapshot("shop", None, &spec("s")).await.unwrap();
    server.take("shop", "s", None);
    server.later();
    let update = VmUpdate {
        ports: Some(port("443")),
        mem_size: Some(64),
        net_blacklist: Some(vec![[198, 51, 100, 1].into()]),
        ..VmUpdate::default()
    };
    client.update_vm("shop", "micro-1", &update).await.unwrap();
    server.later();
    client.stop_env("shop", None).await.unwrap();
    server.later();
    let before = client.env("shop").await.unwrap();
    let after = client.apply_snapshot("shop", None, "s").await.unwrap();
    let vm = &after.vms[0].vm;
    assert_eq!(vm.resource.port_map.keys().copied().collect::<Vec<_>>(), port("80"));
    assert_eq!((vm.resource.mem_size, vm.state.net_blacklist.len()), (32, 0));
    assert_eq!((vm.goal, vm.incarnation), (Goal::Running, before.vms[0].vm.incarnation + 1));
    assert!(after.vms.iter().all(|view| view.vm.snapshots.contains_key("s") && !view.is_settled));
    assert!(!after.env.state.is_stopped);
    assert_eq!(client.host("h.example").await.unwrap().usage.mem_size, 64);
    // The port that was given up is free again, the one that was taken is not.
    let taken = server.tables.free_ports(&crate::common::host(), 20002, 9997, |_| true).unwrap();
    let taken: BTreeSet<u16> = taken.into_iter().collect();
    let now = *vm.resource.port_map.values().next().unwrap();
    let given_up = *before.vms[0].vm.resource.port_map.values().next().unwrap();
    assert!(!taken.contains(&now) && (now == given_up || taken.contains(&given_up)));

    let one = client.apply_snapshot("shop", Some("micro-2"), "s").await;
    assert_eq!(code(one), ErrorCode::TooSoon);
    server.later();
    let one = client.apply_snapshot("shop", Some("micro-2"), "s").await.unwrap();
    assert_eq!(one.vms[0], after.vms[0]);
    assert_eq!(one.vms[1].vm.incarnation, after.vms[1].vm.incarnation + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_it_is_named_and_nothing_goes_back() {
    let server = server();
    let client = &server.client;
    env(&server).await;
    client.create_snapshot("shop", Some("micro-1"), &spec("s")).await.unwrap();
    server.take("shop", "s", None);
    server.later();
    let listed = client.snapshots("shop", None).await.unwrap().snapshots;
    assert_eq!(listed[0].missing, ["micro-2"]);
    let revision = server.tables.revision().unwrap();
    let error = client.apply_snapshot("shop", None, "s").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotFound));
    assert!(error.to_string().contains("`s` of shop/micro-2"), "{error}");
    server.access.metas.lock().unwrap().clear();
    let error = client.apply_snapshot("shop", Some("micro-1"), "s").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::MetaRestore));
    assert_eq!(server.tables.revision().unwrap(), revision);

    client.remove_snapshot("shop", None, "s").await.unwrap();
    assert!(client.snapshots("shop", None).await.unwrap().snapshots.is_empty());
    assert_eq!(code(client.remove_snapshot("shop", None, "s").await), ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_one_shows_why_and_makes_way() {
    let server = server();
    let client = &server.client;
    env(&server).await;
    client.create_snapshot("shop", Some("micro-1"), &spec("s")).await.unwrap();
    let view = client.vm("shop", "micro-1").await.unwrap();
    let mut row = server.tables.vm(view.vm.id).unwrap().unwrap();
    let trouble = Trouble { code: ErrorCode::SnapshotCreate, why: "no space".into(), retry: false };
    plan_take_failed(&mut row.value, "s", trouble.clone());
    commit(&server.tables, &Change::new().vm(&row).unwrap());
    let listed = client.snapshots("shop", Some("micro-1")).await.unwrap().snapshots;
    assert_eq!(listed[0].phase, SnapshotPhase::Failed);
    assert_eq!(listed[0].members[0].trouble.as_ref(), Some(&trouble));
    server.later();
    let error = client.apply_snapshot("shop", Some("micro-1"), "s").await.unwrap_err();
    assert!(error.to_string().contains("no space"), "{error}");
    client.create_snapshot("shop", None, &spec("s")).await.unwrap();
    assert_eq!(client.snapshots("shop", None).await.unwrap().snapshots[0].members.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_one_is_taken() {
    let server = server();
    env(&server).await;
    let calls = (0..8).map(|_| {
        let client = server.client.clone();
        tokio::spawn(async move { client.create_snapshot("shop", None, &spec("s")).await })
    });
    let mut taken = 0;
    for call in calls.collect::<Vec<_>>() {
        match call.await.unwrap() {
            Ok(_) => taken += 1,
            Err(error) => assert_eq!(error.code(), Some(ErrorCode::TooSoon)),
        }
    }
    assert_eq!(taken, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_would_be_kept_and_keeps_nothing() {
    let server = server();
    let client = &server.client;
    let member = |engine: &str| VmSpec { engine: Some(engine.into()), ..VmSpec::new("micro") };
    let spec_of = |engines: &[&str]| EnvSpec {
        vms: engines.iter().map(|engine| member(engine)).collect(),
        ..EnvSpec::default()
    };
    create(&server, "mixed", &spec_of(&["full", "fake"])).await;
    create(&server, "mute", &spec_of(&["mute"])).await;
    server.later();
    let whole = SnapshotSpec { with_memory: true, ..spec("s") };
    for (only, kept) in [(None, vec![true, false]), (Some("micro-2"), vec![false])] {
        let told = client.preview_snapshot("mixed", only, &whole).await.unwrap();
        let members: Vec<_> = told.members.iter().map(|member| member.with_memory).collect();
        assert_eq!((told.name.as_str(), members), ("s", kept));
    }
    let refused = client.preview_snapshot("mute", None, &whole).await.unwrap_err();
    assert!(refused.to_string().contains("engine mute can not"), "{refused}");
    assert!(client.snapshots("mixed", None).await.unwrap().snapshots.is_empty());
}
