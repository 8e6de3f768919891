//! Errors of both ends: the body of every refusal, and what a client's call answers.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::PathBuf;
use tt_model::{ErrorCode, Refusal};
use tt_store::tables::TablesError;
use utoipa::ToSchema;

/// Content type of a [`Problem`] (RFC 9457).
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";

/// The body of every answer that is an error (RFC 9457, with members of our own).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The stable code.
    pub code: ErrorCode,
    /// The code's short meaning.
    pub title: String,
    /// What the problem is about and what is wrong with it, without the remedy.
    pub detail: String,
    /// What would be right, or what to do.
    pub remedy: Option<String>,
    /// Whether the same request may succeed later without anything else being changed.
    pub retry: bool,
    /// When to send it again, in milliseconds from now, where that is known.
    pub retry_after_ms: Option<u64>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.detail)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy} ({})", self.code),
            None => write!(f, " ({})", self.code),
        }
    }
}

/// Why a client's call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket. A retry helps once the daemon runs.
    #[error("no daemon answers at {}", socket.display())]
    Connect {
        /// The daemon's socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon refused, and says why.
    #[error("{0}")]
    Problem(Problem),
    /// The connection was lost. Whether the request was carried out is not known; it may be sent
    /// again: every verb is idempotent, `create_env` by its key.
    #[error("the connection was lost during {action}")]
    Exchange {
        /// Method and path.
        action: String,
        /// What the connection said.
        source: hyper::Error,
    },
    /// The daemon did not answer in time. As for [`ClientError::Exchange`].
    #[error("the daemon did not answer {action} within {seconds} s")]
    Timeout {
        /// Method and path.
        action: String,
        /// How long was waited.
        seconds: u64,
    },
    /// A stream or console broke. It can be opened again; what ran on it was cancelled.
    #[error("the stream of {action} broke")]
    Stream {
        /// Method and path.
        action: String,
        /// What the WebSocket said.
        source: Box<tokio_tungstenite::tungstenite::Error>,
    },
    /// The answer is not one of this API: the other side is no TT daemon, or a much newer one. A
    /// retry does not help.
    #[error("the answer to {action} is not understood: {what}")]
    Protocol {
        /// Method and path.
        action: String,
        /// What is wrong with it.
        what: String,
    },
}

impl ClientError {
    /// Whether the same call may succeed later without anything else being changed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Problem(problem) => problem.retry,
            Self::Connect { .. }
            | Self::Exchange { .. }
            | Self::Timeout { .. }
            | Self::Stream { .. } => true,
            Self::Protocol { .. } => false,
        }
    }

    /// The stable code, if the daemon gave one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Problem(problem) => Some(problem.code),
            _ => None,
        }
    }
}

/// Why the server could not do what was asked. A handler answers it as a [`Problem`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Something about the request is wrong; nothing was changed.
    #[error(transparent)]
    Refuse(#[from] Refusal),
    /// As `Refuse`, where HTTP has a status of its own for it.
    #[error("{refusal}")]
    RefuseAs {
        /// The status.
        status: u16,
        /// What is wrong.
        refusal: Refusal,
    },
    /// The store could not be read or changed.
    #[error("the records could not be reached")]
    Tables(#[from] TablesError),
    /// A body could not be written as JSON.
    #[error("the answer could not be encoded")]
    Encode(#[from] serde_json::Error),
    /// A thread that worked on the request died.
    #[error("the request's worker died")]
    Work(#[from] tokio::task::JoinError),
}
