//! QEMU's monitor (QMP): one command at a time over a unix socket. It trusts nothing that comes back: lines, their
//! number and the time are bounded, unknown fields and events are passed over.
//!
//! Format: one JSON object a line; see `docs/interop/qmp-spec.rst` in QEMU's source.

use crate::EngineError;
use crate::unix::connect_within;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long one answer may take: a program that is starting greets after some 40 ms, on a busy host much later.
const TALK_MAX: Duration = Duration::from_secs(20);
/// Longest line: a disk of 64 layers, each told with all that it lies on, takes some 250 KB, the list of its nodes 700 KB.
const LINE_BYTES_MAX: usize = 2 << 20;
/// Most lines before the answer: events that a guest can provoke.
const LINES_MAX: u32 = 1000;
/// How much of a program's own words an error repeats, in characters.
const QUOTE_CHARS_MAX: usize = 200;

/// A conversation with a machine's monitor. A monitor talks to one at a time: keep it short.
#[derive(Debug)]
pub(super) struct Qmp<S = UnixStream> {
    path: PathBuf,
    stream: S,
    lines: Lines,
    until: Instant,
}

/// Whether a machine's processors run.
#[derive(Debug, Deserialize)]
struct Status {
    running: bool,
}

impl Qmp {
    /// Begins a conversation: waits for the greeting and leaves the negotiation mode.
    pub fn connect(path: &Path) -> Result<Self, EngineError> {
        let stream = connect_within(path, TALK_MAX);
        let stream = stream.map_err(|e| refuse(path, "greeting", e.to_string()))?;
        Self::over(stream, path)
    }

    /// As [`Qmp::connect`], over a stream that is connected; `path` is its name for people.
    pub fn over(stream: UnixStream, path: &Path) -> Result<Self, EngineError> {
        let until = Instant::now() + TALK_MAX;
        let mut qmp = Self { path: path.to_owned(), stream, lines: Lines::default(), until };
        qmp.begin()?;
        Ok(qmp)
    }
}

impl<S: Talk> Qmp<S> {
    fn begin(&mut self) -> Result<(), EngineError> {
        self.answer("greeting", |message| message.greeting.map(|_| ()))?;
        self.run("qmp_capabilities")
    }

    /// Does a command that takes and gives nothing: `stop`, `cont`, `system_powerdown`.
    pub fn run(&mut self, command: &'static str) -> Result<(), EngineError> {
        self.ask::<IgnoredAny>(command).map(drop)
    }

    /// Whether the processors run.
    pub fn running(&mut self) -> Result<bool, EngineError> {
        Ok(self.ask::<Status>("query-status")?.running)
    }

    /// Does a command with arguments whose answer says nothing.
    pub fn order(&mut self, command: &'static str, arguments: Value) -> Result<(), EngineError> {
        self.talk::<IgnoredAny>(command, Some(arguments), None).map(drop)
    }

    /// Hands a descriptor over, for commands that name it.
    pub fn give(&mut self, fd: BorrowedFd<'_>, name: &str) -> Result<(), EngineError> {
        let arguments = Some(serde_json::json!({ "fdname": name }));
        self.talk::<IgnoredAny>("getfd", arguments, Some(fd)).map(drop)
    }

    /// Asks for something that takes no arguments.
    pub fn ask<T: DeserializeOwned>(&mut self, command: &'static str) -> Result<T, EngineError> {
        self.talk(command, None, None)
    }

