//! Requests that can be read as HTTP, and are wrong.

use super::records::{assert_unchanged, records};
use testkit::Lab;

const KEY: &str = "Idempotency-Key: wrong\r\n";
/// A wrong request: method, path, headers, body; status and code of the answer.
type Wrong = (&'static str, &'static str, &'static str, &'static str, u16, &'static str);

const INVALID: &str = "ERR_TT_INVALID";
const REQUEST: &str = "ERR_TT_REQUEST";
const NOT_FOUND: &str = "ERR_TT_NOT_FOUND";

/// Paths, methods and names.
const PATHS: [Wrong; 24] = [
    ("GET", "/", "", "", 404, REQUEST),
    ("GET", "/v1", "", "", 404, REQUEST),
    ("GET", "/v2/envs", "", "", 404, REQUEST),
    ("GET", "/v1/envs/x/y/z", "", "", 404, REQUEST),
    ("GET", "/v1/../etc/passwd", "", "", 404, REQUEST),
    ("POST", "/v1/envs", "", "{}", 405, REQUEST),
    ("PATCH", "/v1/envs/x", "", "{}", 405, REQUEST),
    ("TRACE", "/v1/envs/x", "", "", 405, REQUEST),
    ("DELETE", "/v1/envs", "", "", 405, REQUEST),
    ("BREW", "/v1/envs/x", "", "", 405, REQUEST),
    ("GET", "/v1/envs/nosuch", "", "", 404, NOT_FOUND),
    ("DELETE", "/v1/envs/nosuch", "", "", 404, NOT_FOUND),
    ("GET", "/v1/envs/nosuch/events", "", "", 404, NOT_FOUND),
    ("GET", "/v1/envs/1", "", "", 400, INVALID),
    ("GET", "/v1/envs/-1", "", "", 400, INVALID),
    ("GET", "/v1/envs/%2e%2e", "", "", 400, INVALID),
    ("GET", "/v1/envs/a%2Fb", "", "", 400, INVALID),
    ("GET", "/v1/envs/a%00", "", "", 400, INVALID),
    ("GET", "/v1/envs/%D0%B0", "", "", 400, INVALID),
    ("GET", "/v1/envs/%FF", "", "", 400, REQUEST),
    ("GET", "/v1/templates/..%2Fetc", "", "", 400, INVALID),
    ("GET", "/v1/templates/nosuch", "", "", 404, NOT_FOUND),
    ("DELETE", "/v1/templates/nosuch", "", "", 404, NOT_FOUND),
    ("GET", "/v1/hosts/nosuch", "", "", 404, NOT_FOUND),
];

/// Headers and bodies of a creation.
const CREATIONS: [Wrong; 39] = [
    create("", GOOD, 400, REQUEST),
    create("Idempotency-Key: \r\n", GOOD, 400, INVALID),
    create("Idempotency-Key: a b\r\n", GOOD, 400, INVALID),
    create("Idempotency-Key: ../../x\r\n", GOOD, 400, INVALID),
    create("Idempotency-Key: a\r\nIdempotency-Key: b\r\n", GOOD, 400, REQUEST),
    create("Idempotency-Key: a\r\nContent-Type: text/plain\r\n", GOOD, 415, REQUEST),
    create(KEY, "", 400, REQUEST),
    create(KEY, "{", 400, REQUEST),
    create(KEY, "not json", 400, REQUEST),
    create(KEY, "null", 400, INVALID),
    create(KEY, "[]", 400, INVALID),
    create(KEY, "{}", 400, INVALID),
    create(KEY, r#"{"vms": []}"#, 400, INVALID),
    create(KEY, r#"{"vms": {}}"#, 400, INVALID),
    create(KEY, r#"{"vms": [[]]}"#, 400, INVALID),
    create(KEY, r#"{"vms": [{}]}"#, 400, INVALID),
    create(KEY, r#"{"vms": [{"template": "micro"}]} {}"#, 400, REQUEST),
    create(
        KEY,
        r#"{"vms": [{"template": "micro"}], "vms": [{"template": "micro"}]}"#,
        400,
        INVALID,
    ),
    create(KEY, r#"{"vms": [{"template": "micro", "root": true}]}"#, 400, INVALID),
    create(KEY, r#"{"vms": [{"template": 1}]}"#, 400, INVALID),
    create(KEY, r#"{"vms": [{"template": "../../etc/shadow"}]}"#, 400, INVALID),
    create(KEY, r#"{"vms": [{"template": "micro", "name": "a\u0000b"}]}"#, 400, INVALID),
    create(KEY, r#"{"vms": [{"template": "micro", "mem_size": -1}]}"#, 400, INVALID),
    create(KEY, r#"{"vms": [{"template": "micro", "mem_size": 4294967296}]}"#, 400, INVALID),
    create(KEY, r#"{"vms": [{"template": "micro", "mem_size": 1e99}]}"#, 400, INVALID),
    create(KEY, r#"{"vms": [{"template": "micro", "mem_size": 4294967295}]}"#, 400, INVALID),
    create(KEY, r#"{"vms": [{"template": "micro", "cpu_num": 0}]}"#, 400, INVALID),
    create(KEY, r#"{"vms": [{"template": "micro", "disk_size": 4294967295}]}"#, 400, INVALID),
    create(KEY, r#"{"vms": [{"template": "micro", "ports": [80]}]}"#, 400, INVALID),
    create(KEY, r#"{"vms": [{"template": "micro", "ports": ["70000"]}]}"#, 400, INVALID),
    create(KEY, r#"{"vms": [{"template": "micro", "ports": ["80", "80/tcp"]}]}"#, 400, INVALID),
    create(KEY, r#"{"vms": [{"template": "micro", "count": 4294967295}]}"#, 400, INVALID),
    create(
        KEY,
        r#"{"vms": [{"template": "micro", "net_kind": "flatten", "ports": ["80"]}]}"#,
        400,
        INVALID,
    ),
    create(
        KEY,
        r#"{"vms": [{"template": "micro", "engine": "docker"}]}"#,
        422,
        "ERR_TT_UNSUPPORTED",
    ),
    create(KEY, r#"{"vms": [{"template": "micro"}], "life_time": 0}"#, 400, INVALID),
    create(
        KEY,
        r#"{"vms": [{"template": "micro"}], "life_time": 18446744073709551616}"#,
        400,
        INVALID,
    ),
    create(
        KEY,
        r#"{"vms": [{"template": "micro"}], "life_time": 18446744073709551615}"#,
        400,
        "ERR_TT_LIFE_TIME",
    ),
    create(KEY, r#"{"vms": [{"template": "micro"}], "at_end": "explode"}"#, 400, INVALID),
    create(
        KEY,
        r#"{"vms": [{"template": "micro"}], "net_blacklist": ["10.0.0.0/8"]}"#,
        400,
        INVALID,
    ),
];

const GOOD: &str = r#"{"vms": [{"template": "micro"}]}"#;

const fn create(
    headers: &'static str,
    body: &'static str,
    status: u16,
    code: &'static str,
) -> Wrong {
    ("PUT", "/v1/envs/x", headers, body, status, code)
}

#[test]
fn wrong_requests_change_nothing() {
    let Some(lab) = Lab::new("wrong_requests_change_nothing") else { return };
    let before = records(&lab);
    let mut failures = Vec::new();
    for (method, path, headers, body, status, code) in PATHS.iter().chain(&CREATIONS) {
        let answer = lab.ask(method, path, headers, body);
        if (answer.status, answer.code()) != (*status, *code) {
            failures.push(format!("{method} {path} {headers:?} {body}: {}", answer.text));
        }
        assert!(answer.text.len() < 4096, "{} bytes of answer", answer.text.len());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    long_ones_are_refused(&lab);
    assert_unchanged(&lab, &before);
    lab.finish();
}

fn long_ones_are_refused(lab: &Lab) {
    let many = |what: String, number: usize| vec![what; number].join(",");
    let vm = r#"{"template": "micro"}"#.to_owned();
    let addr = r#""192.0.2.9""#.to_owned();
    let ports: Vec<String> = (1..=257).map(|port| format!("\"{port}\"")).collect();
    let ports = ports.join(",");
    for (body, status, code) in [
        (format!(r#"{{"vms": [{}]}}"#, many(vm.clone(), 257)), 400, INVALID),
        (format!(r#"{{"vms": [{vm}], "net_blacklist": [{}]}}"#, many(addr, 1025)), 400, INVALID),
        (format!(r#"{{"vms": [{{"template": "micro", "ports": [{ports}]}}]}}"#), 400, INVALID),
        (format!(r#"{{"vms": [{{"template": "{}"}}]}}"#, "a".repeat(10_000)), 400, INVALID),
        ("[".repeat(100_000), 400, INVALID),
        (r#"{"vms":"#.repeat(50_000), 400, INVALID),
        (format!(r#"{{"x": {}"#, "[".repeat(100_000)), 400, INVALID),
        (" ".repeat(2 << 20), 413, "ERR_TT_TOO_LARGE"),
    ] {
        let answer = lab.ask("PUT", "/v1/envs/x", KEY, &body);
        let begin = body.get(..60).unwrap_or(&body);
        assert_eq!((answer.status, answer.code()), (status, code), "{begin}: {}", answer.text);
        assert!(answer.text.len() < 4096, "{} bytes of answer", answer.text.len());
    }
    let long_key = format!("Idempotency-Key: {}\r\n", "k".repeat(65));
    assert_eq!(lab.ask("PUT", "/v1/envs/x", &long_key, GOOD).code(), INVALID);
    let long_path = format!("/v1/envs/{}", "a".repeat(10_000));
    assert_eq!(lab.ask("GET", &long_path, "", "").code(), INVALID);
}
