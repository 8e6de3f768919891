//! The command line against the real API on a real socket. The records are real; the host that makes them so, and its
//! guests, are played by the test: a member is "ready" after its steps, and its programs are processes of this machine.

#![expect(clippy::unwrap_used, reason = "helpers of a test fail it")]

#[path = "served/daemon.rs"]
mod daemon;
#[path = "served/export.rs"]
mod export;
#[path = "served/guest.rs"]
mod guest;
#[path = "served/keys.rs"]
mod keys;
#[path = "served/life.rs"]
mod life;
#[path = "served/terminal.rs"]
mod terminal;

use daemon::Daemon;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Child;
use std::time::{Duration, Instant};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), signal).unwrap();
}

/// Reads lines until one has `part` in it.
fn read_until(reader: &mut impl BufRead, part: &str) -> String {
    let mut all = String::new();
    while !all.contains(part) {
        assert_ne!(reader.read_line(&mut all).unwrap(), 0, "no {part:?} in {all:?}");
    }
    all
}

#[test]
fn an_env_lives_from_create_to_destroy() {
    let daemon = Daemon::start();
    let create =
        ["env", "create", "shop", "--vm", "web=micro,port=80", "--vm", "db=micro", "--ttl", "4h"];
    let created = daemon.tt(&create);
    assert_eq!(
        created.out,
        "web  micro  qemu  10.0.0.2  ready 0.4s  192.0.2.7:20000 -> 80\n\
         db   micro  qemu  10.0.0.3  ready 0.4s\n"
    );
    for line in ["shop/web planned\n", "shop/web guest\n", "shop/db ready 0.4s\n"] {
        assert!(created.err.contains(line), "{}", created.err);
    }
    daemon
        .tt(&create)
        .fails(1, "error: env `shop`: there is one of this name\n  choose another name");

    let list = daemon.tt(&["env", "ls"]).out;
    // The clock goes on between planning and listing.
    let list = list.replace("3h59m left", "4h left");
    assert_eq!(list, "NAME  PHASE  VMS  AT END   LEFT\nshop  ready  2    destroy  4h left\n");
    let shown = daemon.tt(&["env", "show", "shop"]).out;
    assert!(shown.contains("name      shop\n") && shown.contains("db    micro"), "{shown}");
    let vms = daemon.tt(&["vm", "ls", "shop"]).out;
    assert!(vms.contains("shop/db   micro     qemu    10.0.0.3  ready 0.4s\n"), "{vms}");
    let vm = daemon.tt(&["vm", "show", "shop/web"]).out;
    assert!(vm.contains("7 forbidden, 0 too many"), "{vm}");
    assert!(
        vm.contains("reached at  192.0.2.7:20000 -> 80\n") && vm.contains("memory      128M\n"),
        "{vm}"
    );
    assert_eq!(daemon.tt(&["vm", "log", "shop/web", "--tail", "1K"]).out, "last 1024 bytes of 2\n");

    let stopped = daemon.tt(&["env", "stop", "shop", "--mode", "kill"]);
    assert!(stopped.out.contains("10.0.0.3  stopped\n"), "{}", stopped.out);
    let started = daemon.tt(&["env", "start", "shop"]);
    assert!(started.out.contains("10.0.0.3  ready 0.4s\n"), "{}", started.out);
    assert!(
        started.err.contains("too soon after the last call; trying again in "),
        "{}",
        started.err
    );
    let rests = daemon.tt(&["env", "stop", "shop"]);
    assert!(rests.out.contains("10.0.0.3  suspended\n"), "{}", rests.out);
    assert!(daemon.tt(&["env", "ls"]).out.contains("shop  suspended  2"));
    let started = daemon.tt(&["env", "start", "shop"]);
    assert!(started.err.contains("shop/web starting\n"), "{}", started.err);
    let paused = daemon.tt(&["vm", "stop", "shop/db", "--mode", "pause"]);
    assert!(paused.out.contains("shop/db  micro     qemu    10.0.0.3  paused\n"), "{}", paused.out);
    let running = daemon.tt(&["vm", "start", "shop/db", "-q"]);
    assert!(running.out.contains("ready 0.4s") && running.err.is_empty(), "{}", running.err);
    let extended = daemon.tt(&["env", "extend", "shop", "2h"]).out;
    assert_eq!(extended.replace("5h59m", "6h"), "shop  6h left\n");

    let destroyed = daemon.tt(&["env", "destroy", "shop"]);
    assert_eq!(destroyed.out, "shop destroyed\n");
    assert!(destroyed.err.contains("shop/web removing\n"), "{}", destroyed.err);
    assert_eq!(daemon.tt(&["env", "ls"]).out, "NAME  PHASE  VMS  AT END  LEFT\n");
    daemon.tt(&["env", "show", "shop"]).fails(1, "[ERR_TT_NOT_FOUND]");
}

