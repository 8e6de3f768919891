//! Frames on their way to the host: one bounded queue that all threads fill and one thread empties. A new session drops
//! what the old one left; a frame of an old session is never sent into a new one.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tt_guest::frame;
use tt_guest::message::GuestMessage;

use super::log;

/// Bytes that wait at most before stream threads wait themselves.
const SOFT_LIMIT: usize = 256 * 1024;
/// Bytes that wait at most with what the reader adds, which must not wait; beyond that its answers are dropped, for the
/// host asks but does not listen.
const HARD_LIMIT: usize = SOFT_LIMIT + 512 * 1024;

/// A session's number, counted by this agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Epoch(u64);

/// The frame's session has ended.
#[derive(Debug)]
pub struct SessionEnded;

#[derive(Default)]
struct State {
    epoch: Epoch,
    queue: VecDeque<Vec<u8>>,
    bytes: usize,
    writing: bool,
    /// Whether the channel may hold half a frame.
    used: bool,
}

/// The queue.
#[derive(Default)]
pub struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

impl Outbox {
    /// Queues a frame of a session, waiting for room.
    pub fn send(&self, epoch: Epoch, frame: Vec<u8>) -> Result<(), SessionEnded> {
        let mut state = self.lock();
        while state.epoch == epoch && state.bytes >= SOFT_LIMIT {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.epoch != epoch {
            return Err(SessionEnded);
        }
        self.queue(&mut state, frame);
        Ok(())
    }

    /// Queues a message of a session, waiting for room.
    pub fn tell(&self, epoch: Epoch, message: &GuestMessage) -> Result<(), SessionEnded> {
        self.send(epoch, encode(message))
    }

    /// Queues a message without waiting; drops it if far too many wait.
    pub fn tell_now(&self, message: &GuestMessage) {
        let frame = encode(message);
        let mut state = self.lock();
        if state.bytes + frame.len() > HARD_LIMIT {
            log::say("the host does not read; dropped an answer");
            return;
        }
        self.queue(&mut state, frame);
    }

    /// Ends the session: drops all that waits, and queues the preamble (if the channel was used) and `message`.
    pub fn restart(&self, message: &GuestMessage) -> Epoch {
        let mut state = self.lock();
        state.epoch = Epoch(state.epoch.0 + 1);
        state.queue.clear();
        state.bytes = 0;
        if state.used {
            self.queue(&mut state, frame::resync());
        }
        state.used = true;
        self.queue(&mut state, encode(message));
        state.epoch
    }

    /// Notes that a predecessor may have left half a frame in the channel.
    pub fn note_used(&self) {
        self.lock().used = true;
    }

    /// Whether the session has ended.
    pub fn is_stale(&self, epoch: Epoch) -> bool {
        self.lock().epoch != epoch
    }

    /// Waits for the next frame to write. Asking again says that the last one was written.
    pub fn next(&self) -> (Epoch, Vec<u8>) {
        let mut state = self.lock();
        state.writing = false;
        self.changed.notify_all();
        loop {
            if let Some(frame) = state.queue.pop_front() {
                state.bytes -= frame.len();
                state.writing = true;
                return (state.epoch, frame);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until all is written, but no longer than `timeout`.
    pub fn flush(&self, timeout: Duration) {
        let until = Instant::now() + timeout;
        let mut state = self.lock();
        while state.writing || !state.queue.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn queue(&self, state: &mut State, frame: Vec<u8>) {
        state.bytes += frame.len();
        state.queue.push_back(frame);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn encode(message: &GuestMessage) -> Vec<u8> {
    message.encode().unwrap_or_else(|error| {
        log::say(log::explain(&error));
        Vec::new()
    })
}
