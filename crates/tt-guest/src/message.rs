//! The messages of the control stream, as JSON. Unknown fields are ignored, so that either side may be newer; a change
//! that an older side must not ignore raises [`PROTOCOL_VERSION`]. No message carries a user's data: that goes by streams.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::frame::{self, Kind};

mod network;

pub use network::{NetworkSetup, SixSetup};

/// Version of messages and frames. The guest answers a `Hello` of another version with its own and opens no session.
pub const PROTOCOL_VERSION: u32 = 1;

/// Name of the virtio-serial port that the agent looks for.
pub const PORT_NAME: &str = "tt.agent.0";

/// Port of the vsock (vsock(7)) that the agent listens on where the machine has no such virtio-serial port.
pub const VSOCK_PORT: u32 = 1024;
/// Word of the kernel's command line that says so.
pub const VSOCK_WORD: &str = "tt.agent=vsock";

/// What the host tells the guest. Every request may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HostMessage {
    /// Opens a session. A new nonce ends the previous session: its processes are killed, its streams forgotten. The same
    /// nonce again is only acknowledged.
    Hello(Hello),
    /// Gives the guest its identity and its address, and grows its root file system; answered by `SetupDone` or
    /// `SetupFailed`.
    Setup(Setup),
    /// Starts a program on a new stream; answered by `ExecStarted` or `Failed`.
    Exec(Exec),
    /// Sends a signal to the process group of a stream's program. Ignored once it has ended.
    Signal {
        /// The program's stream.
        stream: u32,
        /// The signal's number on Linux, 1 to 64.
        signal: i32,
    },
    /// Changes the size of a stream's terminal.
    Resize {
        /// The program's stream.
        stream: u32,
        /// Lines.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// Opens a stream on which the host sends an archive (`Stdin` frames, then `StdinEof`), unpacked at `path` as
    /// [`crate::tar::Unpacker`] says. Ends with `Exited { code: 0 }` or `Failed`.
    CopyIn {
        /// The new stream.
        stream: u32,
        /// Absolute path in the guest.
        path: String,
        /// Permission bits for a single file, instead of those in the archive.
        #[serde(default)]
        mode: Option<u32>,
    },
    /// Opens a stream on which the guest sends an archive of `path` (`Stdout` frames, then `StdoutEof`). Ends with
    /// `Exited { code: 0 }` or `Failed`.
    CopyOut {
        /// The new stream.
        stream: u32,
        /// Absolute path in the guest.
        path: String,
    },
    /// Gives a stream up: its program is killed, its copy ended. The stream still ends with `Exited` or `Failed`.
    Cancel {
        /// The stream.
        stream: u32,
    },
    /// Ends the guest in good order; answered by `Bye` when it begins.
    Shutdown {
        /// Start again afterwards.
        reboot: bool,
    },
    /// Sets the clock if it is more than a second off. Send it as soon as the session is open, before `Setup`.
    SetClock {
        /// Nanoseconds since 1970, UTC.
        time_unix_ns: u64,
    },
    /// Asks whether the agent is alive; answered by `Pong`.
    Ping {
        /// Comes back in the answer.
        n: u64,
    },
}

/// The first message of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The host's `PROTOCOL_VERSION`.
    pub version: u32,
    /// A random number that names the session; no process in the guest can guess it.
    pub session: u64,
    /// Nanoseconds since 1970, UTC. The guest's clock is set, before the acknowledgement, if it is more than a second
    /// behind. It is never set back, for this message may have waited while the guest booted; `SetClock` is exact.
    pub time_unix_ns: u64,
    /// 64 hexadecimal digits (32 random bytes) for the guest's entropy pool; needed after a restore or fork.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<String>,
}

