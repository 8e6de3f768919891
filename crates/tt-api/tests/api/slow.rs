//! Clients that are slow, or leave in the middle.

use crate::common::{server, spec};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_block_nobody_and_are_cut_off() {
    let server = server();
    let heads = [
        "GET /v1/ver",
        "PUT /v1/envs/slow HTTP/1.1\r\nHost: tt\r\nIdempotency-Key: k\r\nContent-Length: 100\r\n\r\n{",
    ];
    let mut slow = Vec::new();
    for n in 0..100 {
        let mut stream = UnixStream::connect(&server.socket).await.unwrap();
        stream.write_all(heads[n % 2].as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let begin = Instant::now();
    server.client.create_env("shop", "k", &spec(1)).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    let mut answers = Vec::new();
    for stream in &mut slow[..2] {
        let mut answer = String::new();
        timeout(Duration::from_secs(15), stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        answers.push(answer);
    }
    // A head that never ends is not answered; a body that never comes is.
    assert!(!answers[0].contains("200 OK"), "{}", answers[0]);
    assert!(answers[1].starts_with("HTTP/1.1 408") && answers[1].contains("ERR_TT_REQUEST"));
    assert!(server.tables.env_by_name("slow").unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_at_once_leaves_an_env_whole_or_not_at_all() {
    let server = server();
    let body = serde_json::to_string(&spec(5)).unwrap();
    for n in 0..30 {
        let mut stream = UnixStream::connect(&server.socket).await.unwrap();
        let request = format!(
            "PUT /v1/envs/e-{n} HTTP/1.1\r\nHost: tt\r\nIdempotency-Key: k\r\nContent-Length: \
             {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
    }
    server.client.create_env("last", "k", &spec(1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let envs = server.client.envs().await.unwrap().envs;
    assert!(envs.iter().all(|env| env.vms.len() == env.env.vm_set.len()));
    for n in 0..30 {
        let env = server.client.create_env(&format!("e-{n}"), "k", &spec(5)).await.unwrap();
        assert_eq!(env.vms.len(), 5);
    }
}
