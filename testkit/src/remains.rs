//! What a lab's daemons and guests are and have on the host: processes, mounts, control groups, files. Found by the lab's
//! directory, which is in all of their names, and taken away without asking any daemon.

use crate::wait::within;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a killed process may take to go.
const GOING: Duration = Duration::from_secs(10);

/// Kills, unmounts and removes all that belongs to the lab in `dir`, and the directory. Ends also where something stays.
pub(crate) fn clear(dir: &Path) {
    lose_power(dir, dir);
    let _ = fs::remove_dir_all(dir);
}

/// Takes away what a power failure does of the lab in `dir`: processes, control groups, and what is mounted below `run`.
pub(crate) fn lose_power(dir: &Path, run: &Path) {
    // A daemon that still lives starts its guests again, so it is looked again until nobody is left.
    within(GOING, || {
        let processes = processes(dir);
        for process in &processes {
            if let Some(pid) = Pid::from_raw(process.0) {
                // It may have gone.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        processes.is_empty()
    });
    for mount in mounts(run) {
        let _ = unmount(&mount, UnmountFlags::DETACH);
    }
    within(GOING, || {
        for group in cgroups(dir) {
            let _ = fs::remove_dir(&group);
        }
        cgroups(dir).is_empty()
    });
}

/// The living processes that name the lab on their command line: pid and that line.
pub(crate) fn processes(dir: &Path) -> Vec<(i32, String)> {
    let mark = dir.as_os_str().as_bytes();
    let is_marked = |line: &[u8]| line.windows(mark.len()).any(|part| part == mark);
    let pids = entries(Path::new("/proc")).into_iter();
    let pids = pids.filter_map(|path| path.file_name()?.to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words = || String::from_utf8_lossy(&line).replace('\0', " ");
        is_marked(&line).then(|| (pid, words()))
    })
    .collect()
}

/// The lab's machines among them.
pub(crate) fn machines(dir: &Path) -> Vec<(i32, String)> {
    let mut all = processes(dir);
    all.retain(|(_, line)| line.split(' ').next().is_some_and(|word| word.contains("qemu-system")));
    all
}

/// What is mounted below the lab's directory, latest first.
pub(crate) fn mounts(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The fifth field is the mount point (proc_pid_mountinfo(5)).
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut points: Vec<_> = points.filter(|point| point.starts_with(dir)).collect();
    points.reverse();
    points
}

/// The control groups of the lab's daemons, children first.
pub(crate) fn cgroups(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let rows = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let roots = rows.filter(|row| row.get(2).is_some_and(|kind| kind.starts_with("cgroup")));
    let roots: Vec<_> = roots.map(|row| PathBuf::from(row[1]).join("tt")).collect();
    let mut groups = Vec::new();
    for data in entries(dir) {
        let Ok(instance) = fs::read_to_string(data.join("instance")) else { continue };
        for root in &roots {
            let group = root.join(instance.trim());
            groups.extend(entries(&group).into_iter().filter(|path| path.is_dir()));
            groups.extend(group.is_dir().then_some(group));
        }
    }
    groups
}

/// What is in a directory; nothing, where there is none.
pub(crate) fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(read) = fs::read_dir(dir) else { return Vec::new() };
    read.filter_map(|entry| Some(entry.ok()?.path())).collect()
}
