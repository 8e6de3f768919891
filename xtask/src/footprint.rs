//! What TT could leave on a machine, as a list of lines, so that before and after can be compared. It only looks.

use crate::command::{Argv, is_root};
use crate::failure::{Failure, Outcome};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Folders where names of ours would stand out, if something of ours were left there.
const FOLDERS: [&str; 7] =
    ["/etc", "/run", "/tmp", "/dev/shm", "/var/lib", "/var/tmp", "/run/netns"];
/// How our names begin.
const OURS: [&str; 2] = ["tt", ".tt"];
/// How the names of our programs begin.
const PROGRAMS: [&str; 3] = ["qemu-system", "tt-", "tt\0"];
/// Values that change by themselves.
const RESTLESS: [&str; 2] = ["nf_conntrack_count", "/neigh/"];
/// The kernel takes a namespace with all that is in it down in the background, on a busy machine for seconds.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_INTERVAL: Duration = Duration::from_millis(300);
/// What other programs of the machine end by themselves.
const MORTAL: [&str; 5] = ["process", "network namespace", "mount", "file", "control group"];
/// What is shown of a line: an emulator's command line would fill the screen.
const SHOWN_CHARS_MAX: usize = 200;

/// What is on the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint(BTreeSet<String>);

impl Footprint {
    /// Looks at the machine with the rights of root, through this program's own `footprint` command where it is not root.
    ///
    /// # Errors
    /// If a tool that looks can not be run.
    pub fn take() -> Outcome<Self> {
        if is_root() {
            return look();
        }
        let this = std::env::current_exe().map_err(Failure::to("find", "this program"))?;
        let text = Argv::new(this).arg("footprint").root().text()?;
        Ok(Self(text.lines().map(str::to_owned).collect()))
    }

    /// The lines themselves.
    pub fn text(&self) -> String {
        self.0.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Looks again until nothing differs from this one, or patience ends.
    ///
    /// # Errors
    /// What differs.
    pub fn expect_again(&self) -> Outcome {
        let start = Instant::now();
        loop {
            let differences = self.differences(&Self::take()?);
            if differences.is_empty() {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                let all = differences.join("\n  ");
                return Err(Failure::new(format!(
                    "the machine is not as it was (or others changed it meanwhile):\n  {all}"
                )));
            }
            sleep(LOOK_INTERVAL);
        }
    }

    /// What came, and what went that only a change of ours would take away.
    fn differences(&self, later: &Self) -> Vec<String> {
        let is_telling = |line: &&String| {
            // Values of a link come and go with it; the link itself is told.
            link_of_sysctl(line).is_none_or(|link| self.has_link(link) && later.has_link(link))
        };
        let came = later.0.difference(&self.0).filter(is_telling);
        let went = self.0.difference(&later.0).filter(is_telling).filter(|line| {
            // Whoever had these before may have ended them by itself meanwhile.
            !MORTAL.iter().any(|kind| line.starts_with(kind))
        });
        let came = came.map(|line| format!("came: {line}"));
        came.chain(went.map(|line| format!("went: {line}"))).map(shortened).collect()
    }

    fn has_link(&self, name: &str) -> bool {
        ["all", "default"].contains(&name) || self.0.contains(&format!("link {name}"))
    }
}

/// `NAME` of `sysctl /proc/sys/net/ipv4/conf/NAME/..`
fn link_of_sysctl(line: &str) -> Option<&str> {
    line.strip_prefix("sysctl ")?.split_once("/conf/")?.1.split('/').next()
}

fn shortened(mut line: String) -> String {
    if let Some((end, _)) = line.char_indices().nth(SHOWN_CHARS_MAX) {
        line.truncate(end);
        line.push_str(" ..");
    }
    line
}

fn look() -> Outcome<Footprint> {
    let mut lines = BTreeSet::new();
    processes(&mut lines);
    mounts(&mut lines)?;
    files(&mut lines);
    for dir in children("/sys/class/net") {
        lines.insert(format!("link {dir}"));
    }
    sysctls(Path::new("/proc/sys/net"), &mut lines);
    control_groups(Path::new("/sys/fs/cgroup"), 3, &mut lines);
    for device in children("/sys/block") {
        let file = fs::read_to_string(format!("/sys/block/{device}/loop/backing_file"));
        lines.extend(file.ok().map(|file| format!("loop device {device} of {}", file.trim())));
    }
    for args in [
        ["ip", "-oneline", "address", "show"].as_slice(),
        &["ip", "-oneline", "route", "show", "table", "all"],
        &["ip", "-oneline", "-6", "route", "show", "table", "all"],
        &["ip", "-oneline", "rule", "show"],
        &["ip", "-oneline", "-6", "rule", "show"],
        &["ip", "-oneline", "neighbour", "show", "nud", "permanent"],
    ] {
        let text = Argv::new(args[0]).args(&args[1..]).text()?;
        lines.extend(text.lines().map(|line| format!("ip: {}", without_clocks(line))));
    }
    rules(&Argv::new("nft").args(["--stateless", "list", "ruleset"]).text()?, &mut lines);
    Ok(Footprint(lines))
}

/// Processes of our programs, and network namespaces by one process of each.
fn processes(lines: &mut BTreeSet<String>) {
    let (mut spaces, mut seen) = (Vec::new(), BTreeSet::new());
    for pid in children("/proc").iter().filter_map(|name| name.parse::<u32>().ok()) {
        // A process may end while it is looked at.
        let Ok(argv) = fs::read_to_string(format!("/proc/{pid}/cmdline")) else { continue };
        let program = argv.split('\0').next().unwrap_or_default();
        let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
        let ended = format!("{name}\0");
        let is_ours = PROGRAMS.iter().any(|ours| ended.starts_with(ours));
        if is_ours {
            lines.insert(format!("process {pid} {}", argv.replace('\0', " ").trim()));
        }
        if let Ok(space) = fs::read_link(format!("/proc/{pid}/ns/net")) {
            spaces.push((space.to_string_lossy().into_owned(), name.into_owned()));
        }
    }
    for (space, name) in spaces {
        if !name.is_empty() && seen.insert(space.clone()) {
            lines.insert(format!("network namespace {space}"));
        }
    }
}

/// What is mounted where; numbers of mounts change and say nothing.
fn mounts(lines: &mut BTreeSet<String>) -> Outcome {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).map_err(Failure::to("read", path))?;
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let point = words.get(4).unwrap_or(&"");
        let kind = line.split_once(" - ").map_or("", |(_, kind)| kind);
        lines.insert(format!("mount {point} {kind}"));
    }
    Ok(())
}

