//! What the machine must have, and how it gets it: looked up in dpkg's list, tried with a simulation, printed, installed.
//! Removes and upgrades nothing by itself, and changes nothing where nothing is missing.

pub mod sources;

use crate::command::Argv;
use crate::failure::{Failure, Outcome};
use crate::say;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// What running needs.
pub const TO_RUN: [&str; 6] =
    ["qemu-system-x86", "qemu-utils", "nftables", "busybox-static", "e2fsprogs", "iproute2"];
/// What the benches need beside that.
pub const TO_BENCH: [&str; 2] = ["docker.io", "iperf3"];
/// What the tests need beside that.
pub const TO_TEST: [&str; 15] = [
    "xfsprogs",
    "btrfs-progs",
    "cpio",
    "debian-archive-keyring",
    "docker.io",
    "isc-dhcp-client",
    "kmod",
    "lz4",
    "mmdebstrap",
    "openssh-client",
    "ovmf",
    "podman",
    "xz-utils",
    "zstd",
    "zfs-fuse",
];

/// The package of the emulator: the one that a machine with half of a newer suite refuses.
const EMULATOR: &str = "qemu-system-x86";
/// What serves pools of ZFS without a module of the kernel. It would take the place of one that a machine has.
const POOLS: &str = "zfs-fuse";
/// Apt must know it to fetch a guest's kernel; it is never installed.
const KERNEL: &str = "linux-image-cloud-amd64";
/// Where a suite is configured that this program adds.
const ADDED_SOURCE: &str = "/etc/apt/sources.list.d/tt-backports.sources";
/// Debian's mirrors answer within seconds; a slow line takes minutes for the emulator's 100 MB.
const APT_LIMIT: Duration = Duration::from_secs(1200);

/// Installs those of `wanted` that are missing, and returns what was installed or added.
///
/// # Errors
/// If the machine has no apt, or apt refuses.
pub fn install(wanted: &[&str]) -> Outcome<Vec<String>> {
    for tool in ["apt-get", "dpkg-query"] {
        if !crate::command::has_program(tool) {
            let needs = wanted.join(" ");
            return Err(Failure::new(format!(
                "this machine has no `{tool}`: use Debian or Ubuntu, or install {needs} by hand"
            )));
        }
    }
    let missing = absent(wanted)?;
    if missing.is_empty() {
        say::line("nothing is missing");
        refresh_if_unknown(KERNEL)?;
        return Ok(Vec::new());
    }
    say::line(format_args!("to be installed: {}", missing.join(" ")));
    update()?;
    let (emulator, plain): (Vec<&str>, Vec<&str>) =
        missing.iter().partition(|name| **name == EMULATOR);
    let mut done: Vec<String> = missing.iter().map(ToString::to_string).collect();
    if !plain.is_empty() {
        apt_install(&plain, None).run()?;
    }
    if !emulator.is_empty() {
        done.extend(install_emulator()?);
    }
    match absent(wanted)?.as_slice() {
        [] => Ok(done),
        left => {
            let left = left.join(" ");
            Err(Failure::new(format!("apt succeeded, and {left} is missing all the same")))
        }
    }
}

/// Those of `wanted` that the machine lacks.
fn absent<'a>(wanted: &[&'a str]) -> Outcome<Vec<&'a str>> {
    let mut missing = missing(wanted, installed()?);
    missing.retain(|name| *name != POOLS || !crate::command::has_program("zpool"));
    Ok(missing)
}

/// What a command says at its end of what [`install`] returned; nothing came of one that failed or was not tried.
pub fn told(installed: Option<&[String]>) -> String {
    match installed {
        None => "installed: not all that is needed; what apt had installed by then is kept".into(),
        Some([]) => "installed: nothing, it was all there".into(),
        Some(names) => format!("installed, and kept: {}", names.join(" ")),
    }
}

/// The machine may have parts of a newer emulator whose suite is not configured; only that suite has the rest of it.
fn install_emulator() -> Outcome<Option<String>> {
    if accepts(None)? {
        return apt_install(&[EMULATOR], None).run().map(|()| None);
    }
    let release =
        fs::read_to_string("/etc/os-release").map_err(Failure::to("read", "/etc/os-release"))?;
    let release = release_of(&release);
    let codename = match (release.get("ID"), release.get("VERSION_CODENAME")) {
        (Some(&"debian"), Some(codename)) => *codename,
        _ => return Err(Failure::new(format!("apt refuses to install {EMULATOR}; see above"))),
    };
    let suite = format!("{codename}-backports");
    let mut added = None;
    if !accepts(Some(&suite))? {
        let source = sources::backports(&source_files()?, codename).ok_or_else(|| {
            let what = format!("no source of apt has the suite {codename}");
            Failure::new(format!("{what}, so its mirror is not known; configure {suite} by hand"))
        })?;
        say::line(format_args!("to be added: the suite {suite}, in {ADDED_SOURCE}"));
        write_as_root(Path::new(ADDED_SOURCE), &source)?;
        added = Some(ADDED_SOURCE.to_owned());
        update()?;
    }
    apt_install(&[EMULATOR], Some(&suite)).run().map(|()| added)
}

