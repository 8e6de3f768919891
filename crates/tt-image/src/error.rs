//! What can go wrong with a template.

use std::io;
use std::path::PathBuf;
use tt_model::ErrorCode;

/// Why a call of this crate failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A name that no template can have.
    #[error(
        "{name:?} is no template name: write 1 to {} lower-case letters, digits and `.`, `_`, `-`, `/`, \
         each part beginning with a letter or digit",
        crate::NAME_BYTES_MAX
    )]
    CheckName {
        /// What was given.
        name: String,
    },
    /// No template has that name here.
    #[error("template {name:?} does not exist on this host")]
    NotFound {
        /// The name.
        name: String,
    },
    /// What lies in the catalogue is none of its templates. It is left as it is.
    #[error("template at {} can not be used: {problem}; remove it and build it again", path.display())]
    Damaged {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The catalogue can not be read. A retry may help.
    #[error("template files at {} can not be read", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The catalogue or the cache can not be written; no template is there in part. A retry may help.
    #[error("template files at {} can not be written", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file system has not enough room; nothing that was there has changed. A retry may help.
    #[error("{} needs {need_mb} MB with what stays free, and there are {free_mb} MB", path.display())]
    NoRoom {
        /// What was to be written.
        path: PathBuf,
        /// What it takes, and what is to be left free, in MB (2^20 bytes).
        need_mb: u64,
        /// What is free, in MB (2^20 bytes).
        free_mb: u64,
    },
    /// Nobody wants it any more: its record is gone, or the daemon ends.
    #[error("it is not wanted any more")]
    Unwanted,
    /// The file system is full; no template is there in part. A retry helps once there is room.
    #[error("there is no room for template files at {}: make room and retry", path.display())]
    Full {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process builds or installs. A retry helps when it is done.
    #[error("{} is in use by another build for more than {waited_secs} s: try again later", path.display())]
    Busy {
        /// What is locked.
        path: PathBuf,
        /// How long it was waited for.
        waited_secs: u64,
    },
    /// A program that the build needs is not installed.
    #[error("{program} is not installed: run `apt-get install {package}`")]
    Missing {
        /// The program.
        program: String,
        /// The Debian package that brings it.
        package: &'static str,
    },
    /// A program could not be started. A retry may help.
    #[error("{program} can not be run")]
    Run {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program failed, took too long or said too much. A retry may help.
    #[error("`{command}` {outcome}: {stderr}")]
    Tool {
        /// What was run.
        command: String,
        /// How it ended.
        outcome: String,
        /// The end of what it said.
        stderr: String,
    },
    /// Something can not be fetched.
    #[error("{url} can not be fetched: {problem}")]
    Fetch {
        /// From where.
        url: String,
        /// What is wrong, and what would be right.
        problem: String,
        /// Whether a retry may help.
        retry: bool,
    },
    /// A package, kernel or program has not the form that this crate knows.
    #[error("{what} can not be used: {problem}")]
    Format {
        /// What it is, e.g. `kernel image`.
        what: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
}

impl ImageError {
    /// Whether the same call may succeed later without its caller changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Read { .. }
            | Self::Write { .. }
            | Self::Full { .. }
            | Self::Busy { .. }
            | Self::Run { .. }
            | Self::NoRoom { .. }
            | Self::Unwanted
            | Self::Tool { .. } => true,
            Self::Fetch { retry, .. } => *retry,
            Self::CheckName { .. }
            | Self::NotFound { .. }
            | Self::Damaged { .. }
            | Self::Missing { .. }
            | Self::Format { .. } => false,
        }
    }

    /// The stable code that stands for it in answers and logs.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::CheckName { .. } => ErrorCode::Invalid,
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::Busy { .. } | Self::Unwanted => ErrorCode::Busy,
            Self::NoRoom { .. } => ErrorCode::NoRoom,
            Self::Missing { .. } => ErrorCode::Host,
            Self::Damaged { .. }
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::Full { .. }
            | Self::Run { .. }
            | Self::Tool { .. }
            | Self::Fetch { .. }
            | Self::Format { .. } => ErrorCode::Template,
        }
    }
}
