//! Command lines that make no sense, run as a user runs them: each ends with its exit code and says what is wrong. No
//! daemon is there, and nothing is changed.

use std::process::{Command, Output};

/// A program whose environment says nothing of a daemon.
fn tt(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tt"));
    command
        .args(args)
        .env_remove("TT_SOCKET")
        .env_remove("TT_LOG")
        .output()
        .unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn assert_refused(args: &[&str], code: i32, expected: &str) {
    let output = tt(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
    assert!(error.contains(expected), "{args:?}: {error}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    let create = ["env", "create"];
    for (args, expected) in [
        (&[][..], "Usage: tt"),
        (&["frobnicate"], "unrecognized subcommand 'frobnicate'"),
        (&["--frob", "env", "ls"], "unexpected argument '--frob'"),
        (&["env"], "Usage: tt env"),
        (&["env", "list"], "unrecognized subcommand 'list'"),
        (&["-q", "-v", "env", "ls"], "cannot be used with"),
        (&["env", "ls", "shop"], "unexpected argument 'shop'"),
        (&["env", "show"], "<ENV>"),
        (&["env", "show", "Shop"], "env `Shop`: it has characters that are not allowed"),
        (&["env", "show", "../etc"], "env `../etc`"),
        (&["env", "show", ""], "env ``: it is empty"),
        (
            &["env", "stop", "shop", "--mode", "sleep"],
            "[possible values: suspend, pause, shutdown, kill]",
        ),
        (&["env", "start"], "<ENV>"),
        (&["env", "extend", "shop"], "<DURATION>"),
        (&["env", "extend", "shop", "4"], "`4` is no duration; write e.g. 30m, 4h or 1d12h"),
        (&["env", "extend", "shop", "0s"], "`0s` is no whole number of seconds above 0"),
        (&["env", "destroy"], "<ENV>..."),
        (&["env", "destroy", "shop", "Bad"], "env `Bad`"),
        (&["vm", "show", "shop"], "`shop` names no Vm; write ENV/VM"),
        (&["vm", "show", "shop/web/x"], "vm `web/x`"),
        (&["vm", "log", "shop/web", "--tail", "1G"], "`1G` is no number of bytes"),
        (&["vm", "log", "shop/web", "--tail", "0"], "`0` is no number of bytes"),
        (&["vm", "stop", "shop/web", "--mode", ""], "a value is required for '--mode <MODE>'"),
        (&["exec", "shop/web"], "<CMD>"),
        (&["exec", "shop/web", "--"], "<CMD>"),
        (&["exec", "shop/web", "ls"], "unexpected argument 'ls'"),
        (&["exec", "--all", "-t", "shop", "--", "ls"], "cannot be used with"),
        (&["exec", "--env", "A", "shop/web", "--", "ls"], "`A` sets nothing; write NAME=VALUE"),
        (&["exec", "--env", "=A", "shop/web", "--", "ls"], "`=A` sets nothing"),
        (
            &["exec", "shop", "--", "ls"],
            "error: `shop` names no Vm; write ENV/VM\n  name a member as ENV/VM, or an Env",
        ),
        (&["exec", "--all", "shop/web", "--", "ls"], "error: env `shop/web`"),
        (&["console"], "<ENV/VM>"),
        (&["cp", "a"], "<DST>"),
        (
            &["cp", "a", "b"],
            "error: neither path is in a guest\n  write exactly one of them as ENV/VM:PATH",
        ),
        (&["cp", "shop/web:/a", "shop/web:/b"], "error: both paths are in guests"),
        (&["cp", "shop/web:a", "b"], "path `a` in shop/web: it must be absolute"),
        (&["template", "show"], "<TEMPLATE>"),
        (&["template", "pull"], "<REFERENCE>"),
        (&["template", "pull", "r.org/A"], "reference `r.org/A`"),
        (&["template", "pull", "[::1]:5000/x"], "say a NAME behind it"),
        (&["template", "push", "micro"], "<REFERENCE>"),
        (&["template", "push", "micro", "r.org/a", "--stop"], "cannot be used with"),
        (&["host", "show", "a", "b"], "unexpected argument 'b'"),
        (&["completions", "cmd"], "[possible values: bash"),
        (&["daemon", "--range", "10.0.0.0"], "invalid value '10.0.0.0' for '--range <NET>'"),
        (
            &["daemon", "--storage", "floppy"],
            "[possible values: auto, file, qcow2, btrfs, zfs, zvol]",
        ),
        (&["daemon", "--accelerator", "xen"], "[possible values: auto, kvm, tcg]"),
        (&["daemon", "--port-min", "70000"], "70000 is not in 0..=65535"),
        (&create, "<NAME>"),
        (&["env", "create", "shop"], "--vm <SPEC>"),
    ] {
        assert_refused(args, 2, expected);
    }
}

#[test]
fn wrong_changes_and_snapshots_are_usage_errors() {
    for (args, expected) in [
        (&["env", "deny-outgoing"][..], "<ENV>"),
        (&["env", "allow-outgoing", "Shop"], "env `Shop`"),
        (&["vm", "add", "shop"], "<SPEC>"),
        (&["vm", "add", "shop/web", "micro"], "env `shop/web`"),
        (&["vm", "add", "shop", "micro,cpu=0"], "cpu=0: it is no number"),
        (&["vm", "rm", "shop"], "`shop` names no Vm"),
        (&["vm", "update", "shop/web"], "required arguments were not provided"),
        (&["vm", "update", "shop/web", "--name", "Web"], "vm `Web`"),
        (&["vm", "update", "shop/web", "--cpu", "0"], "0 is not in 1..=65535"),
        (&["vm", "update", "shop/web", "--mem", "1GB"], "\"1GB\" is no size"),
        (&["vm", "update", "shop/web", "--mem", "1M"], "mem_size 1: no guest boots in so little"),
        (&["vm", "update", "shop/web", "--port", "0"], "\"0\" is no port"),
        (&["vm", "update", "shop/web", "--port", "80", "--port", "80"], "it is given twice"),
        (&["vm", "update", "shop/web", "--port", "80", "--no-ports"], "cannot be used with"),
        (&["vm", "update", "shop/web", "--block", "::1/128"], "invalid value '::1/128'"),
        (
            &["vm", "update", "shop/web", "--block", "192.0.2.1", "--no-block"],
            "cannot be used with",
        ),
        (
            &["vm", "update", "shop/web", "--deny-outgoing", "--allow-outgoing"],
            "cannot be used with",
        ),
        (&["vm", "update", "shop/web", "--keep-image", "--no-keep-image"], "cannot be used with"),
        (&["snapshot"], "Usage: tt snapshot"),
        (&["snapshot", "create", "shop"], "<NAME>"),
        (&["snapshot", "create", "shop/web/x", "s"], "vm `web/x`"),
        (&["snapshot", "create", "shop", "a/b"], "snapshot `a/b`"),
        (&["snapshot", "create", "shop", "s", "--ttl", "0s"], "`0s` is no whole number"),
        (&["snapshot", "apply", "shop", ""], "snapshot ``: it is empty"),
        (&["snapshot", "rm", "shop"], "<NAME>"),
        (&["snapshot", "ls"], "<ENV[/VM]>"),
        (&["image", "rm", "web"], "invalid value 'web' for '<ID>'"),
        (&["image", "rm"], "<ID>"),
        (&["verify", "--fix"], "unexpected argument '--fix'"),
        (&["recover", "now"], "unexpected argument 'now'"),
    ] {
        assert_refused(args, 2, expected);
    }
}

#[test]
fn a_wrong_member_is_a_usage_error_that_names_it() {
    for (spec, expected) in [
        ("", "`` stands where the template belongs"),
        ("cpu=2", "`cpu=2` stands where the template belongs"),
        ("micro,cpu=0", "cpu=0: it is no number; write a whole one from 1 to 65535"),
        ("micro,mem=1", "mem_size 1: no guest boots in so little memory"),
        ("micro,port=80,port=80", "port 80: it is given twice"),
        ("micro,net=bridge", "it is no kind of network; write nat or flat"),
        ("micro,keep-images", "`keep-images` is no option; use engine=NAME"),
        ("micro,keep-image=1", "keep-image takes no value, but has `1`"),
        ("micro,image=x", "image=x: it is no number"),
    ] {
        assert_refused(&["env", "create", "shop", "--vm", spec], 2, expected);
    }
    let create = ["env", "create", "shop", "--vm", "micro"];
    for (more, expected) in [
        (["--ttl", "soon"], "`soon` is no duration"),
        (["--at-end", "sleep"], "[possible values: destroy, stop]"),
        (["--block", "example.org"], "invalid value 'example.org' for '--block <ADDRESS>'"),
        (["--block", "::1/128"], "invalid value '::1/128'"),
    ] {
        assert_refused(&[&create[..], &more[..]].concat(), 2, expected);
    }
}

#[test]
fn without_a_daemon_every_question_fails_and_says_what_to_do() {
    let socket = ["--socket", "/nowhere/api.sock"];
    let expected = "error: no daemon answers at /nowhere/api.sock: No such file or directory (os error 2)\n  \
                    start `tt daemon`, or name its socket with --socket or TT_SOCKET\n";
    for args in [
        &["env", "ls"][..],
        &["env", "create", "shop", "--vm", "micro"],
        &["env", "destroy", "shop"],
        &["env", "events", "shop"],
        &["env", "extend", "shop", "1h", "--json"],
        &["vm", "ls"],
        &["vm", "stop", "shop/web"],
        &["template", "build", "micro"],
        &["host", "show"],
        &["verify"],
        &["verify", "--repair"],
        &["env", "deny-outgoing", "shop"],
        &["vm", "add", "shop", "web=micro"],
        &["vm", "rm", "shop/web"],
        &["vm", "update", "shop/web", "--no-ports"],
        &["snapshot", "create", "shop", "s"],
        &["snapshot", "ls", "shop/web"],
        &["snapshot", "apply", "shop/web", "s"],
        &["snapshot", "rm", "shop", "s"],
        &["image", "ls"],
        &["image", "rm", "7"],
        &["console", "shop/web"],
        &["cp", "shop/web:/a", "/tmp"],
    ] {
        let args = [args, &socket[..]].concat();
        assert_refused(&args, 1, expected);
    }
    assert_refused(&[&socket[..], &["exec", "shop/web", "--", "ls"]].concat(), 125, expected);
    assert_refused(&[&socket[..], &["exec", "--all", "shop", "--", "ls"]].concat(), 125, expected);
}

#[test]
fn a_wrong_configuration_is_named_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let config = path("tt.toml");
    let long = path(&"r".repeat(80));
    std::fs::write(&config, "port_min = 4\nporst = 5\n").unwrap();
    assert_refused(&["daemon", "--config", &config], 1, "unknown field `porst`");
    assert_refused(&["recover", "--config", &config], 1, "unknown field `porst`");
    assert_refused(&["daemon", "--config", &path("none")], 1, "none: No such file or directory");
    let run = ["daemon", "--data", &path("d"), "--run", &path("r")];
    for (more, expected) in [
        (
            ["--port-min", "30000"],
            "error: port_min..port_max = 30000..29999: it is no range of ports\n  give ports",
        ),
        (
            ["--range", "10.0.0.0/24"],
            "error: range = 10.0.0.0/24: it can not hold the inner addresses\n",
        ),
        (
            ["--public-addr", "10.1.1.1"],
            "error: public_addr = 10.1.1.1: no port can be reached there\n",
        ),
        (["--log", "tt=loud"], "error: log = tt=loud: "),
        (
            ["--guest-agent", "/nowhere/tt-guest"],
            "error: there is no guest agent at /nowhere/tt-guest\n  install",
        ),
    ] {
        assert_refused(&[&run[..], &more[..]].concat(), 1, expected);
    }
    assert_refused(&["daemon", "--run", &long], 1, "it is too long for the sockets below it");
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["tt.toml"]);
}

#[test]
fn help_version_and_completions_need_no_daemon() {
    for (args, expected) in [
        (&["--help"][..], "Usage: tt"),
        (&["--version"], env!("CARGO_PKG_VERSION")),
        (&["env", "create", "--help"], "[NAME=]TEMPLATE"),
        (&["vm", "add", "--help"], "[,keep-image]"),
        (&["snapshot", "create", "--help"], "--no-memory"),
        (&["recover", "--help"], "--skip-damaged"),
        (&["exec", "--help"], "126 if it can not be run"),
        (&["version", "--socket", "/nowhere/api.sock"], "daemon unknown: no daemon answers"),
        (&["version", "--json", "--socket", "/nowhere/api.sock"], "\"daemon\":null"),
        (&["completions", "bash"], "complete -F _tt"),
        (&["completions", "zsh"], "#compdef tt"),
        (&["completions", "fish"], "complete -c tt"),
    ] {
        let output = tt(args);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(text.contains(expected), "{args:?}: {text}");
    }
}
