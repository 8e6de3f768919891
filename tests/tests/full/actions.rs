//! The table of actions, each on a full disk and again with room.

use super::filler::Filler;
use serde_json::Value;
use std::time::Duration;
use testkit::{HOST, Lab, Setup, eventually, is_alive};

/// The whole file system: the template, and some guests' memory.
const SIZE: &str = "700M";
/// What is left of it: records and metas have room, no disk and no memory.
const LITTLE_MB: u64 = 6;
/// How long a trouble, or its end, may take to show: it is tried again after pauses that grow.
const SHOWS: Duration = Duration::from_secs(120);
/// Commits of which one at least needs more room than the store's log has.
const COMMITS: usize = 20_000;

/// One action on a full disk.
struct Row {
    /// Method, the path below `/v1/envs/full`, and body.
    asked: (&'static str, &'static str, &'static str),
    /// Where in which member's record it is told, with which code; nothing if the action needs no room to speak of.
    told: Option<(&'static str, &'static str, &'static str)>,
    /// Whether the guest `a` runs meanwhile.
    runs: bool,
    /// Whether it is to be asked for once more.
    again: bool,
    /// Whether all is as asked.
    is_done: fn(&Lab) -> bool,
}

const ROWS: [Row; 7] = [
    Row {
        asked: ("POST", "/vms", r#"{"template": "micro", "name": "late"}"#),
        told: Some(("late", "/status/trouble", "ERR_TT_STORAGE_CREATE_IMAGE")),
        runs: true,
        again: false,
        is_done: |lab| lab.exec("full/late", &["hostname"]).out.trim() == "late",
    },
    Row {
        asked: ("POST", "/vms/a/snapshots", r#"{"name": "disk", "with_memory": false}"#),
        told: Some(("a", "/snapshots/disk/state/failed", "ERR_TT_SNAPSHOT_CREATE")),
        runs: true,
        again: true,
        is_done: |lab| lab.vm("full", "a")["snapshots"]["disk"]["state"] == "ready",
    },
    Row {
        asked: ("POST", "/vms/a/snapshots", r#"{"name": "all", "with_memory": true}"#),
        told: Some(("a", "/snapshots/all/state/failed", "ERR_TT_SNAPSHOT_CREATE")),
        runs: true,
        again: true,
        is_done: |lab| lab.vm("full", "a")["snapshots"]["all"]["state"] == "ready",
    },
    Row {
        asked: ("PATCH", "/vms/a", r#"{"disk_size": 256}"#),
        told: None,
        runs: true,
        again: false,
        is_done: |lab| lab.exec("full/a", &["cat", "/sys/block/vda/size"]).out.trim() == "524288",
    },
    Row {
        asked: ("POST", "/vms/a/stop", r#"{"mode": "suspend"}"#),
        told: Some(("a", "/status/trouble", "ERR_TT_ENGINE_STOP_VM")),
        runs: true,
        again: false,
        is_done: |lab| lab.vm("full", "a")["status"]["phase"] == "stopped",
    },
    Row {
        asked: ("POST", "/vms/a/start", ""),
        told: None,
        runs: false,
        again: false,
        is_done: |lab| lab.exec("full/a", &["hostname"]).out.trim() == "a",
    },
    Row {
        asked: ("POST", "/vms/a/snapshots/all/apply", ""),
        told: Some(("a", "/status/trouble", "ERR_TT_STORAGE_CREATE_IMAGE")),
        runs: true,
        again: false,
        is_done: |lab| lab.vm("full", "a")["is_settled"] == true,
    },
];

#[test]
fn on_a_full_disk_nothing_is_lost_and_guests_run_on() {
    let setup = Setup::new("on_a_full_disk_nothing_is_lost_and_guests_run_on").data_size(SIZE);
    let Some(mut lab) = setup.start() else { return };
    a_template_is_not_built(&lab);
    lab.tt(&["env", "create", "full", "--vm", "a=micro,port=8", "--vm", "w=micro,port=7"]).good();
    lab.serve_count("full/a", 8);
    lab.serve_echo("full/w", 7);
    let mut stream = lab.client.connect((HOST, lab.port("full", "w", "7"))).unwrap();
    let boots = ["full/a", "full/w"].map(|vm| lab.boot_id(vm));
    an_env_is_not_created(&lab);
    for row in &ROWS {
        on_a_full_disk(&lab, row);
        assert!(is_alive(&mut stream), "another guest's connection is lost");
    }
    nothing_is_committed(&mut lab);
    assert!(is_alive(&mut stream), "another guest's connection is lost");
    assert_eq!(["full/a", "full/w"].map(|vm| lab.boot_id(vm)), boots, "memory was lost");
    lab.tt(&["env", "destroy", "full"]).good();
    lab.finish();
}

fn on_a_full_disk(lab: &Lab, row: &Row) {
    let ask = || {
        let (method, path, body) = row.asked;
        let answer = lab.ask(method, &format!("/v1/envs/full{path}"), "", body);
        assert!((200..300).contains(&answer.status), "{method} {path}: {}", answer.text);
    };
    let what = format!("{:?}", row.asked);
    let count = || lab.count(lab.port("full", "a", "8"));
    let before = row.runs.then(count);
    {
        let _filler = Filler::leave(lab, LITTLE_MB);
        ask();
        if let Some((vm, place, code)) = row.told {
            let mut trouble = Value::Null;
            eventually(&format!("{what}: {vm} says what is wrong"), SHOWS, || {
                let record = lab.vm("full", vm);
                trouble = record.pointer(place).cloned().unwrap_or_default();
                trouble.is_null().then(|| record.to_string())
            });
            let why = trouble["why"].as_str().unwrap();
            assert_eq!(trouble["code"], code, "{what}: {trouble}");
            assert!(why.contains("MB free: make room and retry"), "{what}: {trouble}");
            assert!(!(row.is_done)(lab), "{what}: it needs no room");
            assert_eq!(before.map(|count| count + 1), row.runs.then(count), "{what}");
        } else {
            is_done(lab, row);
        }
    }
    if row.again {
        ask();
    }
    is_done(lab, row);
    lab.assert_clean();
}

fn is_done(lab: &Lab, row: &Row) {
    let what = format!("{:?} is done", row.asked);
    eventually(&what, SHOWS, || {
        (!(row.is_done)(lab)).then(|| lab.env("full").unwrap().to_string())
    });
}

fn a_template_is_not_built(lab: &Lab) {
    lab.tt(&["template", "rm", "micro"]).good();
    {
        let _filler = Filler::leave(lab, LITTLE_MB);
        let refused = lab.tt(&["template", "build", "micro"]);
        refused.fails(1, "[ERR_TT_NO_ROOM]");
        refused.fails(1, "make room and retry");
    }
    lab.tt(&["template", "build", "micro"]).good();
    lab.assert_clean();
}

fn an_env_is_not_created(lab: &Lab) {
    {
        let _filler = Filler::leave(lab, LITTLE_MB);
        let refused = lab.tt(&["env", "create", "two", "--vm", "b=micro"]);
        refused.fails(1, "b: ");
        refused.fails(1, "make room and retry");
        refused.fails(1, "[ERR_TT_");
        assert!(lab.env("two").is_none());
        lab.assert_clean();
    }
    lab.tt(&["env", "create", "two", "--vm", "b=micro"]).good();
    lab.tt(&["env", "destroy", "two"]).good();
}

fn nothing_is_committed(lab: &mut Lab) {
    let end = |lab: &Lab| lab.env("full").unwrap()["end_timestamp"].as_u64().unwrap();
    // What is written for good has no room in the log any more.
    lab.restart();
    let (before, mut extended) = (end(lab), 0);
    let filler = Filler::leave(lab, 0);
    let refused = (0..COMMITS).find_map(|_| {
        let answer = lab.ask("POST", "/v1/envs/full/extend", "", r#"{"life_time": 1}"#);
        let is_done = answer.status == 200;
        extended += u64::from(is_done);
        (!is_done).then_some(answer)
    });
    let refused = refused.unwrap();
    assert_eq!(refused.code(), "ERR_TT_STORE", "{}", refused.text);
    assert!(refused.text.contains("make room and retry"), "{}", refused.text);
    assert_eq!(end(lab), before + extended);
    drop(filler);
    lab.tt(&["env", "extend", "full", "1s"]).good();
    assert_eq!(end(lab), before + extended + 1);
    lab.restart();
    assert_eq!(end(lab), before + extended + 1);
    lab.reaches_phase("full", "ready", SHOWS);
}
