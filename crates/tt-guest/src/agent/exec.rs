//! The life of a program's stream: carries its input and output within the windows, and says how it ended once all of its
//! output was sent. One thread for each stream.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use tt_guest::frame::{self, Kind, MAX_PAYLOAD};
use tt_guest::message::{Exec, GuestMessage};

use super::outbox::{Outbox, SessionEnded};
use super::process::Processes;
use super::refusal::Refusal;
use super::spawn;
use super::stream::{Stream, View};

/// After the program has ended, its output may still be held open by a process that it left behind; this long its end is
/// waited for.
const DRAIN: Duration = Duration::from_millis(200);
/// A program that is given up gets `SIGHUP`, and this much later `SIGKILL`.
const GRACE: Duration = Duration::from_millis(100);
/// How often `SIGKILL` is repeated: its target may be stuck in the kernel.
const KILL_AGAIN: Duration = Duration::from_millis(10);
/// End of file, typed at a terminal.
const VEOF: u8 = 4;

/// Runs a program to its end; the answer goes to the host.
pub fn run(
    processes: &Processes,
    outbox: &Outbox,
    stream: &Arc<Stream>,
    exec: &Exec,
) -> Result<GuestMessage, Refusal> {
    let (pid, ends) = spawn::spawn(processes, stream, exec)?;
    let stdout = ends.stdout.map(|file| Output::new(file, Kind::Stdout, Kind::StdoutEof));
    let stderr = ends.stderr.map(|file| Output::new(file, Kind::Stderr, Kind::StderrEof));
    let input = Input { file: ends.stdin, is_tty: ends.is_tty };
    let outputs = stdout.into_iter().chain(stderr).collect();
    let mut pump = Pump {
        processes,
        outbox,
        stream,
        input,
        outputs,
        exited: None,
        killing: None,
        buffer: vec![0; MAX_PAYLOAD],
    };
    if outbox.tell(stream.epoch, &GuestMessage::ExecStarted { stream: stream.id, pid }).is_err() {
        stream.cancel();
    }
    Ok(pump.run())
}

struct Input {
    file: Option<File>,
    is_tty: bool,
}

struct Output {
    file: Option<File>,
    kind: Kind,
    eof: Kind,
    /// Bytes that were in the pipe when the program ended: they are its own, and are sent however long it takes.
    owed: u64,
}

impl Output {
    fn new(file: File, kind: Kind, eof: Kind) -> Self {
        Self { file: Some(file), kind, eof, owed: 0 }
    }
}

struct Pump<'a> {
    processes: &'a Processes,
    outbox: &'a Outbox,
    stream: &'a Stream,
    input: Input,
    outputs: Vec<Output>,
    exited: Option<Instant>,
    killing: Option<Instant>,
    buffer: Vec<u8>,
}

