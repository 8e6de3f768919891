//! Snapshots of running guests: what is brought back, in any order and again, and what goes with them.

use super::times::{drawn, knows_the_time};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;
use testkit::{HOST, Lab, Setup, is_alive, within};

#[test]
fn snapshots_bring_guests_back_as_they_were() {
    let Some(lab) = Lab::new("snapshots_bring_guests_back_as_they_were") else { return };
    lab.tt(&["env", "create", "lab", "--vm", "a=micro,port=7,port=8", "--vm", "b=micro"]).good();
    let machine_id = lab.sh("lab/a", "cat /etc/machine-id");
    let boots = ["lab/a", "lab/b"].map(|vm| lab.boot_id(vm));
    two_are_taken(&lab);
    lab.tt(&["snapshot", "create", "lab/b", "disk", "--no-memory"]).good();
    earlier_and_later_ones_apply_in_any_order(&lab);
    assert_eq!(["lab/a", "lab/b"].map(|vm| lab.boot_id(vm)), boots, "memory was lost");
    assert_eq!(lab.sh("lab/a", "cat /etc/machine-id"), machine_id);
    restored_guests_are_snapshotted_again(&lab);
    a_disk_alone_boots(&lab, &boots[1]);
    what_others_lie_on_may_be_removed(&lab);
    lives_end_by_themselves(&lab);
    nothing_of_removed_ones_is_left(&lab);
    lab.tt(&["env", "destroy", "lab"]).good();
    lab.finish();
}

#[test]
fn raw_disks_are_snapshotted_too() {
    let setup = Setup::new("raw_disks_are_snapshotted_too").top("storage = \"file\"");
    let Some(lab) = setup.start() else { return };
    lab.tt(&["env", "create", "lab", "--vm", "a=micro,port=7,port=8", "--vm", "b=micro"]).good();
    assert_eq!(lab.vm("lab", "a")["storage"], "file");
    two_are_taken(&lab);
    lab.tt(&["snapshot", "apply", "lab", "one"]).good();
    assert_eq!((next(&lab), later(&lab)), (2, [false; 2]));
    lab.tt(&["snapshot", "rm", "lab", "one"]).good();
    lab.tt(&["snapshot", "apply", "lab", "two"]).good();
    assert_eq!((next(&lab), later(&lab)), (3, [true; 2]));
    lab.tt(&["snapshot", "rm", "lab", "two"]).good();
    nothing_of_removed_ones_is_left(&lab);
    lab.tt(&["env", "destroy", "lab"]).good();
    lab.finish();
}

/// What the counter in the guest's memory says.
#[track_caller]
fn next(lab: &Lab) -> u64 {
    lab.count(lab.port("lab", "a", "8"))
}

/// Whether the members have the file that was written between the two snapshots.
#[track_caller]
fn later(lab: &Lab) -> [bool; 2] {
    ["lab/a", "lab/b"].map(|vm| lab.exec(vm, &["test", "-e", "/root/later"]).code == Some(0))
}

fn two_are_taken(lab: &Lab) {
    lab.serve_echo("lab/a", 7);
    lab.serve_count("lab/a", 8);
    assert_eq!(next(lab), 1);
    let mut stream = lab.client.connect((HOST, lab.port("lab", "a", "7"))).unwrap();
    assert!(is_alive(&mut stream));
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    lab.tt(&["snapshot", "create", "lab", "one"]).good();
    assert!(is_alive(&mut stream), "a snapshot cut a connection of the guest that it was taken of");
    lab.assert_clean();
    assert_eq!(next(lab), 2);
    for vm in ["lab/a", "lab/b"] {
        // The first is safe on the disk, the second only in the guest's memory.
        lab.sh(vm, "echo 1 >/root/later && sync && echo 2 >>/root/later");
    }
    lab.tt(&["snapshot", "create", "lab", "one"]).fails(1, "[ERR_TT_EXISTS]");
    lab.tt(&["snapshot", "create", "lab", "two"]).good();
    assert!(is_alive(&mut stream), "a snapshot cut a connection of the guest that it was taken of");
    assert_eq!(next(lab), 3);
    for name in ["one", "two"] {
        let shot = snapshot(lab, name).unwrap();
        let members = shot["members"].as_array().unwrap();
        assert_eq!(shot["phase"], "ready", "{shot}");
        assert!(members.len() == 2 && members.iter().all(|m| m["with_memory"] == true), "{shot}");
        for vm in ["a", "b"] {
            let taken = &lab.vm("lab", vm)["snapshots"][name];
            assert_eq!((&taken["name"], &taken["life_time"]), (&name.into(), &Value::Null));
            for place in ["path", "meta_path", "memory"] {
                let path = lab.data().join(taken[place].as_str().unwrap());
                assert!(path.exists(), "{place}: {}", path.display());
            }
        }
    }
}

