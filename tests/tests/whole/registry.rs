//! Templates from registries and into them: an image that was never seen here boots and runs as it says, and a template
//! that was pushed is the same one where it is pulled.

use serde_json::{Value, json};
use std::fs;
use std::process::Command;
use std::time::Duration;
use testkit::oci::{self, Image, Node, Part, Registry, Trick};
use testkit::{Lab, Setup, eventually};

/// How long something that happens without being waited for may take.
const SOON: Duration = Duration::from_secs(120);

#[test]
fn images_boot_and_templates_travel_through_a_registry() {
    let name = "images_boot_and_templates_travel_through_a_registry";
    let Some(mut lab) = Setup::new(name).start() else { return };
    let registry = Registry::within(&lab.host);
    let image = image(&lab);
    registry.put_image("me/app", "1", &image);
    let reference = registry.reference("me/app:1");
    what_is_half_fetched_is_gone_on_with(&mut lab, &registry, &reference);
    let saved = lab.dir().join("saved.tar");
    fs::write(&saved, oci::archive(&image.saved())).unwrap();
    let import = ["template", "import", "example.org/me/saved", &saved.display().to_string()];
    lab.tt(&import).good();
    lab.tt(&["env", "create", "e", "--vm", "pulled=app", "--vm", "saved=saved"]).good();
    for vm in ["e/pulled", "e/saved"] {
        runs_as_it_says(&lab, vm);
    }
    lab.tt(&["env", "destroy", "e"]).good();
    a_template_is_the_same_elsewhere(&lab, &registry);
    a_push_goes_on_and_is_stopped(&mut lab, &registry);
    wrong_references_are_refused(&lab, &registry);
    for name in ["app", "saved"] {
        lab.tt(&["template", "rm", name]).good();
    }
    lab.finish();
}

/// Two layers: the second one takes away, replaces, and has what is run.
fn image(lab: &Lab) -> Image {
    let shell = lab.dir().join("busybox");
    let micro = lab.json(&["template", "show", "micro"]);
    let disk = lab.data().join(micro["template"]["path"].as_str().unwrap()).join("disk.raw");
    let dump = format!("dump /bin/busybox {}", shell.display());
    let dumped = Command::new("debugfs").args(["-R", &dump]).arg(disk).output().unwrap();
    assert!(dumped.status.success(), "{dumped:?}");
    let mut base = vec![
        Node::dir("bin"),
        Node::program("bin/busybox", fs::read(shell).unwrap()),
        Node::dir("etc"),
        Node::file("etc/passwd", "root:x:0:0::/:/bin/sh\napp:x:1234:1235::/home/app:/bin/sh\n"),
        Node::file("etc/group", "root:x:0:\nstaff:x:1235:app\n"),
        Node::dir("home"),
        Node::dir("dir"),
        Node::file("dir/old", "old"),
        Node::file("gone", "gone"),
    ];
    let applets = ["sh", "cat", "id", "ls", "ps", "pwd", "sleep", "stat"];
    base.extend(applets.map(|name| Node::symlink(format!("bin/{name}"), "busybox")));
    let says = "#!/bin/sh\necho \"$(id -un):$(id -gn) in $(pwd): $GREETING $*\" >said\nexec sleep 100000\n";
    let above = [
        Node::dir("home/app").owner(1234, 1235),
        Node::file(".wh.gone", ""),
        Node::file("dir/.wh..wh..opq", ""),
        Node::file("dir/new", "new"),
        Node::program("entry", says),
        // An image that was never seen: caches outlive tests.
        Node::file("lab", lab.dir().display().to_string()),
    ];
    Image::of(&[&base, &above]).running(json!({
        "User": "app", "WorkingDir": "/home/app", "Env": ["PATH=/bin", "GREETING=hello"],
        "Entrypoint": ["/entry"], "Cmd": ["one", "two"],
    }))
}

fn what_is_half_fetched_is_gone_on_with(lab: &mut Lab, registry: &Registry, reference: &str) {
    let name = "example.org/me/app";
    registry.trick(Part::Blobs, Trick::Slow);
    lab.tt(&["template", "pull", reference, name, "--no-wait"]).good();
    let is_fetching = || lab.tree("making").iter().any(|path| path.ends_with(".part"));
    eventually("it is being fetched", SOON, || (!is_fetching()).then(|| "it is not".to_owned()));
    lab.kill9();
    registry.calm();
    lab.restart();
    let view = || lab.json(&["template", "show", name]);
    eventually("it is pulled", SOON, || {
        let view = view();
        (view["phase"] != "ready").then(|| view.to_string())
    });
    let made = view();
    let wanted = json!(["disk", "kernel", "container", "agent"]);
    assert_eq!(made["template"]["features"], wanted, "{made}");
    assert_eq!(made["source"]["reference"], reference);
    // What is there is answered as it is; by the same name something else is refused.
    lab.tt(&["template", "pull", reference, name]).good();
    let other = registry.reference("me/other");
    lab.tt(&["template", "pull", &other, name]).fails(1, "[ERR_TT_EXISTS]");
}

