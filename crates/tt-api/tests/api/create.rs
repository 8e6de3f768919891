//! Creating: idempotent, side by side, all or nothing.

use crate::common::{server, spec};
use std::collections::BTreeSet;
use tt_model::ErrorCode;

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_twice_is_one_env() {
    let server = server();
    let first = server.client.create_env("shop", "k1", &spec(3)).await.unwrap();
    let revision = server.tables.revision().unwrap();
    let again = server.client.create_env("shop", "k1", &spec(3)).await.unwrap();
    assert_eq!(first, again);
    let error = server.client.create_env("shop", "k2", &spec(3)).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Exists));
    assert_eq!(server.tables.revision().unwrap(), revision);
    let other = server.client.create_env("shop-2", "k1", &spec(1)).await.unwrap();
    assert_ne!(other.env.id, first.env.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_at_once_is_one_env() {
    let server = server();
    let calls = (0..8).map(|_| {
        let client = server.client.clone();
        tokio::spawn(async move { client.create_env("shop", "k", &spec(2)).await.unwrap() })
    });
    let mut ids = BTreeSet::new();
    for call in calls.collect::<Vec<_>>() {
        ids.insert(call.await.unwrap().env.id);
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(server.tables.vms().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_at_once_with_different_keys_goes_to_one() {
    let server = server();
    let calls = (0..8).map(|n| {
        let client = server.client.clone();
        tokio::spawn(async move { client.create_env("shop", &format!("k{n}"), &spec(1)).await })
    });
    let mut created = 0;
    for call in calls.collect::<Vec<_>>() {
        match call.await.unwrap() {
            Ok(_) => created += 1,
            Err(error) => assert_eq!(error.code(), Some(ErrorCode::Exists)),
        }
    }
    assert_eq!((created, server.tables.envs().unwrap().len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn different_envs_at_once_share_nothing() {
    let server = server();
    let calls = (0..20).map(|n| {
        let client = server.client.clone();
        let name = format!("env-{n}");
        tokio::spawn(async move { client.create_env(&name, "k", &spec(3)).await.unwrap() })
    });
    let (mut ids, mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for call in calls.collect::<Vec<_>>() {
        for view in call.await.unwrap().vms {
            ids.insert(view.vm.id);
            addresses.insert(view.vm.resource.ip_addr);
            ports.extend(view.vm.resource.port_map.values().copied());
        }
    }
    assert_eq!((ids.len(), addresses.len(), ports.len()), (60, 60, 60));
    // Something on the host listens on these.
    assert!(!ports.contains(&20000) && !ports.contains(&20001));
}

#[tokio::test(flavor = "multi_thread")]
async fn creating_and_changing_at_once_meet_and_go_on() {
    let server = server();
    server.ready_env("shop", 4).await;
    let calls = (0..16).map(|n| {
        let client = server.client.clone();
        tokio::spawn(async move {
            match n % 2 {
                0 => client.extend_env("shop", 1).await.map(drop),
                _ => client.create_env(&format!("e-{n}"), "k", &spec(1)).await.map(drop),
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    let env = server.client.env("shop").await.unwrap().env;
    assert_eq!(env.end_timestamp - env.start_timestamp, 108);
}
