//! Control groups: limits for a machine, and the way to find its processes again. Version 2 where its controllers are
//! usable, else version 1. It never moves a process: a child enters by itself.

use crate::EngineError;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use tt_model::VmId;

/// The controllers that limit a machine.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Period of the CPU quota in microseconds: the kernel's default (`cpu.cfs_period_us`, `cpu.max`).
const CPU_PERIOD_US: u64 = 100_000;
/// How long a group is waited for that lists a process: the list may be late.
const LIVES_MAX: Duration = Duration::from_millis(100);
/// How long one is waited for that lists none. A process is listed no more as soon as it begins to end, and holds the group, and
/// its files, until the kernel has taken apart what KVM had of it.
const LEAVE_MAX: Duration = Duration::from_secs(10);
/// How often a group is tried that is still held.
const REMOVE_PAUSE: Duration = Duration::from_millis(5);

/// What the processes of one machine may use together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Memory in bytes, guest and program together.
    pub mem_bytes: u64,
    /// CPUs' worth of time.
    pub cpu_num: u16,
    /// Processes and threads.
    pub pids: u32,
}

/// The control groups of this host. The first hierarchy is the one that tells which processes a machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroups {
    version: Version,
    hierarchies: Vec<Hierarchy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    controllers: Vec<&'static str>,
}

impl Cgroups {
    /// No hierarchy at all: nothing is found and nothing can be made.
    pub fn none() -> Self {
        Self { version: Version::Two, hierarchies: Vec::new() }
    }