/// Identity and address of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Host name, without a domain.
    pub hostname: String,
    /// Address and route; `None` leaves the network as it is (a container's is set from outside).
    #[serde(default)]
    pub network: Option<NetworkSetup>,
    /// Name servers for `/etc/resolv.conf`; none leaves that file as it is.
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
    /// The other members of the Env for `/etc/hosts`.
    #[serde(default)]
    pub hosts: Vec<(String, Ipv4Addr)>,
    /// 32 hexadecimal digits for `/etc/machine-id`; `None` makes that file empty.
    #[serde(default)]
    pub machine_id: Option<String>,
    /// Public keys for root's `authorized_keys`, a line each; those that are missing there are added.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// As in [`Hello`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<String>,
}

/// A program to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The new stream.
    pub stream: u32,
    /// Program (looked up in `PATH` unless it holds a slash) and arguments.
    pub argv: Vec<String>,
    /// Added to the defaults (`PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL`, and `TERM` on a terminal).
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory; the user's home without it.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Name or number of a user in `/etc/passwd`; root without it.
    #[serde(default)]
    pub user: Option<String>,
    /// Run on a terminal: output comes as `Stdout`, there is no `Stderr`.
    #[serde(default)]
    pub tty: Option<Tty>,
}

/// A terminal's size and type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tty {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
    /// Value of `TERM`.
    pub term: String,
}

/// What the guest tells the host. The host trusts none of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GuestMessage {
    /// The agent runs and has no session: send `Hello`. Comes unasked after its start, and once in answer to a frame
    /// without a session. A reboot of the guest shows itself by this.
    Ready {
        /// The guest's `PROTOCOL_VERSION`.
        version: u32,
        /// Version of the agent's program.
        agent_version: String,
    },
    /// The session is open (if the versions agree).
    HelloAck {
        /// The guest's `PROTOCOL_VERSION`.
        version: u32,
        /// The nonce of the `Hello`.
        session: u64,
        /// Version of the agent's program.
        agent_version: String,
        /// Whether the agent is the guest's first process.
        pid1: bool,
    },
    /// The set-up is complete: the guest is ready.
    SetupDone {
        /// What was seen.
        facts: Facts,
    },
    /// The set-up stopped; it may be sent again.
    SetupFailed {
        /// The step: `hostname`, `network`, `files`, `machine_id`, `ssh_keys`, `disk`, `entropy` or `setup`.
        what: String,
        /// The reason, for a reader.
        why: String,
    },
    /// A stream's program runs.
    ExecStarted {
        /// Its stream.
        stream: u32,
        /// Its process id in the guest.
        pid: u32,
    },
    /// A stream has ended; all of its data was sent before.
    Exited {
        /// The stream.
        stream: u32,
        /// Exit code, unless a signal ended the program. 0 for a finished copy.
        code: Option<i32>,
        /// The signal that ended the program.
        signal: Option<i32>,
    },
    /// A stream could not be opened, or its copy failed; it has ended. Stream 0: a message that was not understood.
    Failed {
        /// The stream, or 0.
        stream: u32,
        /// What went wrong, for a program.
        code: FailureCode,
        /// What went wrong, for a reader.
        why: String,
    },
    /// The process of the container image that the guest was made from has ended; the guest stays. Sent when it ends,
    /// and again after every set-up.
    EntryEnded {
        /// Exit code, unless a signal ended it; 126 if it could not be started.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
    },
    /// The guest shuts down now.
    Bye {
        /// How.
        reason: ByeReason,
    },
    /// Answer to `Ping`.
    Pong {
        /// From the question.
        n: u64,
    },
}

/// What the agent saw while it set the guest up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Milliseconds from the guest's boot until its agent served its first session.
    pub boot_ms: u64,
    /// The interface's address as the kernel has it.
    pub address: Option<Ipv4Addr>,
    /// Size of the root file system in MiB, after it was grown.
    pub disk_mb: u64,
    /// Release of the guest's kernel.
    pub kernel: String,
}

