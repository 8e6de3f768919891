//! Following an Env: a reader of server-sent events (WHATWG HTML, 9.2). It never asks again by
//! itself.

use super::Client;
use super::http::{Body, request};
use crate::error::ClientError;
use crate::views::EnvView;
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;

/// Largest event: an Env of 256 members has about half a MiB.
const EVENT_BYTES_MAX: usize = 16 << 20;

/// What happened to an Env.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvEvent {
    /// Its state now; states between two events may have been passed over.
    Env(Box<EnvView>),
    /// Its record is gone. Nothing follows.
    Gone,
}

/// The events of one Env. Dropping it ends them.
#[derive(Debug)]
pub struct EnvEvents {
    action: String,
    body: Incoming,
    /// What has come and is no whole event yet.
    pending: Vec<u8>,
}

impl EnvEvents {
    pub(super) async fn open(client: &Client, path: &str) -> Result<Self, ClientError> {
        let action = format!("GET {path}");
        let request = request(Method::GET, path, Body::none(), &action)?;
        let response = client.send(request, &action).await?;
        Ok(Self { action, body: response.into_body(), pending: Vec::new() })
    }

    /// The next event; nothing when the daemon has ended the connection (a daemon that stops does):
    /// ask again then, unless the last one was [`EnvEvent::Gone`]. Cancel-safe.
    ///
    /// # Errors
    /// If the connection is lost, or what comes is no event.
    pub async fn next(&mut self) -> Result<Option<EnvEvent>, ClientError> {
        loop {
            while let Some(block) = take_block(&mut self.pending) {
                if let Some(event) = parse(&block).map_err(|what| self.broken(what))? {
                    return Ok(Some(event));
                }
            }
            if self.pending.len() > EVENT_BYTES_MAX {
                return Err(self.broken(format!("an event has more than {EVENT_BYTES_MAX} bytes")));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.pending.extend_from_slice(data);
                    }
                }
                Some(Err(source)) => {
                    return Err(ClientError::Exchange { action: self.action.clone(), source });
                }
            }
        }
    }

    fn broken(&self, what: String) -> ClientError {
        ClientError::Protocol { action: self.action.clone(), what }
    }
}

/// Takes the bytes up to the next empty line.
fn take_block(pending: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = pending.windows(2).position(|pair| pair == b"\n\n")?;
    let rest = pending.split_off(end + 2);
    Some(std::mem::replace(pending, rest))
}

/// What a block says; nothing if it is a comment or of a kind that is not known here.
fn parse(block: &[u8]) -> Result<Option<EnvEvent>, String> {
    let text = std::str::from_utf8(block).map_err(|error| error.to_string())?;
    let mut kind = "";
    let mut data = String::new();
    for line in text.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => kind = value,
            "data" => data.push_str(value),
            _ => {}
        }
    }
    match kind {
        "env" => {
            let view = serde_json::from_str(&data).map_err(|error| error.to_string())?;
            Ok(Some(EnvEvent::Env(Box::new(view))))
        }
        "gone" => Ok(Some(EnvEvent::Gone)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_end_with_an_empty_line() {
        let mut pending = b": hello\n\nevent: gone\ndata: {}\n\neve".to_vec();
        let first = take_block(&mut pending).unwrap();
        assert_eq!(parse(&first), Ok(None));
        let second = take_block(&mut pending).unwrap();
        assert_eq!(parse(&second), Ok(Some(EnvEvent::Gone)));
        assert_eq!((take_block(&mut pending), pending.as_slice()), (None, &b"eve"[..]));
    }

    #[test]
    fn a_malformed_event_is_an_error() {
        assert!(parse(b"event: env\ndata: {\n\n").is_err());
        assert!(parse(b"event: env\ndata: \xff\n\n").is_err());
    }
}
