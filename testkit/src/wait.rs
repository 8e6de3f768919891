//! Waiting for what must come about, with an end.

use std::thread;
use std::time::{Duration, Instant};

/// How often is looked.
const LOOK: Duration = Duration::from_millis(50);

/// Whether `is_so` comes true within `patience`.
pub fn within(patience: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        thread::sleep(LOOK);
    }
}

/// Waits until `look` answers nothing, and fails the test with its last answer if that takes longer than `patience`.
#[track_caller]
pub fn eventually(what: &str, patience: Duration, mut look: impl FnMut() -> Option<String>) {
    let mut last = None;
    let settled = within(patience, || {
        last = look();
        last.is_none()
    });
    assert!(settled, "{what}, after {patience:?}: {}", last.unwrap_or_default());
}