    /// Finds usable hierarchies among the mounts of this process.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn detect() -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mounts")
            .map_err(|source| format!("/proc/self/mounts can not be read ({source})"))?;
        Self::choose(&mounts, |mount| {
            fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default()
        })
    }

    fn choose(mounts: &str, v2_controllers: impl Fn(&Path) -> String) -> Result<Self, String> {
        let rows = || mounts.lines().filter_map(mount_row);
        for (mount, ..) in rows().filter(|(_, kind, _)| *kind == "cgroup2") {
            let there = v2_controllers(&mount);
            if CONTROLLERS.iter().all(|c| has_word(&there, ' ', c)) {
                return Ok(Self {
                    version: Version::Two,
                    hierarchies: vec![Hierarchy { mount, controllers: CONTROLLERS.to_vec() }],
                });
            }
        }
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for controller in CONTROLLERS {
            let mount = rows()
                .find(|(_, kind, options)| *kind == "cgroup" && has_word(options, ',', controller))
                .map(|(mount, ..)| mount)
                .ok_or_else(|| {
                    format!(
                        "the cgroup controller `{controller}` is not mounted; mount cgroup2 on /sys/fs/cgroup, with \
                         the controllers cpu, memory and pids"
                    )
                })?;
            match hierarchies.iter_mut().find(|h| h.mount == mount) {
                Some(hierarchy) => hierarchy.controllers.push(controller),
                None => hierarchies.push(Hierarchy { mount, controllers: vec![controller] }),
            }
        }
        Ok(Self { version: Version::One, hierarchies })
    }

    /// Makes the group at `path` (relative) with its limits, if need be, and opens what a process writes `0` to in
    /// order to enter it.
    pub fn create(&self, path: &Path, limits: &Limits) -> Result<Vec<File>, EngineError> {
        let mut doors = Vec::new();
        for hierarchy in &self.hierarchies {
            let group = hierarchy.mount.join(path);
            if self.version == Version::Two {
                enable(&hierarchy.mount, path)?;
            }
            fs::create_dir_all(&group).map_err(|source| make(&group, source))?;
            for (file, value) in self.limit_files(hierarchy, limits) {
                let file = group.join(file);
                fs::write(&file, value).map_err(|source| make(&file, source))?;
            }
            let door = group.join("cgroup.procs");
            let opened = OpenOptions::new().write(true).open(&door);
            doors.push(opened.map_err(|source| make(&door, source))?);
        }
        Ok(doors)
    }

    /// The processes in the group at `path`; `None` if there is no such group in any hierarchy.
    pub fn pids(&self, path: &Path) -> Result<Option<Vec<u32>>, EngineError> {
        let mut found = None;
        for hierarchy in &self.hierarchies {
            let file = hierarchy.mount.join(path).join("cgroup.procs");
            match fs::read_to_string(&file) {
                // 0 stands for a process of another pid namespace, which can not be addressed.
                Ok(text) => {
                    let pids = text.lines().filter_map(|l| l.parse::<u32>().ok());
                    found.get_or_insert_with(Vec::new).extend(pids.filter(|pid| *pid != 0));
                }
                Err(e) if is_gone(&e) => {}
                Err(source) => return Err(EngineError::Read { path: file, source }),
            }
        }
        Ok(found.map(|mut pids| {
            pids.sort_unstable();
            pids.dedup();
            pids
        }))
    }

    /// Whether the kernel killed a process of the group because it hit its memory limit.
    pub fn was_out_of_memory(&self, path: &Path) -> bool {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let memory = self.hierarchies.iter().find(|h| h.controllers.contains(&"memory"));
        let text = memory.and_then(|h| fs::read_to_string(h.mount.join(path).join(file)).ok());
        text.is_some_and(|text| {
            let kills = text.lines().find_map(|l| l.strip_prefix("oom_kill "));
            kills.and_then(|n| n.trim().parse().ok()).unwrap_or(0_u64) > 0
        })
    }

    /// Removes the group at `path`. False if processes are still in it.
    pub fn remove(&self, path: &Path) -> Result<bool, EngineError> {
        let mut all = true;
        for hierarchy in &self.hierarchies {
            all &= remove_group(&hierarchy.mount.join(path))?;
        }
        Ok(all)
    }

    /// The ids that have a group directly below `root` (relative), in any hierarchy.
    pub fn ids(&self, root: &Path) -> Result<Vec<VmId>, EngineError> {
        let mut ids = Vec::new();
        for hierarchy in &self.hierarchies {
            ids.extend(crate::remains::ids_in(&hierarchy.mount.join(root))?);
        }
        Ok(ids)
    }

    /// Removes the group at `root` and the one above it, if they are empty.
    pub fn close(&self, root: &Path) {
        for hierarchy in &self.hierarchies {
            for group in root.ancestors().filter(|a| !a.as_os_str().is_empty()) {
                // Refused as long as other groups are in it, which is what is wanted.
                let _ = fs::remove_dir(hierarchy.mount.join(group));
            }
        }
    }

    fn limit_files(&self, hierarchy: &Hierarchy, limits: &Limits) -> Vec<(&'static str, String)> {
        let cpu_us = CPU_PERIOD_US * u64::from(limits.cpu_num);
        let mut files = Vec::new();
        for controller in &hierarchy.controllers {
            match (*controller, self.version) {
                ("cpu", Version::One) => {
                    files.push(("cpu.cfs_period_us", CPU_PERIOD_US.to_string()));
                    files.push(("cpu.cfs_quota_us", cpu_us.to_string()));
                }
                ("cpu", Version::Two) => {
                    files.push(("cpu.max", format!("{cpu_us} {CPU_PERIOD_US}")));
                }
                ("memory", Version::One) => {
                    files.push(("memory.limit_in_bytes", limits.mem_bytes.to_string()));
                }
                ("memory", Version::Two) => {
                    files.push(("memory.max", limits.mem_bytes.to_string()))
                }
                _ => files.push(("pids.max", limits.pids.to_string())),
            }
        }
        files
    }
}

/// Mount point, type and options of a line of `/proc/self/mounts`.
fn mount_row(line: &str) -> Option<(PathBuf, &str, &str)> {
    let mut words = line.split(' ').skip(1);
    Some((words.next()?.into(), words.next()?, words.next()?))
}

fn has_word(text: &str, separator: char, word: &str) -> bool {
    text.trim().split(separator).any(|w| w == word)
}

/// Hands the controllers down to every group above `path`; version 2 only.
fn enable(mount: &Path, path: &Path) -> Result<(), EngineError> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    for group in above {
        let group = mount.join(group);
        fs::create_dir_all(&group).map_err(|source| make(&group, source))?;
        let file = group.join("cgroup.subtree_control");
        let there = fs::read_to_string(&file).unwrap_or_default();
        for controller in CONTROLLERS.iter().filter(|c| !has_word(&there, ' ', c)) {
            fs::write(&file, format!("+{controller}")).map_err(|source| make(&file, source))?;
        }
    }
    Ok(())
}

