//! One request on one connection. It never retries.

use super::Client;
use crate::error::{ClientError, PROBLEM_CONTENT_TYPE, Problem};
use crate::wire::IDEMPOTENCY_KEY;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Write as _;
use std::time::Duration;
use tokio::net::UnixStream;

/// How long an answer may take: longer than the daemon's own limits, short enough that nobody
/// waits for a daemon that hangs.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Largest answer: a list of 10,000 Vms has about 20 MiB.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Largest refusal that is read.
const PROBLEM_BYTES_MAX: usize = 1 << 20;

/// What is sent with a request.
pub(super) struct Body {
    json: Option<Vec<u8>>,
    key: Option<String>,
}

impl Body {
    pub(super) fn none() -> Self {
        Self { json: None, key: None }
    }

    pub(super) fn json<T: Serialize>(value: &T) -> Result<Self, ClientError> {
        let json = serde_json::to_vec(value).map_err(|source| ClientError::Protocol {
            action: "the request".into(),
            what: format!("its body can not be written: {source}"),
        })?;
        Ok(Self { json: Some(json), key: None })
    }

    pub(super) fn with_key(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }
}

impl Client {
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<T, ClientError> {
        let action = format!("{method} {path}");
        let bytes = self.bytes(method, path, body).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| ClientError::Protocol { action, what: error.to_string() })
    }

    pub(super) async fn bytes(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Vec<u8>, ClientError> {
        let action = format!("{method} {path}");
        let exchange = async {
            let response = self.send(request(method, path, body, &action)?, &action).await?;
            read(response, ANSWER_BYTES_MAX, &action).await
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Timeout { action, seconds: ANSWER_TIMEOUT.as_secs() }),
        }
    }

    /// Sends a request and answers the response, unless it is a refusal.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        action: &str,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Connect { socket: self.socket.clone(), source })?;
        let lost = |source| ClientError::Exchange { action: action.to_owned(), source };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(lost)?;
        // It ends with the response's body, or when the response is dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to the daemon ended");
            }
        });
        let response = sender.send_request(request).await.map_err(lost)?;
        let status = response.status();
        if status.is_success() || status == hyper::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        Err(refused(response, action).await)
    }
}

/// The request as it is sent; `action` names it in an error.
pub(super) fn request(
    method: Method,
    path: &str,
    body: Body,
    action: &str,
) -> Result<Request<Full<Bytes>>, ClientError> {
    let mut builder = Request::builder().method(method).uri(path).header(HOST, "tt");
    if let Some(key) = body.key {
        // A key that is no header value is sent as an empty one, which the daemon refuses by name.
        let value = HeaderValue::from_str(&key).unwrap_or(HeaderValue::from_static(""));
        builder = builder.header(HeaderName::from_static(IDEMPOTENCY_KEY), value);
    }
    if body.json.is_some() {
        builder = builder.header(CONTENT_TYPE, "application/json");
    }
    let body = Full::new(Bytes::from(body.json.unwrap_or_default()));
    builder.body(body).map_err(|error| ClientError::Protocol {
        action: action.to_owned(),
        what: format!("the request can not be written: {error}"),
    })
}

/// Writes a name as one segment of a path: all but unreserved characters (RFC 3986) as `%XX`.
pub(super) fn segment(name: &str) -> String {
    let mut written = String::with_capacity(name.len());
    // A dot segment would be taken for a step in the path.
    let is_dots = matches!(name, "." | "..");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || (b"-._~".contains(&byte) && !is_dots) {
            written.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(written, "%{byte:02X}");
        }
    }
    written
}

async fn refused(response: Response<Incoming>, action: &str) -> ClientError {
    let status = response.status();
    let is_problem = response.headers().get(CONTENT_TYPE).is_some_and(|value| {
        value.to_str().is_ok_and(|value| value.starts_with(PROBLEM_CONTENT_TYPE))
    });
    let body = match read(response, PROBLEM_BYTES_MAX, action).await {
        Ok(body) => body,
        Err(error) => return error,
    };
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) if is_problem => ClientError::Problem(problem),
        _ => ClientError::Protocol {
            action: action.to_owned(),
            what: format!("status {status} without a problem"),
        },
    }
}

async fn read(
    response: Response<Incoming>,
    bytes_max: usize,
    action: &str,
) -> Result<Vec<u8>, ClientError> {
    let body = Limited::new(response.into_body(), bytes_max).collect().await;
    body.map(|body| body.to_bytes().to_vec()).map_err(|error| {
        let action = action.to_owned();
        if error.is::<LengthLimitError>() {
            let what = format!("its body has more than {bytes_max} bytes");
            return ClientError::Protocol { action, what };
        }
        match error.downcast::<hyper::Error>() {
            Ok(source) => ClientError::Exchange { action, source: *source },
            Err(error) => ClientError::Protocol { action, what: error.to_string() },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn any_name_is_one_segment() {
        for (name, written) in [
            ("web-1", "web-1"),
            ("a/b", "a%2Fb"),
            ("..", "%2E%2E"),
            ("a?b#c%", "a%3Fb%23c%25"),
            ("ä\n", "%C3%A4%0A"),
            ("", ""),
        ] {
            assert_eq!(segment(name), written);
        }
    }
}
