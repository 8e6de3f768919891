//! Streams in guests and consoles, over WebSockets. Every queue on the way is short, and each side
//! waits for the next: a slow reader holds back the guest, not the daemon's memory.

use super::Api;
use super::extract::{VmName, VmPort, shown};
use super::problem::Refusals;
use super::work::{host, member};
use crate::access::{ByteStream, GuestStream};
use crate::error::{ApiError, Problem};
use crate::views::{StreamEnd, StreamOpened};
use crate::wire::{WIRE_BYTES_MAX, decode_to, encode_from};
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::time::Duration;
use tokio::sync::mpsc;
use tt_guest::message::FailureCode;
use tt_guest::session::{FromGuest, Open};
use tt_model::check::quoted;
use tt_model::{ErrorCode, Goal, Phase, Refusal, Vm, VmStatus, feat};

/// How long a client may take to say what it opens, and to take leave.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a silent client is looked for.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Opens a stream in a guest: runs a program, or copies.
///
/// A WebSocket. The first message is a text: what to open, as JSON, `{"open":"exec","argv":[..],
/// "env":[["K","V"]],"cwd":..,"user":..,"tty":{"rows":..,"cols":..,"term":..}}`,
/// `{"open":"copy_in","path":..,"mode":..}` or `{"open":"copy_out","path":..}`. It is answered by a
/// text, `StreamOpened`. Then binary messages of at most 65537 bytes: one byte that names the
/// channel, and the payload. To the guest: 0 data, 1 end of data, 2 signal (i32, little endian), 3
/// terminal size (rows and columns, u16, little endian). From the guest: 0 standard output or
/// archive, 1 standard error, 2 the end (`StreamEnd` as JSON; the last message), 3 started (process
/// id, u32, little endian). Closing it early cancels what runs.
#[utoipa::path(
    get, path = "/v1/envs/{env}/vms/{vm}/streams", tag = "vms", operation_id = "open_stream",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm")
    ),
    responses(
        (status = 101, description = "A WebSocket; the last message is", body = StreamEnd),
        Refusals
    )
)]
pub(super) async fn open(
    State(api): State<Api>,
    name: VmName,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = bounded(upgrade)?;
    let session = api.session()?;
    let vm = api
        .call(move |config| {
            let vm = member(&config.tables, &name.env, &name.vm)?;
            let engine = host(config)?.engine(&vm.engine).map_or(0, |engine| engine.features);
            let status = config.tables.status(vm.id)?.map(|row| row.value);
            check_agent(&vm, engine & feat::EXEC != 0, status.as_ref())?;
            Ok(vm)
        })
        .await?;
    Ok(upgrade.on_upgrade(move |socket| async move {
        let _session = session;
        serve_stream(&api, &vm, socket).await;
    }))
}

/// Attaches to a Vm's serial console: a WebSocket of binary messages, raw bytes both ways.
#[utoipa::path(
    get, path = "/v1/envs/{env}/vms/{vm}/console", tag = "vms", operation_id = "attach_console",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm")
    ),
    responses((status = 101, description = "A WebSocket"), Refusals)
)]
pub(super) async fn console(
    State(api): State<Api>,
    name: VmName,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = bounded(upgrade)?;
    let session = api.session()?;
    let vm = api
        .call(move |config| {
            let vm = member(&config.tables, &name.env, &name.vm)?;
            check_machine(&vm)?;
            Ok(vm)
        })
        .await?;
    let console = api.0.config.access.console(vm.id).await?;
    Ok(upgrade.on_upgrade(move |socket| async move {
        let _session = session;
        serve_bytes(socket, console).await;
    }))
}

/// Connects to a TCP port of a guest from inside its Env's network, whether it is published or not: a WebSocket of binary
/// messages, raw bytes both ways. `ERR_TT_AGENT` if nothing answers there yet.
#[utoipa::path(
    get, path = "/v1/envs/{env}/vms/{vm}/ports/{port}", tag = "vms", operation_id = "connect_port",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm"),
        ("port" = u16, Path, description = "A TCP port of the guest", minimum = 1)
    ),
    responses((status = 101, description = "A WebSocket"), Refusals)
)]
pub(super) async fn connect(
    State(api): State<Api>,
    VmPort(name, port): VmPort,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = bounded(upgrade)?;
    let session = api.session()?;
    let vm = api
        .call(move |config| {
            let vm = member(&config.tables, &name.env, &name.vm)?;
            check_machine(&vm)?;
            match vm.goal {
                Goal::Paused => Err(is_paused(&vm).into()),
                _ => Ok(vm),
            }
        })
        .await?;
    let connection = api.0.config.access.connect(&vm, port).await?;
    Ok(upgrade.on_upgrade(move |socket| async move {
        let _session = session;
        serve_bytes(socket, connection).await;
    }))
}

