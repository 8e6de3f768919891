//! Firecracker's API: one request at a time, by HTTP/1.1 over a unix socket. It trusts nothing that comes back: size and time
//! of every answer are bounded, and so is who answers.

use super::request::{Request, SOON};
use crate::EngineError;
use crate::unix::connect_within;
use rustix::net::sockopt::socket_peercred;
use serde::Deserialize;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Most bytes of an answer's head; Firecracker's have 200.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Most bytes of its body: an error that repeats what was asked for.
const BODY_BYTES_MAX: usize = 64 << 10;
/// How much of the program's own words an error repeats, in characters.
const QUOTE_CHARS_MAX: usize = 300;

/// A connection to a machine's API.
#[derive(Debug)]
pub(super) struct Api {
    path: PathBuf,
    stream: UnixStream,
}

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum Does {
    /// It was not told yet what it is.
    #[serde(rename = "Not started")]
    NotStarted,
    Running,
    Paused,
}

#[derive(Debug, Deserialize)]
struct Description {
    state: Does,
}

#[derive(Debug, Deserialize)]
struct Fault {
    fault_message: String,
}

/// The head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    /// Its own length, with the empty line at its end.
    bytes: usize,
    status: u16,
    body_bytes: usize,
}

impl Api {
    /// Connects to the socket at `path`, which the machine's user has made: it may be anything that this one could make of
    /// it, such as a link to a socket of others.
    pub fn connect(path: &Path, uid: u32) -> Result<Self, EngineError> {
        let connect = || {
            let stream = connect_within(path, SOON)?;
            let peer = socket_peercred(&stream)?.uid.as_raw();
            match peer == uid {
                true => Ok(stream),
                false => Err(io::Error::other(format!("user {peer} listens there, not {uid}"))),
            }
        };
        let stream = connect().map_err(|e| refuse(path, "connection", e.to_string()))?;
        Ok(Self { path: path.to_owned(), stream })
    }

    /// Whether the machine runs.
    pub fn does(&mut self) -> Result<Does, EngineError> {
        let body = self.ask(&super::request::describe())?;
        let description: Description = serde_json::from_slice(&body)
            .map_err(|e| refuse(&self.path, "/", format!("the answer is odd: {e}")))?;
        Ok(description.state)
    }

    /// Sends a request; answers the body of a good answer.
    pub fn ask(&mut self, request: &Request) -> Result<Vec<u8>, EngineError> {
        let (path, what) = (self.path.clone(), request.path);
        let answer = self.talk(request).map_err(|e| refuse(&path, what, e.to_string()))?;
        match answer {
            (200 | 204, body) => Ok(body),
            (status, body) => {
                let fault = serde_json::from_slice(&body).map(|fault: Fault| fault.fault_message);
                let said = fault.unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned());
                Err(refuse(&path, what, format!("{status} {}", quote(&said))))
            }
        }
    }

    fn talk(&mut self, request: &Request) -> io::Result<(u16, Vec<u8>)> {
        let until = Instant::now() + request.within;
        self.stream.set_write_timeout(Some(request.within))?;
        self.stream.write_all(&spell(request))?;
        let mut answer = Vec::new();
        let head = loop {
            match head(&answer) {
                Ok(Some(head)) => break head,
                Ok(None) if answer.len() < HEAD_BYTES_MAX => self.read(&mut answer, until)?,
                Ok(None) => return Err(io::Error::other("the head of the answer has no end")),
                Err(problem) => return Err(io::Error::other(problem)),
            }
        };
        while answer.len() < head.bytes + head.body_bytes {
            self.read(&mut answer, until)?;
        }
        let body = answer.get(head.bytes..head.bytes + head.body_bytes).unwrap_or_default();
        Ok((head.status, body.to_vec()))
    }

    fn read(&mut self, answer: &mut Vec<u8>, until: Instant) -> io::Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(ErrorKind::TimedOut, "no answer came in time"));
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "it hung up")),
            Ok(count) => {
                answer.extend_from_slice(bytes.get(..count).unwrap_or_default());
                Ok(())
            }
            // Of a timeout `read` itself says `WouldBlock`; the next turn names it.
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// The bytes of a request (RFC 9112).
fn spell(request: &Request) -> Vec<u8> {
    let mut text = format!(
        "{} {} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n",
        request.method, request.path
    );
    let body = request.body.as_ref().map(ToString::to_string).unwrap_or_default();
    if request.body.is_some() {
        let len = body.len();
        text += &format!("Content-Type: application/json\r\nContent-Length: {len}\r\n");
    }
    (text + "\r\n" + &body).into_bytes()
}

