//! Which data set disks could lie below, and whether it does what they need: tried out. It leaves nothing behind.

use super::command::{Refused, Zfs};
use super::{mounts, volume};
use crate::{StorageError, tree};
use std::fs;
use std::io;
use std::path::Path;

/// Longest name of a pool: what ZFS allows is 255 bytes, and the names of TT's own data sets come behind it.
const POOL_BYTES_MAX: usize = 80;
/// Of the data sets of a probe; the id of the process follows.
const PREFIX: &str = "tt-probe-";
/// What to do about a pool without volumes.
pub(super) const HAVE_VOLUMES: &str =
    "use a pool of OpenZFS's module of the kernel, with udev, or configure storage `zfs`";
/// Size of the volume of a probe.
const PROBE_BYTES: u64 = 1 << 20;

/// Whether a text can be the name of a pool, or of a data set in one: `tank`, `tank/vms`. `Err` says why not.
///
/// # Errors
/// What is wrong with it, for people.
pub fn check_pool(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(is_plain)
    };
    if name.len() > POOL_BYTES_MAX {
        return Err(format!("it has more than {POOL_BYTES_MAX} bytes"));
    }
    match name.split('/').all(is_part) {
        true => Ok(()),
        false => Err("it is no name of a pool, or of a data set in one".to_owned()),
    }
}

/// The data set of ZFS in which a directory lies; `None` if it is on another file system.
///
/// # Errors
/// If the kernel does not say what is mounted.
pub(crate) fn pool_of(dir: &Path) -> io::Result<Option<String>> {
    for dir in dir.canonicalize()?.ancestors() {
        if let Some(mounted) = mounts::what(dir)? {
            return Ok(mounted.set);
        }
    }
    Ok(None)
}

/// Whether data sets can be made below one, snapshotted, cloned and removed. `Err` says why not.
pub(crate) fn probe(pool: &str) -> Result<(), String> {
    check_pool(pool)?;
    let set = format!("{pool}/{PREFIX}{}", std::process::id());
    let (first, second) = (format!("{set}/first"), format!("{set}/second"));
    let attempt = || -> Result<(), Refused> {
        Zfs::create(&set, None).run()?;
        Zfs::create(&first, None).run()?;
        Zfs::snapshot(&format!("{first}@probe")).run()?;
        Zfs::clone(&format!("{first}@probe"), &second, None).run()?;
        Zfs::promote(&second).run()?;
        Ok(())
    };
    let made = clear(pool).and_then(|()| attempt());
    let removed = match Zfs::destroy(&set).run() {
        Err(Refused::Absent) => Ok(String::new()),
        removed => removed,
    };
    match made.and(removed) {
        Ok(_) => Ok(()),
        Err(Refused::Absent) => Err(format!("{pool} is not there: import it (`zpool import`)")),
        Err(refused) => Err(StorageError::from(refused).to_string()),
    }
}

/// Whether volumes can be made below one, snapshotted, cloned and removed, and whether their devices can be opened by nodes
/// below `data`. `Err` says why not, and what to do.
pub(crate) fn probe_volumes(pool: &str, data: &Path) -> Result<(), String> {
    // What a pool that is away, or full, says is the same for both.
    probe(pool)?;
    let set = format!("{pool}/{PREFIX}{}", std::process::id());
    let (first, second) = (format!("{set}/first"), format!("{set}/second"));
    let place = data.join(format!(".{PREFIX}{}", std::process::id()));
    let said = |refused: Refused| StorageError::from(refused).to_string();
    let attempt = || -> Result<(), String> {
        Zfs::create(&set, None).run().map_err(said)?;
        Zfs::create_volume(&first, PROBE_BYTES).run().map_err(said)?;
        Zfs::snapshot(&format!("{first}@probe")).run().map_err(said)?;
        Zfs::clone_volume(&format!("{first}@probe"), &second).run().map_err(said)?;
        volume::show(&second, &place).map_err(|e| chain(&e))?;
        Zfs::promote(&second).run().map(drop).map_err(said)
    };
    let made = clear_places(data).and_then(|()| fs::create_dir(&place));
    let made = made.map_err(|e| format!("{}: {e}", place.display()));
    let made = made.and_then(|()| attempt());
    let cleared = tree::remove(&place).map(drop).map_err(|e| e.to_string());
    let removed = match Zfs::destroy(&set).run() {
        Err(Refused::Absent) => Ok(String::new()),
        removed => removed.map_err(said),
    };
    made.map_err(|why| format!("it can not have volumes ({why}): {HAVE_VOLUMES}"))
        .and(cleared)
        .and(removed.map(drop))
}

/// An error with what is behind it.
fn chain(error: &StorageError) -> String {
    let source = std::error::Error::source(error);
    source.map_or(error.to_string(), |source| format!("{error}: {source}"))
}

/// Removes what probes that were killed have left in the pool.
fn clear(pool: &str) -> Result<(), Refused> {
    for name in Zfs::children(pool).run()?.lines() {
        if name.rsplit_once('/').is_some_and(|(_, last)| is_left(last)) {
            Zfs::destroy(name).run()?;
        }
    }
    Ok(())
}

/// Removes what they have left in a data directory.
fn clear_places(data: &Path) -> io::Result<()> {
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().and_then(|name| name.strip_prefix('.')).is_some_and(is_left) {
            tree::remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether a name is that of a probe that was killed. One of somebody else's that only begins alike is none of ours.
fn is_left(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_data_sets_are_pools() {
        for name in ["tank", "tank/vms", "a.b_c-d:e/1"] {
            assert_eq!(check_pool(name), Ok(()), "{name}");
        }
        let long = "p".repeat(POOL_BYTES_MAX + 1);
        for name in ["", "/tank", "tank/", "a//b", "-rf", "tank@x", "a b", "tank/../x", "ä", &long]
        {
            assert!(check_pool(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn what_lies_on_another_file_system_has_no_pool() {
        assert_eq!(pool_of(Path::new("/proc/self")).unwrap(), None);
        assert!(pool_of(Path::new("/proc/none")).is_err());
        // No program, or no such pool: it says so, and nothing is left.
        assert!(probe("no-such-pool").is_err());
    }
}