fn remove_group(group: &Path) -> Result<bool, EngineError> {
    let begin = Instant::now();
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(true),
            Err(e) if is_gone(&e) => return Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                let wait_max = if listed.trim().is_empty() { LEAVE_MAX } else { LIVES_MAX };
                if begin.elapsed() > wait_max {
                    return Ok(false);
                }
                thread::sleep(REMOVE_PAUSE);
            }
            Err(source) => {
                return Err(EngineError::Remove { path: group.to_owned(), source });
            }
        }
    }
}

/// Whether the group is not there; `ENODEV` is what an open file of a removed group answers.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn make(path: &Path, source: io::Error) -> EngineError {
    EngineError::Make { what: "cgroup", path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
tmpfs /sys/fs/cgroup tmpfs rw,relatime,mode=755 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
";
    const LIMITS: Limits = Limits { mem_bytes: 1 << 30, cpu_num: 2, pids: 100 };

    fn values(groups: &Cgroups) -> Vec<(String, String)> {
        let of = |h| groups.limit_files(h, &LIMITS).into_iter().map(|(f, v)| (h.mount.join(f), v));
        let all = groups.hierarchies.iter().flat_map(of);
        all.map(|(f, v)| (f.display().to_string(), v)).collect()
    }

    #[test]
    fn version_two_is_taken_if_its_controllers_are_there() {
        let mounts = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        let groups = Cgroups::choose(mounts, |_| "cpuset cpu io memory pids\n".into()).unwrap();
        insta::assert_debug_snapshot!(values(&groups), @r#"
        [
            (
                "/sys/fs/cgroup/cpu.max",
                "200000 100000",
            ),
            (
                "/sys/fs/cgroup/memory.max",
                "1073741824",
            ),
            (
                "/sys/fs/cgroup/pids.max",
                "100",
            ),
        ]
        "#);
    }

    #[test]
    fn a_bare_version_two_beside_version_one_is_passed_over() {
        let groups = Cgroups::choose(HYBRID, |_| String::new()).unwrap();
        insta::assert_debug_snapshot!(values(&groups), @r#"
        [
            (
                "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us",
                "100000",
            ),
            (
                "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us",
                "200000",
            ),
            (
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "1073741824",
            ),
            (
                "/sys/fs/cgroup/pids/pids.max",
                "100",
            ),
        ]
        "#);
    }

    #[test]
    fn a_missing_controller_is_named() {
        let mounts = HYBRID.replace("/pids cgroup", "/pids none");
        let why = Cgroups::choose(&mounts, |_| "cpuset".into()).unwrap_err();
        assert!(why.contains("`pids`"), "{why}");
    }

    #[test]
    fn a_group_is_made_twice_seen_and_removed_twice() {
        let groups = Cgroups::detect().unwrap();
        let root = PathBuf::from(format!("tt-test-{}", std::process::id()));
        let path = root.join("7");
        assert_eq!(groups.pids(&path).unwrap(), None);
        groups.create(&path, &LIMITS).unwrap();
        groups.create(&path, &LIMITS).unwrap();
        assert_eq!(groups.pids(&path).unwrap(), Some(vec![]));
        assert!(groups.ids(&root).unwrap().contains(&VmId(7)));
        assert!(!groups.was_out_of_memory(&path));
        assert!(groups.remove(&path).unwrap());
        assert!(groups.remove(&path).unwrap());
        assert_eq!(groups.pids(&path).unwrap(), None);
        groups.close(&root);
        assert!(groups.ids(&root).unwrap().is_empty());
    }
    #[test]
    fn a_group_goes_once_nobody_lives_in_it() {
        let groups = Cgroups::detect().unwrap();
        let root = PathBuf::from(format!("tt-test-lives-{}", std::process::id()));
        let path = root.join("7");
        groups.create(&path, &LIMITS).unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        for hierarchy in &groups.hierarchies {
            let procs = hierarchy.mount.join(&path).join("cgroup.procs");
            fs::write(procs, child.id().to_string()).unwrap();
        }
        assert!(!groups.remove(&path).unwrap());
        child.kill().unwrap();
        while groups.pids(&path).unwrap() != Some(vec![]) {
            thread::sleep(REMOVE_PAUSE);
        }
        // It may still be ending, which nobody has waited for.
        assert!(groups.remove(&path).unwrap());
        child.wait().unwrap();
        groups.close(&root);
    }
}
