//! What a client of the host opens in a guest, and what goes back and forth on it, as values: the same for the daemon's
//! channel, its API and its command line. Stream ids, credit and frames stay below.

use serde::{Deserialize, Serialize};

use crate::message::{FailureCode, Tty};

/// Opens one stream in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "open", rename_all = "snake_case")]
pub enum Open {
    /// Runs a program.
    Exec(Program),
    /// Unpacks an archive, sent as data, at a path.
    CopyIn {
        /// Absolute path in the guest.
        path: String,
        /// Permission bits for a single file, instead of those in the archive.
        #[serde(default)]
        mode: Option<u32>,
    },
    /// Sends an archive of a path as `Stdout`.
    CopyOut {
        /// Absolute path in the guest.
        path: String,
    },
}

/// A program to run in a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Program (looked up in `PATH` unless it holds a slash) and arguments.
    pub argv: Vec<String>,
    /// Added to the guest's defaults.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory; the user's home without it.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Name or number of a user in the guest; root without it.
    #[serde(default)]
    pub user: Option<String>,
    /// Run on a terminal of this size and type.
    #[serde(default)]
    pub tty: Option<Tty>,
}

/// What a client sends on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToGuest {
    /// Bytes for the program's standard input, or of the archive.
    Data(Vec<u8>),
    /// No more bytes follow.
    Eof,
    /// A signal for the program's process group: its number on Linux, 1 to 64.
    Signal(i32),
    /// The terminal's new size.
    Resize {
        /// Lines.
        rows: u16,
        /// Columns.
        cols: u16,
    },
}

/// What a client receives from a stream. `Exited` or `Failed` comes last, and once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromGuest {
    /// The program runs, with this process id in the guest.
    Started {
        /// The process id.
        pid: u32,
    },
    /// Bytes from standard output, the terminal, or of the archive.
    Stdout(Vec<u8>),
    /// Bytes from standard error.
    Stderr(Vec<u8>),
    /// The program ended, or the copy is complete (code 0).
    Exited {
        /// Exit code, unless a signal ended it.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
    },
    /// The stream could not be opened, or its copy failed.
    Failed {
        /// For a program.
        code: FailureCode,
        /// For a reader.
        why: String,
    },
}