#[test]
fn json_prints_the_result_and_nothing_else() {
    let daemon = Daemon::start();
    let created = daemon.tt(&["env", "create", "shop", "--vm", "micro,count=2", "--json"]);
    assert_eq!(created.err, "");
    let env: serde_json::Value = serde_json::from_str(&created.out).unwrap();
    assert_eq!((env["name"].as_str(), env["phase"].as_str()), (Some("shop"), Some("ready")));
    assert_eq!(env["vms"].as_array().unwrap().len(), 2);
    for args in [
        &["env", "ls"][..],
        &["env", "show", "shop"],
        &["vm", "ls"],
        &["vm", "show", "shop/micro-1"],
        &["vm", "log", "shop/micro-1"],
        &["template", "ls"],
        &["template", "show", "micro"],
        &["host", "ls"],
        &["host", "show"],
        &["verify"],
        &["verify", "--repair"],
        &["image", "ls"],
        &["snapshot", "create", "shop", "s", "--ttl", "1d"],
        &["snapshot", "ls", "shop"],
        &["snapshot", "apply", "shop/micro-1", "s"],
        &["snapshot", "rm", "shop", "s"],
        &["vm", "update", "shop/micro-1", "--cpu", "2"],
        &["vm", "add", "shop", "web=micro"],
        &["vm", "rm", "shop/web"],
        &["env", "deny-outgoing", "shop"],
        &["env", "allow-outgoing", "shop"],
        &["version"],
        &["env", "stop", "shop", "--no-wait"],
        &["env", "destroy", "shop"],
    ] {
        let output = daemon.tt(&[args, &["--json"]].concat());
        assert_eq!((output.code, output.err.as_str()), (Some(0), ""), "{args:?}");
        assert_eq!(output.out.lines().count(), 1, "{args:?}");
        serde_json::from_str::<serde_json::Value>(&output.out).unwrap();
    }
}

#[test]
fn a_member_that_fails_undoes_all_and_is_named() {
    let daemon = Daemon::start();
    let output = daemon.tt(&["env", "create", "shop", "--vm", "web=micro", "--vm", "bad=micro"]);
    assert_eq!((output.code, output.out.as_str()), (Some(1), ""));
    let expected = "error: env shop could not be created: bad: no such \\u{1b}[31mdisk\n  \
                    nothing is left of it; try again\n[ERR_TT_STORAGE_CREATE_IMAGE]\n";
    assert!(output.err.ends_with(expected), "{}", output.err);
    assert_eq!(daemon.tt(&["vm", "ls"]).out.lines().count(), 1);
}

#[test]
fn several_envs_go_side_by_side_and_each_failure_is_told() {
    let daemon = Daemon::start();
    for name in ["a", "b"] {
        daemon.tt(&["env", "create", name, "--vm", "micro", "--no-wait"]);
    }
    let output = daemon.tt(&["env", "destroy", "a", "none", "b", "nil", "-q"]);
    assert_eq!((output.code, output.out.as_str()), (Some(1), "a destroyed\nb destroyed\n"));
    assert!(
        output.err.contains("error: env `nil`") && output.err.contains("error: env `none`"),
        "{}",
        output.err
    );
    assert!(output.err.ends_with("error: 2 of 4 failed\n"), "{}", output.err);
}

