//! Requests that would be right at another time, or of another thing.

use super::records::{assert_unchanged, records};
use testkit::{Lab, Setup};

#[test]
fn what_does_not_fit_the_state_changes_nothing() {
    let Some(lab) = Lab::new("what_does_not_fit_the_state_changes_nothing") else { return };
    lab.tt(&["env", "create", "there", "--vm", "a=micro,disk=128M"]).good();
    lab.tt(&["env", "stop", "there", "--mode", "kill"]).good();
    let before = records(&lab);
    lab.tt(&["env", "create", "there", "--vm", "micro"]).fails(1, "[ERR_TT_EXISTS]");
    lab.tt(&["env", "stop", "there", "--mode", "pause"]).fails(1, "[ERR_TT_STATE]");
    lab.tt(&["vm", "stop", "there/a", "--mode", "pause"]).fails(1, "[ERR_TT_STATE]");
    lab.tt(&["vm", "stop", "there/nosuch"]).fails(1, "[ERR_TT_NOT_FOUND]");
    lab.tt(&["vm", "show", "there/nosuch"]).fails(1, "[ERR_TT_NOT_FOUND]");
    lab.tt(&["env", "extend", "there", "1000d"]).fails(1, "[ERR_TT_LIFE_TIME]");
    lab.exec("there/a", &["true"]).fails(125, "[ERR_TT_STATE]");
    lab.tt(&["exec", "--all", "there", "--", "true"]).fails(1, "ERR_TT_STATE");
    lab.tt(&["console", "there/a"]).fails(1, "[ERR_TT_STATE]");
    lab.tt(&["cp", "/etc/hosts", "there/a:/root"]).fails(1, "[ERR_TT_STATE]");
    lab.tt(&["cp", "there/a:/etc/hosts", "/nowhere/to/go"]).fails(1, "");
    lab.tt(&["cp", "/no/such/file", "there/a:/root"]).fails(1, "/no/such/file");
    lab.tt(&["template", "rm", "micro"]).fails(1, "[ERR_TT_IN_USE]");
    for (path, body, status, code) in [
        ("stop", r#"{"mode": "melt"}"#, 400, "ERR_TT_INVALID"),
        ("stop", r#"{"mode": "pause"}"#, 409, "ERR_TT_STATE"),
        ("stop", "", 400, "ERR_TT_REQUEST"),
        ("extend", r#"{"life_time": 0}"#, 400, "ERR_TT_LIFE_TIME"),
        ("extend", r#"{"life_time": -1}"#, 400, "ERR_TT_INVALID"),
        ("extend", r#"{"life_time": 18446744073709551615}"#, 400, "ERR_TT_LIFE_TIME"),
        ("vms/a/stop", r#"{"mode": "melt"}"#, 400, "ERR_TT_INVALID"),
        ("vms/nosuch/start", "", 404, "ERR_TT_NOT_FOUND"),
    ] {
        let answer = lab.ask("POST", &format!("/v1/envs/there/{path}"), "", body);
        assert_eq!(
            (answer.status, answer.code()),
            (status, code),
            "{path} {body}: {}",
            answer.text
        );
    }
    let log = lab.get("/v1/envs/there/vms/a/log?tail=some").unwrap();
    assert_eq!((log.status, log.code()), (400, "ERR_TT_INVALID"), "{}", log.text);
    assert_unchanged(&lab, &before);
    lab.tt(&["env", "destroy", "there"]).good();
    lab.finish();
}

#[test]
fn management_calls_keep_their_distance() {
    let setup = Setup::new("management_calls_keep_their_distance").mgmt_interval("1h");
    let Some(lab) = setup.start() else { return };
    lab.tt(&["env", "create", "busy", "--no-wait", "--vm", "a=micro"]).good();
    lab.tt(&["env", "stop", "busy", "--mode", "kill"]).good();
    let before = records(&lab);
    lab.tt(&["env", "start", "busy"]).fails(1, "[ERR_TT_TOO_SOON]");
    lab.tt(&["vm", "start", "busy/a"]).fails(1, "[ERR_TT_TOO_SOON]");
    let answer = lab.ask("POST", "/v1/envs/busy/start", "", "");
    assert_eq!((answer.status, answer.code()), (429, "ERR_TT_TOO_SOON"), "{}", answer.text);
    let wait_ms = answer.body["retry_after_ms"].as_u64().unwrap();
    assert!((3_500_000..=3_600_000).contains(&wait_ms), "{wait_ms}");
    assert!(answer.text.to_lowercase().contains("retry-after: 3"), "{}", answer.text);
    assert_unchanged(&lab, &before);
    lab.tt(&["env", "destroy", "busy"]).good();
    lab.finish();
}
