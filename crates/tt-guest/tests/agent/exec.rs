//! Programs run by the agent: output, input, exit, terminals, signals, users, limits.

use std::time::{Duration, Instant};

use crate::client::{Agent, Outcome, exec, is_alive, wait_until};
use tt_guest::flow::{MAX_STREAMS, WINDOW};
use tt_guest::frame::{self, Kind};
use tt_guest::message::{Exec, FailureCode, GuestMessage, HostMessage, Tty};

#[test]
fn output_error_and_exit_code_come_back() {
    let agent = Agent::start();
    let mut client = agent.client();
    let done = client.shell(1, "echo out; echo err >&2; exit 7");
    assert_eq!(
        (done.text().as_str(), done.stderr.as_slice(), done.code),
        ("out\n", b"err\n".as_slice(), Some(7))
    );
    assert_eq!(client.run(2, &["true"]).code, Some(0), "PATH is searched");
    let killed = client.shell(3, "kill -9 $$");
    assert_eq!((killed.code, killed.signal), (None, Some(9)));
}

#[test]
fn what_cannot_run_fails_with_a_stable_code() {
    let agent = Agent::start();
    let mut client = agent.client();
    let plain = agent.scratch().join("plain");
    std::fs::write(&plain, "text").unwrap();
    assert_eq!(client.run(1, &["no-such-program"]).failed, Some(FailureCode::NotFound));
    assert_eq!(client.run(2, &["/no/such/program"]).failed, Some(FailureCode::NotFound));
    assert_eq!(client.run(3, &[plain.to_str().unwrap()]).failed, Some(FailureCode::Permission));
    assert_eq!(client.run(4, &[]).failed, Some(FailureCode::BadMessage));
    assert_eq!(client.run(0, &["true"]).failed, Some(FailureCode::BadMessage));
    client.send(&HostMessage::Exec(Exec {
        user: Some("no-such-user".to_owned()),
        ..exec(5, &["true"])
    }));
    assert_eq!(client.follow(5, &[]).failed, Some(FailureCode::NoUser));
    client
        .send(&HostMessage::Exec(Exec { cwd: Some("/no/where".to_owned()), ..exec(6, &["true"]) }));
    assert_eq!(client.follow(6, &[]).failed, Some(FailureCode::BadPath));
    client.send(&HostMessage::Exec(Exec {
        env: vec![("A=B".to_owned(), String::new())],
        ..exec(7, &["true"])
    }));
    assert_eq!(client.follow(7, &[]).failed, Some(FailureCode::BadMessage));
    assert_eq!(client.run(8, &["nul\0byte"]).failed, Some(FailureCode::Io));
    assert_eq!(client.run(9, &["true"]).code, Some(0));
}

#[test]
fn environment_directory_user_and_groups_are_as_asked() {
    let agent = Agent::start();
    let mut client = agent.client();
    let plain = client.run(1, &["env"]).text();
    assert!(
        plain.contains("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"),
        "{plain}"
    );
    assert!(plain.contains("HOME=/root\n") && !plain.contains("TERM="), "{plain}");
    let environment =
        vec![("HOME".to_owned(), "/x".to_owned()), ("MINE".to_owned(), "a b".to_owned())];
    let asked = Exec {
        env: environment,
        cwd: Some("/usr".to_owned()),
        ..exec(2, &["/bin/sh", "-c", "echo $HOME $MINE; pwd"])
    };
    client.send(&HostMessage::Exec(asked));
    assert_eq!(client.follow(2, &[]).text(), "/x a b\n/usr\n");
    client.send(&HostMessage::Exec(Exec {
        user: Some("nobody".to_owned()),
        ..exec(3, &["id", "-u"])
    }));
    assert_eq!(client.follow(3, &[]).text(), "65534\n");
    client.send(&HostMessage::Exec(Exec {
        user: Some("daemon".to_owned()),
        ..exec(4, &["id", "-G"])
    }));
    assert_eq!(client.follow(4, &[]).text(), "1\n");
    // Own session and process group, no blocked signal, no descriptor but the three.
    let script = "cat /proc/self/stat | cut -d' ' -f5,6; echo $$; grep SigBlk /proc/self/status";
    let seen = client.shell(5, script).text();
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[0], format!("{0} {0}", lines[1]));
    assert_eq!(lines[2], "SigBlk:\t0000000000000000");
    // The fourth is the directory that `ls` reads.
    assert_eq!(client.run(6, &["ls", "/proc/self/fd"]).text(), "0\n1\n2\n3\n");
}

