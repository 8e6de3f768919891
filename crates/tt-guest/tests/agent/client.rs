//! A blocking client of the agent for tests: it does what the host daemon does, one call at a time.

#![expect(clippy::unwrap_used, reason = "helpers of a test fail it")]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tt_guest::frame::{self, Decoder, Frame, Kind, MAX_PAYLOAD};
use tt_guest::message::{Exec, FailureCode, GuestMessage, Hello, HostMessage, PROTOCOL_VERSION};

/// Anything that takes longer is broken.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The agent as a process of this machine that changes nothing of it; ended with the test.
pub struct Agent {
    child: Child,
    directory: tempfile::TempDir,
}

impl Agent {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_tt-guest"))
            .arg("--unix")
            .arg(directory.path().join("agent"))
            .arg("--no-setup")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, directory }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("agent")
    }

    /// A directory that goes with the agent.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    pub fn client(&self) -> Client {
        let mut client = Client::connect(&self.socket());
        client.hello();
        client
    }

    /// Largest resident size of the agent so far, in KiB.
    pub fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One end of the channel.
pub struct Client {
    pub socket: UnixStream,
    decoder: Decoder,
    waiting: VecDeque<Frame>,
    pub session: u64,
}

/// How a stream went.
#[derive(Debug, Default)]
pub struct Outcome {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub failed: Option<FailureCode>,
    pub pid: Option<u32>,
}

impl Outcome {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Client {
    pub fn connect(path: &Path) -> Self {
        let until = Instant::now() + PATIENCE;
        let socket = loop {
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(error) => assert!(Instant::now() < until, "{}: {error}", path.display()),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { socket, decoder: Decoder::default(), waiting: VecDeque::new(), session: 0 }
    }

    /// Opens a session, and drops all that came before.
    pub fn hello(&mut self) -> GuestMessage {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        // Tests need no secret, only a number that is not used twice.
        self.session = since.as_nanos() as u64 ^ u64::from(std::process::id());
        let hello = Hello {
            version: PROTOCOL_VERSION,
            session: self.session,
            time_unix_ns: since.as_nanos() as u64,
            entropy: None,
        };
        self.raw(&frame::resync());
        self.send(&HostMessage::Hello(hello));
        loop {
            match self.message() {
                ack @ GuestMessage::HelloAck { session, .. } if session == self.session => {
                    return ack;
                }
                _ => (),
            }
        }
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    pub fn send(&mut self, message: &HostMessage) {
        let frame = message.encode().unwrap();
        self.raw(&frame);
    }

    pub fn data(&mut self, stream: u32, bytes: &[u8]) {
        for piece in bytes.chunks(MAX_PAYLOAD) {
            let frame = frame::encode(stream, Kind::Stdin, piece).unwrap();
            self.raw(&frame);
        }
    }

    pub fn eof(&mut self, stream: u32) {
        let frame = frame::encode(stream, Kind::StdinEof, &[]).unwrap();
        self.raw(&frame);
    }

    /// The next frame, whatever it is; damaged ones are passed over.
    pub fn frame(&mut self) -> Frame {
        let mut buffer = vec![0; MAX_PAYLOAD];
        loop {
            if let Some(frame) = self.waiting.pop_front() {
                return frame;
            }
            let count = self.socket.read(&mut buffer).unwrap();
            assert!(count > 0, "the agent closed the channel");
            let waiting = &mut self.waiting;
            self.decoder.feed(&buffer[..count], |frame| waiting.extend(frame.ok()));
        }
    }

    /// The next message; data is passed over.
    pub fn message(&mut self) -> GuestMessage {
        loop {
            let frame = self.frame();
            if frame.kind == Kind::Control {
                return GuestMessage::parse(&frame.payload).unwrap();
            }
        }
    }

    /// Whether nothing comes for a while.
    pub fn is_silent_for(&mut self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let mut byte = [0; 1];
        let silent = self.waiting.is_empty() && self.socket.read(&mut byte).is_err();
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        silent
    }

    /// Follows a stream to its end, granting credit for all that comes, and sending `input` as the agent grants it.
    pub fn follow(&mut self, stream: u32, input: &[u8]) -> Outcome {
        let mut window = tt_guest::flow::SendWindow::default();
        let mut outcome = Outcome::default();
        let (mut sent, mut ended) = (0, false);
        loop {
            while sent < input.len() && window.sendable() > 0 {
                let count = window.sendable().min(input.len() - sent);
                self.data(stream, &input[sent..sent + count]);
                window.sent(count);
                sent += count;
            }
            if sent == input.len() && !std::mem::replace(&mut ended, true) {
                self.eof(stream);
            }
            let frame = self.frame();
            if let Some(credit) = frame.credit().filter(|_| frame.stream == stream) {
                window.granted(credit);
            }
            if self.collect(stream, &frame, &mut outcome) {
                return outcome;
            }
        }
    }

    /// Adds a frame to what is known of a stream; returns whether the stream has ended.
    pub fn collect(&mut self, stream: u32, frame: &Frame, outcome: &mut Outcome) -> bool {
        if frame.stream == stream && matches!(frame.kind, Kind::Stdout | Kind::Stderr) {
            let to =
                if frame.kind == Kind::Stdout { &mut outcome.stdout } else { &mut outcome.stderr };
            to.extend(&frame.payload);
            let credit = frame::encode_credit(stream, frame.payload.len() as u32);
            self.raw(&credit);
        }
        if frame.kind != Kind::Control {
            return false;
        }
        match GuestMessage::parse(&frame.payload).unwrap() {
            GuestMessage::ExecStarted { stream: of, pid } if of == stream => {
                outcome.pid = Some(pid)
            }
            GuestMessage::Exited { stream: of, code, signal } if of == stream => {
                (outcome.code, outcome.signal) = (code, signal);
                return true;
            }
            GuestMessage::Failed { stream: of, code, .. } if of == stream => {
                outcome.failed = Some(code);
                return true;
            }
            _ => (),
        }
        false
    }

    pub fn run(&mut self, stream: u32, argv: &[&str]) -> Outcome {
        self.send(&HostMessage::Exec(exec(stream, argv)));
        self.follow(stream, &[])
    }

    pub fn shell(&mut self, stream: u32, script: &str) -> Outcome {
        self.run(stream, &["/bin/sh", "-c", script])
    }

    /// Waits until a stream's program runs.
    pub fn wait_started(&mut self, stream: u32) -> u32 {
        loop {
            match self.message() {
                GuestMessage::ExecStarted { stream: of, pid } if of == stream => return pid,
                GuestMessage::Failed { stream: of, code, why } if of == stream => {
                    panic!("{code:?}: {why}")
                }
                _ => (),
            }
        }
    }
}

pub fn exec(stream: u32, argv: &[&str]) -> Exec {
    let argv = argv.iter().map(|argument| (*argument).to_owned()).collect();
    Exec { stream, argv, env: vec![], cwd: None, user: None, tty: None }
}

/// Waits until `is_so`.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The archive of a path.
pub fn pack(path: &Path) -> Vec<u8> {
    let mut packer = tt_guest::tar::Packer::new(path).unwrap();
    let (mut archive, mut buffer) = (Vec::new(), vec![0; MAX_PAYLOAD]);
    loop {
        match packer.fill(&mut buffer).unwrap() {
            0 => return archive,
            count => archive.extend_from_slice(&buffer[..count]),
        }
    }
}
