//! Streams in guests, and consoles.

use crate::common::{commit, server, settled};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::timeout;
use tt_api::ClientError;
use tt_guest::message::FailureCode;
use tt_guest::session::{FromGuest, Open, Program, ToGuest};
use tt_model::{EnvSpec, ErrorCode, Phase, StopMode, VmSpec, VmStatus};
use tt_store::tables::Change;

const SOON: Duration = Duration::from_secs(20);

fn exec(name: &str) -> Open {
    Open::Exec(Program { argv: vec![name.into()], ..Program::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_comes_back() {
    let server = server();
    server.ready_env("shop", 1).await;
    let mut stream = server.client.open("shop", "micro", &exec("echo")).await.unwrap();
    assert_eq!(stream.receive().await.unwrap(), Some(FromGuest::Started { pid: 42 }));
    stream.send(ToGuest::Resize { rows: 24, cols: 80 }).await.unwrap();
    assert_eq!(stream.receive().await.unwrap(), Some(FromGuest::Stderr(b"24x80".to_vec())));

    // Far more than all queues on the way hold: both directions must flow at once.
    let (mut sender, mut receiver) = stream.split();
    let sent: Vec<u8> = (0..8u32 << 20).map(|n| (n % 251) as u8).collect();
    let data = sent.clone();
    let sending = tokio::spawn(async move {
        sender.send(ToGuest::Data(data)).await.unwrap();
        sender.send(ToGuest::Eof).await.unwrap();
        sender
    });
    let mut received = Vec::new();
    let end = loop {
        match timeout(SOON, receiver.receive()).await.unwrap().unwrap().unwrap() {
            FromGuest::Stdout(data) => received.extend(data),
            other => break other,
        }
    };
    assert!(received == sent);
    assert_eq!(end, FromGuest::Exited { code: Some(0), signal: None });
    assert_eq!(receiver.receive().await.unwrap(), None);
    drop(sending.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_arrive_and_a_lost_stream_says_so() {
    let server = server();
    server.ready_env("shop", 1).await;
    let mut stream = server.client.open("shop", "micro", &exec("echo")).await.unwrap();
    stream.receive().await.unwrap();
    stream.send(ToGuest::Signal(15)).await.unwrap();
    let end = stream.receive().await.unwrap();
    assert_eq!(end, Some(FromGuest::Exited { code: None, signal: Some(15) }));
    let mut stream = server.client.open("shop", "micro", &exec("lost")).await.unwrap();
    let end = stream.receive().await.unwrap().unwrap();
    assert!(matches!(end, FromGuest::Failed { code: FailureCode::Cancelled, .. }), "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_back_the_guest() {
    let server = server();
    server.ready_env("shop", 1).await;
    let mut stream = server.client.open("shop", "micro", &exec("flood")).await.unwrap();
    assert!(matches!(stream.receive().await.unwrap(), Some(FromGuest::Stdout(_))));
    let mut flooded = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = server.access.flooded.swap(0, Ordering::SeqCst);
        if now == 0 {
            break;
        }
        flooded += now;
        assert!(flooded < 64, "{flooded} messages of 64 KiB were taken for a client that sleeps");
    }
    // It goes on as soon as the client does, and ends when the client leaves.
    for _ in 0..100 {
        assert!(matches!(stream.receive().await.unwrap(), Some(FromGuest::Stdout(_))));
    }
    drop(stream);
    wait_cancelled(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_a_deaf_guest_is_noticed() {
    let server = server();
    server.ready_env("shop", 1).await;
    let mut stream = server.client.open("shop", "micro", &exec("deaf")).await.unwrap();
    let stuck = timeout(Duration::from_millis(500), stream.send(ToGuest::Data(vec![0; 8 << 20])));
    assert!(stuck.await.is_err(), "nothing held the sender back");
    drop(stream);
    wait_cancelled(&server).await;
}

async fn wait_cancelled(server: &crate::common::Server) {
    timeout(SOON, async {
        while !server.access.is_cancelled.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the stream was not cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_opened_is_refused_with_a_code() {
    let server = server();
    let client = &server.client;
    let code = async |env: &str, vm: &str, open: &Open| {
        client.open(env, vm, open).await.unwrap_err().code().unwrap()
    };
    let env = server.ready_env("shop", 1).await;
    assert_eq!(code("other", "micro", &exec("echo")).await, ErrorCode::NotFound);
    assert_eq!(code("shop", "db", &exec("echo")).await, ErrorCode::NotFound);
    assert_eq!(code("shop", "..", &exec("echo")).await, ErrorCode::Invalid);
    assert_eq!(code("shop", "micro", &exec("")).await, ErrorCode::Invalid);
    assert_eq!(code("shop", "micro", &exec("a\0")).await, ErrorCode::Invalid);
    let relative = Open::CopyOut { path: "etc".into() };
    assert_eq!(code("shop", "micro", &relative).await, ErrorCode::Invalid);
    let huge = exec(&"x".repeat(1 << 20));
    assert!(client.open("shop", "micro", &huge).await.is_err());
    // The host's own refusal.
    let absolute = Open::CopyOut { path: "/etc".into() };
    assert_eq!(code("shop", "micro", &absolute).await, ErrorCode::Agent);

    let vm = &env.vms[0].vm;
    commit(&server.tables, &Change::new().status(vm.id, &settled(vm, Phase::Guest)).unwrap());
    assert_eq!(code("shop", "micro", &exec("echo")).await, ErrorCode::Agent);
    // One that was ready is about to be so again: the host waits for it.
    let again = VmStatus { ready_ms: Some(5), ..settled(vm, Phase::Guest) };
    commit(&server.tables, &Change::new().status(vm.id, &again).unwrap());
    client.open("shop", "micro", &exec("echo")).await.unwrap();
    client.stop_env("shop", Some(StopMode::Kill)).await.unwrap();
    assert_eq!(code("shop", "micro", &exec("echo")).await, ErrorCode::State);
    assert_eq!(client.console("shop", "micro").await.unwrap_err().code(), Some(ErrorCode::State));

    let mute = VmSpec { engine: Some("mute".into()), ..VmSpec::new("micro") };
    let mute = EnvSpec { vms: vec![mute], ..EnvSpec::default() };
    client.create_env("mute", "k", &mute).await.unwrap();
    assert_eq!(code("mute", "micro", &exec("echo")).await, ErrorCode::Unsupported);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_a_guest_is_reached_through_the_daemon() {
    let server = server();
    let env = server.ready_env("shop", 1).await;
    let client = &server.client;
    let mut connection = client.connect("shop", "micro", 22).await.unwrap();
    let greeting = connection.receive().await.unwrap().unwrap();
    assert_eq!(greeting, format!("console of {}\n", env.vms[0].vm.id).into_bytes());
    connection.send(&[0, 255]).await.unwrap();
    assert_eq!(connection.receive().await.unwrap(), Some(vec![0, 255]));
    connection.send(b"off").await.unwrap();
    assert_eq!(connection.receive().await.unwrap(), None);

    let code =
        async |env: &str, vm: &str, port| client.connect(env, vm, port).await.unwrap_err().code();
    assert_eq!(code("shop", "micro", 80).await, Some(ErrorCode::Agent));
    assert_eq!(code("shop", "micro", 0).await, Some(ErrorCode::Invalid));
    assert_eq!(code("shop", "db", 22).await, Some(ErrorCode::NotFound));
    client.stop_env("shop", Some(StopMode::Pause)).await.unwrap();
    assert_eq!(code("shop", "micro", 22).await, Some(ErrorCode::State));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_is_raw_both_ways() {
    let server = server();
    let env = server.ready_env("shop", 1).await;
    let mut console = server.client.console("shop", "micro").await.unwrap();
    let greeting = console.receive().await.unwrap().unwrap();
    assert_eq!(greeting, format!("console of {}\n", env.vms[0].vm.id).into_bytes());
    console.send(b"\x03\xff").await.unwrap();
    assert_eq!(console.receive().await.unwrap(), Some(b"\x03\xff".to_vec()));
    console.send(b"off").await.unwrap();
    assert_eq!(console.receive().await.unwrap(), None);
    assert!(matches!(
        server.client.console("shop", "db").await.unwrap_err(),
        ClientError::Problem(_)
    ));
}