fn files(lines: &mut BTreeSet<String>) {
    for folder in FOLDERS {
        for name in children(folder) {
            if folder == "/run/netns" || OURS.iter().any(|ours| name.starts_with(ours)) {
                lines.insert(format!("file {folder}/{name}"));
            }
        }
    }
}

fn sysctls(dir: &Path, lines: &mut BTreeSet<String>) {
    for name in children(dir) {
        let path = dir.join(name);
        let shown = path.to_string_lossy();
        if RESTLESS.iter().any(|part| shown.contains(part)) {
            continue;
        }
        if path.is_dir() {
            sysctls(&path, lines);
        } else if let Ok(value) = fs::read_to_string(&path) {
            // Some can only be written.
            lines.insert(format!("sysctl {shown} = {}", value.trim()));
        }
    }
}

/// Groups of ours, down to a depth that no group of ours lies below.
fn control_groups(dir: &Path, depth: u8, lines: &mut BTreeSet<String>) {
    for name in children(dir) {
        let path = dir.join(&name);
        if depth == 0 || !path.is_dir() {
            continue;
        }
        if name.starts_with("tt") {
            lines.insert(format!("control group {}", path.display()));
        }
        control_groups(&path, depth - 1, lines);
    }
}

/// Each line of nft's listing with the blocks that it stands in.
fn rules(listing: &str, lines: &mut BTreeSet<String>) {
    let mut blocks: Vec<&str> = Vec::new();
    for line in listing.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line == "}" {
            blocks.pop();
            continue;
        }
        lines.insert(format!("nft: {} {line}", blocks.join(" ")));
        if let Some(block) = line.strip_suffix('{') {
            blocks.push(block.trim());
        }
    }
}

/// Without the times that count down.
fn without_clocks(line: &str) -> String {
    let line = line.split(" valid_lft").next().unwrap_or(line).replace('\\', " ");
    let mut words = line.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "expires" => drop(words.next()),
            _ => kept.push(word),
        }
    }
    kept.join(" ")
}

/// Names in a folder, in order; none if it can not be listed.
fn children(dir: impl AsRef<Path>) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_and_what_went_is_told() {
        let of = |lines: &[&str]| Footprint(lines.iter().map(ToString::to_string).collect());
        let differences = of(&["a", "b"]).differences(&of(&["b", "c"]));
        assert_eq!(differences, ["came: c", "went: a"]);
        let values = of(&["b", "sysctl /proc/sys/net/ipv4/conf/x/f = 1", "link x"]);
        assert_eq!(of(&["b"]).differences(&values), ["came: link x"]);
        let changed = of(&["b", "sysctl /proc/sys/net/ipv4/conf/x/f = 0", "link x"]);
        assert_eq!(values.differences(&changed).len(), 2);
        assert!(of(&["process 1 qemu"]).differences(&of(&[])).is_empty());
        assert!(of(&["a"]).differences(&of(&["a"])).is_empty());
    }

    #[test]
    fn rules_are_known_by_where_they_stand() {
        let mut lines = BTreeSet::new();
        rules("table inet x {\n\tchain y {\n\t\taccept\n\t}\n}\ntable ip z {\n}\n", &mut lines);
        let lines: Vec<_> = lines.into_iter().collect();
        assert_eq!(
            lines,
            [
                "nft:  table inet x {",
                "nft:  table ip z {",
                "nft: table inet x chain y accept",
                "nft: table inet x chain y {"
            ]
        );
    }

    #[test]
    fn clocks_make_no_difference() {
        assert_eq!(
            without_clocks(r"2: eth0 inet 192.0.2.1/24 \  valid_lft 12sec preferred_lft 1sec"),
            "2: eth0 inet 192.0.2.1/24"
        );
        assert_eq!(
            without_clocks("fe80::/64 dev x expires 12sec pref low"),
            "fe80::/64 dev x pref low"
        );
    }
}