/// Why a stream failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// No such program, file or directory.
    NotFound,
    /// No such user.
    NoUser,
    /// Not allowed, or not executable.
    Permission,
    /// Too many streams.
    TooMany,
    /// The path cannot be used: not absolute, not a directory...
    BadPath,
    /// The archive is malformed or holds a hostile entry.
    BadArchive,
    /// The request is malformed.
    BadMessage,
    /// The host gave the stream up.
    Cancelled,
    /// The guest's system refused, for another reason.
    Io,
    /// A code of a newer agent.
    #[serde(other)]
    Unknown,
}

/// How a guest ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ByeReason {
    /// For good.
    Poweroff,
    /// To start again.
    Reboot,
}

impl HostMessage {
    /// The message as a complete control frame.
    ///
    /// # Errors
    /// `EncodeFrame` if it exceeds `MAX_PAYLOAD` (a huge argument list).
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        encode_control(self)
    }

    /// Parses a control frame's payload.
    ///
    /// # Errors
    /// `ParseMessage`.
    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(payload).map_err(|source| Error::ParseMessage { source })
    }
}

impl GuestMessage {
    /// The message as a complete control frame.
    ///
    /// # Errors
    /// `EncodeFrame` if it exceeds `MAX_PAYLOAD`.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        encode_control(self)
    }

    /// Parses a control frame's payload.
    ///
    /// # Errors
    /// `ParseMessage`.
    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(payload).map_err(|source| Error::ParseMessage { source })
    }
}

fn encode_control(message: &impl Serialize) -> Result<Vec<u8>, Error> {
    let json = serde_json::to_vec(message).map_err(|source| Error::EncodeMessage { source })?;
    frame::encode(0, Kind::Control, &json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_json_of_the_host_is_pinned() {
        let hello = br#"{"type":"hello","version":1,"session":18446744073709551615,"time_unix_ns":5,"new":true}"#;
        let expected = Hello { version: 1, session: u64::MAX, time_unix_ns: 5, entropy: None };
        assert_eq!(HostMessage::parse(hello).unwrap(), HostMessage::Hello(expected));
        let exec = br#"{"type":"exec","stream":3,"argv":["ls"],"env":[["A","b"]],"tty":{"rows":1,"cols":2,"term":"x"}}"#;
        let HostMessage::Exec(exec) = HostMessage::parse(exec).unwrap() else {
            panic!("not an exec")
        };
        assert_eq!((exec.stream, exec.env[0].1.as_str(), exec.tty.unwrap().cols), (3, "b", 2));
    }

    #[test]
    fn the_json_of_the_guest_is_pinned() {
        let failed =
            GuestMessage::Failed { stream: 9, code: FailureCode::NotFound, why: "w".to_owned() };
        let json = serde_json::to_string(&failed).unwrap();
        assert_eq!(json, r#"{"type":"failed","stream":9,"code":"not_found","why":"w"}"#);
        let ended = GuestMessage::EntryEnded { code: Some(3), signal: None };
        let json = serde_json::to_string(&ended).unwrap();
        assert_eq!(json, r#"{"type":"entry_ended","code":3,"signal":null}"#);
        let newer = br#"{"type":"failed","stream":9,"code":"of_tomorrow","why":""}"#;
        let parsed = GuestMessage::parse(newer).unwrap();
        assert_eq!(
            parsed,
            GuestMessage::Failed { stream: 9, code: FailureCode::Unknown, why: String::new() }
        );
    }

    #[test]
    fn a_message_that_fits_no_frame_is_refused() {
        let argv = vec!["x".repeat(frame::MAX_PAYLOAD)];
        let exec = Exec { stream: 1, argv, env: vec![], cwd: None, user: None, tty: None };
        assert!(matches!(HostMessage::Exec(exec).encode(), Err(Error::EncodeFrame { .. })));
    }

    proptest! {
        #[test]
        fn arbitrary_payloads_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500), text in ".{0,200}") {
            let _ = (HostMessage::parse(&bytes), GuestMessage::parse(&bytes));
            let _ = (HostMessage::parse(text.as_bytes()), GuestMessage::parse(text.as_bytes()));
        }
    }
}
