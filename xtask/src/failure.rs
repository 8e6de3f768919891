//! Why a command of the project failed, in one sentence. It keeps no causes apart: nobody acts on them but a person.

use std::fmt;
use std::io;

/// One sentence: the action, what it was done to, what the system said. A retry helps only where it says so.
#[derive(Debug)]
pub struct Failure(String);

/// What a step of a command ends with.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// From a whole sentence.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// For `map_err`: what could not be done, to what, and what the system said of it.
    pub fn to<'a>(action: &'a str, what: impl fmt::Display + 'a) -> impl FnOnce(io::Error) -> Self {
        move |error| Self(format!("could not {action} {what}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
