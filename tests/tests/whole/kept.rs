//! Disks that outlive their Vms, machine-ids, and strays that a repair clears.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use testkit::{Lab, Setup};

/// No Vm and no Env has it.
const STRAY: &str = "999";

#[test]
fn disks_outlive_their_vms_and_strays_are_repaired() {
    let setup = Setup::new("disks_outlive_their_vms_and_strays_are_repaired").sweep_grace("1h");
    let Some(lab) = setup.start() else { return };
    let id = a_disk_is_kept(&lab);
    it_is_the_disk_of_another_vm(&lab, &id);
    strays_are_repaired_at_once(&lab);
    lab.tt(&["image", "rm", &id]).fails(1, "[ERR_TT_IN_USE]");
    lab.tt(&["template", "rm", "micro"]).fails(1, "[ERR_TT_IN_USE]");
    lab.tt(&["env", "destroy", "new"]).good();
    lab.assert_clean();
    lab.tt(&["template", "rm", "micro"]).fails(1, "[ERR_TT_IN_USE]");
    lab.tt(&["image", "rm", &id]).good();
    assert_eq!(images(&lab).len(), 0);
    lab.tt(&["image", "rm", &id]).fails(1, "[ERR_TT_NOT_FOUND]");
    lab.finish();
}

fn images(lab: &Lab) -> Vec<serde_json::Value> {
    lab.json(&["image", "ls"])["images"].as_array().unwrap().clone()
}

/// Answers its number.
fn a_disk_is_kept(lab: &Lab) -> String {
    let kept = "k=micro,keep-image,disk=96M";
    lab.tt(&["env", "create", "old", "--vm", kept, "--vm", "n=micro,no-rand-uuid"]).good();
    let planned = lab.vm("old", "k")["machine_id"].as_str().unwrap().to_owned();
    assert_eq!(lab.sh("old/k", "cat /etc/machine-id"), planned);
    assert_eq!(lab.sh("old/n", "cat /etc/machine-id"), "");
    lab.sh("old/k", "echo kept >/root/kept && sync");
    // What it has of snapshots goes, what its disk lies on stays.
    lab.tt(&["snapshot", "create", "old/k", "below"]).good();
    lab.sh("old/k", "echo top >/root/top && sync");
    let id = lab.vm("old", "k")["id"].to_string();
    lab.tt(&["env", "destroy", "old"]).good();
    let images = images(lab);
    assert_eq!(images.iter().map(|image| image["id"].to_string()).collect::<Vec<_>>(), [&*id]);
    assert_eq!((&images[0]["name"], &images[0]["disk_size"]), (&"old/k".into(), &96.into()));
    assert_eq!(lab.entries("images").len(), 1, "{:?}", lab.tree("images"));
    assert_eq!(lab.tree("memory").len(), 0, "{:?}", lab.tree("memory"));
    lab.assert_clean();
    id
}

fn it_is_the_disk_of_another_vm(lab: &Lab, id: &str) {
    let from = format!("micro,image={id},disk=128M");
    lab.tt(&["env", "create", "new", "--vm", &format!("x={from}"), "--vm", &format!("y={from}")])
        .good();
    for vm in ["new/x", "new/y"] {
        assert_eq!(lab.sh(vm, "cat /root/kept /root/top"), "kept\ntop");
    }
    lab.sh("new/x", "echo mine >/root/kept && sync");
    assert_eq!(lab.sh("new/y", "cat /root/kept; hostname"), "kept\ny");
    let ids = ["x", "y"].map(|vm| lab.sh(&format!("new/{vm}"), "cat /etc/machine-id"));
    let planned = ["x", "y"].map(|vm| lab.vm("new", vm)["machine_id"].as_str().unwrap().to_owned());
    assert_eq!(ids, planned);
    assert_ne!(ids[0], ids[1]);
    let mb: u32 = lab.sh("new/x", "df -m / | tail -n 1 | awk '{print $2}'").parse().unwrap();
    assert!((100..=128).contains(&mb), "{mb}");
    lab.tt(&["env", "create", "no", "--vm", "z=micro,image=777777"]).fails(1, "[ERR_TT_NOT_FOUND]");
    lab.assert_clean();
}

fn strays_are_repaired_at_once(lab: &Lab) {
    let boot = lab.boot_id("new/x");
    let groups = lab.cgroup_dirs();
    assert!(!groups.is_empty());
    let mut strays: Vec<PathBuf> = groups.iter().map(|group| group.join(STRAY)).collect();
    for dir in ["images", "memory", "meta"] {
        strays.push(lab.data().join(dir).join(STRAY));
    }
    // Hierarchies may be mounted more than once.
    strays.iter().for_each(|stray| fs::create_dir_all(stray).unwrap());
    fs::write(lab.data().join("images").join(STRAY).join("0.qcow2"), "x").unwrap();
    let netns = lab.run_dir().join("netns").join(STRAY);
    fs::write(&netns, "").unwrap();
    strays.push(netns);
    let findings = || lab.findings();
    assert!(testkit::within(Duration::from_secs(5), || findings().len() >= 5), "{:?}", findings());
    // A look changes nothing.
    assert!(strays.iter().all(|stray| stray.exists()));
    let report = lab.json(&["verify", "--repair"]);
    assert_eq!(report["findings"].as_array().map(Vec::len), Some(0), "{report}");
    for kind in ["machine", "network", "image", "memory", "meta"] {
        let repaired = report["repaired"].as_array().unwrap();
        let is_it = |found: &serde_json::Value| found["kind"] == kind && found["id"] == 999;
        assert!(repaired.iter().any(is_it), "{kind}: {report}");
    }
    assert!(strays.iter().all(|stray| !stray.exists()), "{strays:?}");
    assert_eq!(lab.boot_id("new/x"), boot);
    lab.tt(&["verify", "--repair"]).good();
}
