//! One stream of a client in a guest: bounded both ways by the credit of the protocol, whatever
//! the guest sends and however slowly the client reads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc};
use tt_guest::flow::{ReceiveWindow, SendWindow};
use tt_guest::frame::{Kind, encode, encode_credit};
use tt_guest::message::{FailureCode, HostMessage};
use tt_guest::session::{FromGuest, ToGuest};

/// Messages that wait between a stream and its client, each way.
const MESSAGES_MAX: usize = 8;
/// Most bytes of a message to the client.
const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// The client's end of a stream. Dropping it ends the stream.
#[derive(Debug)]
pub struct GuestStream {
    /// What goes to the guest.
    pub to: mpsc::Sender<ToGuest>,
    /// What comes from the guest; `Exited` or `Failed` comes last.
    pub from: mpsc::Receiver<FromGuest>,
}

/// The channel's end of a stream.
#[derive(Debug, Default)]
pub(super) struct StreamEnd {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that the client has not taken; together at most the window.
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    receive: ReceiveWindow,
    send: SendWindow,
    pid: Option<u32>,
    end: Option<FromGuest>,
    is_abandoned: bool,
}

/// A new stream: the client's end, and the channel's.
pub(super) fn pair(id: u32, frames: mpsc::Sender<Vec<u8>>) -> (GuestStream, Arc<StreamEnd>) {
    let (to, to_guest) = mpsc::channel(MESSAGES_MAX);
    let (from_guest, from) = mpsc::channel(MESSAGES_MAX);
    let end = Arc::new(StreamEnd::default());
    let pump = Pump { id, frames, end: end.clone() };
    tokio::spawn(pump.run(to_guest, from_guest));
    (GuestStream { to, from }, end)
}