fn bounded(
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<WebSocketUpgrade, Refusal> {
    let upgrade = upgrade.map_err(|rejection| {
        let problem = shown(&rejection.body_text());
        Refusal::new(ErrorCode::Request, "upgrade", problem, "connect with a WebSocket client")
    })?;
    Ok(upgrade
        .read_buffer_size(WIRE_BYTES_MAX)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * WIRE_BYTES_MAX)
        .max_message_size(WIRE_BYTES_MAX)
        .max_frame_size(WIRE_BYTES_MAX))
}

/// Whether a machine should exist.
fn check_machine(vm: &Vm) -> Result<(), Refusal> {
    if vm.goal.height() >= Goal::Paused.height() {
        return Ok(());
    }
    let what = format!("vm {}", quoted(&vm.full_name()));
    Err(Refusal::new(ErrorCode::State, what, "it does not run", "start it first"))
}

fn is_paused(vm: &Vm) -> Refusal {
    let what = format!("vm {}", quoted(&vm.full_name()));
    Refusal::new(ErrorCode::State, what, "it is paused", "start it first")
}

/// Whether an agent can answer in the guest, or is about to again: one that was ready is waited for when it is opened, as
/// after the daemon's start. What is wrong with its disk or network meanwhile does not keep it from answering.
fn check_agent(vm: &Vm, can_exec: bool, status: Option<&VmStatus>) -> Result<(), Refusal> {
    check_machine(vm)?;
    let refuse = |code, problem: String, remedy: &str| {
        let what = format!("vm {}", quoted(&vm.full_name()));
        Err(Refusal::new(code, what, problem, remedy))
    };
    if !can_exec {
        let problem = format!("engine {} can not exec or copy", vm.engine);
        return refuse(ErrorCode::Unsupported, problem, "choose another engine for it");
    }
    if !vm.has_agent() {
        let problem = format!(
            "its guest lacks TT's agent, which runs programs and copies: template {} does not bring it",
            vm.template.name
        );
        let remedy =
            "use `tt ssh`, `tt console` or its ports, or make it from a template with the agent";
        return refuse(ErrorCode::Agent, problem, remedy);
    }
    if vm.goal == Goal::Paused {
        return Err(is_paused(vm));
    }
    match status {
        Some(VmStatus { phase: Phase::Ready, .. }) => Ok(()),
        Some(VmStatus { ready_ms: Some(_), generation, .. }) if *generation == vm.generation => {
            Ok(())
        }
        status => {
            let phase = status.map_or(Phase::Planned, |status| status.phase).name();
            let problem = format!("its guest is not ready (phase {phase})");
            refuse(ErrorCode::Agent, problem, "wait until it is ready")
        }
    }
}

async fn serve_stream(api: &Api, vm: &Vm, socket: WebSocket) {
    let (mut sink, mut source) = socket.split();
    let opened = match greeting(&mut source).await {
        Ok(open) => api.0.config.access.open(vm.id, open).await,
        Err(refusal) => Err(refusal),
    };
    let (stream, problem) = match opened {
        Ok(stream) => (Some(stream), None),
        Err(refusal) => (None, Some(Problem::from(refusal))),
    };
    let Ok(answer) = serde_json::to_string(&StreamOpened { problem }) else { return };
    if sink.send(Message::text(answer)).await.is_err() {
        return;
    }
    let end = match stream {
        None => Ok(()),
        Some(GuestStream { to, mut from }) => {
            let up = forward(&mut source, &to, decode_to);
            let down = hand_out(&mut sink, &mut from, outgoing);
            tokio::select! { end = up => end, end = down => end }
        }
    };
    close(sink, end).await;
}

async fn serve_bytes(socket: WebSocket, bytes: ByteStream) {
    let (mut sink, mut source) = socket.split();
    let ByteStream { to, mut from } = bytes;
    let up = forward(&mut source, &to, |bytes| Ok(bytes.to_vec()));
    let down = hand_out(&mut sink, &mut from, |bytes: Option<Vec<u8>>| {
        let is_last = bytes.is_none();
        let bytes = bytes.unwrap_or_default();
        Ok(Outgoing {
            messages: bytes.chunks(WIRE_BYTES_MAX).map(<[u8]>::to_vec).collect(),
            is_last,
        })
    });
    let end = tokio::select! { end = up => end, end = down => end };
    close(sink, end).await;
}

