//! Wrong requests: each is refused with a code, and the store stays as it is.

use crate::common::server;
use tt_model::ErrorCode::{self, Invalid, LifeTime, NoRoom, NotFound, Request, TooLarge};
use tt_model::ErrorCode::{Exists, MetaRestore, Unsupported};
use tt_model::{SnapshotSpec, VmSpec};

const KEY: &str = "Idempotency-Key: k1\r\n";
const GOOD: &str = r#"{"vms":[{"template":"micro"}]}"#;

struct Wrong {
    line: String,
    headers: String,
    body: String,
    status: u16,
    code: ErrorCode,
    /// In the answer's text.
    names: &'static str,
}

fn wrong(
    line: impl Into<String>,
    headers: impl Into<String>,
    body: impl Into<String>,
    (status, code, names): (u16, ErrorCode, &'static str),
) -> Wrong {
    let (line, headers, body) = (line.into(), headers.into(), body.into());
    Wrong { line, headers, body, status, code, names }
}

fn put(name: &str, expected: (u16, ErrorCode, &'static str)) -> Wrong {
    wrong(format!("PUT /v1/envs/{name}"), KEY, GOOD, expected)
}

/// A Vm with these fields beside its template.
fn vm(fields: &str, expected: (u16, ErrorCode, &'static str)) -> Wrong {
    let body = format!(r#"{{"vms":[{{"template":"micro",{fields}}}]}}"#);
    wrong("PUT /v1/envs/new", KEY, body, expected)
}

fn body(body: impl Into<String>, expected: (u16, ErrorCode, &'static str)) -> Wrong {
    wrong("PUT /v1/envs/new", KEY, body, expected)
}

fn names() -> Vec<Wrong> {
    vec![
        put("a%2Fb", (400, Invalid, "`a/b`")),
        put("a%2F..%2Fb", (400, Invalid, "not allowed")),
        put("..", (400, Invalid, "`..`")),
        put("%2E%2E", (400, Invalid, "`..`")),
        put("a%00b", (400, Invalid, "\\0")),
        put("a%0Ab", (400, Invalid, "\\n")),
        put("a%1B[2Jb", (400, Invalid, "\\u{1b}")),
        put("%FF", (400, Request, "UTF-8")),
        put(&"a".repeat(10_000), (400, Invalid, "too long")),
        // Cyrillic a, full-width a, a with a combining accent.
        put("%D0%B0bc", (400, Invalid, "not allowed")),
        put("%EF%BD%81bc", (400, Invalid, "not allowed")),
        put("a%CC%81bc", (400, Invalid, "not allowed")),
        put("Shop", (400, Invalid, "lower-case")),
        put("-a", (400, Invalid, "hyphen")),
        put("42", (400, Invalid, "a number")),
        put("localhost", (400, Invalid, "reserved")),
        put("", (404, Request, "no such path")),
        put("a/b", (404, Request, "no such path")),
        put("shop", (409, Exists, "shop")),
        wrong("GET /v1/envs/A/vms/b", "", "", (400, Invalid, "env `A`")),
        wrong("GET /v1/envs/shop/vms/B", "", "", (400, Invalid, "vm `B`")),
        wrong("GET /v1/templates/a/../b", "", "", (400, Invalid, "no template name")),
        wrong("GET /v1/templates/none", "", "", (404, NotFound, "none")),
        wrong(format!("GET /v1/hosts/{}", "h".repeat(300)), "", "", (400, Invalid, "too long")),
        wrong("POST /v1/envs/none/start", "", "", (404, NotFound, "none")),
    ]
}

fn sizes() -> Vec<Wrong> {
    vec![
        vm(r#""mem_size":0"#, (400, Invalid, "mem_size 0")),
        vm(r#""mem_size":31"#, (400, Invalid, "mem_size 31")),
        vm(r#""mem_size":-1"#, (400, Invalid, "vms[0].mem_size")),
        vm(r#""mem_size":4294967296"#, (400, Invalid, "vms[0].mem_size")),
        vm(r#""mem_size":4294967295"#, (400, Invalid, "mem_size 4294967295")),
        vm(r#""mem_size":64.5"#, (400, Invalid, "vms[0].mem_size")),
        vm(r#""mem_size":"64""#, (400, Invalid, "vms[0].mem_size")),
        vm(r#""mem_size":1048576,"count":2"#, (507, NoRoom, "mem_size")),
        vm(r#""cpu_num":0"#, (400, Invalid, "cpu_num 0")),
        vm(r#""cpu_num":5"#, (400, Invalid, "has 4")),
        vm(r#""cpu_num":65536"#, (400, Invalid, "vms[0].cpu_num")),
        vm(r#""disk_size":0"#, (400, Invalid, "disk_size 0")),
        vm(r#""disk_size":1"#, (400, Invalid, "16 MB")),
        vm(r#""disk_size":4294967295"#, (400, Invalid, "disk_size")),
        vm(r#""count":0"#, (400, Invalid, "count 0")),
        vm(r#""count":257"#, (400, Invalid, "257 Vms")),
        vm(r#""count":4294967295"#, (400, Invalid, "too many")),
        body(r#"{"life_time":0,"vms":[{"template":"micro"}]}"#, (400, Invalid, "life_time 0")),
        body(r#"{"life_time":1001,"vms":[{"template":"micro"}]}"#, (400, LifeTime, "1000")),
        body(
            r#"{"life_time":18446744073709551615,"vms":[{"template":"micro"}]}"#,
            (400, LifeTime, "1000"),
        ),
    ]
}

fn members() -> Vec<Wrong> {
    vec![
        vm(r#""ports":["0"]"#, (400, Invalid, "vms[0].ports[0]")),
        vm(r#""ports":["70000"]"#, (400, Invalid, "70000")),
        vm(r#""ports":["80/sctp"]"#, (400, Invalid, "80/sctp")),
        vm(r#""ports":["80","80"]"#, (400, Invalid, "given twice")),
        vm(r#""ports":["80","80/tcp"]"#, (400, Invalid, "given twice")),
        vm(r#""ports":[80]"#, (400, Invalid, "vms[0].ports[0]")),
        vm(r#""count":5,"ports":["1","2"],"net_kind":"flatten""#, (400, Invalid, "flat")),
        vm(r#""name":"a/b""#, (400, Invalid, "`a/b`")),
        vm(r#""name":"gateway""#, (400, Invalid, "reserved")),
        vm(r#""engine":"none""#, (422, Unsupported, "none")),
        vm(r#""net_kind":"bridge""#, (400, Invalid, "vms[0].net_kind")),
        vm(r#""net_blacklist":["10.0.0.256"]"#, (400, Invalid, "net_blacklist")),
        vm(r#""colour":"red""#, (400, Invalid, "colour")),
        body(r#"{"vms":[{"template":"none"}]}"#, (404, NotFound, "none")),
        body(r#"{"vms":[{"template":"../etc"}]}"#, (400, Invalid, "../etc")),
        body(
            r#"{"vms":[{"template":"micro","name":"a"},{"template":"micro","name":"a"}]}"#,
            (400, Invalid, "two members"),
        ),
        body(r#"{"vms":[]}"#, (400, Invalid, "at least one")),
        body(r#"{"vms":[{}]}"#, (400, Invalid, "template")),
    ]
}

fn bodies() -> Vec<Wrong> {
    let json = (400, Request, "body");
    vec![
        body("", json),
        body("{", json),
        body("not JSON", json),
        body("\u{0}", json),
        body(format!("{GOOD} trailing"), json),
        body("[".repeat(100_000), (400, Invalid, "body")),
        body(r#"[[{"template":"micro"}]]"#, (400, Invalid, "no JSON object")),
        body(format!("{{\"vms\":{}", "[".repeat(1000)), (400, Invalid, "vms[0]")),
        body(format!("{{\"x\":{}", "{\"x\":".repeat(1000)), (400, Invalid, "x")),
        body("null", (400, Invalid, "body")),
        body("[]", (400, Invalid, "body")),
        body("{}", (400, Invalid, "vms")),
        body(r#"{"vms":{}}"#, (400, Invalid, "vms")),
        body(r#"{"vms":[{"template":"micro"}],"vm":1}"#, (400, Invalid, "vm")),
        body(format!("{{\"{}\":1}}", "x".repeat(100_000)), (400, Invalid, "xxx")),
        body(" ".repeat((1 << 20) + 1), (413, TooLarge, "1048576")),
        wrong(
            "PUT /v1/envs/new",
            format!("{KEY}Content-Type: text/yaml\r\n"),
            GOOD,
            (415, Request, "text/yaml"),
        ),
        wrong("POST /v1/envs/shop/stop", "", r#"{"mode":"nicely"}"#, (400, Invalid, "mode")),
        wrong("POST /v1/envs/shop/stop", "", r#"{"how":"kill"}"#, (400, Invalid, "how")),
        wrong("POST /v1/envs/shop/extend", "", r#"{"life_time":0}"#, (400, LifeTime, "0")),
        wrong("POST /v1/envs/shop/extend", "", r#"{"life_time":-5}"#, (400, Invalid, "life_time")),
        wrong("POST /v1/templates", "", r#"{"name":"micro"}"#, (400, Invalid, "source")),
        wrong(
            "POST /v1/templates",
            "",
            r#"{"name":"/","source":{"kind":"build","recipe":"micro"}}"#,
            (400, Invalid, "`/`"),
        ),
    ]
}

/// Of an Env `shop` of one member `micro`, which has a disk of 16 MB and a snapshot `old`.
fn lives() -> Vec<Wrong> {
    let vm = "/v1/envs/shop/vms/micro";
    let update = |fields: &str, expected| {
        wrong(format!("PATCH {vm}"), "", format!("{{{fields}}}"), expected)
    };
    let add = |fields: &str, expected| {
        let body = format!(r#"{{"template":"micro",{fields}}}"#);
        wrong("POST /v1/envs/shop/vms", "", body, expected)
    };
    let snap = |body: &str, expected| wrong("POST /v1/envs/shop/snapshots", "", body, expected);
    let no = |line: String, expected| wrong(line, "", "", expected);
    vec![
        update("", (400, Invalid, "changes nothing")),
        update(r#""cpu_num":0"#, (400, Invalid, "cpu_num 0")),
        update(r#""cpu_num":5"#, (400, Invalid, "has 4")),
        update(r#""mem_size":31"#, (400, Invalid, "mem_size 31")),
        update(r#""mem_size":1048577"#, (400, Invalid, "mem_size 1048577")),
        update(r#""disk_size":15"#, (400, Invalid, "only grows")),
        update(r#""disk_size":1048577"#, (400, Invalid, "disk_size")),
        update(r#""name":"Web""#, (400, Invalid, "`Web`")),
        update(r#""name":"other""#, (409, Exists, "other")),
        update(r#""ports":["80","80"]"#, (400, Invalid, "given twice")),
        update(r#""ports":["0"]"#, (400, Invalid, "ports[0]")),
        update(r#""net_blacklist":["::1/128"]"#, (400, Invalid, "net_blacklist")),
        update(r#""template":"micro""#, (400, Invalid, "template")),
        wrong("PATCH /v1/envs/shop/vms/none", "", r#"{"cpu_num":1}"#, (404, NotFound, "none")),
        add(r#""name":"other","mem_size":64"#, (409, Exists, "other")),
        add(r#""name":"a/b""#, (400, Invalid, "a/b")),
        add(r#""count":0"#, (400, Invalid, "count 0")),
        add(r#""count":255"#, (400, Invalid, "257 Vms")),
        add(r#""count":4294967295"#, (400, Invalid, "too many")),
        add(r#""count":10,"ports":["1","2","3"],"mem_size":1"#, (400, Invalid, "mem_size 1")),
        add(r#""mem_size":1048576"#, (507, NoRoom, "mem_size")),
        add(r#""image":7"#, (404, NotFound, "image 7")),
        add(r#""engine":"none""#, (422, Unsupported, "none")),
        wrong("POST /v1/envs/none/vms", "", r#"{"template":"micro"}"#, (404, NotFound, "none")),
        wrong("POST /v1/envs/shop/vms", "", r#"{"template":"none"}"#, (404, NotFound, "none")),
        no("DELETE /v1/envs/shop/vms/none".into(), (404, NotFound, "none")),
        snap(r#"{"name":"a b"}"#, (400, Invalid, "`a b`")),
        snap(r#"{"name":"s","life_time":0}"#, (400, Invalid, "life_time 0")),
        snap(r#"{"name":"s","life_time":-1}"#, (400, Invalid, "life_time")),
        wrong("POST /v1/envs/shop/snapshots?dry=1", "", r#"{"name":"s"}"#, (400, Invalid, "dry")),
        snap(r#"{"name":"old","with_memory":false}"#, (409, Exists, "old")),
        snap("{}", (400, Invalid, "name")),
        snap(r#"{"name":"s","colour":1}"#, (400, Invalid, "colour")),
        no("POST /v1/envs/shop/snapshots/none/apply".into(), (404, NotFound, "none")),
        no("POST /v1/envs/shop/snapshots/old/apply".into(), (404, NotFound, "shop/other")),
        no(format!("POST {vm}/snapshots/none/apply"), (404, NotFound, "none")),
        no(format!("POST {vm}/snapshots/old/apply"), (500, MetaRestore, "not whole")),
        no(format!("POST {vm}/snapshots/O/apply"), (400, Invalid, "snapshot `O`")),
        no(format!("DELETE {vm}/snapshots/none"), (404, NotFound, "none")),
        no("DELETE /v1/envs/shop/snapshots/none".into(), (404, NotFound, "none")),
        no("DELETE /v1/envs/none/snapshots/old".into(), (404, NotFound, "none")),
        no("GET /v1/envs/shop/vms/none/snapshots".into(), (404, NotFound, "none")),
        no("POST /v1/envs/none/deny-outgoing".into(), (404, NotFound, "none")),
        no("POST /v1/envs/shop/vms/none/allow-outgoing".into(), (404, NotFound, "none")),
        no("DELETE /v1/images/7".into(), (404, NotFound, "image 7")),
        no("DELETE /v1/images/+7".into(), (400, Invalid, "`+7`")),
        no("DELETE /v1/images/seven".into(), (400, Invalid, "`seven`")),
        no("DELETE /v1/images/18446744073709551616".into(), (400, Invalid, "no id")),
    ]
}

fn surroundings() -> Vec<Wrong> {
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    vec![
        wrong("PUT /v1/envs/new", "", GOOD, (400, Request, "Idempotency-Key")),
        wrong("PUT /v1/envs/new", format!("{KEY}{KEY}"), GOOD, (400, Request, "several")),
        wrong("PUT /v1/envs/new", "Idempotency-Key: \r\n", GOOD, (400, Invalid, "key")),
        wrong("PUT /v1/envs/new", "Idempotency-Key: a b\r\n", GOOD, (400, Invalid, "a b")),
        wrong(
            "PUT /v1/envs/new",
            format!("Idempotency-Key: {}\r\n", "k".repeat(65)),
            GOOD,
            (400, Invalid, "64"),
        ),
        wrong("GET /", "", "", (404, Request, "no such path")),
        wrong("GET /v2/envs", "", "", (404, Request, "/v2/envs")),
        wrong("GET /v1/envs/shop/../../etc/passwd", "", "", (404, Request, "no such path")),
        wrong("PATCH /v1/envs/shop", "", "", (405, Request, "PATCH")),
        wrong("BREW /v1/envs", "", "", (405, Request, "BREW")),
        wrong("DELETE /v1/hosts", "", "", (405, Request, "Allow")),
        wrong("POST /v1/envs/shop/deny-outgoing", "", "{}", (400, Request, "without a body")),
        wrong("POST /v1/verify", "", "{\"deep\":true}", (400, Request, "`/v1/verify`")),
        wrong("DELETE /v1/envs/shop?x", "", "now", (400, Request, "without a body")),
        wrong("GET /v1/envs", "", "[]", (400, Request, "GET")),
        wrong("GET /v1/envs/shop/vms/micro/log?tail=-1", "", "", (400, Invalid, "tail")),
        wrong("GET /v1/envs/shop/vms/micro/log?tail=1048577", "", "", (400, Invalid, "1048576")),
        wrong("GET /v1/envs/shop/vms/micro/log?head=1", "", "", (400, Invalid, "head")),
        wrong("GET /v1/envs/shop/vms/micro/streams", "", "", (400, Request, "WebSocket")),
        wrong("GET /v1/envs/shop/vms/micro/console", upgrade, "", (400, Request, "WebSocket")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused_and_change_nothing() {
    let server = server();
    server.ready_env("shop", 1).await;
    let disks = SnapshotSpec { name: "old".into(), life_time: None, with_memory: false };
    server.client.create_snapshot("shop", None, &disks).await.unwrap();
    server.take("shop", "old", None);
    server.access.metas.lock().unwrap().clear();
    let other = VmSpec { name: Some("other".into()), ..VmSpec::new("micro") };
    server.client.add_vm("shop", "k", &other).await.unwrap();
    server.later();
    let revision = server.tables.revision().unwrap();
    let all = [names(), sizes(), members(), bodies(), lives(), surroundings()];
    let mut number = 0;
    for case in all.into_iter().flatten() {
        let Wrong { line, headers, body, status, code, names } = case;
        let shown: String = format!("{line} {headers:?} {body}").chars().take(200).collect();
        let request = format!(
            "{line} HTTP/1.1\r\nHost: tt\r\nConnection: close\r\nContent-Length: \
             {}\r\n{headers}\r\n{body}",
            body.len()
        );
        let answer = server.raw(request.as_bytes()).await;
        let problem = answer.problem();
        assert_eq!((answer.status, problem.code), (status, code), "{shown}: {problem:?}");
        assert_eq!(problem.status, status, "{shown}");
        assert!(problem.to_string().contains(names), "{shown}: {problem}");
        assert!(problem.remedy.is_some(), "{shown}: {problem}");
        assert!(problem.to_string().len() < 1200, "{shown}: {problem}");
        assert!(!problem.to_string().chars().any(char::is_control), "{shown}: {problem}");
        assert_eq!(server.tables.revision().unwrap(), revision, "{shown}");
        number += 1;
    }
    assert!(number >= 40);
    println!("{number} wrong requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_is_refused_before_it_comes() {
    let server = server();
    for line in ["PUT /v1/envs/new", "POST /v1/envs/new/start", "GET /v1/version"] {
        let head = format!(
            "{line} HTTP/1.1\r\nHost: tt\r\n{KEY}Connection: close\r\nContent-Length: \
             1073741824\r\n\r\n{{"
        );
        let answer = server.raw(head.as_bytes()).await;
        assert_eq!((answer.status, answer.problem().code), (413, TooLarge), "{line}");
    }
    let mut chunked = format!(
        "PUT /v1/envs/new HTTP/1.1\r\nHost: tt\r\n{KEY}Connection: close\r\nTransfer-Encoding: \
         chunked\r\n\r\n"
    );
    for _ in 0..20 {
        chunked += &format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    }
    let answer = server.raw(chunked.as_bytes()).await;
    assert_eq!((answer.status, answer.problem().code), (413, TooLarge));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_allowed_methods_are_named() {
    let server = server();
    let request = b"PATCH /v1/envs/shop HTTP/1.1\r\nHost: tt\r\nConnection: close\r\n\r\n";
    let answer = server.raw(request).await;
    assert!(answer.head.contains("allow: "), "{}", answer.head);
    assert!(answer.head.contains("put") && answer.head.contains("delete"), "{}", answer.head);
}
