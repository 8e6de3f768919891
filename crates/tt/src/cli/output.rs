//! What the program prints, and where: results on standard output, all else on standard error. It decides nothing of
//! what is printed.

use super::error::CliError;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// How much is printed, and in which form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Results are JSON.
    pub json: bool,
    /// Nothing but results and errors.
    pub quiet: bool,
    /// More than usual.
    pub verbose: bool,
}

impl Output {
    /// Prints a result: `value` as one line of JSON where JSON was asked for, `text` otherwise.
    ///
    /// # Errors
    /// [`CliError::Write`] if nobody reads it.
    pub fn result<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), CliError> {
        if !self.json {
            return print(text().as_bytes());
        }
        let mut line = serde_json::to_vec(value).map_err(|source| CliError::Encode { source })?;
        line.push(b'\n');
        print(&line)
    }

    /// Says something that is no result, unless it is to be quiet or to print JSON.
    pub fn note(self, text: &str) {
        if !self.quiet && !self.json {
            self.complain(text);
        }
    }

    /// Says what went wrong.
    pub fn complain(self, text: &str) {
        // Where standard error is closed there is nobody to tell.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Whether lines that change in place may be drawn on standard error.
    pub fn is_live(self) -> bool {
        !self.json && !self.quiet && !self.verbose && io::stderr().is_terminal()
    }
}

/// Writes bytes to standard output at once.
///
/// # Errors
/// [`CliError::Write`] if nobody reads it.
pub fn print(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(|source| CliError::Write { source })
}

/// Writes bytes to standard error at once.
///
/// # Errors
/// [`CliError::Write`] if nobody reads it.
pub fn print_error(bytes: &[u8]) -> Result<(), CliError> {
    io::stderr().lock().write_all(bytes).map_err(|source| CliError::Write { source })
}