#[test]
fn who_stops_waiting_stops_nothing_else() {
    let daemon = Daemon::start();
    let mut child = daemon.spawn(&["env", "create", "shop", "--vm", "slow=micro"]);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    read_until(&mut stderr, "shop/slow guest\n");
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert!(
        rest.ends_with("error: stopped waiting; the work goes on\n  look with: tt env show shop\n"),
        "{rest}"
    );
    assert!(daemon.tt(&["env", "ls"]).out.contains("creating"));
}

#[test]
fn waiting_survives_a_replaced_daemon() {
    let mut daemon = Daemon::start();
    let mut child = daemon.spawn(&["env", "create", "shop", "--vm", "slow=micro"]);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    read_until(&mut stderr, "shop/slow guest\n");
    daemon.replace();
    daemon.hurry();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "slow  micro  qemu  10.0.0.2  ready 0.4s\n"
    );
}

#[test]
fn events_are_lines_until_the_end() {
    let daemon = Daemon::start();
    daemon.tt(&["env", "create", "shop", "--vm", "web=micro"]);
    let mut child = daemon.spawn(&["env", "events", "shop"]);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    read_until(&mut stdout, "shop/web ready 0.4s\n");
    daemon.tt(&["env", "destroy", "shop"]);
    let rest = read_until(&mut stdout, "shop gone\n");
    assert!(rest.contains("shop/web removing\n"), "{rest}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn templates_and_hosts_are_listed() {
    let daemon = Daemon::start();
    let list = daemon.tt(&["template", "ls"]).out;
    assert!(
        list.starts_with("NAME   PHASE  DISK  ENGINES  DESCRIPTION\nmicro  ready  64M   qemu"),
        "{list}"
    );
    assert!(daemon.tt(&["template", "build", "micro"]).out.contains("micro  ready"));
    daemon.tt(&["template", "build", "macro"]).fails(1, "macro");
    daemon.tt(&["template", "rm", "none"]).fails(1, "[ERR_TT_NOT_FOUND]");
    assert!(daemon.tt(&["host", "ls"]).out.contains("here  192.0.2.7  0    4     0M of 8G  qemu"));
    let host = daemon.tt(&["host", "show"]).out;
    assert!(host.contains("inner addresses  10.0.0.0/16 of 10.0.0.0/8\n"), "{host}");
    assert!(host.contains("qemu    10.0     pause,suspend,shutdown,snapshot,"), "{host}");
    let well = "the host is what the records say (0 Envs, 0 Vms)\n";
    assert_eq!(daemon.tt(&["verify"]).out, well);
    let repaired = daemon.tt(&["verify", "--repair"]);
    assert!(
        repaired.out.starts_with("repaired:\nKIND   NAME   ID  WHAT\nimage  stray  9   images/9")
    );
    assert!(repaired.code == Some(0) && repaired.out.ends_with(well), "{}", repaired.out);
}

#[test]
fn a_program_in_a_guest_runs_as_if_it_ran_here() {
    let daemon = Daemon::start();
    daemon.tt(&["env", "create", "shop", "--vm", "web=micro"]);
    let run = |args: &[&str], input: &[u8]| daemon.tt_with(&[&["exec"][..], args].concat(), input);
    let output = run(&["shop/web", "--", "sh", "-c", "echo out; echo err >&2; exit 7"], b"");
    assert_eq!(
        (output.code, output.out.as_str(), output.err.as_str()),
        (Some(7), "out\n", "err\n")
    );
    let output =
        run(&["--env", "A=b c", "--cwd", "/", "shop/web", "--", "sh", "-c", "echo $A; pwd"], b"");
    assert_eq!(output.out, "b c\n/\n");
    let large = "x".repeat(1 << 20);
    assert!(run(&["-i", "shop/web", "--", "cat"], large.as_bytes()).out == large);
    assert_eq!(run(&["shop/web", "--", "cat"], b"not sent").out, "");
    assert_eq!(run(&["shop/web", "--", "sh", "-c", "kill -9 $$"], b"").code, Some(137));
    run(&["shop/web", "--", "no-such-program"], b"").fails(127, "error: the guest refused: ");
    run(&["shop/none", "--", "true"], b"").fails(125, "[ERR_TT_NOT_FOUND]");
}

#[test]
fn signals_reach_the_program_and_a_closed_pipe_ends_it_quietly() {
    let daemon = Daemon::start();
    daemon.tt(&["env", "create", "shop", "--vm", "web=micro"]);
    let script = "trap 'echo caught; exit 5' INT; echo up; while :; do sleep 0.05; done";
    let mut child = daemon.spawn(&["exec", "shop/web", "--", "sh", "-c", script]);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    read_until(&mut stdout, "up\n");
    signal(&child, Signal::INT);
    read_until(&mut stdout, "caught\n");
    assert_eq!(child.wait().unwrap().code(), Some(5));

    let mut child = daemon.spawn(&["exec", "shop/web", "--", "yes"]);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    read_until(&mut stdout, "y\n");
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(141), &b""[..]));
    daemon.guests_are_idle(PATIENCE);
}