impl StreamEnd {
    /// Takes the guest's bytes; `false` if it sent more than it was granted.
    pub(super) fn received(&self, is_stderr: bool, bytes: &[u8]) -> bool {
        let mut state = self.lock();
        if state.receive.received(bytes.len()).is_err() {
            state.end = Some(FromGuest::Failed {
                code: FailureCode::BadMessage,
                why: "the guest sent more than it was granted".into(),
            });
            drop(state);
            self.changed.notify_one();
            return false;
        }
        let buffer = if is_stderr { &mut state.stderr } else { &mut state.stdout };
        buffer.extend_from_slice(bytes);
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Takes the guest's credit.
    pub(super) fn granted(&self, bytes: u32) {
        self.lock().send.granted(bytes);
        self.changed.notify_one();
    }

    /// The program runs.
    pub(super) fn started(&self, pid: u32) {
        self.lock().pid = Some(pid);
        self.changed.notify_one();
    }

    /// The program ended.
    pub(super) fn exited(&self, code: Option<i32>, signal: Option<i32>) {
        self.finish(FromGuest::Exited { code, signal });
    }

    /// The stream failed in the guest.
    pub(super) fn failed(&self, code: FailureCode, why: String) {
        self.finish(FromGuest::Failed { code, why });
    }

    /// The guest is gone.
    pub(super) fn lost(&self) {
        let why = "the connection to the guest was lost".to_owned();
        self.finish(FromGuest::Failed { code: FailureCode::Io, why });
    }

    /// Whether the client has left.
    pub(super) fn is_abandoned(&self) -> bool {
        self.lock().is_abandoned
    }

    fn finish(&self, end: FromGuest) {
        self.lock().end.get_or_insert(end);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves bytes between the two ends.
struct Pump {
    id: u32,
    frames: mpsc::Sender<Vec<u8>>,
    end: Arc<StreamEnd>,
}

/// What the pump does next for the client.
enum Outgoing {
    Message(FromGuest),
    Data { message: FromGuest, bytes: usize },
    End(FromGuest),
    Nothing,
}

impl Pump {
    async fn run(self, mut to_guest: mpsc::Receiver<ToGuest>, from_guest: mpsc::Sender<FromGuest>) {
        let mut pending: Vec<u8> = Vec::new();
        let (mut wants_eof, mut has_sent_eof) = (false, false);
        let mut is_open = true;
        loop {
            match self.outgoing() {
                Outgoing::Message(message) => {
                    if from_guest.send(message).await.is_err() {
                        return self.abandon().await;
                    }
                    continue;
                }
                Outgoing::Data { message, bytes } => {
                    if from_guest.send(message).await.is_err() {
                        return self.abandon().await;
                    }
                    self.consumed(bytes).await;
                    continue;
                }
                Outgoing::End(end) => {
                    let _ = from_guest.send(end).await;
                    self.end.lock().is_abandoned = true;
                    return;
                }
                Outgoing::Nothing => {}
            }
            self.send_pending(&mut pending, &mut wants_eof).await;
            let takes_more = is_open && pending.is_empty() && !wants_eof;
            tokio::select! {
                // Both are cancel-safe: a notification that is not taken is kept, a message too.
                () = self.end.changed.notified() => {}
                () = from_guest.closed() => return self.abandon().await,
                message = to_guest.recv(), if takes_more => match message {
                    Some(ToGuest::Data(bytes)) => pending = bytes,
                    Some(ToGuest::Eof) => wants_eof = !std::mem::replace(&mut has_sent_eof, true),
                    Some(ToGuest::Signal(signal)) => {
                        self.control(&HostMessage::Signal { stream: self.id, signal }).await;
                    }
                    Some(ToGuest::Resize { rows, cols }) => {
                        self.control(&HostMessage::Resize { stream: self.id, rows, cols }).await;
                    }
                    // A client that drops its end has no more to say.
                    None => (is_open, wants_eof) = (false, !has_sent_eof),
                },
            }
        }
    }

    fn outgoing(&self) -> Outgoing {
        let mut state = self.end.lock();
        if let Some(pid) = state.pid.take() {
            return Outgoing::Message(FromGuest::Started { pid });
        }
        if !state.stdout.is_empty() {
            let data = take(&mut state.stdout);
            let bytes = data.len();
            return Outgoing::Data { message: FromGuest::Stdout(data), bytes };
        }
        if !state.stderr.is_empty() {
            let data = take(&mut state.stderr);
            let bytes = data.len();
            return Outgoing::Data { message: FromGuest::Stderr(data), bytes };
        }
        state.end.clone().map_or(Outgoing::Nothing, Outgoing::End)
    }

    async fn consumed(&self, bytes: usize) {
        let credit = self.end.lock().receive.consumed(bytes);
        if let Some(credit) = credit {
            // A closed channel ends the stream through `lost`.
            let _ = self.frames.send(encode_credit(self.id, credit)).await;
        }
    }

    /// Sends what the guest's window takes of `pending`.
    async fn send_pending(&self, pending: &mut Vec<u8>, wants_eof: &mut bool) {
        while !pending.is_empty() {
            let count = {
                let mut state = self.end.lock();
                let count = state.send.sendable().min(pending.len());
                state.send.sent(count);
                count
            };
            if count == 0 {
                return;
            }
            let rest = pending.split_off(count);
            if let Ok(frame) = encode(self.id, Kind::Stdin, pending) {
                let _ = self.frames.send(frame).await;
            }
            *pending = rest;
        }
        if std::mem::take(wants_eof)
            && let Ok(frame) = encode(self.id, Kind::StdinEof, &[])
        {
            let _ = self.frames.send(frame).await;
        }
    }

    async fn abandon(&self) {
        self.end.lock().is_abandoned = true;
        self.control(&HostMessage::Cancel { stream: self.id }).await;
    }

    async fn control(&self, message: &HostMessage) {
        if let Ok(frame) = message.encode() {
            let _ = self.frames.send(frame).await;
        }
    }
}

fn take(buffer: &mut Vec<u8>) -> Vec<u8> {
    if buffer.len() <= CHUNK_BYTES_MAX {
        return std::mem::take(buffer);
    }
    let rest = buffer.split_off(CHUNK_BYTES_MAX);
    std::mem::replace(buffer, rest)
}
