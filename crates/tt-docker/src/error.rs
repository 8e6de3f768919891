//! What a Docker daemon did not do. What it says itself is bounded before it is kept.

use std::io;
use std::path::PathBuf;

/// Longest text of a daemon's that is kept, in bytes.
const PROBLEM_BYTES_MAX: usize = 600;

/// What a Docker daemon did not do; named after the action that failed.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// The daemon is away, or does not answer in time. A retry helps once it is back.
    #[error("{action}: Docker does not answer at {socket:?}")]
    Reach {
        /// What was asked for.
        action: &'static str,
        /// Its socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The daemon refused. A retry may help if it says so itself (5xx).
    #[error("{action}: Docker refuses: {problem}")]
    Refuse {
        /// What was asked for.
        action: &'static str,
        /// HTTP's status.
        status: u16,
        /// What it says, bounded.
        problem: String,
    },
    /// The answer is none of Docker's. A retry may help.
    #[error("{action}: Docker's answer is not understood: {problem}")]
    Answer {
        /// What was asked for.
        action: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The daemon speaks no version of the API that TT knows. No retry helps: another Docker is needed.
    #[error(
        "Docker speaks versions {min} to {max} of its API; TT needs one from {wanted_min} on: install Docker 20.10 or later"
    )]
    Version {
        /// The oldest that it speaks.
        min: String,
        /// The newest that it speaks.
        max: String,
        /// The oldest that TT speaks.
        wanted_min: String,
    },
    /// A file for or from the daemon could not be read or written. A retry may help.
    #[error("{action}: use {path:?}")]
    UseFile {
        /// What was asked for.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl DockerError {
    /// Whether the daemon is away.
    #[must_use]
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Reach { .. })
    }

    /// Whether what was named is not there.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.status() == Some(404)
    }

    /// Whether what was named is in a state, or in a use, that does not allow it.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        // Docker 20.10 says some of it as if it had failed, and Podman all of it.
        const SAID: [&str; 4] = [
            " is not paused",
            " is already paused",
            " is not running",
            ": container state improper",
        ];
        match self {
            Self::Refuse { status: 409, .. } => true,
            Self::Refuse { status: 500, problem, .. } => {
                SAID.iter().any(|said| problem.ends_with(said))
            }
            _ => false,
        }
    }

    /// Whether the same call may succeed later without anything else being changed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Version { .. } | Self::Refuse { status: 400, .. })
    }

    fn status(&self) -> Option<u16> {
        match self {
            Self::Refuse { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// A daemon's text on one line, as much of it as is kept.
pub(crate) fn bounded(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut plain: String = plain.take(PROBLEM_BYTES_MAX).collect();
    plain.truncate(plain.floor_char_boundary(PROBLEM_BYTES_MAX));
    plain.trim().to_owned()
}
