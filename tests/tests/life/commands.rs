//! Programs in guests, copies both ways, the console.

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::time::Duration;
use testkit::Lab;

/// More than any buffer on the way.
const BIG_BYTES: usize = 5 << 20;

#[test]
fn programs_run_in_guests_and_files_go_both_ways() {
    let Some(lab) = Lab::new("programs_run_in_guests_and_files_go_both_ways") else { return };
    lab.tt(&["env", "create", "desk", "--vm", "a=micro", "--vm", "b=micro"]).good();
    codes_and_streams_are_passed_on(&lab);
    all_members_at_once(&lab);
    a_terminal_is_one(&lab);
    files_and_directories_go_both_ways(&lab);
    the_console_is_kept_and_live(&lab);
    a_lifetime_is_extended(&lab);
    lab.tt(&["env", "destroy", "desk"]).good();
    lab.finish();
}

fn codes_and_streams_are_passed_on(lab: &Lab) {
    for code in [0, 1, 2, 42, 255] {
        assert_eq!(lab.exec("desk/a", &["sh", "-c", &format!("exit {code}")]).code, Some(code));
    }
    assert_eq!(lab.exec("desk/a", &["sh", "-c", "kill -9 $$"]).code, Some(128 + 9));
    assert_eq!(lab.exec("desk/a", &["/no/such/program"]).code, Some(127));
    assert_eq!(lab.exec("desk/a", &["/etc/hosts"]).code, Some(126));
    let both = lab.exec("desk/a", &["sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((both.out.as_str(), both.err.as_str()), ("out\n", "err\n"));
    let lines: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    let back = lab.tt_with(&["exec", "-i", "desk/a", "--", "cat"], lines.as_bytes());
    assert_eq!(back.good(), lines);
    let alone = lab.tt_with(&["exec", "desk/a", "--", "cat"], b"not sent");
    assert_eq!(alone.good(), "");
    let told =
        ["exec", "--env", "A=1 2", "--cwd", "/tmp", "desk/a", "--", "sh", "-c", "echo \"$A\" $PWD"];
    assert_eq!(lab.tt(&told).good(), "1 2 /tmp\n");
    let user = lab.tt(&["exec", "--user", "nobody", "--cwd", "/", "desk/a", "--", "id", "-u"]);
    assert_eq!(user.good(), "65534\n");
}

fn all_members_at_once(lab: &Lab) {
    let run = lab.tt(&["exec", "--all", "desk", "--", "hostname"]);
    let mut lines: Vec<String> = run.good().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (line, vm) in lines.iter().zip(["a", "b"]) {
        assert!(line.starts_with(vm) && line.ends_with(vm), "{lines:?}");
    }
    let one_fails = ["exec", "--all", "desk", "--", "sh", "-c", "test $(hostname) = a"];
    assert_eq!(lab.tt(&one_fails).code, Some(1));
}

/// A program with a terminal of its own, and this side of it.
struct Session {
    child: Child,
    terminal: File,
    seen: String,
}

impl Session {
    fn start(lab: &Lab, args: &[&str]) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        tcsetwinsize(&ours, Winsize { ws_row: 33, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 })
            .unwrap();
        let path = ptsname(&ours, Vec::new()).unwrap();
        let theirs =
            || File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
        let mut command = lab.command(args);
        let command = command.stdin(Stdio::from(theirs())).stdout(theirs()).stderr(theirs());
        let child = command.env("TERM", "vt100").spawn().unwrap();
        rustix::io::ioctl_fionbio(&ours, true).unwrap();
        Self { child, terminal: File::from(ours), seen: String::new() }
    }

    fn types(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).unwrap();
    }

    #[track_caller]
    fn shows(&mut self, text: &str) {
        let mut data = [0; 4096];
        let came = testkit::within(Duration::from_secs(60), || {
            while let Ok(length @ 1..) = self.terminal.read(&mut data) {
                self.seen += &String::from_utf8_lossy(&data[..length]);
            }
            self.seen.contains(text)
        });
        assert!(came, "{text:?} is not in {:?}", self.seen);
    }

    #[track_caller]
    fn ends(&mut self) -> Option<i32> {
        let mut status = None;
        assert!(testkit::within(Duration::from_secs(60), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        }));
        status.unwrap().code()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn a_terminal_is_one(lab: &Lab) {
    let mut session = Session::start(lab, &["exec", "-it", "desk/a", "--", "sh"]);
    session.types("tty; stty size; echo term=$TERM\r");
    session.shows("/dev/pts/");
    session.shows("33 111");
    session.shows("term=vt100");
    // Ctrl-C goes to the guest's program, not to ours.
    session.types("sleep 1000\r");
    std::thread::sleep(Duration::from_secs(1));
    session.types("\u{3}");
    session.types("echo still $((40 + 2))\r");
    session.shows("still 42");
    session.types("exit 7\r");
    assert_eq!(session.ends(), Some(7));
}

fn files_and_directories_go_both_ways(lab: &Lab) {
    let here = lab.dir().join("copies");
    fs::create_dir(&here).unwrap();
    let path = |name: &str| here.join(name).display().to_string();
    // No two blocks alike, so that a lost or doubled one is seen.
    let big: Vec<u8> = (0..BIG_BYTES as u64).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    fs::write(here.join("big"), &big).unwrap();
    lab.tt(&["cp", &path("big"), "desk/a:/root/big"]).good();
    let sum = std::process::Command::new("sha256sum").arg(here.join("big")).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    let sum = sum.split(' ').next().unwrap();
    assert!(lab.sh("desk/a", "sha256sum /root/big").starts_with(sum));
    lab.tt(&["cp", "desk/a:/root/big", &path("back")]).good();
    assert!(fs::read(here.join("back")).unwrap() == big, "the copy differs");

    let tree = here.join("tree");
    fs::create_dir_all(tree.join("deep/er")).unwrap();
    fs::create_dir(tree.join("empty")).unwrap();
    fs::write(tree.join("deep/er/script"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(tree.join("deep/er/script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(tree.join("a name, with ä and\nline"), "").unwrap();
    std::os::unix::fs::symlink("deep/er/script", tree.join("link")).unwrap();
    lab.tt(&["cp", &path("tree"), "desk/b:/root"]).good();
    assert_eq!(lab.sh("desk/b", "/root/tree/link"), "ran");
    assert_eq!(lab.sh("desk/b", "ls -A /root/tree | wc -l"), "4");
    lab.tt(&["cp", "desk/b:/root/tree", &path("again")]).good();
    let mut diff = std::process::Command::new("diff");
    let diff = diff.args(["-r", "--no-dereference"]).arg(&tree).arg(here.join("again"));
    let diff = diff.output().unwrap();
    assert!(diff.status.success(), "{diff:?}");
    let missing = lab.tt(&["cp", "desk/b:/no/such/file", &path("none")]);
    missing.fails(1, "/no/such/file");
    assert!(!here.join("none").exists());
    fs::remove_dir_all(&here).unwrap();
}

fn the_console_is_kept_and_live(lab: &Lab) {
    let log = lab.tt(&["vm", "log", "desk/a"]).good();
    assert!(log.contains("tt-guest: ready"), "{log}");
    let tail = lab.tt(&["vm", "log", "desk/a", "--tail", "100"]).good();
    assert!(tail.len() <= 100 && log.contains(tail.lines().last().unwrap_or_default()), "{tail}");
    let mut session = Session::start(lab, &["console", "desk/a"]);
    lab.sh("desk/a", "sleep 1; echo mark-$((20 + 3)) >/dev/console");
    session.shows("mark-23");
    drop(session);
    let came = testkit::within(Duration::from_secs(10), || {
        lab.tt(&["vm", "log", "desk/a"]).out.contains("mark-23")
    });
    assert!(came, "the log lacks what the console showed");
}

fn a_lifetime_is_extended(lab: &Lab) {
    let time = |field: &str| lab.env("desk").unwrap()[field].as_u64().unwrap();
    let (start, end) = (time("start_timestamp"), time("end_timestamp"));
    lab.tt(&["env", "extend", "desk", "2h"]).good();
    // Only the end can be changed.
    assert_eq!((time("start_timestamp"), time("end_timestamp")), (start, end + 7200));
}
