//! HTTP/1.1 as Firecracker's server speaks it: kept alive, a body only with its length, empty reason phrases.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

/// Largest body that is taken.
const BODY_BYTES_MAX: usize = 51_200;

/// A request.
pub struct Request {
    pub method: String,
    pub path: String,
    pub body: Value,
}

/// What is answered: a status, and a body if there is one.
pub type Answer = (u16, Option<Value>);

/// An answer that refuses.
pub fn fault(message: impl Into<String>) -> Answer {
    (400, Some(json!({ "fault_message": message.into() })))
}

/// Answers requests until the peer hangs up or says something odd.
pub fn serve(stream: UnixStream, answer: impl Fn(&Request) -> Answer) {
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader) {
        let (status, body) = answer(&request);
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let mut head =
            format!("HTTP/1.1 {status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n");
        if status != 204 {
            let len = body.len();
            head += &format!("Content-Type: application/json\r\nContent-Length: {len}\r\n");
        }
        if writer.write_all(format!("{head}\r\n{body}").as_bytes()).is_err() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<UnixStream>) -> Option<Request> {
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut len = 0;
    loop {
        let header = line()?;
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("Content-Length: ") {
            len = value.parse().ok().filter(|len| *len <= BODY_BYTES_MAX)?;
        }
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).ok()? };
    Some(Request { method, path, body })
}