    /// Asks for something that takes arguments.
    pub fn ask_with<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        arguments: Value,
    ) -> Result<T, EngineError> {
        self.talk(command, Some(arguments), None)
    }

    fn talk<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        arguments: Option<Value>,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<T, EngineError> {
        let mut message = serde_json::json!({ "execute": command, "id": command });
        if let Some(arguments) = arguments {
            message["arguments"] = arguments;
        }
        self.until = Instant::now() + TALK_MAX;
        let line = format!("{message}\n");
        self.stream
            .limit(self.left(command)?)
            .and_then(|()| self.stream.say(line.as_bytes(), fd))
            .map_err(|e| refuse(&self.path, command, e.to_string()))?;
        let path = self.path.clone();
        self.answer(command, |message| match message.id {
            Some(id) if id == command => Some(match (message.result, message.error) {
                (Some(result), _) => serde_json::from_value(result)
                    .map_err(|e| refuse(&path, command, format!("the answer is odd: {e}"))),
                (None, Some(error)) => Err(refuse(&path, command, quote(&error.desc))),
                (None, None) => Err(refuse(&path, command, "the answer is empty".into())),
            }),
            _ => None,
        })?
    }

    /// Reads until `pick` takes a message.
    fn answer<T>(
        &mut self,
        command: &'static str,
        pick: impl Fn(Message) -> Option<T>,
    ) -> Result<T, EngineError> {
        for _ in 0..LINES_MAX {
            let line = self.line(command)?;
            let message: Message = serde_json::from_slice(&line)
                .map_err(|e| refuse(&self.path, command, format!("no message: {e}")))?;
            if let Some(picked) = pick(message) {
                return Ok(picked);
            }
        }
        let problem = format!("{LINES_MAX} messages came and none was the answer");
        Err(refuse(&self.path, command, problem))
    }

    fn line(&mut self, command: &'static str) -> Result<Vec<u8>, EngineError> {
        let mut bytes = [0; 4096];
        loop {
            match self.lines.next() {
                Ok(Some(line)) => return Ok(line),
                Ok(None) => {}
                Err(problem) => return Err(refuse(&self.path, command, problem)),
            }
            let left = self.left(command)?;
            let read = self.stream.limit(left).and_then(|()| self.stream.read(&mut bytes));
            match read {
                Ok(0) => return Err(refuse(&self.path, command, "it hung up".into())),
                Ok(n) => self.lines.push(bytes.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(refuse(&self.path, command, e.to_string())),
            }
        }
    }

    fn left(&self, command: &'static str) -> Result<Duration, EngineError> {
        let left = self.until.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(refuse(&self.path, command, format!("no answer within {TALK_MAX:?}"))),
            false => Ok(left),
        }
    }
}

/// What a conversation runs over.
pub(super) trait Talk: Read {
    /// Bounds the next read and write.
    fn limit(&self, time: Duration) -> std::io::Result<()>;

    /// Writes everything, with a descriptor if there is one.
    fn say(&mut self, line: &[u8], fd: Option<BorrowedFd<'_>>) -> std::io::Result<()>;
}

impl Talk for UnixStream {
    fn limit(&self, time: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }

    fn say(&mut self, line: &[u8], fd: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
        let Some(fd) = fd else { return self.write_all(line) };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        let slices = [IoSlice::new(line)];
        let sent = sendmsg(&*self, &slices, &mut ancillary, SendFlags::NOSIGNAL)?;
        // The descriptor has gone with the first byte.
        self.write_all(line.get(sent..).unwrap_or_default())
    }
}

/// Any message of the server, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<IgnoredAny>,
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Refused>,
    id: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Refused {
    desc: String,
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    searched: usize,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        let rest = self.bytes.get(self.searched..).unwrap_or_default();
        let Some(end) = rest.iter().position(|b| *b == b'\n') else {
            self.searched = self.bytes.len();
            return match self.searched > LINE_BYTES_MAX {
                true => Err(format!("a line has more than {LINE_BYTES_MAX} bytes")),
                false => Ok(None),
            };
        };
        let rest = self.bytes.split_off(self.searched + end + 1);
        self.searched = 0;
        Ok(Some(std::mem::replace(&mut self.bytes, rest)))
    }
}

/// A failure in a conversation.
pub(super) fn refuse(path: &Path, command: &'static str, problem: String) -> EngineError {
    EngineError::Monitor { path: path.to_owned(), command, problem: quote(&problem) }
}

