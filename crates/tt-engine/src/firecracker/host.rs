//! Looks at the host once: what is there, what is missing and how to get it.

use super::{FirecrackerConfig, Host, NAME};
use crate::cgroup::Cgroups;
use crate::memory::files::Writer;
use crate::watch::Watcher;
use crate::{Wake, jail, probe, remains};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The oldest Firecracker that takes the requests: diff snapshots without a log of dirty pages, another tap for a snapshot.
const VERSION_MIN: (u32, u32) = (1, 13);
/// Versions that lose the agent's channel: 1.16.0 after a restore, both after a pause (Firecracker's issues 5969 and 6074).
const VERSION_BAD: (u32, u32) = (1, 16);
/// Taps are opened through it.
const TUN: &str = "/dev/net/tun";
/// Lists what memory may be swapped out to, below a line of titles (proc(5)).
const SWAPS: &str = "/proc/swaps";

/// What starting machines takes.
#[derive(Clone, Debug)]
pub(super) struct Usable {
    /// The program, as it is started.
    pub program: PathBuf,
    pub version: String,
    /// How machines are executed, for people.
    pub detail: String,
}

impl Usable {
    /// What writes machines' memory here.
    pub fn writer(&self) -> Writer {
        Writer { engine: NAME, version: self.version.clone(), accelerator: "kvm", qboot: false }
    }
}

/// Checks and prepares. Whatever is missing, what can be had for finding and stopping machines is there.
pub(super) fn prepare(config: &FirecrackerConfig, wake: Wake) -> Host {
    let watcher = Watcher::start(wake).map_err(|e| format!("processes can not be watched ({e})"));
    let groups = Cgroups::detect();
    let missing = [groups.as_ref().err(), watcher.as_ref().err()];
    let usable = check(config, missing.into_iter().flatten().cloned().collect());
    Host {
        config: config.clone(),
        groups: groups.unwrap_or_else(|_| Cgroups::none()),
        watcher: watcher.ok(),
        usable,
    }
}

fn check(config: &FirecrackerConfig, mut missing: Vec<String>) -> Result<Usable, String> {
    // First what most hosts lack that were never meant to have it: then nothing else is worth a word.
    let (program, version) = version(&config.binary)?;
    if !rustix::process::geteuid().is_root() {
        missing.push("the daemon does not run as root".to_owned());
    }
    if config.has_layers {
        missing.push(
            "new disks of this host are qcow2 layers, which it can not read: configure storage `file`, `btrfs` or `zfs`"
                .to_owned(),
        );
    }
    if fs::metadata(TUN).is_err() {
        missing.push(format!("there is no {TUN}: load the module `tun`"));
    }
    if let Err(error) = remains::make_run_dir(&config.layout) {
        missing.push(crate::error::chain(&error));
    }
    let shown = program.display();
    if let Err(error) = jail::needs_libraries(&program) {
        missing.push(format!("{shown} is no ELF program of 64 bits ({error})"));
    }
    if fs::metadata(&program).is_ok_and(|meta| meta.mode() & 0o001 == 0) {
        missing.push(format!("machines' users can not run {shown}: `chmod o+x {shown}`"));
    }
    let kvm = match config.needs_kvm {
        true => probe::of_host().map(Some),
        false => Ok(None),
    };
    match (kvm, missing.is_empty()) {
        (Ok(kvm), true) => Ok(Usable {
            program,
            version,
            detail: kvm.map_or("a stand-in, without kvm".to_owned(), |kvm| {
                format!("kvm: a test guest ran in {} us", kvm.run.as_micros())
            }),
        }),
        (kvm, _) => {
            missing.extend(kvm.err());
            Err(missing.join("; "))
        }
    }
}

/// Where the program is and which version it has.
fn version(binary: &Path) -> Result<(PathBuf, String), String> {
    let shown = binary.display();
    let program = find(binary).ok_or_else(|| {
        format!(
            "there is no {shown}: install a release of Firecracker from its project, and name the program in the table \
             `firecracker` of the configuration if it is not in PATH"
        )
    })?;
    let mut command = Command::new(&program);
    command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => format!("{shown} is no program: `chmod +x` it"),
        _ => format!("{shown} can not be started ({error})"),
    })?;
    let output = String::from_utf8_lossy(&output.stdout);
    let (major, minor, text) = parse_version(&output)
        .ok_or_else(|| format!("{shown} --version does not answer as Firecracker does"))?;
    judge((major, minor), &text).map(|()| (program, text))
}

/// The file of a program: as it is named, or in `PATH`.
fn find(binary: &Path) -> Option<PathBuf> {
    if binary.components().count() > 1 {
        return binary.exists().then(|| binary.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(binary)).find(|file| file.is_file())
}

/// `Firecracker v1.15.1`: 1, 15 and `1.15.1`.
fn parse_version(output: &str) -> Option<(u32, u32, String)> {
    let text = output.strip_prefix("Firecracker v")?.split_whitespace().next()?;
    let mut numbers = text.split('.').map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??, text.to_owned()))
}

fn judge(version: (u32, u32), text: &str) -> Result<(), String> {
    match version {
        VERSION_BAD => Err(format!(
            "Firecracker {text} loses guests' vsock after a pause or a restore: use 1.15.1, or 1.17 and later"
        )),
        version if version < VERSION_MIN => {
            let (major, minor) = VERSION_MIN;
            Err(format!("Firecracker is version {text}; {major}.{minor} or later is needed"))
        }
        _ => Ok(()),
    }
}

/// Whether what a machine has touched is in the host's memory for certain.
pub(super) fn never_swaps() -> bool {
    fs::read_to_string(SWAPS).is_ok_and(|swaps| swaps.lines().count() <= 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let said = "Firecracker v1.15.1\n\n2026-01-01T00:00:00 [anonymous-instance:main] exiting\n";
        assert_eq!(parse_version(said), Some((1, 15, "1.15.1".into())));
        assert_eq!(parse_version("Firecracker v1.17.0-dev\n"), Some((1, 17, "1.17.0-dev".into())));
        for other in ["", "Firecracker v", "Firecracker vx.1", "QEMU emulator version 7.2"] {
            assert_eq!(parse_version(other), None, "{other:?}");
        }
    }

    #[test]
    fn versions_that_are_old_or_known_to_be_bad_are_refused() {
        for good in [(1, 13), (1, 15), (1, 17), (2, 0)] {
            assert_eq!(judge(good, "x"), Ok(()));
        }
        assert!(judge((1, 12), "1.12.1").unwrap_err().contains("1.13 or later"));
        for bad in ["1.16.0", "1.16.1"] {
            assert!(judge((1, 16), bad).unwrap_err().contains("vsock"));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let why = version(Path::new("/no/firecracker")).unwrap_err();
        assert!(why.contains("install a release"), "{why}");
        let why = version(Path::new("tt-no-such-program")).unwrap_err();
        assert!(why.contains("in PATH"), "{why}");
        let why = version(Path::new("/bin/true")).unwrap_err();
        assert!(why.contains("does not answer"), "{why}");
        let why = version(Path::new("/etc/passwd")).unwrap_err();
        assert!(why.contains("chmod +x"), "{why}");
    }
}
