//! The API as bytes: for requests that no client of ours would send.

use crate::{Lab, Must};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status; 0 if there was no answer.
    pub status: u16,
    /// The body, if it is JSON.
    pub body: Value,
    /// All of it.
    pub text: String,
}

impl Answer {
    /// The stable code of a problem; nothing if it is none.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

impl Lab {
    /// The answer to a plain GET; nothing if nobody answers.
    pub fn get(&self, path: &str) -> Option<Answer> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: tt\r\nConnection: close\r\n\r\n");
        Some(self.raw(request.as_bytes())).filter(|answer| answer.status != 0)
    }

    /// The answer to a request with a body and more headers, each ended by `\r\n`.
    pub fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: tt\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
            body.len()
        );
        self.raw(request.as_bytes())
    }

    /// The answer to any bytes; empty if there is none.
    pub fn raw(&self, request: &[u8]) -> Answer {
        let mut bytes = Vec::new();
        if let Ok(mut stream) = UnixStream::connect(self.socket()) {
            stream.set_read_timeout(Some(PATIENCE)).must("set a timeout");
            stream.set_write_timeout(Some(PATIENCE)).must("set a timeout");
            // A server may answer and close before it has read all.
            let _ = stream.write_all(request);
            let _ = stream.read_to_end(&mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let status = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Answer { status, body: parse(body), text }
    }
}

/// JSON as it is, or in chunks: the first `{` or `[` to the last `}` or `]`, without the lines that are chunk sizes.
fn parse(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|_| {
        let mut whole = String::new();
        let mut rest = body;
        while let Some((size, after)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
            let Some(chunk) = after.get(..size).filter(|_| size > 0) else { break };
            whole += chunk;
            rest = after.get(size + 2..).unwrap_or_default();
        }
        serde_json::from_str(&whole).unwrap_or_default()
    })
}
