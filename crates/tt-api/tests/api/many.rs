//! Ten thousand Vms.

use crate::common::{Server, server, server_on, spec};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tt_store::sqlite::SqliteKv;

/// A debug build on a busy machine; an optimised one takes a tenth.
const ALLOWED: Duration = Duration::from_secs(30);

async fn list(server: &Server, store: &str) {
    for n in 0..40 {
        let mut spec = spec(250);
        spec.vms[0].ports.clear();
        server.client.create_env(&format!("env-{n}"), "k", &spec).await.unwrap();
    }
    for round in 0..3 {
        let begin = Instant::now();
        let envs = server.client.envs().await.unwrap().envs;
        let both_ends = begin.elapsed();
        let request = b"GET /v1/envs HTTP/1.1\r\nHost: tt\r\nConnection: close\r\n\r\n";
        let begin = Instant::now();
        let answer = server.raw(request).await;
        let server_alone = begin.elapsed();
        let vms: usize = envs.iter().map(|env| env.vms.len()).sum();
        assert_eq!((envs.len(), vms, answer.status), (40, 10_000, 200));
        println!(
            "{store} {round}: {} bytes, server {server_alone:?}, with the client {both_ends:?}",
            answer.body.len()
        );
        assert!(both_ends < ALLOWED, "{both_ends:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_vms_are_listed_from_memory() {
    list(&server(), "memory").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_vms_are_listed_from_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let kv = SqliteKv::open(dir.path()).unwrap();
    list(&server_on(Arc::new(kv)), "sqlite").await;
}
