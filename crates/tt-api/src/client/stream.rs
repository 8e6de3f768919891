//! Streams and consoles: WebSockets on an upgraded connection. What is sent waits until the other
//! side takes it; nothing is buffered beyond a few messages.

use super::Client;
use super::http::{Body, request};
use crate::error::ClientError;
use crate::views::StreamOpened;
use crate::wire::{WIRE_BYTES_MAX, decode_from, encode_to};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::Method;
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tt_guest::session::{FromGuest, Open, ToGuest};

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A stream in a guest.
#[derive(Debug)]
pub struct Stream {
    sender: StreamSender,
    receiver: StreamReceiver,
}

/// The half of a [`Stream`] that sends.
#[derive(Debug)]
pub struct StreamSender(Sender);

/// The half of a [`Stream`] that receives.
#[derive(Debug)]
pub struct StreamReceiver(Receiver);

impl Stream {
    pub(super) async fn open(
        client: &Client,
        path: &str,
        open: &Open,
    ) -> Result<Self, ClientError> {
        let (mut sender, mut receiver) = connect(client, path).await?;
        let open = serde_json::to_string(open)
            .map_err(|error| sender.broken(format!("it can not be written: {error}")))?;
        sender.send(Message::text(open)).await?;
        let Some(Message::Text(answer)) = receiver.receive().await? else {
            return Err(receiver.broken("the daemon did not say whether it is open"));
        };
        let opened: StreamOpened =
            serde_json::from_str(&answer).map_err(|error| receiver.broken(error))?;
        match opened.problem {
            Some(problem) => Err(ClientError::Problem(problem)),
            None => Ok(Self { sender: StreamSender(sender), receiver: StreamReceiver(receiver) }),
        }
    }

    /// See [`StreamSender::send`].
    pub async fn send(&mut self, to: ToGuest) -> Result<(), ClientError> {
        self.sender.send(to).await
    }

    /// See [`StreamReceiver::receive`].
    pub async fn receive(&mut self) -> Result<Option<FromGuest>, ClientError> {
        self.receiver.receive().await
    }

    /// Takes it apart, so that two tasks can use it. Both halves must be dropped to cancel it.
    pub fn split(self) -> (StreamSender, StreamReceiver) {
        (self.sender, self.receiver)
    }
}

impl StreamSender {
    /// Sends, and waits while the guest does not take it. Data of any length may be given.
    ///
    /// # Errors
    /// If the stream has ended or broken: [`StreamReceiver::receive`] tells which.
    pub async fn send(&mut self, to: ToGuest) -> Result<(), ClientError> {
        for message in encode_to(&to) {
            self.0.send(Message::binary(message)).await?;
        }
        Ok(())
    }
}

impl StreamReceiver {
    /// What comes next; nothing once `Exited` or `Failed` has come. Cancel-safe.
    ///
    /// # Errors
    /// If the stream broke before it ended: what ran on it was cancelled.
    pub async fn receive(&mut self) -> Result<Option<FromGuest>, ClientError> {
        if self.0.is_ended {
            return Ok(None);
        }
        match self.0.receive().await? {
            Some(Message::Binary(message)) => {
                let from = decode_from(&message).map_err(|what| self.0.broken(what))?;
                let is_end = matches!(from, FromGuest::Exited { .. } | FromGuest::Failed { .. });
                self.0.is_ended |= is_end;
                Ok(Some(from))
            }
            Some(_) => Err(self.0.broken("a text came where data were expected")),
            None => Err(self.0.broken("it ended without saying how")),
        }
    }
}

/// A machine's serial console, or a connection to its guest: raw bytes.
#[derive(Debug)]
pub struct Console {
    sender: ConsoleSender,
    receiver: ConsoleReceiver,
}

/// The half of a [`Console`] that sends.
#[derive(Debug)]
pub struct ConsoleSender(Sender);

/// The half of a [`Console`] that receives.
#[derive(Debug)]
pub struct ConsoleReceiver(Receiver);

impl Console {
    pub(super) async fn open(client: &Client, path: &str) -> Result<Self, ClientError> {
        let (sender, receiver) = connect(client, path).await?;
        Ok(Self { sender: ConsoleSender(sender), receiver: ConsoleReceiver(receiver) })
    }

