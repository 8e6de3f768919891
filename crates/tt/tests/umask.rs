//! `tt doctor` on a host whose administrator has a strict umask. It changes nothing of this host.

use rustix::fs::Mode;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::process::{Command, Output};

fn doctor_of_a_strict_user() -> Output {
    // SAFETY: the thread is the test's own; it only stops sharing its umask and working directory with others.
    unsafe { unshare_unsafe(UnshareFlags::FS) }.unwrap_or_else(|error| panic!("{error}"));
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_tt"));
    doctor.arg("doctor").output().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_strict_umask_closes_nothing_to_machines() {
    let output = std::thread::scope(|scope| scope.spawn(doctor_of_a_strict_user).join()).unwrap();
    let found = String::from_utf8_lossy(&output.stdout);
    assert!(found.contains("engine qemu"), "{found}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!found.contains("can not pass"), "{found}");
}
