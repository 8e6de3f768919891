//! Command lines that make no sense, or ask for what can not be.

use super::records::{assert_unchanged, records};
use testkit::Lab;

/// Specs of a member that are refused as they stand: exit code 2.
const UNREADABLE: [(&str, &str); 34] = [
    ("", "template"),
    ("micro,mem=0", "0"),
    ("micro,mem=-1", "-1"),
    ("micro,mem=1M", "at least 32"),
    ("micro,mem=4294967296M", "4294967296M"),
    ("micro,mem=99999999999999999999G", "99999999999999999999G"),
    ("micro,mem=1.5G", "1.5G"),
    ("micro,mem=", "mem"),
    ("micro,cpu=0", "0"),
    ("micro,cpu=-1", "-1"),
    ("micro,cpu=65536", "65536"),
    ("micro,disk=0", "0"),
    ("micro,disk=-5G", "-5G"),
    ("micro,disk=5000000000G", "5000000000G"),
    ("micro,port=0", "0"),
    ("micro,port=70000", "70000"),
    ("micro,port=-80", "-80"),
    ("micro,port=80/sctp", "80/sctp"),
    ("micro,port=80,port=80/tcp", "twice"),
    ("micro,port=http", "http"),
    ("micro,count=0", "0"),
    ("micro,count=4294967296", "4294967296"),
    ("micro,net=wifi", "wifi"),
    ("micro,engine=../qemu", "../qemu"),
    ("micro,cpu=1,cpu=2", "twice"),
    ("micro,color=red", "color"),
    ("micro,,", "option"),
    ("../../etc/passwd", "etc/passwd"),
    ("/dev/sda", "/dev/sda"),
    ("micro\u{7}", "\\u{7}"),
    ("localhost=micro", "localhost"),
    ("UPPER=micro", "UPPER"),
    ("a/b=micro", "a/b"),
    ("\u{430}=micro", "\u{430}"),
];

/// Names of Envs that are refused: exit code 2.
const BAD_NAMES: [&str; 13] = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "A",
    "a b",
    "a_b",
    "a-",
    "7",
    "localhost",
    "\u{430}dmin",
    "line\nbreak",
];

#[test]
fn wrong_command_lines_change_nothing() {
    let Some(lab) = Lab::new("wrong_command_lines_change_nothing") else { return };
    let before = records(&lab);
    for (spec, said) in UNREADABLE {
        lab.tt(&["env", "create", "x", "--vm", spec]).fails(2, said);
    }
    for name in BAD_NAMES {
        lab.tt(&["env", "create", name, "--vm", "micro"]).fails(2, "use 1 to 58");
        lab.tt(&["env", "destroy", name]).fails(2, "use 1 to 58");
        lab.tt(&["vm", "show", &format!("{name}/a")]).fails(2, "use");
    }
    let long = "a".repeat(10_000);
    lab.tt(&["env", "create", &long, "--vm", "micro"]).fails(2, "too long");
    unreadable_options_are_refused(&lab);
    what_can_not_be_is_refused(&lab);
    assert_unchanged(&lab, &before);
    lab.finish();
}

fn unreadable_options_are_refused(lab: &Lab) {
    for (args, said) in [
        (&["env", "create", "x"][..], "--vm"),
        (&["env", "create", "x", "--vm", "micro", "--ttl", "0s"], "0s"),
        (&["env", "create", "x", "--vm", "micro", "--ttl=-1h"], "-1h"),
        (&["env", "create", "x", "--vm", "micro", "--ttl", "soon"], "soon"),
        (&["env", "create", "x", "--vm", "micro", "--at-end", "explode"], "explode"),
        (&["env", "create", "x", "--vm", "micro", "--block", "300.1.1.1"], "300.1.1.1"),
        (&["env", "create", "x", "--vm", "micro", "--fast"], "--fast"),
        (&["env", "stop", "x", "--mode", "melt"], "melt"),
        (&["env", "extend", "x", "0"], "0"),
        (&["env", "explode", "x"], "explode"),
        (&["exec", "x/a"], "CMD"),
        (&["exec", "x", "--", "true"], "x"),
        (&["exec", "--all", "x/a", "--", "true"], "x/a"),
        (&["exec", "--env", "=1", "x/a", "--", "true"], "NAME=VALUE"),
        (&["cp", "/etc/hosts", "/tmp/hosts"], "ENV/VM:PATH"),
        (&["cp", "x/a:/etc/hosts", "x/b:/etc/hosts"], "ENV/VM:PATH"),
        (&["cp", "x/a:etc/hosts", "/tmp/hosts"], "absolute"),
        (&["vm", "log", "x/a", "--tail=-1"], "-1"),
    ] {
        lab.tt(args).fails(2, said);
    }
}

fn what_can_not_be_is_refused(lab: &Lab) {
    let create = |spec| lab.tt(&["env", "create", "x", "--vm", spec]);
    create("nosuch").fails(1, "[ERR_TT_NOT_FOUND]");
    create("micro,engine=xen").fails(1, "[ERR_TT_UNSUPPORTED]");
    create("micro,net=flat,port=80").fails(1, "[ERR_TT_INVALID]");
    create("micro,mem=1000G").fails(1, "[ERR_TT_INVALID]");
    create("micro,disk=1000000G").fails(1, "[ERR_TT_INVALID]");
    create("micro,cpu=60000").fails(1, "[ERR_TT_INVALID]");
    create("micro,disk=1M").fails(1, "[ERR_TT_INVALID]");
    create("micro,count=257").fails(1, "[ERR_TT_INVALID]");
    let two = ["env", "create", "x", "--vm", "a=micro", "--vm", "a=micro"];
    lab.tt(&two).fails(1, "[ERR_TT_INVALID]");
    let long_life = ["env", "create", "x", "--vm", "micro", "--ttl", "1000d"];
    lab.tt(&long_life).fails(1, "[ERR_TT_LIFE_TIME]");
    for args in [
        &["env", "show", "x"][..],
        &["env", "stop", "x"],
        &["env", "start", "x"],
        &["env", "extend", "x", "1h"],
        &["env", "destroy", "x"],
        &["env", "events", "x"],
        &["vm", "ls", "x"],
        &["vm", "show", "x/a"],
        &["vm", "stop", "x/a"],
        &["vm", "log", "x/a"],
        &["console", "x/a"],
        &["cp", "/etc/hosts", "x/a:/etc/hosts"],
        &["template", "show", "nosuch"],
        &["template", "rm", "nosuch"],
        &["host", "show", "nosuch"],
    ] {
        lab.tt(args).fails(1, "[ERR_TT_NOT_FOUND]");
    }
    lab.exec("x/a", &["true"]).fails(125, "[ERR_TT_NOT_FOUND]");
    lab.tt(&["template", "build", "debian"]).fails(1, "[ERR_TT_UNSUPPORTED]");
}
