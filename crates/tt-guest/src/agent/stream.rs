//! One stream's shared state: what the reader of the channel puts in, and the stream's own thread takes out. Nothing in
//! here waits, so the reader never does.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tt_guest::Error;
use tt_guest::flow::{ReceiveWindow, SendWindow};

use super::link::Wake;
use super::outbox::Epoch;
use super::process::Exit;

#[derive(Debug, Default)]
struct State {
    input: VecDeque<u8>,
    input_ended: bool,
    receive: ReceiveWindow,
    send: SendWindow,
    exit: Option<Exit>,
    cancelled: bool,
}

/// What a stream's thread looks at before it waits.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Bytes that may be sent in one frame now.
    pub sendable: usize,
    /// Bytes of the host that wait.
    pub input: usize,
    /// The host will send no more.
    pub input_ended: bool,
    /// How the stream's program ended, if it has.
    pub exit: Option<Exit>,
    /// The host gave the stream up, or its session ended.
    pub cancelled: bool,
}

/// A stream.
#[derive(Debug)]
pub struct Stream {
    /// Its number.
    pub id: u32,
    /// Its session.
    pub epoch: Epoch,
    /// Set whenever something changed.
    pub wake: Wake,
    /// The program, once it runs.
    pub pid: OnceLock<i32>,
    /// Its terminal, if it has one.
    pub terminal: OnceLock<OwnedFd>,
    state: Mutex<State>,
}

impl Stream {
    /// A new stream with full windows.
    pub fn new(id: u32, epoch: Epoch) -> io::Result<Self> {
        let (pid, terminal, state) = (OnceLock::new(), OnceLock::new(), Mutex::default());
        Ok(Self { id, epoch, wake: Wake::new()?, pid, terminal, state })
    }

    /// Takes bytes of the host in.
    ///
    /// # Errors
    /// `ReceiveData` if the host exceeds its window.
    pub fn push_input(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut state = self.lock();
        state.receive.received(bytes.len())?;
        if !state.input_ended {
            state.input.extend(bytes);
        }
        drop(state);
        self.wake.set();
        Ok(())
    }

    /// Notes that the host will send no more.
    pub fn end_input(&self) {
        self.change(|state| state.input_ended = true);
    }

    /// Takes a credit of the host.
    pub fn grant(&self, bytes: u32) {
        self.change(|state| state.send.granted(bytes));
    }

    /// Gives the stream up.
    pub fn cancel(&self) {
        self.change(|state| state.cancelled = true);
    }

    /// Notes how the program ended.
    pub fn set_exit(&self, exit: Exit) {
        self.change(|state| state.exit = Some(exit));
    }

    /// What there is to do.
    pub fn view(&self) -> View {
        let state = self.lock();
        View {
            sendable: state.send.sendable(),
            input: state.input.len(),
            input_ended: state.input_ended,
            exit: state.exit,
            cancelled: state.cancelled,
        }
    }

    /// Notes that bytes were sent.
    pub fn sent(&self, bytes: usize) {
        self.lock().send.sent(bytes);
    }

    /// Copies waiting bytes into `buffer` without taking them, and returns how many.
    pub fn peek_input(&self, buffer: &mut [u8]) -> usize {
        let state = self.lock();
        let (piece, _) = state.input.as_slices();
        let count = piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&piece[..count]);
        count
    }

    /// Drops bytes that were passed on; returns the credit to send for them.
    pub fn consume_input(&self, bytes: usize) -> Option<u32> {
        let mut state = self.lock();
        let count = bytes.min(state.input.len());
        state.input.drain(..count);
        state.receive.consumed(count)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.wake.set();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
