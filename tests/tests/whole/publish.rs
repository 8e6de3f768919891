//! Templates out of Vms: of a running one, of a snapshot, of a kept image.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
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
    what_is_exported_is_imported_and_boots(&lab);
    lab.tt(&["env", "destroy", "new", "copies"]).good();
    for name in ["now", "before", "last", "raw", "qcow2"] {
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

fn what_is_exported_is_imported_and_boots(lab: &Lab) {
    let dir = lab.dir().join("exported");
    std::fs::create_dir(&dir).unwrap();
    let path = lab.json(&["template", "show", "now"])["template"]["path"].clone();
    let disk = lab.data().join(path.as_str().unwrap()).join("disk.raw");
    let disk = disk.to_str().unwrap();
    for format in ["raw", "qcow2"] {
        let file = dir.join(format!("disk.{format}"));
        let file = file.to_str().unwrap();
        lab.tt(&["template", "export", "now", file]).good();
        let meta = std::fs::metadata(file).unwrap();
        assert!(meta.blocks() * 512 < 24 << 20, "{format}: {} blocks", meta.blocks());
        let compare = ["compare", "-f", "raw", "-F", format];
        let same = Command::new("qemu-img").args(compare).args([disk, file]).output().unwrap();
        assert!(same.status.success(), "{format}: {same:?}");
        let name = format!("example.org/me/{format}");
        lab.tt(&["template", "import", &name, file, "--format", format]).good();
    }
    assert!(std::fs::read(disk).unwrap() == std::fs::read(dir.join("disk.raw")).unwrap());
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2, "parts stay");
    many_are_exported_at_once(lab, disk);
    lab.tt(&["env", "create", "copies", "--vm", "raw=raw", "--vm", "qcow2=qcow2"]).good();
    for name in ["raw", "qcow2"] {
        assert_eq!(
            lab.sh(&format!("copies/{name}"), "cat /root/file; hostname"),
            format!("now\n{name}")
        );
    }
    let nowhere = dir.join("none/x.raw");
    lab.tt(&["template", "export", "now", nowhere.to_str().unwrap()]).fails(1, "make the file");
    lab.tt(&["template", "export", "none", "/tmp/x"]).fails(1, "[ERR_TT_NOT_FOUND]");
}

fn many_are_exported_at_once(lab: &Lab, disk: &str) {
    let dir = lab.dir().join("many");
    std::fs::create_dir(&dir).unwrap();
    std::thread::scope(|scope| {
        for number in 0..10 {
            let file = dir.join(format!("{number}.raw"));
            scope.spawn(move || {
                lab.tt(&["template", "export", "now", file.to_str().unwrap()]).good();
                assert!(std::fs::read(file).unwrap() == std::fs::read(disk).unwrap(), "{number}");
            });
        }
    });
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
