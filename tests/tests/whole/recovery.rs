//! A store that is lost while guests run: it is rebuilt from what lies beside the disks, and no guest notices.

use std::fs;
use std::time::Duration;
use testkit::{HOST, Lab, Run, is_alive, run};

#[test]
fn a_lost_store_is_rebuilt_around_running_guests() {
    let Some(mut lab) = Lab::new("a_lost_store_is_rebuilt_around_running_guests") else { return };
    lab.tt(&["env", "create", "web", "--vm", "a=micro,port=7,port=8"]).good();
    lab.tt(&["env", "create", "idle", "--vm", "z=micro,keep-image"]).good();
    lab.serve_echo("web/a", 7);
    lab.serve_count("web/a", 8);
    // A guest draws it at the first look: it is looked at before the snapshot.
    let boot = lab.boot_id("web/a");
    lab.tt(&["snapshot", "create", "web", "before"]).good();
    lab.tt(&["env", "stop", "idle"]).good();
    let idle = lab.vm("idle", "z")["id"].to_string();
    let records = records(&lab);
    let mut stream = lab.client.connect((HOST, lab.port("web", "a", "7"))).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(is_alive(&mut stream));
    lab.kill9();
    fs::remove_dir_all(lab.data().join("store")).unwrap();
    refuses_to_start(&lab);
    a_damaged_meta_is_named(&lab, &idle);
    let recovered = recover(&lab).good();
    assert!(recovered.contains("web") && recovered.contains("idle"), "{recovered}");
    assert!(is_alive(&mut stream), "without any daemon");
    lab.restart();
    recover(&lab).fails(1, "");
    lab.reaches_phase("web", "ready", Duration::from_secs(30));
    lab.reaches_phase("idle", "suspended", Duration::from_secs(30));
    assert_eq!(self::records(&lab), records);
    assert_eq!(lab.boot_id("web/a"), boot);
    assert!(is_alive(&mut stream), "with the new daemon");
    assert_eq!(lab.count(lab.port("web", "a", "8")), 1);
    lab.assert_clean();
    what_was_recovered_goes_on(&lab, &boot);
    lab.tt(&["env", "destroy", "web", "idle"]).good();
    let image = lab.json(&["image", "ls"])["images"][0]["id"].to_string();
    assert_eq!(image, idle);
    lab.tt(&["image", "rm", &image]).good();
    lab.finish();
}

/// What must be the same afterwards.
fn records(lab: &Lab) -> Vec<String> {
    let members = [("web", "a"), ("idle", "z")].map(|(env, vm)| {
        let mut vm = lab.vm(env, vm);
        // What is observed is observed again.
        vm.as_object_mut().unwrap().retain(|key, _| key != "status" && key != "is_settled");
        vm.to_string()
    });
    let ends = ["web", "idle"].map(|env| lab.env(env).unwrap()["end_timestamp"].to_string());
    members.into_iter().chain(ends).collect()
}

fn recover(lab: &Lab) -> Run {
    let mut command = lab.command(&["recover", "--config", &lab.config()]);
    lab.host.run(|| run(&mut command, b""))
}

fn refuses_to_start(lab: &Lab) {
    let mut command = lab.daemon_command(&["--config", &lab.config()]);
    let refused = lab.host.run(|| run(&mut command, b""));
    refused.fails(1, "tt recover");
    assert_eq!(lab.machines().len(), 1, "a refused daemon touched the guests");
}

fn a_damaged_meta_is_named(lab: &Lab, id: &str) {
    let meta = lab.data().join("meta").join(id).join("latest.json");
    let text = fs::read(&meta).unwrap();
    fs::write(&meta, &text[..text.len() / 2]).unwrap();
    recover(lab).fails(1, &format!("meta/{id}/latest.json"));
    // Nothing was rebuilt, so a daemon refuses still.
    refuses_to_start(lab);
    fs::write(&meta, &text).unwrap();
}

fn what_was_recovered_goes_on(lab: &Lab, boot: &str) {
    let list = lab.json(&["snapshot", "ls", "web"]);
    assert_eq!(list["snapshots"][0]["name"], "before", "{list}");
    lab.tt(&["snapshot", "apply", "web", "before"]).good();
    assert_eq!(lab.count(lab.port("web", "a", "8")), 1);
    assert_eq!(lab.boot_id("web/a"), boot);
    lab.tt(&["env", "start", "idle"]).good();
    assert_eq!(lab.sh("idle/z", "hostname"), "z");
    // Numbers go on from where they were.
    let highest = lab.vm("idle", "z")["id"].as_u64();
    lab.tt(&["vm", "add", "web", "b=micro"]).good();
    assert!(lab.vm("web", "b")["id"].as_u64() > highest);
    lab.sh("web/b", "ping -c 1 -W 5 a");
}
