//! Scratch hosts for tests of the whole program: a [`Lab`] has a directory, network namespaces and a daemon of its own,
//! and takes all of it down again, whatever became of the test. It mocks nothing, and touches nothing outside of its
//! directory and namespaces but the control groups and mounts that its daemon makes.

mod act;
mod api;
mod cut;
mod death;
mod dockerd;
mod guard;
pub mod hostile;
mod lab;
pub mod oci;
mod programs;
mod proof;
mod remains;
mod run;
pub mod sequence;
mod space;
mod wait;

pub use api::Answer;
pub use cut::Cut;
pub use dockerd::Dockerd;
pub use guard::guard;
pub use lab::{CLIENT, HOST, Lab, NAME_SERVER, Setup, spaces};
pub use run::{PATIENCE, Run, run};
pub use space::{Echo, Space, is_alive};
pub use wait::{eventually, within};

use std::fmt::Debug;
use std::io::Write;

/// Says by name that a test did not run, and why. It goes past the test harness, so that a run can count it.
pub fn skip(test: &str, reason: &str) {
    // Nothing can be done about a lost line.
    let _ = writeln!(std::io::stdout(), "SKIPPED {test}: {reason}");
}

/// Prints beside a failing test's own words.
pub(crate) fn complain(text: &str) {
    // Nothing can be done about a lost line.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The number in an environment variable, for a run by hand that is longer, or another one; nothing if it is not set.
///
/// # Panics
/// If the variable holds no number.
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().must(&format!("{variable}={text}")))
}

/// What a test can not go on without.
pub trait Must<T> {
    /// The value; the test fails where there is none, and says what was done.
    fn must(self, what: &str) -> T;
}

impl<T, E: Debug> Must<T> for Result<T, E> {
    #[track_caller]
    fn must(self, what: &str) -> T {
        match self {
            Ok(value) => value,
            Err(error) => panic!("{what}: {error:?}"),
        }
    }
}

impl<T> Must<T> for Option<T> {
    #[track_caller]
    fn must(self, what: &str) -> T {
        match self {
            Some(value) => value,
            None => panic!("{what}: there is none"),
        }
    }
}
