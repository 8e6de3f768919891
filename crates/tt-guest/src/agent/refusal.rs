//! Why a stream could not be opened or did not finish, as the host is told.

use std::error::Error as _;
use std::io;

use tt_guest::Error;
use tt_guest::message::FailureCode;

use super::log::explain;

/// A code for programs and a text for readers.
#[derive(Debug)]
pub struct Refusal {
    pub code: FailureCode,
    pub why: String,
}

impl Refusal {
    /// A refusal with its reason.
    pub fn new(code: FailureCode, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }

    /// The system refused `what`.
    pub fn io(what: &str, error: &io::Error) -> Self {
        Self::new(code_of(error), format!("{what}: {error}"))
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::AccessFile { source, .. } => code_of(source),
            Error::AcceptPath { .. } => FailureCode::BadPath,
            Error::ReadArchive { .. } | Error::AcceptEntry { .. } => FailureCode::BadArchive,
            _ if error.source().is_some() => FailureCode::Io,
            _ => FailureCode::BadMessage,
        };
        Self::new(code, explain(&error))
    }
}

fn code_of(error: &io::Error) -> FailureCode {
    match error.kind() {
        io::ErrorKind::NotFound => FailureCode::NotFound,
        io::ErrorKind::PermissionDenied => FailureCode::Permission,
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => FailureCode::BadPath,
        _ => FailureCode::Io,
    }
}