fn snapshot(lab: &Lab, name: &str) -> Option<Value> {
    let list = lab.json(&["snapshot", "ls", "lab"]);
    list["snapshots"].as_array().unwrap().iter().find(|shot| shot["name"] == name).cloned()
}

fn earlier_and_later_ones_apply_in_any_order(lab: &Lab) {
    let mut seen = BTreeSet::new();
    for (name, number, has_later) in
        [("one", 2, false), ("two", 3, true), ("one", 2, false), ("one", 2, false)]
    {
        lab.tt(&["snapshot", "apply", "lab", name]).good();
        knows_the_time(lab, "lab/a");
        let drawn = drawn(lab, "lab/a");
        assert!(drawn.lines().all(|line| seen.insert(line.to_owned())), "{name}: {drawn}");
        assert_eq!((next(lab), later(lab)), (number, [has_later; 2]), "{name}");
        assert!(lab.client.reaches_tcp((HOST, lab.port("lab", "a", "7"))), "{name}");
        lab.sh("lab/a", "ping -c 1 -W 5 b");
    }
    lab.assert_clean();
}

fn restored_guests_are_snapshotted_again(lab: &Lab) {
    // The counter is at 2, and there is no file.
    for (generation, name) in ["second", "third"].into_iter().enumerate() {
        lab.sh("lab/a", &format!("echo {name} >>/root/generations"));
        lab.tt(&["snapshot", "create", "lab/a", name]).good();
        lab.sh("lab/a", "echo lost >>/root/generations && sync");
        lab.tt(&["snapshot", "apply", "lab/a", name]).good();
        assert_eq!(next(lab), 3 + generation as u64);
        let all = ["second", "second\nthird"][generation];
        assert_eq!(lab.sh("lab/a", "cat /root/generations"), all);
    }
    let refused = lab.tt(&["snapshot", "apply", "lab", "third"]);
    refused.fails(1, "[ERR_TT_NOT_FOUND]");
    refused.fails(1, "lab/b");
}

fn a_disk_alone_boots(lab: &Lab, before: &str) {
    lab.sh("lab/b", "echo gone >/root/gone && sync");
    lab.tt(&["snapshot", "apply", "lab/b", "disk"]).good();
    assert_ne!(lab.boot_id("lab/b"), before);
    assert_eq!(lab.sh("lab/b", "head -n 1 /root/later; ls /root/gone 2>/dev/null | wc -l"), "1\n0");
    assert_eq!(lab.sh("lab/b", "hostname"), "b");
}

fn what_others_lie_on_may_be_removed(lab: &Lab) {
    lab.tt(&["snapshot", "rm", "lab", "one"]).good();
    assert!(snapshot(lab, "one").is_none());
    lab.tt(&["snapshot", "apply", "lab", "one"]).fails(1, "[ERR_TT_NOT_FOUND]");
    lab.tt(&["snapshot", "apply", "lab", "two"]).good();
    assert_eq!((next(lab), later(lab)), (3, [true; 2]));
    lab.tt(&["snapshot", "apply", "lab/a", "third"]).good();
    assert_eq!(lab.sh("lab/a", "cat /root/generations"), "second\nthird");
}

fn lives_end_by_themselves(lab: &Lab) {
    lab.tt(&["snapshot", "create", "lab/b", "brief", "--ttl", "3s"]).good();
    let is_over = || snapshot(lab, "brief").is_none();
    assert!(within(Duration::from_secs(30), is_over), "{:?}", snapshot(lab, "brief"));
    assert!(snapshot(lab, "two").is_some());
}

fn nothing_of_removed_ones_is_left(lab: &Lab) {
    for shot in lab.json(&["snapshot", "ls", "lab"])["snapshots"].as_array().unwrap() {
        lab.tt(&["snapshot", "rm", "lab", shot["name"].as_str().unwrap()]).good();
    }
    let is_bare = || {
        ["a", "b"].iter().all(|vm| {
            let record = lab.vm("lab", vm);
            let (id, disks) = (&record["id"], record["disks"].as_object().unwrap().len());
            let in_dir = |dir: &str| lab.entries(&format!("{dir}/{id}")).len();
            // The memory that the machine began from stays until it ends, with a mark that it did.
            let memory_num = if record["memory"].is_null() { 0 } else { 2 };
            in_dir("images") == disks && in_dir("memory") == memory_num && in_dir("meta") == 1
        })
    };
    let left = || ["images", "memory", "meta"].map(|dir| lab.tree(dir));
    assert!(within(Duration::from_secs(20), is_bare), "{:?}", left());
    lab.assert_clean();
}
