//! Faults that fakes commit on demand, so that tests can fail, hang or kill a pass at any side
//! effect.

use std::sync::Arc;

/// What a fake does at a side effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Goes on.
    None,
    /// Fails with an error that a retry may heal.
    Fail,
    /// Behaves as if the daemon had died here: this call and every later one fails, and nothing
    /// is done any more.
    Die,
}

/// Asked by a fake before and after each of its side effects, with the effect's name
/// (`image.create`, `machine.start` …).
pub type FaultHook = Arc<dyn Fn(Moment, &'static str) -> Fault + Send + Sync>;

/// On which side of the effect the hook is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Nothing has happened.
    Before,
    /// The effect has happened; its caller does not know.
    After,
}

/// The hook of a fake that never fails.
pub fn no_fault() -> FaultHook {
    Arc::new(|_, _| Fault::None)
}
