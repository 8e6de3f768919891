//! What guests that come back from memory know of the time and of chance.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use testkit::Lab;

/// How far a guest's clock may be from the host's: both are read one after the other on a busy machine.
const CLOCK_ERROR: Duration = Duration::from_secs(10);

/// Fails the test unless the guest's clock is right, at the first command that it runs.
#[track_caller]
pub fn knows_the_time(lab: &Lab, vm: &str) {
    let guest: u64 = lab.sh(vm, "date +%s").parse().unwrap();
    let host = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(host.abs_diff(guest) < CLOCK_ERROR.as_secs(), "{vm}: {guest}, the host: {host}");
}

/// Two lines that the guest draws.
#[track_caller]
pub fn drawn(lab: &Lab, vm: &str) -> String {
    lab.sh(vm, "cat /proc/sys/kernel/random/uuid; head -c 32 /dev/urandom | sha256sum")
}
