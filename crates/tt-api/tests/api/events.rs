//! Following an Env.

use crate::common::{commit, server, settled};
use std::time::Duration;
use tokio::time::timeout;
use tt_api::client::{EnvEvent, EnvEvents};
use tt_api::views::{EnvPhase, EnvView};
use tt_model::{ErrorCode, Phase};
use tt_store::tables::Change;

const SOON: Duration = Duration::from_secs(10);

async fn next(events: &mut EnvEvents) -> Option<EnvEvent> {
    timeout(SOON, events.next()).await.expect("no event").unwrap()
}

async fn next_env(events: &mut EnvEvents) -> EnvView {
    match next(events).await {
        Some(EnvEvent::Env(env)) => *env,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_told_until_the_env_is_gone() {
    let server = server();
    let error = server.client.events("shop").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotFound));
    let env = server.ready_env("shop", 2).await;
    server.ready_env("other", 1).await;
    let mut events = server.client.events("shop").await.unwrap();
    assert_eq!(next_env(&mut events).await, env);

    // Of another Env: not told.
    server.client.extend_env("other", 1).await.unwrap();
    assert!(timeout(Duration::from_millis(200), events.next()).await.is_err());

    let changed = server.client.extend_env("shop", 5).await.unwrap();
    assert_eq!(next_env(&mut events).await, changed);
    let vm = &env.vms[1].vm;
    commit(&server.tables, &Change::new().status(vm.id, &settled(vm, Phase::Guest)).unwrap());
    let told = next_env(&mut events).await;
    assert_eq!(told.vms[1].status.as_ref().unwrap().phase, Phase::Guest);
    assert_eq!(told.phase, EnvPhase::Starting);

    server.client.destroy_env("shop").await.unwrap();
    assert_eq!(next_env(&mut events).await.phase, EnvPhase::Ending);
    server.erase("shop");
    loop {
        match next(&mut events).await {
            Some(EnvEvent::Env(_)) => {}
            other => break assert_eq!(other, Some(EnvEvent::Gone)),
        }
    }
    assert_eq!(next(&mut events).await, None);
}

/// More commits than a watch may lag behind, faster than anybody can be told.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_told_as_its_end() {
    const CHANGES: u64 = 5000;
    let server = server();
    let env = server.ready_env("shop", 1).await;
    let mut reader = server.client.events("shop").await.unwrap();
    let mut sleeper = server.client.events("shop").await.unwrap();
    let tables = server.tables.clone();
    let burst = tokio::task::spawn_blocking(move || {
        for since_ms in 1..=CHANGES {
            let mut status = settled(&env.vms[0].vm, Phase::Ready);
            status.since_ms = since_ms;
            commit(&tables, &Change::new().status(env.vms[0].vm.id, &status).unwrap());
        }
    });
    let newest = |view: &EnvView| view.vms[0].status.as_ref().unwrap().since_ms;
    let begin = std::time::Instant::now();
    let mut told = 0;
    while newest(&next_env(&mut reader).await) < CHANGES {
        told += 1;
    }
    let allowed = 3 + begin.elapsed().as_millis() / 50;
    assert!(told <= allowed, "{told} events in {:?}", begin.elapsed());
    burst.await.unwrap();
    // One that slept all the time is told no more than the others, and the end too.
    while newest(&next_env(&mut sleeper).await) < CHANGES {}
}

#[tokio::test(flavor = "multi_thread")]
async fn many_follow_and_one_too_many_is_refused() {
    let server = server();
    server.ready_env("shop", 1).await;
    let mut followers = Vec::new();
    for _ in 0..tt_api::server::SESSIONS_MAX {
        followers.push(server.client.events("shop").await.unwrap());
    }
    let error = server.client.events("shop").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Busy));
    assert!(error.is_retryable());
    for follower in &mut followers {
        next_env(follower).await;
    }
    server.client.extend_env("shop", 5).await.unwrap();
    for follower in &mut followers {
        next_env(follower).await;
    }
    drop(followers.pop());
    timeout(SOON, async {
        while server.client.events("shop").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the place was not given back");
}
