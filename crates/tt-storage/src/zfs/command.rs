//! The programs `zfs` and `zpool`: their command lines, and what they say. It never starts a shell, and takes no name from
//! what they print but those it looks for.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A pool under load answers within seconds; one whose disks hang never does.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long one that was killed is waited for: while it waits in the kernel for disks that hang, it does not end.
const DIES_WITHIN: Duration = Duration::from_secs(2);
/// How often something busy is tried again at once, after pauses that double: a data set is busy for a moment after its last
/// user has gone, which takes longer on a busy host. What a machine has open is not tried at all.
const BUSY_TRIES: u32 = 6;
const BUSY_PAUSE: Duration = Duration::from_millis(25);
/// What is read of what it prints: the names of some 10,000 data sets.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;
/// What a volume reads and writes at once. What most guests' file systems write is smaller, and what is smaller is read before
/// it is written; smaller ones take more room for what says where they are, and compress less.
const BLOCK_SIZE: &str = "volblocksize=16384";
const NO_PARTITIONS: &str = "volmode=dev";
/// What is shown of what it says.
const SAID_CHARS_MAX: usize = 400;

/// A run of `zfs`: a value, so that tests can look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Zfs(pub(super) Vec<String>);

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// What it is about is not there, or its pool is not.
    Absent,
    /// The name is taken.
    Exists,
    /// Clones need it.
    HasClones,
    /// The pool is full.
    Full,
    /// Somebody uses it: what it said.
    Busy(String),
    /// Anything else: what it said.
    Said(String),
}

impl Zfs {
    fn new<const N: usize>(args: [&str; N]) -> Self {
        Self(args.map(str::to_owned).to_vec())
    }

    /// Makes an empty data set, mounted there or nowhere.
    pub(super) fn create(set: &str, mountpoint: Option<&Path>) -> Self {
        Self::new(["create", "-o", &place(mountpoint), set])
    }

    /// Makes an empty volume of that size, which takes no more of the pool than what is written to it. The kernel looks for
    /// no partitions in it: what is there is a guest's.
    pub(super) fn create_volume(volume: &str, bytes: u64) -> Self {
        let size = bytes.to_string();
        Self::new(["create", "-s", "-V", &size, "-o", BLOCK_SIZE, "-o", NO_PARTITIONS, volume])
    }

    /// Makes a volume from a snapshot of one. What it lies below must be there.
    pub(super) fn clone_volume(snapshot: &str, volume: &str) -> Self {
        Self::new(["clone", "-o", NO_PARTITIONS, snapshot, volume])
    }

    /// The same, with the data sets above it; of one that is there already it says nothing, and changes nothing.
    pub(super) fn clone_volume_below(snapshot: &str, volume: &str) -> Self {
        Self::new(["clone", "-p", "-o", NO_PARTITIONS, snapshot, volume])
    }

    /// Gives a volume another size.
    pub(super) fn resize(volume: &str, bytes: u64) -> Self {
        Self::new(["set", &format!("volsize={bytes}"), volume])
    }

    pub(super) fn snapshot(snapshot: &str) -> Self {
        Self::new(["snapshot", snapshot])
    }

    /// Makes a data set from a snapshot, with those above it, mounted there or nowhere. Of one that is there already it says
    /// nothing, and changes nothing.
    pub(super) fn clone(snapshot: &str, set: &str, mountpoint: Option<&Path>) -> Self {
        Self::new(["clone", "-p", "-o", &place(mountpoint), snapshot, set])
    }

    pub(super) fn mount(set: &str) -> Self {
        Self::new(["mount", set])
    }

    /// Mounts it there, now and whenever its pool is imported; or nowhere any more.
    pub(super) fn mount_at(set: &str, mountpoint: Option<&Path>) -> Self {
        Self::new(["set", &place(mountpoint), set])
    }

    /// Lets a clone own the snapshot that it was made from, and all older ones.
    pub(super) fn promote(set: &str) -> Self {
        Self::new(["promote", set])
    }

    /// Removes a snapshot, or a data set with all below it.
    pub(super) fn destroy(name: &str) -> Self {
        Self::new(["destroy", "-r", name])
    }

    /// Removes a data set if nothing is below it.
    pub(super) fn destroy_empty(set: &str) -> Self {
        Self::new(["destroy", set])
    }

    /// Name and origin of all below a data set, and of itself; older snapshots first.
    pub(super) fn list(set: &str) -> Self {
        Self::new([
            "list",
            "-H",
            "-r",
            "-t",
            "filesystem,volume,snapshot",
            "-s",
            "creation",
            "-o",
            "name,origin",
            set,
        ])
    }