    /// See [`ConsoleSender::send`].
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.sender.send(bytes).await
    }

    /// See [`ConsoleReceiver::receive`].
    pub async fn receive(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        self.receiver.receive().await
    }

    /// Takes it apart, so that two tasks can use it.
    pub fn split(self) -> (ConsoleSender, ConsoleReceiver) {
        (self.sender, self.receiver)
    }
}

impl ConsoleSender {
    /// Sends key strokes, and waits while the machine does not take them.
    ///
    /// # Errors
    /// If the console is gone.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        for chunk in bytes.chunks(WIRE_BYTES_MAX) {
            self.0.send(Message::binary(chunk.to_vec())).await?;
        }
        Ok(())
    }
}

impl ConsoleReceiver {
    /// What the guest prints next; nothing once the machine has ended. Cancel-safe.
    ///
    /// # Errors
    /// If the connection broke.
    pub async fn receive(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        match self.0.receive().await? {
            Some(Message::Binary(bytes)) => Ok(Some(bytes.to_vec())),
            Some(_) => Err(self.0.broken("a text came where bytes were expected")),
            None => Ok(None),
        }
    }
}

#[derive(Debug)]
struct Sender {
    action: Arc<str>,
    sink: SplitSink<Socket, Message>,
}

#[derive(Debug)]
struct Receiver {
    action: Arc<str>,
    source: SplitStream<Socket>,
    is_ended: bool,
}

impl Sender {
    async fn send(&mut self, message: Message) -> Result<(), ClientError> {
        self.sink.send(message).await.map_err(|source| broke(&self.action, source))
    }

    fn broken(&self, what: impl ToString) -> ClientError {
        ClientError::Protocol { action: self.action.to_string(), what: what.to_string() }
    }
}

impl Receiver {
    /// The next text or binary message; nothing once the other side has closed it.
    async fn receive(&mut self) -> Result<Option<Message>, ClientError> {
        loop {
            match self.source.next().await {
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => {
                    return Ok(Some(message));
                }
                Some(Ok(Message::Close(_))) | None => return Ok(None),
                Some(Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) => return Ok(None),
                Some(Ok(_)) => {}
                Some(Err(source)) => return Err(broke(&self.action, source)),
            }
        }
    }

    fn broken(&self, what: impl ToString) -> ClientError {
        ClientError::Protocol { action: self.action.to_string(), what: what.to_string() }
    }
}

fn broke(action: &str, source: WsError) -> ClientError {
    ClientError::Stream { action: action.to_owned(), source: Box::new(source) }
}

/// Opens a WebSocket. The handshake (RFC 6455, 4.1) is done by hand on the HTTP client, so that a
/// refusal arrives with its body.
async fn connect(client: &Client, path: &str) -> Result<(Sender, Receiver), ClientError> {
    let action = format!("GET {path}");
    let key = generate_key();
    let mut request = request(Method::GET, path, Body::none(), &action)?;
    let protocol =
        |what: &str| ClientError::Protocol { action: action.clone(), what: what.to_owned() };
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    let value = HeaderValue::from_str(&key).map_err(|_| protocol("its key is malformed"))?;
    headers.insert(SEC_WEBSOCKET_KEY, value);
    let response = client.send(request, &action).await?;
    let accept = response.headers().get(SEC_WEBSOCKET_ACCEPT);
    if accept.is_none_or(|accept| accept != derive_accept_key(key.as_bytes()).as_str()) {
        return Err(protocol("it was not upgraded to a WebSocket"));
    }
    let upgraded = hyper::upgrade::on(response)
        .await
        .map_err(|source| ClientError::Exchange { action: action.clone(), source })?;
    let config = WebSocketConfig::default()
        .read_buffer_size(WIRE_BYTES_MAX)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * WIRE_BYTES_MAX)
        .max_message_size(Some(WIRE_BYTES_MAX))
        .max_frame_size(Some(WIRE_BYTES_MAX));
    let socket =
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await;
    let (sink, source) = socket.split();
    let action: Arc<str> = action.into();
    Ok((Sender { action: Arc::clone(&action), sink }, Receiver { action, source, is_ended: false }))
}