impl Pump<'_> {
    fn run(&mut self) -> GuestMessage {
        loop {
            self.stream.wake.clear();
            let view = self.stream.view();
            if view.cancelled {
                self.kill();
            }
            if let Some(exit) = view.exit {
                self.note_exit();
                if view.cancelled || self.is_drained() {
                    self.close_outputs();
                    return GuestMessage::Exited {
                        stream: self.stream.id,
                        code: exit.code,
                        signal: exit.signal,
                    };
                }
            }
            let moved = match self.input.file {
                // Neither needs the program, so neither may wait for it.
                Some(_) if view.input == 0 && view.input_ended => self.end_input(),
                None if view.input > 0 => self.carry_input(),
                _ => self.wait(view).and_then(|ready| self.carry(&ready)),
            };
            if moved.is_err() {
                self.stream.cancel();
            }
        }
    }

    /// Waits for something to do; says which of input, output and error are ready.
    fn wait(&self, view: View) -> Result<[bool; 3], SessionEnded> {
        let mut fds = vec![(None, PollFd::new(&self.stream.wake, PollFlags::IN))];
        if let Some(file) = self.input.file.as_ref().filter(|_| view.input > 0) {
            fds.push((Some(0), PollFd::new(file, PollFlags::OUT)));
        }
        for (at, output) in self.outputs.iter().enumerate() {
            if let Some(file) =
                output.file.as_ref().filter(|_| view.sendable > 0 && !view.cancelled)
            {
                fds.push((Some(at + 1), PollFd::new(file, PollFlags::IN)));
            }
        }
        let (names, mut fds): (Vec<_>, Vec<_>) = fds.into_iter().unzip();
        let timeout = self.timeout(view).map(|left| Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut ready = [false; 3];
        match poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => return Ok(ready),
            Err(_) => return Err(SessionEnded),
            Ok(_) => (),
        }
        for (name, fd) in names.into_iter().zip(&fds) {
            if let Some(at) = name {
                ready[at] = !fd.revents().is_empty();
            }
        }
        Ok(ready)
    }

    fn timeout(&self, view: View) -> Option<Duration> {
        if let (Some(since), None) = (self.killing, view.exit) {
            return Some(GRACE.saturating_sub(since.elapsed()).max(KILL_AGAIN));
        }
        let owes = self.outputs.iter().any(|output| output.owed > 0);
        self.exited.filter(|_| !owes).map(|at| DRAIN.saturating_sub(at.elapsed()))
    }

    fn carry(&mut self, ready: &[bool; 3]) -> Result<(), SessionEnded> {
        for at in 0..self.outputs.len() {
            if ready[at + 1] {
                self.carry_output(at)?;
            }
        }
        if ready[0] { self.carry_input() } else { Ok(()) }
    }

    fn carry_output(&mut self, at: usize) -> Result<(), SessionEnded> {
        let output = &mut self.outputs[at];
        // The other output may have used the window up since it was looked at.
        let most = self.stream.view().sendable;
        let Some(file) = output.file.as_ref().filter(|_| most > 0) else { return Ok(()) };
        match rustix::io::read(file, &mut self.buffer[..most]) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Ok(count @ 1..) => {
                output.owed = output.owed.saturating_sub(count as u64);
                self.stream.sent(count);
                self.send(self.outputs[at].kind, count)
            }
            // A terminal that nobody has open any more says `EIO`.
            _ => {
                (output.file, output.owed) = (None, 0);
                self.send(self.outputs[at].eof, 0)
            }
        }
    }

    fn carry_input(&mut self) -> Result<(), SessionEnded> {
        let waiting = self.stream.peek_input(&mut self.buffer);
        let written = match &self.input.file {
            Some(file) => rustix::io::write(file, &self.buffer[..waiting]),
            // Nobody reads it any more, so it is dropped.
            None => Ok(waiting),
        };
        match written {
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Ok(count) => match self.stream.consume_input(count) {
                Some(credit) => self
                    .outbox
                    .send(self.stream.epoch, frame::encode_credit(self.stream.id, credit)),
                None => Ok(()),
            },
            Err(_) => {
                self.input.file = None;
                Ok(())
            }
        }
    }

    fn end_input(&mut self) -> Result<(), SessionEnded> {
        if let Some(file) = self.input.file.take().filter(|_| self.input.is_tty) {
            // If the terminal takes no more input, its program is not waiting for the end of it.
            let _ = rustix::io::write(&file, &[VEOF]);
        }
        Ok(())
    }

    fn send(&self, kind: Kind, count: usize) -> Result<(), SessionEnded> {
        let frame = frame::encode(self.stream.id, kind, &self.buffer[..count]).unwrap_or_default();
        self.outbox.send(self.stream.epoch, frame)
    }

    fn kill(&mut self) {
        let Some(pid) = self.stream.pid.get() else { return };
        match self.killing {
            None => {
                self.killing = Some(Instant::now());
                self.processes.signal_group(*pid, libc::SIGHUP);
                self.processes.signal_group(*pid, libc::SIGCONT);
            }
            Some(since) if since.elapsed() >= GRACE => {
                self.processes.signal_group(*pid, libc::SIGKILL);
            }
            Some(_) => (),
        }
    }

    fn note_exit(&mut self) {
        if self.exited.is_none() {
            self.exited = Some(Instant::now());
            for output in &mut self.outputs {
                output.owed = output.file.as_ref().map_or(0, waiting);
            }
        }
    }

    fn is_drained(&self) -> bool {
        let late = self.exited.is_some_and(|at| at.elapsed() >= DRAIN);
        self.outputs.iter().all(|output| output.file.is_none() || (late && output.owed == 0))
    }

    fn close_outputs(&mut self) {
        for output in &mut self.outputs {
            if output.file.take().is_some() {
                let eof = frame::encode(self.stream.id, output.eof, &[]).unwrap_or_default();
                // If the session has ended, nobody waits for it.
                let _ = self.outbox.send(self.stream.epoch, eof);
            }
        }
    }
}

fn waiting(file: &File) -> u64 {
    let count: io::Result<u64> = rustix::io::ioctl_fionread(file.as_fd()).map_err(io::Error::from);
    count.unwrap_or(0)
}
