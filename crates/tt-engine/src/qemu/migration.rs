//! QEMU's migration as its monitor tells of it. It moves nothing itself.
//!
//! Commands and states: `qapi/migration.json` in QEMU's source.

use super::qmp::{Qmp, refuse};
use crate::EngineError;
use serde::Deserialize;
use serde_json::json;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// As fast as it goes, in bytes a second: QEMU's default is a thirtieth of what memory does.
const FULL_SPEED: u64 = 1 << 36;
/// How often the state is asked for.
const POLL: Duration = Duration::from_millis(1);
/// How long a migration may take to give up.
const CANCEL_MAX: Duration = Duration::from_secs(10);

/// How far a migration is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Progress {
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    ram: Ram,
    #[serde(default)]
    error_desc: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Ram {
    #[serde(default)]
    remaining: u64,
    #[serde(default)]
    transferred: u64,
    #[serde(default)]
    dirty_sync_count: u64,
}

#[derive(Debug, Deserialize)]
struct RunState {
    status: String,
}

impl Progress {
    pub fn of(qmp: &mut Qmp) -> Result<Self, EngineError> {
        qmp.ask("query-migrate")
    }

    /// Bytes that were not copied when it last counted; `None` before it began.
    pub fn remaining(&self) -> Option<u64> {
        (self.status == "active" && self.ram.dirty_sync_count > 0).then_some(self.ram.remaining)
    }

    /// How often it has gone through the memory.
    pub fn passes(&self) -> u64 {
        self.ram.dirty_sync_count
    }

    /// Everything but the last bit is copied, and the machine stands still.
    pub fn stands(&self) -> bool {
        self.status == "pre-switchover"
    }

    pub fn is_complete(&self) -> bool {
        self.status == "completed"
    }

    /// Why it came to nothing, if it did.
    pub fn failure(&self) -> Option<String> {
        let failed = matches!(&*self.status, "failed" | "cancelled" | "cancelling");
        failed.then(|| match &*self.error_desc {
            "" => format!("the copy ended as {:?}", self.status),
            why => super::qmp::quote(why),
        })
    }

    /// What an error says of it.
    pub fn text(&self) -> String {
        let Ram { remaining, transferred, dirty_sync_count } = self.ram;
        let status = &self.status;
        format!("{status:?}, {transferred} bytes sent, {remaining} left, pass {dirty_sync_count}")
    }

    fn is_over(&self) -> bool {
        matches!(&*self.status, "" | "none" | "completed" | "failed" | "cancelled")
    }
}

/// Whether a migration moves. How long a whole one takes depends on memory, guest and host; on which one stands still does not.
#[derive(Debug)]
pub(super) struct Pace {
    still_max: Duration,
    last: Progress,
    since: Instant,
}

impl Pace {
    /// One that gives up what has not changed for longer than `still_max`.
    pub fn new(still_max: Duration) -> Self {
        Self { still_max, last: Progress::default(), since: Instant::now() }
    }

    /// What was seen `now`.
    ///
    /// # Errors
    /// Why the migration comes to nothing: it said so, or nothing of it has changed for too long.
    pub fn see(&mut self, progress: Progress, now: Instant) -> Result<(), String> {
        if let Some(problem) = progress.failure() {
            return Err(problem);
        }
        if progress != self.last {
            (self.last, self.since) = (progress, now);
        }
        match now.duration_since(self.since) > self.still_max {
            true => Err(format!("it stands still for {:?}: {}", self.still_max, self.last.text())),
            false => Ok(()),
        }
    }
}

/// Begins to send what `qmp`'s machine is over `fd`. `without_ram`: all but the memory that lies in a shared file;
/// else it comes to a halt before the disk is let go.
pub(super) fn begin(
    qmp: &mut Qmp,
    fd: BorrowedFd<'_>,
    without_ram: bool,
) -> Result<(), EngineError> {
    let capabilities = json!({"capabilities": [
        {"capability": "x-ignore-shared", "state": without_ram},
        {"capability": "pause-before-switchover", "state": !without_ram},
    ]});
    qmp.order("migrate-set-capabilities", capabilities)?;
    // With a downtime limit QEMU would stop the guest as soon as it finds the rest small; so only if there is none.
    qmp.order("migrate-set-parameters", json!({"max-bandwidth": FULL_SPEED, "downtime-limit": 0}))?;
    qmp.give(fd, "out")?;
    qmp.order("migrate", json!({"uri": "fd:out"}))
}

/// Begins to take what [`begin`] without memory has sent.
pub(super) fn take(qmp: &mut Qmp, fd: BorrowedFd<'_>) -> Result<(), EngineError> {
    let capabilities = json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]});
    qmp.order("migrate-set-capabilities", capabilities)?;
    qmp.give(fd, "in")?;
    qmp.order("migrate-incoming", json!({"uri": "fd:in"}))
}

/// Lets go the disk and sends the rest.
pub(super) fn go_on(qmp: &mut Qmp) -> Result<(), EngineError> {
    qmp.order("migrate-continue", json!({"state": "pre-switchover"}))
}

/// Polls until `done` holds. What has not changed for `still_max` is given up.
pub(super) fn wait(
    qmp: &mut Qmp,
    path: &Path,
    still_max: Duration,
    mut done: impl FnMut(&Progress) -> bool,
) -> Result<(), EngineError> {
    let mut pace = Pace::new(still_max);
    loop {
        let progress = Progress::of(qmp)?;
        if done(&progress) {
            return Ok(());
        }
        let seen = pace.see(progress, Instant::now());
        seen.map_err(|problem| EngineError::Capture { path: path.to_owned(), problem })?;
        thread::sleep(POLL);
    }
}

/// Ends whatever migration is under way.
pub(super) fn cancel(qmp: &mut Qmp, monitor: &Path) -> Result<(), EngineError> {
    let until = Instant::now() + CANCEL_MAX;
    let mut asked = false;
    while !Progress::of(qmp)?.is_over() {
        if !asked {
            qmp.run("migrate_cancel")?;
            asked = true;
        }
        if Instant::now() > until {
            let problem = format!("the copy of memory goes on after {CANCEL_MAX:?}");
            return Err(refuse(monitor, "migrate_cancel", problem));
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// Whether it stands still because it was sent: then it can not be sent again before it ran.
pub(super) fn was_sent(qmp: &mut Qmp) -> Result<bool, EngineError> {
    Ok(qmp.ask::<RunState>("query-status")?.status == "postmigrate")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active(transferred: u64) -> Progress {
        let ram = Ram { remaining: 7, transferred, dirty_sync_count: 1 };
        Progress { status: "active".into(), ram, error_desc: String::new() }
    }

    #[test]
    fn what_moves_is_waited_for_and_what_stands_still_is_not() {
        let still_max = Duration::from_secs(30);
        let mut pace = Pace::new(still_max);
        let mut now = pace.since;
        for transferred in 0..100 {
            now += still_max;
            assert_eq!(pace.see(active(transferred), now), Ok(()));
        }
        assert_eq!(pace.see(active(99), now + still_max), Ok(()));
        let why = pace.see(active(99), now + still_max + Duration::from_nanos(1)).unwrap_err();
        assert_eq!(why, "it stands still for 30s: \"active\", 99 bytes sent, 7 left, pass 1");
    }

    #[test]
    fn what_failed_is_not_waited_for() {
        let mut pace = Pace::new(Duration::from_secs(30));
        for (error_desc, expected) in [("", "the copy ended as"), ("no room", "no room")] {
            let failed =
                Progress { status: "failed".into(), error_desc: error_desc.into(), ..active(1) };
            let why = pace.see(failed, Instant::now()).unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
    }
}