/// What the client opens: its first message.
async fn greeting(source: &mut SplitStream<WebSocket>) -> Result<Open, Refusal> {
    let refuse = |problem: &str| {
        let remedy = "send what to open as one JSON text; see /v1/openapi.json";
        Refusal::new(ErrorCode::Request, "first message", problem, remedy)
    };
    match tokio::time::timeout(GREETING_TIMEOUT, source.next()).await {
        Ok(Some(Ok(Message::Text(text)))) => {
            let open =
                serde_json::from_str(&text).map_err(|error| refuse(&shown(&error.to_string())))?;
            check_open(&open)?;
            Ok(open)
        }
        Ok(_) => Err(refuse("it is no text, or too long")),
        Err(_) => Err(refuse("it did not come in time")),
    }
}

/// Checks all that can be said of what is to be opened without asking the guest.
fn check_open(open: &Open) -> Result<(), Refusal> {
    let invalid = |what: String, problem: &str, remedy: &str| {
        Err(Refusal::new(ErrorCode::Invalid, what, problem, remedy))
    };
    match open {
        Open::Exec(program) => {
            if program.argv.first().is_none_or(String::is_empty) {
                return invalid("argv".into(), "it names no program", "give at least a program");
            }
            let env = program.env.iter().flat_map(|(name, value)| [name, value]);
            let mut texts = program.argv.iter().chain(env).chain(&program.cwd);
            if let Some(text) = texts.find(|text| text.contains('\0')) {
                return invalid(quoted(text), "it has a NUL byte", "no program can receive one");
            }
            let names = program.env.iter().map(|(name, _)| name);
            match names.into_iter().find(|name| name.is_empty() || name.contains('=')) {
                Some(name) => invalid(
                    format!("variable {}", quoted(name)),
                    "it is no name",
                    "use a name without `=`",
                ),
                None => Ok(()),
            }
        }
        Open::CopyIn { path, .. } | Open::CopyOut { path } => {
            if path.starts_with('/') && !path.contains('\0') {
                return Ok(());
            }
            invalid(
                format!("path {}", quoted(path)),
                "it is no path in a guest",
                "begin it with `/`",
            )
        }
    }
}

/// Hands what the client sends to the guest, until the client leaves or sends nonsense.
async fn forward<T>(
    source: &mut SplitStream<WebSocket>,
    to: &mpsc::Sender<T>,
    decode: impl Fn(&[u8]) -> Result<T, &'static str>,
) -> Result<(), &'static str> {
    while let Some(Ok(message)) = source.next().await {
        match message {
            // A guest that takes nothing more may still have something to say.
            Message::Binary(bytes) => drop(to.send(decode(&bytes)?).await),
            Message::Text(_) => return Err("a text came where data were expected"),
            Message::Close(_) => break,
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }
    Ok(())
}

/// What goes to the client for one thing that came from the host.
struct Outgoing {
    messages: Vec<Vec<u8>>,
    is_last: bool,
}

/// The messages for what a guest sent, or for its silence if the host lost it.
fn outgoing(from: Option<FromGuest>) -> Result<Outgoing, &'static str> {
    let from = from.unwrap_or_else(|| FromGuest::Failed {
        code: FailureCode::Cancelled,
        why: "the host lost the stream".into(),
    });
    let is_last = matches!(from, FromGuest::Exited { .. } | FromGuest::Failed { .. });
    let messages = encode_from(&from).map_err(|_| "an end could not be written")?;
    Ok(Outgoing { messages, is_last })
}

/// Hands what comes from the host to the client, until the end or until the client has left.
async fn hand_out<T>(
    sink: &mut SplitSink<WebSocket, Message>,
    from: &mut mpsc::Receiver<T>,
    encode: impl Fn(Option<T>) -> Result<Outgoing, &'static str>,
) -> Result<(), &'static str> {
    loop {
        let Ok(received) = tokio::time::timeout(PING_INTERVAL, from.recv()).await else {
            // A client that has left while its own data wait for the guest is found only this way.
            if sink.send(Message::Ping(Bytes::new())).await.is_err() {
                return Ok(());
            }
            continue;
        };
        let Outgoing { messages, is_last } = encode(received)?;
        for message in messages {
            if sink.send(Message::binary(message)).await.is_err() {
                return Ok(());
            }
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Says why it ends, to a client that is still there.
async fn close(mut sink: SplitSink<WebSocket, Message>, end: Result<(), &'static str>) {
    let (code, reason) = match end {
        Ok(()) => (close_code::NORMAL, ""),
        Err(reason) => (close_code::PROTOCOL, reason),
    };
    let frame = CloseFrame { code, reason: reason.into() };
    let farewell = sink.send(Message::Close(Some(frame)));
    if tokio::time::timeout(GREETING_TIMEOUT, farewell).await.is_err() {
        tracing::debug!("a stream's client did not take its end");
    }
}
