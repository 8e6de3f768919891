//! What can go wrong with a template.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use tt_model::ErrorCode;

/// What programs say of a full file system (strerror(3), in the language `C`).
const FULL: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

/// Whether the system, or what is in its error, says that there is no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        return true;
    }
    let within = error.get_ref().and_then(|error| error.downcast_ref::<io::Error>());
    within.is_some_and(is_full)
}

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

    /// Whether a file system, or what somebody may have of it, was full: as the system says it at any depth, or a program in
    /// its last words.
    fn is_full(&self) -> bool {
        if let Self::Tool { stderr, .. } = self {
            return FULL.iter().any(|words| stderr.contains(words));
        }
        let mut causes = std::iter::successors(self.source(), |error| (*error).source());
        causes.any(|cause| cause.downcast_ref::<io::Error>().is_some_and(is_full))
    }

    /// The stable code that stands for it in answers and logs.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::CheckName { .. } => ErrorCode::Invalid,
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::Busy { .. } | Self::Unwanted => ErrorCode::Busy,
            Self::NoRoom { .. } | Self::Full { .. } => ErrorCode::NoRoom,
            // Whatever was being done, that is what is to be put right.
            error if error.is_full() => ErrorCode::NoRoom,
            Self::Missing { .. } => ErrorCode::Host,
            Self::Damaged { .. }
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::Run { .. }
            | Self::Tool { .. }
            | Self::Fetch { .. }
            | Self::Format { .. } => ErrorCode::Template,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files;
    use std::path::Path;

    #[test]
    fn a_full_file_system_has_its_code_wherever_it_is_met() {
        let tool = |stderr: &str| ImageError::Tool {
            command: "mkfs.ext4".into(),
            outcome: "failed".into(),
            stderr: stderr.into(),
        };
        for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
            let full = || io::Error::from(errno);
            let path = Path::new("/d");
            for error in [
                files::not_written(path)(full()),
                files::not_written(path)(io::Error::other(full())),
                files::not_read(path)(full()),
                ImageError::Run { program: "x".into(), source: full() },
            ] {
                assert_eq!(error.code(), ErrorCode::NoRoom, "{error:?}");
                assert!(error.is_retryable());
            }
        }
        assert_eq!(
            tool("qemu-img: write failed: No space left on device").code(),
            ErrorCode::NoRoom
        );
        let other = files::not_written(Path::new("/d"))(rustix::io::Errno::ACCESS.into());
        assert_eq!((other.code(), tool("bad").code()), (ErrorCode::Template, ErrorCode::Template));
    }
}