fn runs_as_it_says(lab: &Lab, vm: &str) {
    let mut said = String::new();
    eventually(&format!("{vm} says something"), SOON, || {
        said = lab.exec(vm, &["cat", "/home/app/said"]).out.trim().to_owned();
        said.is_empty().then(|| "nothing".to_owned())
    });
    assert_eq!(said, "app:staff in /home/app: hello one two");
    let running = lab.sh(vm, "ps -o user,args");
    let is_entry = |line: &str| line.starts_with("app") && line.contains("sleep 100000");
    assert!(running.lines().any(is_entry), "{running}");
    assert_eq!(lab.sh(vm, "ls /dir; ls / | cat"), lab.sh(vm, "echo new; ls / | cat"));
    assert!(!lab.sh(vm, "ls /").contains("gone"));
    assert_eq!(lab.sh(vm, "stat -c %u:%g /home/app"), "1234:1235");
}

fn a_template_is_the_same_elsewhere(lab: &Lab, registry: &Registry) {
    let to = registry.reference("me/micro:1");
    let pushed = lab.json(&["template", "push", "micro", &to]);
    let digest = pushed["push"]["digest"].as_str().unwrap().to_owned();
    assert_eq!(oci::digest(&registry.manifest("me/micro", "1")), digest);
    let here = lab.json(&["template", "show", "micro"])["template"].clone();
    let setup = Setup::new("images_boot_and_templates_travel_through_a_registry").beside(lab);
    let Some(other) = setup.start() else { return };
    other.tt(&["template", "rm", "micro"]).good();
    let by_digest = registry.reference(&format!("me/micro@{digest}"));
    other.tt(&["template", "pull", &by_digest, "micro"]).good();
    let there = other.json(&["template", "show", "micro"])["template"].clone();
    assert_eq!(there, here);
    let path = |lab: &Lab, template: &Value| {
        lab.data().join(template["path"].as_str().unwrap()).join("disk.raw")
    };
    let (a, b) = (path(lab, &here), path(&other, &there));
    let same = Command::new("cmp").args([&a, &b]).status().unwrap();
    assert!(same.success(), "the disks differ");
    other.tt(&["env", "create", "far", "--vm", "v=micro"]).good();
    assert_eq!(other.sh("far/v", "hostname"), "v");
    other.tt(&["env", "destroy", "far"]).good();
    other.finish();
}

fn a_push_goes_on_and_is_stopped(lab: &mut Lab, registry: &Registry) {
    registry.calm();
    registry.trick(Part::Uploads, Trick::Silent);
    let to = registry.reference("me/stopped:1");
    lab.tt(&["template", "push", "micro", &to, "--no-wait"]).good();
    let is_sending = || registry.asked().iter().any(|asked| asked.method == "POST");
    let wait =
        || eventually("it is sent", SOON, || (!is_sending()).then(|| "it is not".to_owned()));
    wait();
    // The next daemon sends it, too.
    lab.kill9();
    registry.calm();
    registry.trick(Part::Uploads, Trick::Silent);
    lab.restart();
    wait();
    let elsewhere = registry.reference("me/elsewhere:1");
    lab.tt(&["template", "push", "micro", &elsewhere]).fails(1, "[ERR_TT_BUSY]");
    lab.tt(&["template", "push", "micro", "--stop"]).good();
    let making =
        || lab.entries("making").iter().map(|p| p.display().to_string()).collect::<String>();
    eventually("nothing is left of it", SOON, || Some(making()).filter(|left| !left.is_empty()));
    let view = lab.json(&["template", "show", "micro"]);
    assert_eq!(
        (&view["phase"], &view["push"], &view["step"]),
        (&"ready".into(), &Value::Null, &Value::Null)
    );
    registry.calm();
}

fn wrong_references_are_refused(lab: &Lab, registry: &Registry) {
    let pull = |reference: &str| lab.tt(&["template", "pull", reference, "example.org/none"]);
    pull("UPPER/case").fails(1, "[ERR_TT_INVALID]");
    pull(&registry.reference("me/none:1")).fails(1, "404");
    lab.tt(&["template", "rm", "example.org/none"]).good();
    let to = registry.reference("me/x:1");
    lab.tt(&["template", "push", "none", &to]).fails(1, "[ERR_TT_NOT_FOUND]");
    lab.tt(&["template", "push", "micro"]).fails(2, "REFERENCE");
    registry.trick(Part::Uploads, Trick::Status(403, "x", "y".into()));
    lab.tt(&["template", "push", "micro", &to]).fails(1, "--credentials");
    registry.calm();
}
