//! One connection's conversation with an agent.

use super::GuestState;
use super::channel::{Command, Shared};
use super::stream::{GuestStream, StreamEnd};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tt_guest::flow::MAX_STREAMS;
use tt_guest::frame::{Frame, Kind, resync};
use tt_guest::message::{Exec, GuestMessage, Hello, HostMessage, PROTOCOL_VERSION};
use tt_guest::session::Open;
use tt_model::{ErrorCode, Refusal};

/// Frames that wait to be written to a guest.
const FRAMES_MAX: usize = 64;

/// How long a guest may leave its channel unread.
const SEND_MAX: Duration = Duration::from_secs(10);
/// Least time between two boots of a guest that are believed.
const REBOOT_MIN: Duration = Duration::from_millis(200);

/// The connection is of no use any more.
#[derive(Debug)]
pub(super) struct Broken;

pub(super) struct Session<'a> {
    shared: &'a Shared,
    frames: mpsc::Sender<Vec<u8>>,
    nonce: u64,
    is_open: bool,
    is_set_up: bool,
    /// Whether a set-up was sent that the guest has not answered.
    awaits_setup: bool,
    /// Whether the guest has said that its image's process ended.
    has_ended: bool,
    next_stream: u32,
    streams: HashMap<u32, Arc<StreamEnd>>,
}

impl<'a> Session<'a> {
    pub(super) fn start(writer: OwnedWriteHalf, shared: &'a Shared) -> Self {
        let (frames, receiver) = mpsc::channel(FRAMES_MAX);
        tokio::spawn(write_frames(writer, receiver));
        let session = Self {
            shared,
            frames,
            nonce: random_u64(),
            is_open: false,
            is_set_up: false,
            awaits_setup: false,
            has_ended: false,
            next_stream: 1,
            streams: HashMap::new(),
        };
        // The queue is empty and holds more than these two.
        let _ = session.frames.try_send(resync());
        if let Ok(hello) = session.hello_message().encode() {
            let _ = session.frames.try_send(hello);
        }
        session
    }

    /// Whether the agent has acknowledged this session.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Says hello (again).
    pub(super) async fn hello(&self) -> Result<(), Broken> {
        self.send(&self.hello_message()).await
    }

    pub(super) async fn command(&mut self, command: Command) -> Result<(), Broken> {
        match command {
            Command::SetUp if self.is_open && !self.is_set_up && !self.awaits_setup => {
                self.set_up().await
            }
            Command::Refresh if self.is_open => self.set_up().await,
            Command::SetUp | Command::Refresh => Ok(()),
            Command::ShutDown => {
                // It is going: neither ready nor to be asked a second time.
                self.is_set_up = false;
                self.shared.set_state(GuestState::Waiting);
                self.send(&HostMessage::Shutdown { reboot: false }).await
            }
            Command::SetClock => self.set_clock().await,
            // Who asked has given up: nothing may be started for nobody.
            Command::Open { reply, .. } if reply.is_closed() => Ok(()),
            Command::Open { open, reply } => {
                let opened = if self.is_set_up { self.open(open).await? } else { Err(not_ready()) };
                // Who asked may have left; the stream ends with the dropped answer.
                let _ = reply.send(opened);
                Ok(())
            }
        }
    }

    pub(super) async fn receive(&mut self, frame: Frame) -> Result<(), Broken> {
        match frame.kind {
            Kind::Control => match GuestMessage::parse(&frame.payload) {
                Ok(message) => self.message(message).await,
                // The guest is not trusted to make sense.
                Err(_) => Ok(()),
            },
            Kind::Credit => {
                if let (Some(stream), Some(bytes)) =
                    (self.streams.get(&frame.stream), frame.credit())
                {
                    stream.granted(bytes);
                }
                Ok(())
            }
            Kind::Stdout | Kind::Stderr => {
                let stream = self.streams.get(&frame.stream);
                let fits =
                    stream.is_none_or(|s| s.received(frame.kind == Kind::Stderr, &frame.payload));
                if fits {
                    return Ok(());
                }
                self.streams.remove(&frame.stream);
                self.send(&HostMessage::Cancel { stream: frame.stream }).await
            }
            Kind::Stdin | Kind::StdinEof | Kind::StdoutEof | Kind::StderrEof => Ok(()),
        }
    }

    async fn message(&mut self, message: GuestMessage) -> Result<(), Broken> {
        match message {
            GuestMessage::Ready { .. } => {
                if self.is_open {
                    // No guest boots faster; one that only says so must not keep the host busy.
                    tokio::time::sleep(REBOOT_MIN).await;
                    // The guest has rebooted: its streams are gone with it.
                    self.end_streams();
                    self.nonce = random_u64();
                    self.is_open = false;
                    self.is_set_up = false;
                    self.shared.set_state(GuestState::Waiting);
                }
                self.hello().await
            }
            GuestMessage::HelloAck { session, version, .. } if session == self.nonce => {
                if version != PROTOCOL_VERSION {
                    let why = format!(
                        "its agent speaks version {version} of the protocol, this daemon \
                         {PROTOCOL_VERSION}: rebuild its template"
                    );
                    self.shared.set_state(GuestState::Refused(why));
                    return Ok(());
                }
                if std::mem::replace(&mut self.is_open, true) {
                    return Ok(());
                }
                self.set_up().await
            }
            // Whatever comes before the acknowledgement belongs to an older session.
            _ if !self.is_open => Ok(()),
            // Unasked for, it is no news: a guest must not be able to keep the host writing.
            GuestMessage::SetupDone { .. } | GuestMessage::SetupFailed { .. }
                if !std::mem::take(&mut self.awaits_setup) =>
            {
                Ok(())
            }
            GuestMessage::SetupDone { .. } => {
                self.is_set_up = true;
                self.shared.set_state(GuestState::Ready);
                Ok(())
            }
            GuestMessage::SetupFailed { what, why } => {
                let why = format!("its agent could not set {}: {}", bounded(&what), bounded(&why));
                self.shared.set_state(GuestState::Refused(why));
                Ok(())
            }
            GuestMessage::ExecStarted { .. }
            | GuestMessage::Exited { .. }
            | GuestMessage::Failed { .. } => {
                self.stream_message(message);
                Ok(())
            }
            GuestMessage::EntryEnded { code, signal } => {
                // Once for each session: a guest must not be able to fill the log.
                if !std::mem::replace(&mut self.has_ended, true) {
                    tracing::info!(vm = %self.shared.id, code, signal, "the image's process ended");
                }
                Ok(())
            }
            GuestMessage::HelloAck { .. }
            | GuestMessage::Bye { .. }
            | GuestMessage::Pong { .. } => Ok(()),
        }
    }