#[test]
fn a_program_that_takes_no_input_can_still_be_stopped() {
    let daemon = Daemon::start();
    daemon.tt(&["env", "create", "shop", "--vm", "web=micro"]);
    let mut child =
        daemon.spawn(&["exec", "-i", "shop/web", "--", "sh", "-c", "echo up; exec sleep 1000"]);
    let mut stdin = child.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || while stdin.write_all(&[0; 65536]).is_ok() {});
    read_until(&mut BufReader::new(child.stdout.take().unwrap()), "up\n");
    std::thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(start.elapsed() < PATIENCE);
    feeder.join().unwrap();
    daemon.guests_are_idle(PATIENCE);
}

#[test]
fn all_members_run_it_at_once() {
    let daemon = Daemon::start();
    daemon.tt(&["env", "create", "shop", "--vm", "web=micro", "--vm", "cache=micro"]);
    let output = daemon.tt(&["exec", "--all", "shop", "--", "printf", "a\nb"]);
    let mut lines: Vec<&str> = output.out.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        (output.code, lines),
        (Some(0), vec!["cache | a", "cache | b", "web   | a", "web   | b"])
    );
    let output = daemon.tt(&["exec", "--all", "shop", "--", "sh", "-c", "exit 3"]);
    assert_eq!(output.code, Some(1));
    assert!(
        output.err.contains("web: exit code 3\n") && output.err.contains("cache: exit code 3\n"),
        "{}",
        output.err
    );
}

#[test]
fn files_go_in_and_out() {
    let daemon = Daemon::start();
    daemon.tt(&["env", "create", "shop", "--vm", "web=micro"]);
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir_all(at("tree/deep")).unwrap();
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    fs::write(at("tree/deep/large"), &large).unwrap();
    fs::set_permissions(at("tree/deep/large"), fs::Permissions::from_mode(0o640)).unwrap();

    let inside = daemon.guest_root().join("srv");
    fs::create_dir(&inside).unwrap();
    assert_eq!(daemon.tt(&["cp", &at("tree"), "shop/web:/srv"]).code, Some(0));
    assert!(fs::read(inside.join("tree/deep/large")).unwrap() == large);
    assert_eq!(daemon.tt(&["cp", &at("tree/deep/large"), "shop/web:/srv/one"]).code, Some(0));
    assert!(fs::read(inside.join("one")).unwrap() == large);

    assert_eq!(daemon.tt(&["cp", "shop/web:/srv/tree", &at("copy")]).code, Some(0));
    assert!(fs::read(at("copy/deep/large")).unwrap() == large);
    let mode = fs::metadata(at("copy/deep/large")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let output = daemon.tt(&["cp", "shop/web:/srv/one", &at("copy"), "--json"]);
    assert!(output.out.contains("\"archive_bytes\":300"), "{}", output.out);
    assert!(fs::read(at("copy/one")).unwrap() == large);

    daemon.tt(&["cp", &at("none"), "shop/web:/srv"]).fails(1, "error: cannot copy ");
    daemon.tt(&["cp", "shop/web:/none", &at("x")]).fails(1, "error: the guest refused: ");
    daemon.tt(&["cp", &at("tree"), "shop/web:/none/x/y"]).fails(1, "error: the guest refused: ");
    daemon.tt(&["cp", "shop/web:/srv/one", &at("no/such/dir")]).fails(1, "error: cannot copy ");
    assert!(!fs::exists(at("x")).unwrap());
}