    /// The names of the data sets right below one, and its own.
    pub(super) fn children(set: &str) -> Self {
        Self::new(["list", "-H", "-d", "1", "-t", "filesystem,volume", "-o", "name", set])
    }

    /// Only its name.
    pub(super) fn look(set: &str) -> Self {
        Self::new(["list", "-H", "-o", "name", set])
    }

    /// What it takes and what may still be written there, in bytes.
    pub(super) fn room(set: &str) -> Self {
        Self::new(["get", "-H", "-p", "-o", "value", "used,available", set])
    }

    /// Runs it to its end. Answers what it printed. Refused at once while another one hangs, see [`answers`].
    pub(super) fn run(&self) -> Result<String, Refused> {
        answers()?;
        for tried in 0..BUSY_TRIES {
            match self.run_once() {
                Err(Refused::Busy(_)) => std::thread::sleep(BUSY_PAUSE * (1 << tried)),
                answer => return answer,
            }
        }
        self.run_once()
    }

    fn run_once(&self) -> Result<String, Refused> {
        let failed = |e: io::Error| Refused::Said(format!("{}: {e}", self.line()));
        let mut printed = memory_file().map_err(failed)?;
        let mut said = memory_file().map_err(failed)?;
        let status = self.wait(&printed, &said).map_err(failed)?;
        let said = read(&mut said).map_err(failed)?;
        match status {
            Some(status) if status.success() => read(&mut printed).map_err(failed),
            Some(_) => Err(refusal(&said, &self.line())),
            None => Err(Refused::Said(format!("{}: no answer in {TIMEOUT:?}", self.line()))),
        }
    }

    /// `None`: it was killed, for it took too long.
    fn wait(&self, printed: &File, said: &File) -> io::Result<Option<ExitStatus>> {
        let mut command = Command::new("zfs");
        // What it says must not depend on the user's language; its own children end with it.
        command.args(&self.0).env("LC_ALL", "C").process_group(0).stdin(Stdio::null());
        let mut child = command.stdout(printed.try_clone()?).stderr(said.try_clone()?).spawn()?;
        let group = Pid::from_child(&child);
        let ended = ends_within(&child, TIMEOUT);
        if !matches!(ended, Ok(true)) {
            // Not reaped yet, so the group's number is still its own.
            let _ = kill_process_group(group, Signal::KILL);
            if !matches!(ends_within(&child, DIES_WITHIN), Ok(true)) {
                STUCK.add(self.line(), child);
                return ended.map(|_| None);
            }
        }
        let status = child.wait()?;
        Ok(ended?.then_some(status))
    }

    fn line(&self) -> String {
        format!("zfs {}", self.0.join(" "))
    }
}

/// Whether the pool answers, as far as is known: no run hangs that was killed long ago. Who asks it nevertheless would hang
/// beside that one.
pub(super) fn answers() -> Result<(), Refused> {
    STUCK.check()
}

/// Runs that were killed and have not ended, with their command lines. As many as ran at once, for no more begin.
struct Stuck(Mutex<Vec<(String, Child)>>);

static STUCK: Stuck = Stuck(Mutex::new(Vec::new()));

impl Stuck {
    fn add(&self, line: String, child: Child) {
        tracing::error!(line, pid = child.id(), "the pool hangs");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((line, child));
    }

    fn check(&self) -> Result<(), Refused> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain_mut(|(_, child)| matches!(child.try_wait(), Ok(None)));
        match all.first() {
            None => Ok(()),
            Some((line, child)) => {
                let pid = child.id();
                Err(Refused::Said(format!(
                    "it does not answer: `{line}` (process {pid}) hangs; look at its disks (`zpool status`)"
                )))
            }
        }
    }
}

fn ends_within(child: &Child, timeout: Duration) -> io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
    loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            answer => return Ok(answer? > 0),
        }
    }
}

fn place(mountpoint: Option<&Path>) -> String {
    let place = mountpoint.map_or("none".into(), |path| path.to_string_lossy());
    format!("mountpoint={place}")
}

/// What it means, by the words of OpenZFS and zfs-fuse.
fn refusal(said: &str, line: &str) -> Refused {
    let has = |words: &str| said.contains(words);
    if has("has dependent clones") || has("has children") || has("snapshot is cloned") {
        Refused::HasClones
    } else if has("does not exist") || has("could not find any snapshots") || has("no such pool") {
        Refused::Absent
    } else if has("already exists") {
        Refused::Exists
    } else if has("out of space") || has("No space left") {
        Refused::Full
    } else {
        let has_busy = has("is busy");
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let said: String = said.chars().filter(|c| !c.is_control()).take(SAID_CHARS_MAX).collect();
        let said = format!("{line}: {said}");
        if has_busy { Refused::Busy(said) } else { Refused::Said(said) }
    }
}