    /// What an agent says of one stream. Of a stream that has ended, or never was, nothing is heard.
    fn stream_message(&mut self, message: GuestMessage) {
        match message {
            GuestMessage::ExecStarted { stream, pid } => {
                if let Some(stream) = self.streams.get(&stream) {
                    stream.started(pid);
                }
            }
            GuestMessage::Exited { stream, code, signal } => {
                if let Some(stream) = self.streams.remove(&stream) {
                    stream.exited(code, signal);
                }
            }
            GuestMessage::Failed { stream, code, why } => {
                if let Some(stream) = self.streams.remove(&stream) {
                    stream.failed(code, bounded(&why));
                }
            }
            _ => {}
        }
    }

    async fn set_up(&mut self) -> Result<(), Broken> {
        self.awaits_setup = true;
        // The hello may have waited for as long as the guest took to boot.
        self.set_clock().await?;
        self.send(&HostMessage::Setup(self.shared.setup())).await
    }

    async fn set_clock(&self) -> Result<(), Broken> {
        self.send(&HostMessage::SetClock { time_unix_ns: now_unix_ns() }).await
    }

    async fn open(&mut self, open: Open) -> Result<Result<GuestStream, Refusal>, Broken> {
        self.streams.retain(|_, stream| !stream.is_abandoned());
        if self.streams.len() >= MAX_STREAMS {
            return Ok(Err(Refusal::new(
                ErrorCode::Busy,
                "guest",
                format!("it has {MAX_STREAMS} open streams"),
                "close one, or try again later",
            )));
        }
        let id = self.next_stream;
        self.next_stream = self.next_stream.checked_add(1).unwrap_or(1);
        let message = match open {
            Open::Exec(program) => HostMessage::Exec(Exec {
                stream: id,
                argv: program.argv,
                env: program.env,
                cwd: program.cwd,
                user: program.user,
                tty: program.tty,
            }),
            Open::CopyIn { path, mode } => HostMessage::CopyIn { stream: id, path, mode },
            Open::CopyOut { path } => HostMessage::CopyOut { stream: id, path },
        };
        let Ok(frame) = message.encode() else {
            return Ok(Err(Refusal::new(
                ErrorCode::TooLarge,
                "command",
                "its arguments and environment are too long for one message",
                "copy them into the guest as a file",
            )));
        };
        let (stream, end) = super::stream::pair(id, self.frames.clone());
        self.streams.insert(id, end);
        self.send_frame(frame).await?;
        Ok(Ok(stream))
    }

    fn end_streams(&mut self) {
        for (_, stream) in self.streams.drain() {
            stream.lost();
        }
    }

    async fn send(&self, message: &HostMessage) -> Result<(), Broken> {
        self.send_frame(message.encode().map_err(|_| Broken)?).await
    }

    /// A guest that reads nothing for so long loses its connection, and with it its streams.
    async fn send_frame(&self, frame: Vec<u8>) -> Result<(), Broken> {
        let sent = tokio::time::timeout(SEND_MAX, self.frames.send(frame)).await;
        sent.map_err(|_| Broken)?.map_err(|_| Broken)
    }

    fn hello_message(&self) -> HostMessage {
        let entropy = random::<32>().iter().map(|byte| format!("{byte:02x}")).collect();
        HostMessage::Hello(Hello {
            version: PROTOCOL_VERSION,
            session: self.nonce,
            time_unix_ns: now_unix_ns(),
            entropy: Some(entropy),
        })
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.end_streams();
    }
}

async fn write_frames(mut writer: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if writer.write_all(&frame).await.is_err() {
            return;
        }
    }
}

fn not_ready() -> Refusal {
    Refusal::new(
        ErrorCode::Agent,
        "guest",
        "its agent has not set it up yet",
        "wait until `tt vm show` says ready",
    )
}

/// A guest's sentence as it may be logged and shown.
fn bounded(text: &str) -> String {
    const CHARS_MAX: usize = 200;
    text.chars().take(CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn now_unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn random_u64() -> u64 {
    u64::from_le_bytes(random())
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The kernel's generator fails only before it was ever seeded; a clock's bits are then what is
    // left, and the nonce is no secret of the host.
    if getrandom::fill(&mut bytes).is_err() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        bytes.iter_mut().zip(now.to_le_bytes()).for_each(|(byte, time)| *byte = time);
    }
    bytes
}