#[test]
fn input_arrives_whole_and_ends() {
    let agent = Agent::start();
    let mut client = agent.client();
    let input: Vec<u8> = (0..5 * WINDOW).map(|at| (at % 251) as u8).collect();
    client.send(&HostMessage::Exec(exec(1, &["cat"])));
    let done = client.follow(1, &input);
    assert!(done.stdout == input, "{} of {} bytes came back", done.stdout.len(), input.len());
    assert_eq!(done.code, Some(0));
    client.send(&HostMessage::Exec(exec(2, &["head", "-c", "3"])));
    let done = client.follow(2, &input);
    assert_eq!(
        (done.stdout.as_slice(), done.code),
        (&input[..3], Some(0)),
        "input that nobody reads is dropped"
    );
    for stream in 10..60 {
        client.send(&HostMessage::Exec(exec(stream, &["wc", "-c"])));
        assert_eq!(
            client.follow(stream, b"12345").text(),
            "5\n",
            "the end of input arrives without any output"
        );
    }
    client.send(&HostMessage::Exec(exec(3, &["/bin/sh", "-c", "exec <&-; sleep 0.3; echo done"])));
    assert_eq!(client.follow(3, &input).text(), "done\n");
}

#[test]
fn a_terminal_has_its_size_and_type_and_is_resized() {
    let agent = Agent::start();
    let mut client = agent.client();
    let tty = |rows, cols| Some(Tty { rows, cols, term: "xterm".to_owned() });
    let script = "stty size; echo $TERM; test -t 0 && test -t 2 && tty; trap 'stty size; exit 3' WINCH; echo go; while :; do sleep 0.05; done";
    client.send(&HostMessage::Exec(Exec {
        tty: tty(33, 101),
        ..exec(1, &["/bin/sh", "-c", script])
    }));
    let mut outcome = Outcome::default();
    while !outcome.text().contains("go\r\n") {
        let frame = client.frame();
        assert!(!client.collect(1, &frame, &mut outcome), "{outcome:?}");
    }
    assert!(outcome.text().starts_with("33 101\r\nxterm\r\n/dev/pts/"), "{outcome:?}");
    client.send(&HostMessage::Resize { stream: 1, rows: 5, cols: 6 });
    loop {
        let frame = client.frame();
        if client.collect(1, &frame, &mut outcome) {
            break;
        }
    }
    assert!(outcome.text().ends_with("5 6\r\n"), "{outcome:?}");
    assert_eq!(outcome.code, Some(3));

    client.send(&HostMessage::Exec(Exec { tty: tty(1, 1), ..exec(2, &["cat"]) }));
    assert_eq!(
        client.follow(2, b"typed\n").text(),
        "typed\r\ntyped\r\n",
        "echoed, read, and ended by end of input"
    );
}

#[test]
fn signals_reach_the_whole_process_group() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.send(&HostMessage::Exec(exec(1, &["/bin/sh", "-c", "sleep 1000 & echo $!; wait"])));
    let frame = loop {
        let frame = client.frame();
        if frame.kind == Kind::Stdout {
            break frame;
        }
    };
    let inner: u32 = String::from_utf8(frame.payload).unwrap().trim().parse().unwrap();
    for ignored in [0, 65, -9, i32::MIN] {
        client.send(&HostMessage::Signal { stream: 1, signal: ignored });
    }
    client.send(&HostMessage::Signal { stream: 99, signal: 15 });
    client.send(&HostMessage::Signal { stream: 1, signal: 15 });
    assert_eq!(client.follow(1, &[]).signal, Some(15));
    wait_until("the end of the group", || !is_alive(inner));
}

