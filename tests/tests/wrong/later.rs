//! Wrong requests about what is there: its members, snapshots, images and templates.

use super::records::{assert_unchanged, records};
use testkit::Lab;

/// Method, path below `/v1`, body; status and code of the answer.
type Wrong = (&'static str, &'static str, &'static str, u16, &'static str);

const INVALID: &str = "ERR_TT_INVALID";
const REQUEST: &str = "ERR_TT_REQUEST";
const NOT_FOUND: &str = "ERR_TT_NOT_FOUND";

const VM: &str = "/envs/there/vms/a";
const VMS: &str = "/envs/there/vms";
const SHOTS: &str = "/envs/there/snapshots";

const UPDATES: [Wrong; 22] = [
    ("PATCH", VM, "", 400, REQUEST),
    ("PATCH", VM, "{}", 400, INVALID),
    ("PATCH", VM, "[]", 400, INVALID),
    ("PATCH", VM, r#"{"cpu_num": 0}"#, 400, INVALID),
    ("PATCH", VM, r#"{"cpu_num": 65536}"#, 400, INVALID),
    ("PATCH", VM, r#"{"mem_size": 1}"#, 400, INVALID),
    ("PATCH", VM, r#"{"mem_size": 4294967295}"#, 400, INVALID),
    ("PATCH", VM, r#"{"disk_size": 1}"#, 400, INVALID),
    ("PATCH", VM, r#"{"disk_size": 4294967295}"#, 400, INVALID),
    ("PATCH", VM, r#"{"name": "../x"}"#, 400, INVALID),
    ("PATCH", VM, r#"{"name": "localhost"}"#, 400, INVALID),
    ("PATCH", VM, r#"{"name": "b"}"#, 409, "ERR_TT_EXISTS"),
    ("PATCH", VM, r#"{"ports": ["0"]}"#, 400, INVALID),
    ("PATCH", VM, r#"{"ports": ["80", "80"]}"#, 400, INVALID),
    ("PATCH", VM, r#"{"ports": ["80/sctp"]}"#, 400, INVALID),
    ("PATCH", VM, r#"{"net_blacklist": ["10.0.0.0/8"]}"#, 400, INVALID),
    ("PATCH", VM, r#"{"deny_outgoing": "yes"}"#, 400, INVALID),
    ("PATCH", VM, r#"{"keep_image": 1}"#, 400, INVALID),
    ("PATCH", VM, r#"{"cpu_num": 1, "id": 7}"#, 400, INVALID),
    ("PATCH", "/envs/there/vms/nosuch", r#"{"cpu_num": 1}"#, 404, NOT_FOUND),
    ("PATCH", "/envs/nosuch/vms/a", r#"{"cpu_num": 1}"#, 404, NOT_FOUND),
    ("POST", "/envs/there/vms/nosuch/deny-outgoing", "", 404, NOT_FOUND),
];

const MEMBERS: [Wrong; 11] = [
    ("POST", VMS, "", 400, REQUEST),
    ("POST", VMS, "{}", 400, INVALID),
    ("POST", VMS, r#"{"template": "nosuch"}"#, 404, NOT_FOUND),
    ("POST", VMS, r#"{"template": "micro", "name": "a"}"#, 409, "ERR_TT_EXISTS"),
    ("POST", VMS, r#"{"template": "micro", "count": 300}"#, 400, INVALID),
    ("POST", VMS, r#"{"template": "micro", "image": 999}"#, 404, NOT_FOUND),
    ("POST", VMS, r#"{"template": "micro", "image": -1}"#, 400, INVALID),
    ("POST", VMS, r#"{"template": "micro", "mem_size": 4294967295}"#, 400, INVALID),
    ("POST", "/envs/nosuch/vms", r#"{"template": "micro"}"#, 404, NOT_FOUND),
    ("DELETE", "/envs/there/vms/nosuch", "", 404, NOT_FOUND),
    ("DELETE", "/envs/there/vms/..%2Fa", "", 400, INVALID),
];

const SNAPSHOTS: [Wrong; 14] = [
    ("POST", SHOTS, "", 400, REQUEST),
    ("POST", SHOTS, "{}", 400, INVALID),
    ("POST", SHOTS, r#"{"name": ""}"#, 400, INVALID),
    ("POST", SHOTS, r#"{"name": "a/b"}"#, 400, INVALID),
    ("POST", SHOTS, r#"{"name": "x", "life_time": 0}"#, 400, INVALID),
    ("POST", SHOTS, r#"{"name": "x", "life_time": -1}"#, 400, INVALID),
    ("POST", SHOTS, r#"{"name": "x", "with_memory": "yes"}"#, 400, INVALID),
    ("POST", SHOTS, r#"{"name": "x", "path": "/etc"}"#, 400, INVALID),
    ("POST", "/envs/nosuch/snapshots", r#"{"name": "x"}"#, 404, NOT_FOUND),
    ("POST", "/envs/there/vms/nosuch/snapshots", r#"{"name": "x"}"#, 404, NOT_FOUND),
    ("POST", "/envs/there/snapshots/nosuch/apply", "", 404, NOT_FOUND),
    ("POST", "/envs/there/vms/a/snapshots/%00/apply", "", 400, INVALID),
    ("DELETE", "/envs/there/snapshots/nosuch", "", 404, NOT_FOUND),
    ("DELETE", "/envs/there/vms/a/snapshots/..%2F..", "", 400, INVALID),
];

const IMAGES: [Wrong; 12] = [
    ("DELETE", "/images/999", "", 404, NOT_FOUND),
    ("DELETE", "/images/abc", "", 400, INVALID),
    ("DELETE", "/images/-1", "", 400, INVALID),
    ("DELETE", "/images/18446744073709551616", "", 400, INVALID),
    ("DELETE", "/templates/micro", "", 409, "ERR_TT_IN_USE"),
    ("POST", "/templates", "", 400, REQUEST),
    ("POST", "/templates", "{}", 400, INVALID),
    ("POST", "/templates", r#"{"name": "Q", "build": "micro"}"#, 400, INVALID),
    ("POST", "/templates", r#"{"name": "q", "source": {"kind": "melt"}}"#, 400, INVALID),
    (
        "POST",
        "/templates",
        r#"{"name": "q", "source": {"kind": "build", "recipe": "../x"}}"#,
        422,
        "ERR_TT_UNSUPPORTED",
    ),
    (
        "POST",
        "/templates",
        r#"{"name": "q", "source": {"kind": "publish", "vm": "nosuch/a"}}"#,
        404,
        NOT_FOUND,
    ),
    (
        "POST",
        "/templates",
        r#"{"name": "q", "source": {"kind": "import", "from": "relative"}}"#,
        400,
        INVALID,
    ),
];

#[test]
fn wrong_requests_about_what_is_there_change_nothing() {
    let Some(lab) = Lab::new("wrong_requests_about_what_is_there_change_nothing") else { return };
    let members = ["--vm", "a=micro,disk=128M", "--vm", "b=micro"];
    lab.tt(&[&["env", "create", "there"], &members[..]].concat()).good();
    lab.tt(&["env", "stop", "there", "--mode", "kill"]).good();
    let before = records(&lab);
    let mut failures = Vec::new();
    let all = UPDATES.iter().chain(&MEMBERS).chain(&SNAPSHOTS).chain(&IMAGES);
    for (index, (method, path, body, status, code)) in all.enumerate() {
        let key = format!("Idempotency-Key: wrong-{index}\r\n");
        let answer = lab.ask(method, &format!("/v1{path}"), &key, body);
        if (answer.status, answer.code()) != (*status, *code) {
            failures.push(format!("{method} {path} {body}: {}", answer.text));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    assert_unchanged(&lab, &before);
    lab.tt(&["env", "destroy", "there"]).good();
    lab.finish();
}