/// Foreign text, made harmless for a log.
pub(super) fn quote(text: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(QUOTE_CHARS_MAX).map(printable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    /// A server whose words are known beforehand, handed over `step` bytes at a time.
    struct Script {
        says: Vec<u8>,
        at: usize,
        step: usize,
    }

    impl Read for Script {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = self.step.min(buf.len()).min(self.says.len() - self.at);
            buf[..n].copy_from_slice(&self.says[self.at..self.at + n]);
            self.at += n;
            Ok(n)
        }
    }

    impl Talk for Script {
        fn limit(&self, _: Duration) -> io::Result<()> {
            Ok(())
        }

        fn say(&mut self, _: &[u8], _: Option<BorrowedFd<'_>>) -> io::Result<()> {
            Ok(())
        }
    }

    const GREETING: &str =
        r#"{"QMP": {"version": {"qemu": {"micro": 2}}, "capabilities": ["oob"]}}"#;
    const READY: &str = r#"{"return": {}, "id": "qmp_capabilities"}"#;
    const EVENT: &str =
        r#"{"timestamp": {"seconds": 1}, "event": "RTC_CHANGE", "data": {"offset": 0}}"#;

    fn status(lines: &[&str], step: usize) -> Result<bool, String> {
        let says = lines.iter().flat_map(|l| [l.as_bytes(), b"\r\n"].concat()).collect();
        let mut qmp = Qmp {
            path: "qmp.sock".into(),
            stream: Script { says, at: 0, step },
            lines: Lines::default(),
            until: Instant::now() + TALK_MAX,
        };
        let answer = qmp.begin().and_then(|()| qmp.running());
        answer.map_err(|e| e.to_string())
    }

    #[test]
    fn events_come_anywhere_and_unknown_fields_do_not_matter() {
        let answer = r#"{"id": "query-status", "return": {"status": "paused", "running": false, "x": [1]}, "y": 2}"#;
        let lines = [EVENT, GREETING, EVENT, READY, EVENT, EVENT, answer];
        for step in [1, 7, 4096] {
            assert_eq!(status(&lines, step), Ok(false));
        }
    }

    #[test]
    fn answers_to_others_are_passed_over() {
        let stale = r#"{"return": {"running": false}, "id": "stop"}"#;
        let numbered = r#"{"return": {"running": false}, "id": 7}"#;
        let answer = r#"{"return": {"running": true}, "id": "query-status"}"#;
        assert_eq!(status(&[GREETING, READY, stale, numbered, answer], 4096), Ok(true));
    }

    #[test]
    fn a_refusal_is_quoted_harmlessly() {
        let answer = format!(
            r#"{{"error": {{"class": "GenericError", "desc": "no\n\u001b[31m{}"}}, "id": "query-status"}}"#,
            "x".repeat(5000)
        );
        let error = status(&[GREETING, READY, &answer], 4096).unwrap_err();
        assert!(error.contains("query-status") && error.contains("no  [31mxxx"), "{error}");
        assert!(error.len() < 400, "{}", error.len());
    }

    #[test]
    fn hostile_input_is_an_error() {
        let endless = "x".repeat(LINE_BYTES_MAX + 4097);
        let deep = "[".repeat(LINE_BYTES_MAX / 2);
        let flood = vec![EVENT; LINES_MAX as usize + 1];
        for (lines, expected) in [
            (vec![], "hung up"),
            (vec![GREETING], "hung up"),
            (vec!["garbage"], "no message"),
            (vec![""], "no message"),
            (vec!["\u{0}\u{1}"], "no message"),
            (vec!["[1]"], "no message"),
            (vec![r#"{"QMP": 1, "id": "#], "no message"),
            (vec![&deep], "no message"),
            (vec![&endless], "more than"),
            (flood, "none was the answer"),
            (vec![GREETING, READY, r#"{"id": "query-status"}"#], "empty"),
            (vec![GREETING, READY, r#"{"return": {"running": 1}, "id": "query-status"}"#], "odd"),
            (vec![GREETING, READY, r#"{"return": null, "id": "query-status"}"#], "empty"),
        ] {
            let error = status(&lines, 4096).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn a_silent_monitor_is_given_up() {
        let (stream, _silent) = UnixStream::pair().unwrap();
        let mut qmp = Qmp {
            path: "qmp.sock".into(),
            stream,
            lines: Lines::default(),
            until: Instant::now() + Duration::from_millis(50),
        };
        let error = qmp.begin().unwrap_err().to_string();
        assert!(error.contains("no answer within"), "{error}");
    }
}