/// Files in memory instead of pipes: nobody has to read while it runs, and nobody can be blocked.
fn memory_file() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("zfs", MemfdFlags::CLOEXEC)?.into())
}

fn read(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_these() {
        let lines = [
            (Zfs::create("p/tt/0007/t/d", None), "create -o mountpoint=none p/tt/0007/t/d"),
            (Zfs::create("p/s", Some("/d d".as_ref())), "create -o mountpoint=/d d p/s"),
            (Zfs::snapshot("p/s@7-1"), "snapshot p/s@7-1"),
            (
                Zfs::create_volume("p/v/7.0", 8 << 20),
                "create -s -V 8388608 -o volblocksize=16384 -o volmode=dev p/v/7.0",
            ),
            (Zfs::clone_volume("p/s@b", "p/v/7.0"), "clone -o volmode=dev p/s@b p/v/7.0"),
            (Zfs::clone_volume_below("p/s@b", "p/v/7/1"), "clone -p -o volmode=dev p/s@b p/v/7/1"),
            (Zfs::resize("p/v/7.0", 9 << 20), "set volsize=9437184 p/v/7.0"),
            (
                Zfs::clone("p/s@b", "p/v/7/0", Some("/d/0.zfs".as_ref())),
                "clone -p -o mountpoint=/d/0.zfs p/s@b p/v/7/0",
            ),
            (Zfs::mount("p/s"), "mount p/s"),
            (Zfs::mount_at("p/s", None), "set mountpoint=none p/s"),
            (Zfs::mount_at("p/s", Some("/d".as_ref())), "set mountpoint=/d p/s"),
            (Zfs::promote("p/s"), "promote p/s"),
            (Zfs::destroy("p/s"), "destroy -r p/s"),
            (Zfs::destroy_empty("p/s"), "destroy p/s"),
            (
                Zfs::list("p/v/7"),
                "list -H -r -t filesystem,volume,snapshot -s creation -o name,origin p/v/7",
            ),
            (Zfs::children("p/v"), "list -H -d 1 -t filesystem,volume -o name p/v"),
            (Zfs::look("p"), "list -H -o name p"),
            (Zfs::room("p"), "get -H -p -o value used,available p"),
        ];
        for (zfs, line) in lines {
            assert_eq!(zfs.line(), format!("zfs {line}"));
        }
        // A path is one argument.
        assert_eq!(Zfs::create("p/s", Some("/d d".as_ref())).0[2], "mountpoint=/d d");
    }

    #[test]
    fn nothing_more_is_begun_while_a_run_hangs_and_all_goes_on_when_it_ends() {
        let stuck = Stuck(Mutex::new(Vec::new()));
        assert_eq!(stuck.check(), Ok(()));
        let children =
            [60, 61].map(|secs: u32| Command::new("sleep").arg(secs.to_string()).spawn().unwrap());
        let pids = children.each_ref().map(Pid::from_child);
        assert!(!ends_within(&children[0], Duration::from_millis(10)).unwrap());
        for (child, line) in children.into_iter().zip(["zfs one", "zfs two"]) {
            stuck.add(line.into(), child);
        }
        for (pid, line) in pids.into_iter().zip(["`zfs one`", "`zfs two`"]) {
            let refused = stuck.check();
            assert!(
                matches!(&refused, Err(Refused::Said(said)) if said.contains(line)),
                "{refused:?}"
            );
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
            poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
        }
        assert_eq!(stuck.check(), Ok(()));
    }

    #[test]
    fn what_it_says_is_understood() {
        for (said, refused) in [
            ("cannot open 'p/x': dataset does not exist\n", Refused::Absent),
            ("cannot create 'p/x': dataset already exists", Refused::Exists),
            ("cannot destroy 'p/x': filesystem has dependent clones\nuse '-R'", Refused::HasClones),
            (
                "cannot destroy 'p/x@s': snapshot is cloned\nno snapshots destroyed",
                Refused::HasClones,
            ),
            ("cannot create 'p/x': out of space", Refused::Full),
            (
                "cannot destroy 'p':\n\tdataset\x07 is busy",
                Refused::Busy("zfs x: cannot destroy 'p': dataset is busy".into()),
            ),
            ("no such\n  thing\n", Refused::Said("zfs x: no such thing".into())),
        ] {
            assert_eq!(refusal(said, "zfs x"), refused);
        }
    }
}
