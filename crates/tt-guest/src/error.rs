//! The one error of this crate. It carries facts and never repeats its source in its text.

use std::io;
use std::path::PathBuf;

/// Why a frame, a message or an archive could not be handled; a variant is named after the action that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bytes that belong to no frame were skipped; the decoder goes on with the next one.
    #[error("skipped {bytes} bytes that belong to no frame")]
    FindFrame {
        /// How many of the skipped bytes were not zero (zeros are the preamble of a new session).
        bytes: u64,
    },
    /// A frame's checksum does not match; the whole frame was dropped.
    #[error("dropped a frame of {bytes} bytes whose checksum does not match")]
    VerifyFrame {
        /// Length of the dropped frame, header included.
        bytes: usize,
    },
    /// A header announces more than `MAX_PAYLOAD` bytes.
    #[error("a frame announces {bytes} bytes of payload, more than {max}", max = crate::frame::MAX_PAYLOAD)]
    AcceptFrame {
        /// The announced length.
        bytes: u32,
    },
    /// A frame is of a kind that this version does not know; it was dropped.
    #[error("dropped a frame of the unknown kind {kind}")]
    RecogniseFrame {
        /// The kind's number.
        kind: u8,
    },
    /// A payload is too large for one frame.
    #[error("a payload of {bytes} bytes does not fit into one frame of at most {max}", max = crate::frame::MAX_PAYLOAD)]
    EncodeFrame {
        /// The payload's length.
        bytes: usize,
    },
    /// A message could not be written as JSON.
    #[error("cannot encode a message")]
    EncodeMessage {
        /// What the encoder said.
        source: serde_json::Error,
    },
    /// A control frame holds no message that this version understands.
    #[error("cannot parse a message")]
    ParseMessage {
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The other side sent more than it was granted.
    #[error("received {bytes} bytes where {allowed} were allowed")]
    ReceiveData {
        /// What came.
        bytes: usize,
        /// What was left of the window.
        allowed: u32,
    },
    /// An archive is not one that this crate writes, or ends too early.
    #[error("cannot read the archive: {why}")]
    ReadArchive {
        /// What is wrong with it.
        why: &'static str,
    },
    /// An archive's entry was refused; it was not written.
    #[error("refused the archive's entry {name:?}: {why}")]
    AcceptEntry {
        /// The entry's name, as in the archive, cut to a readable length.
        name: String,
        /// What would have to be different.
        why: &'static str,
    },
    /// A path that was asked to be copied, or copied to, cannot be used.
    #[error("cannot use the path {path:?}: {why}")]
    AcceptPath {
        /// The path.
        path: PathBuf,
        /// What would be right.
        why: &'static str,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {path:?}")]
    AccessFile {
        /// What was tried: `open`, `create`, `write`...
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// Whether the same call may succeed later with nothing else changed. Only the system's own refusals can pass
    /// (a full disk, for one); what is malformed stays so.
    #[must_use]
    pub fn retry_helps(&self) -> bool {
        matches!(self, Self::AccessFile { source, .. }
            if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied))
    }
}
