//! The local terminal: raw mode that never outlives its guard, the window's size, key strokes as messages.

use super::error::CliError;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, Read};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Bytes read from standard input at once: a pipe's usual capacity (pipe(7)).
const READ_BYTES: usize = 64 << 10;
/// Chunks of input that wait for the daemon; a full queue holds the reader back.
const INPUT_QUEUE: usize = 2;
/// The size of a terminal that does not say its own (that of a VT100).
const DEFAULT_SIZE: (u16, u16) = (24, 80);

/// The local terminal in raw mode: each key goes to the guest as it is, Ctrl-C included. Dropping it puts the terminal
/// back, also when the program panics; the caller turns signals into an orderly return.
#[derive(Debug)]
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Enters raw mode; nothing if standard input is no terminal.
    ///
    /// # Errors
    /// If the terminal refuses.
    pub fn enter() -> Result<Option<Self>, CliError> {
        let stdin = io::stdin();
        let Ok(before) = tcgetattr(&stdin) else { return Ok(None) };
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(|errno| CliError::System {
            action: "put the terminal into raw mode",
            source: errno.into(),
        })?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Rows and columns of the local terminal; those of a VT100 if there is none.
pub fn window_size() -> (u16, u16) {
    let sizes = [tcgetwinsize(io::stdout()), tcgetwinsize(io::stdin()), tcgetwinsize(io::stderr())];
    let known = sizes.into_iter().flatten().find(|size| size.ws_row > 0 && size.ws_col > 0);
    known.map_or(DEFAULT_SIZE, |size| (size.ws_row, size.ws_col))
}

/// Reads standard input on a thread of its own until its end, or until nobody takes it any more. The thread may outlast
/// the receiver by one read, and ends with the program.
pub fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(INPUT_QUEUE);
    std::thread::spawn(move || {
        let mut buffer = vec![0; READ_BYTES];
        // An input that can not be read any further has ended as well.
        while let Ok(count @ 1..) = read(&mut buffer) {
            if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

fn read(buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match io::stdin().lock().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            count => return count,
        }
    }
}

/// Signals that reach this program. Catching them is what lets it put the terminal back.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    resized: Signal,
}

/// What a signal means to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caught {
    /// `SIGINT` or `SIGTERM`: may be meant for the program in the guest. The number.
    Forward(i32),
    /// `SIGHUP` or `SIGQUIT`: meant for this program. The number.
    End(i32),
    /// The terminal has another size.
    Resized,
}

impl Signals {
    /// Catches them from now on.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn catch() -> Result<Self, CliError> {
        let catch = |kind| {
            signal(kind).map_err(|source| CliError::System { action: "watch for signals", source })
        };
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: catch(SignalKind::hangup())?,
            quit: catch(SignalKind::quit())?,
            resized: catch(SignalKind::window_change())?,
        })
    }

    /// The next one. Cancel-safe.
    pub async fn next(&mut self) -> Caught {
        let number = |kind: SignalKind| kind.as_raw_value();
        tokio::select! {
            _ = self.interrupt.recv() => Caught::Forward(number(SignalKind::interrupt())),
            _ = self.terminate.recv() => Caught::Forward(number(SignalKind::terminate())),
            _ = self.hangup.recv() => Caught::End(number(SignalKind::hangup())),
            _ = self.quit.recv() => Caught::End(number(SignalKind::quit())),
            _ = self.resized.recv() => Caught::Resized,
        }
    }
}
