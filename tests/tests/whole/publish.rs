//! Templates out of Vms: of a running one, of a snapshot, of a kept image.

use testkit::{Lab, Setup};

#[test]
fn what_a_vm_has_become_is_a_template_for_others() {
    let Some(lab) = Setup::new("what_a_vm_has_become_is_a_template_for_others").start() else {
        return;
    };
    lab.tt(&["env", "create", "old", "--vm", "v=micro,disk=96M,keep-image"]).good();
    lab.sh("old/v", "echo before >/root/file && sync");
    lab.tt(&["snapshot", "create", "old/v", "before", "--no-memory"]).good();
    lab.sh("old/v", "echo now >/root/file && sync");
    a_running_vm_is_published(&lab);
    what_can_not_be_published_is_refused(&lab);
    // An older moment, and one of a Vm that is gone.
    let id = lab.vm("old", "v")["id"].to_string();
    lab.tt(&["template", "publish", "old/v@before", "example.org/me/before"]).good();
    lab.sh("old/v", "echo last >/root/file && sync");
    lab.tt(&["env", "destroy", "old"]).good();
    lab.tt(&["template", "publish", &format!("image:{id}"), "example.org/me/last"]).good();
    lab.tt(&["image", "rm", &id]).good();
    lab.tt(&["template", "rm", "micro"]).good();
    they_boot(&lab);
    lab.tt(&["template", "rm", "now"]).fails(1, "[ERR_TT_IN_USE]");
    lab.tt(&["env", "destroy", "new"]).good();
    for name in ["now", "before", "last"] {
        lab.tt(&["template", "rm", name]).good();
    }
    assert_eq!(lab.tree("making").len() + lab.entries("images").len(), 0);
    lab.finish();
}

fn a_running_vm_is_published(lab: &Lab) {
    let boot = lab.boot_id("old/v");
    let publish = ["template", "publish", "old/v", "example.org/me/now", "--memo", "a shop"];
    lab.tt(&publish).good();
    assert_eq!(lab.boot_id("old/v"), boot, "the guest was started again");
    let made = lab.json(&["template", "show", "now"]);
    let template = &made["template"];
    assert_eq!((&template["memo"], &template["disk_size"]), (&"a shop".into(), &96.into()));
    let features = serde_json::json!(["disk", "kernel", "agent"]);
    assert_eq!(template["features"], features, "{made}");
    let snapshots = lab.vm("old", "v")["snapshots"].as_object().unwrap().clone();
    assert_eq!(snapshots.keys().collect::<Vec<_>>(), ["before"], "what was taken for it stays");
    lab.tt(&publish).fails(1, "[ERR_TT_EXISTS]");
}

fn what_can_not_be_published_is_refused(lab: &Lab) {
    for (from, code) in [
        ("old/x", "[ERR_TT_NOT_FOUND]"),
        ("none/v", "[ERR_TT_NOT_FOUND]"),
        ("old/v@none", "[ERR_TT_NOT_FOUND]"),
        ("image:4711", "[ERR_TT_NOT_FOUND]"),
    ] {
        lab.tt(&["template", "publish", from, "example.org/me/none"]).fails(1, code);
    }
    lab.tt(&["template", "publish", "old", "x"]).fails(2, "names no Vm");
}

fn they_boot(lab: &Lab) {
    let specs = ["now", "before", "last"].map(|name| format!("{name}={name}"));
    let mut create = vec!["env", "create", "new"];
    specs.iter().for_each(|spec| create.extend(["--vm", spec]));
    lab.tt(&create).good();
    let mut ids = Vec::new();
    for name in ["now", "before", "last"] {
        let vm = format!("new/{name}");
        assert_eq!(lab.sh(&vm, "cat /root/file; hostname"), format!("{name}\n{name}"));
        ids.push(lab.sh(&vm, "cat /etc/machine-id"));
        assert_eq!(lab.vm("new", name)["machine_id"], ids[ids.len() - 1].as_str());
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "guests share an identity");
}
