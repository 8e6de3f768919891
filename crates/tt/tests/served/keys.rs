//! What is typed and drawn on a terminal.

use crate::PATIENCE;
use crate::daemon::Daemon;
use rustix::process::Signal;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

#[test]
fn the_terminal_is_put_back_however_it_ends() {
    let daemon = Daemon::start();
    daemon.tt(&["env", "create", "shop", "--vm", "web=micro"]);
    let exec = |script| ["exec", "-it", "shop/web", "--", "sh", "-c", script];
    let waiting = "echo up; exec sleep 1000";

    let mut session = daemon.on_terminal(&exec("echo up; cat"));
    session.read_until("up");
    assert!(session.is_raw());
    // In raw mode Ctrl-C is a key for the guest; the end of input is told by none.
    session.type_keys(b"hello\x03");
    session.read_until("hello\x03");
    session.signal(Signal::HUP);
    assert_eq!((session.wait().code(), session.is_raw()), (Some(129), false));

    let mut session = daemon.on_terminal(&exec("echo up; exit 4"));
    session.read_until("up");
    assert_eq!((session.wait().code(), session.is_raw()), (Some(4), false));

    for (number, code) in [(Signal::TERM, 143), (Signal::QUIT, 131), (Signal::INT, 130)] {
        let mut session = daemon.on_terminal(&exec(waiting));
        session.read_until("up");
        session.signal(number);
        assert_eq!((session.wait().code(), session.is_raw()), (Some(code), false));
    }
    // Without -i nobody would hear Ctrl-C in raw mode: it stays a signal and is forwarded.
    let mut session = daemon.on_terminal(&["exec", "-t", "shop/web", "--", "sh", "-c", waiting]);
    session.read_until("up");
    assert!(!session.is_raw());
    session.type_keys(b"\x03");
    assert_eq!(session.wait().code(), Some(130));
    daemon.guests_are_idle(PATIENCE);
}

#[test]
fn a_console_is_left_with_its_key() {
    let daemon = Daemon::start();
    daemon.tt(&["env", "create", "shop", "--vm", "web=micro"]);
    let mut session = daemon.on_terminal(&["console", "shop/web"]);
    session.read_until("console of shop/web; leave it with Ctrl-]");
    session.read_until("login: ");
    assert!(session.is_raw());
    session.type_keys(b"root\r");
    session.read_until("root");
    session.type_keys(b"\x1d");
    session.read_until("left the console");
    let status = session.wait();
    assert_eq!((status.code(), status.signal(), session.is_raw()), (Some(0), None, false));
}

#[test]
fn progress_on_a_terminal_is_one_line_for_each_member() {
    let daemon = Daemon::start();
    let mut session = daemon.on_terminal(&["env", "create", "shop", "--vm", "web=micro,port=80"]);
    let text = session.read_until("192.0.2.7:20000 -> 80");
    assert!(text.contains("web  micro  qemu  10.0.0.2  guest"), "{text:?}");
    assert!(!text.contains("shop/web planned"), "{text:?}");
    assert_eq!(session.wait().code(), Some(0));
    let piped = daemon.spawn_with(&["env", "ls"], Stdio::null());
    assert_eq!(piped.wait_with_output().unwrap().status.code(), Some(0));
}
