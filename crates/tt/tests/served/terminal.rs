//! A program on a pseudo-terminal that the test looks at and types into.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long the program may take to say something, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The program and its terminal. Dropping it ends the program.
pub struct Session {
    child: Child,
    terminal: File,
    /// What has been shown and not been asked for.
    shown: Vec<u8>,
    /// Keeps the terminal's settings when the program has ended.
    other_end: File,
}

impl Session {
    /// Starts `command` with the terminal as its input and output.
    pub fn start(mut command: Command) -> Self {
        let terminal =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let size = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
        let other_end = OpenOptions::new().read(true).write(true).open(name).unwrap();
        let stdio = || Stdio::from(other_end.try_clone().unwrap());
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        Self { child, terminal: terminal.into(), shown: Vec::new(), other_end }
    }

    /// What is shown next, up to and with `part`.
    pub fn read_until(&mut self, part: &str) -> String {
        let mut buffer = [0; 4096];
        let deadline = Instant::now() + PATIENCE;
        loop {
            let place = self.shown.windows(part.len()).position(|shown| shown == part.as_bytes());
            if let Some(place) = place {
                let text = self.shown.drain(..place + part.len()).collect();
                return String::from_utf8(text).unwrap();
            }
            let shown = String::from_utf8_lossy(&self.shown);
            assert!(Instant::now() < deadline, "no {part:?} in {shown:?}");
            let mut waiting = [PollFd::new(&self.terminal, PollFlags::IN)];
            let second = Timespec { tv_sec: 1, tv_nsec: 0 };
            if poll(&mut waiting, Some(&second)).unwrap() > 0 {
                let count = self.terminal.read(&mut buffer).unwrap();
                self.shown.extend_from_slice(&buffer[..count]);
            }
        }
    }

    /// As if typed.
    pub fn type_keys(&mut self, keys: &[u8]) {
        self.terminal.write_all(keys).unwrap();
        // A terminal that controls no session makes no signal of Ctrl-C by itself: this is what it would do.
        if keys == b"\x03" && !self.is_raw() {
            self.signal(Signal::INT);
        }
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Whether keys go to the program as they are.
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.other_end).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ISIG | LocalModes::ECHO)
    }

    /// Waits for the program's end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status,
                None => assert!(Instant::now() < deadline, "it does not end"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
