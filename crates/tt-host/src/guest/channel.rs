//! The connection to one guest's agent: hello, set-up, then streams. It comes back by itself when
//! the guest reboots, and when this daemon is a restarted one.

use super::door::Door;
use super::session::Session;
use super::stream::GuestStream;
use super::{GuestState, WakeGuest};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tt_guest::frame::{Decoder, MAX_FRAME};
use tt_guest::message::Setup;
use tt_guest::session::Open;
use tt_model::{Refusal, VmId};

/// Pause before the next try to connect to a machine that is going or coming.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// A hello is repeated after this time without an answer; a booting guest reads the first one.
const HELLO_OVERDUE: Duration = Duration::from_secs(5);

/// What the host asks of a channel.
pub(super) enum Command {
    /// Opens a stream.
    Open { open: Open, reply: oneshot::Sender<Result<GuestStream, Refusal>> },
    /// Sends the set-up again if the guest is not set up.
    SetUp,
    /// Sends the set-up again, because something in it has changed.
    Refresh,
    /// Sets the guest's clock.
    SetClock,
    /// Asks the guest to shut down.
    ShutDown,
}

/// What the channel's task and the host share.
pub(super) struct Shared {
    pub(super) id: VmId,
    setup: Mutex<Setup>,
    state: Mutex<GuestState>,
    wake: WakeGuest,
}

impl Shared {
    pub(super) fn new(id: VmId, setup: Setup, wake: WakeGuest) -> Self {
        Self { id, setup: Mutex::new(setup), state: Mutex::new(GuestState::Waiting), wake }
    }

    /// What the guest is told of itself.
    pub(super) fn setup(&self) -> Setup {
        self.setup.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what the guest is told of itself. Returns whether that is news.
    pub(super) fn set_setup(&self, setup: Setup) -> bool {
        let mut current = self.setup.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *current != setup;
        *current = setup;
        is_news
    }

    pub(super) fn state(&self) -> GuestState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the state and, if it is of another kind, names the Vm.
    pub(super) fn set_state(&self, state: GuestState) {
        let mut current = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_other = std::mem::discriminant(&*current) != std::mem::discriminant(&state);
        *current = state;
        drop(current);
        if is_other {
            (self.wake)(self.id);
        }
    }
}

/// Serves the channel until it is aborted.
pub(super) async fn run(door: Door, shared: Arc<Shared>, mut commands: mpsc::Receiver<Command>) {
    loop {
        if let Ok(stream) = door.agent().await {
            serve(stream, &shared, &mut commands).await;
            shared.set_state(GuestState::Waiting);
        }
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
}

async fn serve(stream: UnixStream, shared: &Shared, commands: &mut mpsc::Receiver<Command>) {
    let (mut reader, writer) = stream.into_split();
    let mut session = Session::start(writer, shared);
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; MAX_FRAME];
    let mut overdue = tokio::time::interval(HELLO_OVERDUE);
    overdue.reset();
    loop {
        tokio::select! {
            // Cancel-safe: `read` has taken nothing when another branch wins.
            read = reader.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    let mut frames = Vec::new();
                    decoder.feed(&buffer[..length], |frame| frames.extend(frame.ok()));
                    for frame in frames {
                        if session.receive(frame).await.is_err() {
                            return;
                        }
                    }
                    // Others come first: a guest that talks without end costs its own channel.
                    tokio::task::yield_now().await;
                }
            },
            command = commands.recv() => {
                let Some(command) = command else { return };
                if session.command(command).await.is_err() {
                    return;
                }
            }
            _ = overdue.tick() => {
                if !session.is_open() && session.hello().await.is_err() {
                    return;
                }
            }
        }
    }
}
