//! The same request twice at once.

use std::collections::BTreeSet;
use std::thread;
use testkit::{Answer, Lab};

/// Requests at once.
const CLIENTS: usize = 8;

#[test]
fn requests_at_once_make_one_env() {
    let Some(lab) = Lab::new("requests_at_once_make_one_env") else { return };
    let all = |key: fn(usize) -> String| at_once(&lab, key);
    let same = all(|_| "same".into());
    let ids: BTreeSet<_> = same.iter().map(|answer| answer.body["id"].to_string()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(same.iter().filter(|answer| answer.status == 201).count(), 1);
    assert_eq!(same.iter().filter(|answer| answer.status == 200).count(), CLIENTS - 1);
    lab.tt(&["env", "destroy", "x"]).good();
    lab.assert_empty();
    let other = all(|client| format!("client-{client}"));
    assert_eq!(other.iter().filter(|answer| answer.status == 201).count(), 1);
    let refused = other.iter().filter(|answer| answer.code() == "ERR_TT_EXISTS");
    assert_eq!(refused.count(), CLIENTS - 1);
    assert_eq!(lab.json(&["env", "ls"])["envs"].as_array().unwrap().len(), 1);
    lab.tt(&["env", "destroy", "x"]).good();
    lab.finish();
}

fn at_once(lab: &Lab, key: fn(usize) -> String) -> Vec<Answer> {
    thread::scope(|scope| {
        let send = |client| {
            move || {
                let header = format!("Idempotency-Key: {}\r\n", key(client));
                let body = r#"{"vms": [{"template": "micro", "ports": ["80"]}]}"#;
                lab.ask("PUT", "/v1/envs/x", &header, body)
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(send(client))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    })
}
