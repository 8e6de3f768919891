//! How daemons of a lab end, and its host: at any moment, at a chosen one, in good order.

use crate::lab::{DAEMON, spaces};
use crate::run::wait;
use crate::{Lab, Must, remains};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

impl Lab {
    /// Ends the daemon as `kill -9` does.
    pub fn kill9(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().must("kill the daemon");
            daemon.wait().must("wait for the daemon");
        }
    }

    /// The host loses its power: what is on its disks is all that is left. The next daemon finds it booted, and another
    /// outside.
    pub fn lose_power(&mut self) {
        remains::lose_power(self.dir(), &self.run_dir());
        self.kill9();
        fs::remove_dir_all(self.run_dir()).must("remove the run directory");
        (self.host, self.client) = spaces();
    }

    /// Ends the daemon as `kill -9` does, if it lives, and starts the next one.
    pub fn restart(&mut self) {
        self.kill9();
        self.spawn(None);
        assert!(self.answers(), "the daemon does not come up: {}", self.tail());
    }

    /// The same, with a daemon that dies when it gets to `failpoint`, maybe before it answers anybody.
    pub fn restart_with(&mut self, failpoint: &str) {
        self.kill9();
        self.spawn(Some(failpoint));
        self.answers();
    }

    /// The same, with a daemon that dies there only after [`Lab::arm`].
    pub fn restart_disarmed(&mut self, failpoint: &str) {
        // It may not be there.
        let _ = fs::remove_file(self.armed());
        self.restart_with(&format!("{failpoint}@{}", self.armed().display()));
    }

    /// From here on the daemon dies when it gets to its failpoint.
    pub fn arm(&self) {
        fs::write(self.armed(), "").must("arm the failpoint");
    }

    fn armed(&self) -> PathBuf {
        self.dir().join("armed")
    }

    /// Whether the daemon dies within `patience`.
    pub fn dies(&mut self, patience: Duration) -> bool {
        let Some(daemon) = &mut self.daemon else { return true };
        let is_dead = wait(daemon, patience).is_some();
        if is_dead {
            self.daemon = None;
        }
        is_dead
    }

    /// Asks the daemon to end, and waits until it has.
    pub fn terminate(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).must("end the daemon");
        if wait(&mut daemon, DAEMON).is_none() {
            daemon.kill().must("kill the daemon");
            daemon.wait().must("wait for the daemon");
            panic!("the daemon does not end: {}", self.tail());
        }
    }
}