/// Whether apt would install the emulator; nothing is changed.
fn accepts(suite: Option<&str>) -> Outcome<bool> {
    let simulation = apt_install(&[EMULATOR], suite).arg("--simulate");
    Ok(simulation.look()?.status.success())
}

fn apt_install(names: &[&str], suite: Option<&str>) -> Argv {
    // Rather than give up a part of a newer suite that the machine has, apt would take it away.
    let argv =
        apt().args(["install", "--yes", "--quiet", "--no-install-recommends", "--no-remove"]);
    let argv = match suite {
        Some(suite) => argv.args(["-t", suite]),
        None => argv,
    };
    argv.args(names)
}

fn update() -> Outcome {
    apt().args(["update", "--quiet"]).run()
}

fn apt() -> Argv {
    // A fresh machine may still be installing updates by itself: apt waits for its lock.
    let argv = Argv::new("apt-get").args(["-o", "DPkg::Lock::Timeout=120"]);
    argv.env("DEBIAN_FRONTEND", "noninteractive").root().limit(APT_LIMIT)
}

/// A machine fresh from an image has no lists: then they are fetched.
fn refresh_if_unknown(name: &str) -> Outcome {
    let known = Argv::new("apt-cache").args(["show", "--no-all-versions", name]).look()?;
    if known.status.success() { Ok(()) } else { update() }
}

fn installed() -> Outcome<String> {
    Argv::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Abbrev} ${Package}\\n"])
        .text()
}

/// Those of `wanted` that `list` does not have as installed, each once, in order.
fn missing<'a>(wanted: &[&'a str], list: String) -> Vec<&'a str> {
    let has =
        |name: &str| list.lines().any(|line| line.strip_prefix("ii ").map(str::trim) == Some(name));
    let mut missing: Vec<&str> = Vec::new();
    for name in wanted {
        if !has(name) && !missing.contains(name) {
            missing.push(name);
        }
    }
    missing
}

/// The assignments of os-release(5).
fn release_of(text: &str) -> BTreeMap<&str, &str> {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(key, value)| (key, value.trim_matches('"'))).collect()
}

/// The texts of all files that configure sources of apt.
///
/// # Errors
/// If there is no directory of them.
pub fn source_files() -> Outcome<Vec<(String, String)>> {
    let mut paths = vec![Path::new("/etc/apt/sources.list").to_path_buf()];
    let dir = Path::new("/etc/apt/sources.list.d");
    let entries = fs::read_dir(dir).map_err(Failure::to("list", dir.display()))?;
    paths.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    paths.sort();
    let named = |path: &std::path::PathBuf| {
        // The old list need not exist.
        Some((path.to_string_lossy().into_owned(), fs::read_to_string(path).ok()?))
    };
    Ok(paths.iter().filter_map(named).collect())
}

fn write_as_root(path: &Path, text: &str) -> Outcome {
    let temporary = std::env::temp_dir().join(format!("tt-xtask-{}", std::process::id()));
    fs::write(&temporary, text).map_err(Failure::to("write", temporary.display()))?;
    let copy = Argv::new("install").args(["-m", "644"]).arg(&temporary).arg(path).root().run();
    // It lies in the temporary directory, and says nothing that is secret.
    let _ = fs::remove_file(&temporary);
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_whole_is_missing() {
        let list = "ii  nftables\nrc  e2fsprogs\nii  qemu-system-common\n";
        let wanted = ["qemu-system-x86", "nftables", "e2fsprogs", "qemu-system-x86"];
        assert_eq!(missing(&wanted, list.into()), ["qemu-system-x86", "e2fsprogs"]);
    }

    #[test]
    fn a_failed_installation_is_not_told_as_a_good_one() {
        assert!(told(None).starts_with("installed: not all"));
        assert_eq!(told(Some(&[])), "installed: nothing, it was all there");
        assert_eq!(told(Some(&["a".into(), "b".into()])), "installed, and kept: a b");
    }

    #[test]
    fn a_release_is_read_with_and_without_quotes() {
        let release = release_of("ID=debian\nVERSION_CODENAME=\"bookworm\"\n# comment\n");
        assert_eq!(release["ID"], "debian");
        assert_eq!(release["VERSION_CODENAME"], "bookworm");
    }

    #[test]
    fn apt_is_asked_for_no_more_than_what_is_named() {
        assert!(apt_install(&["a", "b"], Some("x-backports")).to_string().ends_with(
            "apt-get -o DPkg::Lock::Timeout=120 install --yes --quiet --no-install-recommends \
             --no-remove -t x-backports a b"
        ));
    }
}
