//! Takes the room of a lab's data directory, which is a file system of its own.

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use std::fs::{File, remove_file};
use std::path::PathBuf;
use std::time::Duration;
use testkit::{Lab, within};

/// How long it may take.
const TAKEN: Duration = Duration::from_secs(10);

/// What takes the room, until it is dropped.
pub struct Filler(PathBuf);

impl Filler {
    /// Leaves that many MB.
    pub fn leave(lab: &Lab, mb: u64) -> Self {
        let filler = Self(lab.data().join("filler"));
        let file = File::create(&filler.0).unwrap();
        let take = || {
            let stat = statvfs(lab.data()).unwrap();
            let free = (stat.f_bavail * stat.f_frsize).saturating_sub(mb << 20);
            free == 0 || fallocate(&file, FallocateFlags::KEEP_SIZE, 0, free).is_ok()
        };
        // The daemon writes meanwhile.
        assert!(within(TAKEN, take), "the room of {} can not be taken", lab.data().display());
        filler
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = remove_file(&self.0);
    }
}