#[test]
fn a_stream_that_is_given_up_ends_even_if_its_program_ignores_it() {
    let agent = Agent::start();
    let mut client = agent.client();
    let script = "trap '' HUP TERM; echo deaf; while :; do sleep 0.05; done";
    client.send(&HostMessage::Exec(exec(1, &["/bin/sh", "-c", script])));
    while client.frame().kind != Kind::Stdout {}
    client.send(&HostMessage::Cancel { stream: 1 });
    assert_eq!(client.follow(1, &[]).signal, Some(9));
}

#[test]
fn what_a_program_leaves_behind_does_not_hold_its_exit_up() {
    let agent = Agent::start();
    let mut client = agent.client();
    let began = Instant::now();
    let done = client.shell(1, "sleep 30 & echo $!; exit 4");
    assert_eq!(done.code, Some(4));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let left: i32 = done.text().trim().parse().unwrap();
    assert!(is_alive(left as u32), "it goes on running");
    assert!(client.shell(2, &format!("kill {left}")).code == Some(0));
    let done = client.shell(3, "yes & exit 5");
    assert_eq!(done.code, Some(5), "not even if it writes for ever");
}

#[test]
fn a_slow_reader_gets_everything_and_holds_nothing_up() {
    let agent = Agent::start();
    let mut client = agent.client();
    let size = 40 * WINDOW as usize;
    client.send(&HostMessage::Exec(exec(
        1,
        &["/bin/sh", "-c", &format!("head -c {size} /dev/zero; echo end >&2")],
    )));
    let mut first = 0;
    while first < WINDOW as usize {
        let frame = client.frame();
        first += if frame.kind == Kind::Stdout { frame.payload.len() } else { 0 };
    }
    assert_eq!(first, WINDOW as usize);
    assert!(client.is_silent_for(Duration::from_millis(300)), "no byte beyond the window comes");
    assert_eq!(client.shell(2, "echo other").text(), "other\n", "another stream goes on");
    let credit = frame::encode_credit(1, WINDOW);
    client.raw(&credit);
    let rest = client.follow(1, &[]);
    assert_eq!(
        (rest.stdout.len(), rest.stderr.as_slice(), rest.code),
        (size - first, b"end\n".as_slice(), Some(0))
    );
    assert!(agent.peak_kib() < 32 * 1024, "{} KiB", agent.peak_kib());
}

#[test]
fn output_of_an_ended_program_waits_for_its_reader() {
    let agent = Agent::start();
    let mut client = agent.client();
    // More than the window, but what is left of it fits into the pipe, so that the program can end.
    let size = WINDOW as usize + 60_000;
    client.send(&HostMessage::Exec(exec(1, &["head", "-c", &size.to_string(), "/dev/zero"])));
    let mut first = 0;
    while first < WINDOW as usize {
        let frame = client.frame();
        first += if frame.kind == Kind::Stdout { frame.payload.len() } else { 0 };
    }
    std::thread::sleep(Duration::from_millis(600));
    let credit = frame::encode_credit(1, WINDOW);
    client.raw(&credit);
    let rest = client.follow(1, &[]);
    assert_eq!((rest.stdout.len(), rest.code), (size - first, Some(0)));
}

#[test]
fn streams_are_bounded_and_each_is_free_again() {
    let agent = Agent::start();
    let mut client = agent.client();
    let streams = || 1..=MAX_STREAMS as u32;
    for stream in streams() {
        client.send(&HostMessage::Exec(exec(stream, &["cat"])));
    }
    let mut started = 0;
    while started < MAX_STREAMS {
        started += usize::from(matches!(client.message(), GuestMessage::ExecStarted { .. }));
    }
    assert_eq!(client.run(1000, &["true"]).failed, Some(FailureCode::TooMany));
    client.send(&HostMessage::Exec(exec(1, &["echo", "twice"])));
    for stream in streams() {
        let line = format!("line {stream}\n");
        assert_eq!(client.follow(stream, line.as_bytes()).text(), line);
    }
    for stream in 2000..2200 {
        assert_eq!(client.run(stream, &["true"]).code, Some(0));
    }
}

#[test]
fn a_host_that_exceeds_its_window_loses_the_stream() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.send(&HostMessage::Exec(exec(1, &["sleep", "1000"])));
    client.wait_started(1);
    client.data(1, &vec![0; 2 * WINDOW as usize]);
    assert_eq!(client.follow(1, &[]).signal, Some(1));
}