/// The head that `answer` begins with; `None` if its end has not come yet.
fn head(answer: &[u8]) -> Result<Option<Head>, &'static str> {
    const END: &[u8] = b"\r\n\r\n";
    let searched = answer.get(..HEAD_BYTES_MAX).unwrap_or(answer);
    let Some(at) = searched.windows(END.len()).position(|bytes| bytes == END) else {
        return Ok(None);
    };
    let text = answer.get(..at).and_then(|head| std::str::from_utf8(head).ok());
    let mut lines = text.ok_or("the head of the answer is no text")?.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
    let status = status.ok_or("the answer is not HTTP/1")?;
    let mut body_bytes = 0;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("the answer comes in chunks");
        }
        if name.eq_ignore_ascii_case("content-length") {
            body_bytes = value.trim().parse().map_err(|_| "the answer's length is no number")?;
        }
    }
    if body_bytes > BODY_BYTES_MAX {
        return Err("the answer is too long");
    }
    Ok(Some(Head { bytes: at + END.len(), status, body_bytes }))
}

/// Words of the program, bounded and without what a terminal would obey.
pub(super) fn quote(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(QUOTE_CHARS_MAX).collect()
}

fn refuse(path: &Path, command: &'static str, problem: String) -> EngineError {
    EngineError::Monitor { path: path.to_owned(), command, problem }
}

#[cfg(test)]
mod tests {
    use super::super::request;
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// What comes of a request that is answered by these bytes.
    fn answered(bytes: &[u8]) -> Result<Vec<u8>, EngineError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let listener = UnixListener::bind(&path).unwrap();
        let bytes = bytes.to_vec();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
            // It may have heard enough.
            let _ = stream.write_all(&bytes);
        });
        let uid = rustix::process::geteuid().as_raw();
        let outcome = Api::connect(&path, uid).unwrap().ask(&request::pause());
        server.join().unwrap();
        outcome
    }

    #[test]
    fn requests_are_spelled_as_the_rfc_has_it() {
        let text = String::from_utf8(spell(&request::pause())).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("PATCH /vm HTTP/1.1\r\nHost: localhost\r\n"));
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
        assert_eq!(body, r#"{"state":"Paused"}"#);
        assert!(spell(&request::describe()).ends_with(b"json\r\n\r\n"));
    }

    #[test]
    fn good_answers_give_their_body_and_bad_ones_their_reason() {
        assert_eq!(answered(b"HTTP/1.1 204 \r\nServer: x\r\n\r\n").unwrap(), b"");
        let body = b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(answered(body).unwrap(), b"{}");
        let fault = br#"{"fault_message":"no \u001b[31m disk"}"#;
        let head = format!("HTTP/1.1 400 \r\nContent-Length: {}\r\n\r\n", fault.len());
        let error = answered(&[head.as_bytes(), fault].concat()).unwrap_err().to_string();
        assert!(error.ends_with("for /vm: 400 no [31m disk"), "{error}");
    }

    #[test]
    fn odd_and_endless_answers_are_refused() {
        for (bytes, part) in [
            (&b"HTTP/1.1 204"[..], "hung up"),
            (b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\n{}", "hung up"),
            (b"HTTP/1.1 200 \r\nContent-Length: 65537\r\n\r\n", "too long"),
            (b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n", "no number"),
            (b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n", "chunks"),
            (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
            (b"HTTP/1.1 \xff\r\n\r\n", "no text"),
            (&[b'x'; 3 * HEAD_BYTES_MAX], "no end"),
        ] {
            let error = answered(bytes).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn whoever_listens_must_be_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let _listener = UnixListener::bind(&path).unwrap();
        let error = Api::connect(&path, 0x7000_0001).unwrap_err().to_string();
        assert!(error.contains("not 1879048193"), "{error}");
    }

    #[test]
    fn states_are_read() {
        let state = |text: &str| {
            let body = format!(r#"{{"id":"x","state":"{text}","vmm_version":"1"}}"#);
            serde_json::from_str::<Description>(&body).map(|d| d.state).ok()
        };
        assert_eq!(state("Not started"), Some(Does::NotStarted));
        assert_eq!((state("Running"), state("Paused")), (Some(Does::Running), Some(Does::Paused)));
        assert_eq!(state("Odd"), None);
    }
}
