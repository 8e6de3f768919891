//! Looks at the host once: what is there, what is missing and how to get it, and what all machines share.

use super::{Accelerator, AcceleratorChoice, Host, NAME, QemuConfig};
use crate::cgroup::Cgroups;
use crate::memory::files::Writer;
use crate::remains;
use crate::watch::Watcher;
use crate::{Wake, probe};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// The oldest QEMU that takes the arguments and is tried: Debian 12's.
const VERSION_MIN: (u32, u32) = (7, 2);
/// The first QEMU that knows `rom=off`.
const VERSION_ROM_OFF: (u32, u32) = (8, 2);
/// Firmware that starts a kernel and does nothing else; part of QEMU.
const FIRMWARE: &str = "qboot.rom";
/// Taps are opened through it.
const TUN: &str = "/dev/net/tun";

/// What starting machines takes.
#[derive(Clone, Debug)]
pub(super) struct Usable {
    pub accelerator: Accelerator,
    /// The group that a machine has to be in to use KVM.
    pub kvm_group: Option<u32>,
    pub version: String,
    /// How machines are executed and why, for people.
    pub detail: String,
    pub firmware: Option<PathBuf>,
    pub uefi: Option<UefiFiles>,
    /// Whether a machine can map a file privately that it may not write to (`rom=off`, since 8.2).
    pub reads_only: bool,
}

impl Usable {
    /// What writes machines' memory here.
    pub fn writer(&self) -> Writer {
        Writer {
            engine: NAME,
            version: self.version.clone(),
            accelerator: match self.accelerator {
                Accelerator::Kvm => "kvm",
                Accelerator::Tcg => "tcg",
            },
            qboot: self.firmware.is_some(),
        }
    }
}

/// UEFI firmware, as a distribution brings it.
#[derive(Clone, Debug)]
pub(super) struct UefiFiles {
    /// Its program.
    pub code: PathBuf,
    /// Its variables as they are at first.
    pub vars: PathBuf,
}

/// Where distributions have them: Debian and Ubuntu (`ovmf`), Fedora (`edk2-ovmf`), Arch. None of them checks signatures,
/// for which it would need a guest's system management mode.
const UEFI: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];

/// Checks and prepares. Whatever is missing, what can be had for finding and stopping machines is there.
pub(super) fn prepare(config: &QemuConfig, wake: Wake) -> Host {
    let watcher = Watcher::start(wake).map_err(|e| format!("processes can not be watched ({e})"));
    let groups = Cgroups::detect();
    let mut missing = Vec::new();
    if let Err(why) = &groups {
        missing.push(why.clone());
    }
    if let Err(why) = &watcher {
        missing.push(why.clone());
    }
    let usable = check(config, missing);
    Host {
        config: config.clone(),
        groups: groups.unwrap_or_else(|_| Cgroups::none()),
        watcher: watcher.ok(),
        usable,
        held: Mutex::default(),
    }
}

fn check(config: &QemuConfig, mut missing: Vec<String>) -> Result<Usable, String> {
    if !rustix::process::geteuid().is_root() {
        missing.push("the daemon does not run as root".to_owned());
    }
    if !Path::new(TUN).exists() {
        missing.push(format!("there is no {TUN}: load the module `tun`"));
    }
    if let Err(error) = remains::make_run_dir(&config.layout) {
        missing.push(crate::error::chain(&error));
    }
    let dirs = [&config.layout.run, &config.layout.data];
    // Both may lie below the same one.
    let closed: BTreeSet<_> = dirs.into_iter().filter_map(|dir| remains::impassable(dir)).collect();
    for closed in closed {
        let closed = closed.display();
        missing.push(format!("machines' users can not pass {closed}: `chmod o+x {closed}`"));
    }
    let version = version(&config.binary).map_err(|why| missing.push(why)).unwrap_or_default();
    let accelerator = accelerator(config.accelerator, probe::of_host);
    let reads_only = parse_version(&format!("QEMU emulator version {version}"))
        .is_some_and(|(major, minor, _)| (major, minor) >= VERSION_ROM_OFF);
    match (accelerator, missing.is_empty()) {
        (Ok((accelerator, kvm_group, detail)), true) => Ok(Usable {
            accelerator,
            kvm_group,
            version,
            detail,
            firmware: firmware(&config.binary),
            uefi: uefi(),
            reads_only,
        }),
        (accelerator, _) => {
            missing.extend(accelerator.err());
            Err(missing.join("; "))
        }
    }
}

fn accelerator(
    choice: AcceleratorChoice,
    probe: impl FnOnce() -> Result<probe::Kvm, String>,
) -> Result<(Accelerator, Option<u32>, String), String> {
    if choice == AcceleratorChoice::Tcg {
        return Ok((Accelerator::Tcg, None, "tcg, as configured".to_owned()));
    }
    match (choice, probe()) {
        (_, Ok(kvm)) => {
            let detail = format!("kvm: a test guest ran in {} us", kvm.run.as_micros());
            Ok((Accelerator::Kvm, kvm.group, detail))
        }
        (AcceleratorChoice::Kvm, Err(why)) => Err(format!("kvm is configured, but {why}")),
        (_, Err(why)) => Ok((Accelerator::Tcg, None, format!("tcg: {why}"))),
    }
}

fn version(binary: &Path) -> Result<String, String> {
    let shown = binary.display();
    let output = ask(binary, &["--version"]).map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!(
            "there is no {shown}: install QEMU (Debian, Ubuntu: `qemu-system-x86`; Fedora: `qemu-system-x86-core`)"
        ),
        _ => format!("{shown} can not be started ({error})"),
    })?;
    let (major, minor, text) = parse_version(&output)
        .ok_or_else(|| format!("{shown} --version does not answer as QEMU does"))?;
    match (major, minor) >= VERSION_MIN {
        true => Ok(text),
        false => Err(format!(
            "{shown} is version {text}; {}.{} or later is needed",
            VERSION_MIN.0, VERSION_MIN.1
        )),
    }
}

/// `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`: 10, 0 and `10.0.2`.
fn parse_version(output: &str) -> Option<(u32, u32, String)> {
    let rest = output.split_once("QEMU emulator version ")?.1;
    let text = rest.split_whitespace().next()?;
    let mut numbers = text.split('.').map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??, text.to_owned()))
}

/// The firmware in one of the directories where QEMU looks for its own.
fn firmware(binary: &Path) -> Option<PathBuf> {
    let dirs = ask(binary, &["-L", "help"]).ok()?;
    let mut files = dirs.lines().map(|dir| Path::new(dir).join(FIRMWARE));
    files.find(|file| file.exists())
}

fn uefi() -> Option<UefiFiles> {
    let mut found =
        UEFI.iter().filter(|(code, vars)| [code, vars].iter().all(|p| Path::new(p).exists()));
    found.next().map(|(code, vars)| UefiFiles { code: code.into(), vars: vars.into() })
}

fn ask(binary: &Path, args: &[&str]) -> std::io::Result<String> {
    let mut command = Command::new(binary);
    command.args(args).stdin(Stdio::null()).stderr(Stdio::null());
    Ok(String::from_utf8_lossy(&command.output()?.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn versions_are_read() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright\n";
        assert_eq!(parse_version(debian), Some((10, 0, "10.0.2".into())));
        assert_eq!(parse_version("QEMU emulator version 9.2.50 "), Some((9, 2, "9.2.50".into())));
        for other in
            ["", "QEMU emulator version ", "QEMU emulator version x.1", "GNU bash, version 5.2"]
        {
            assert_eq!(parse_version(other), None, "{other:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let why = version(Path::new("/no/qemu")).unwrap_err();
        assert!(why.contains("install QEMU"), "{why}");
        let why = version(Path::new("/bin/true")).unwrap_err();
        assert!(why.contains("does not answer"), "{why}");
    }

    #[test]
    fn kvm_is_used_where_it_works_and_only_demanded_where_said() {
        let works = Ok(probe::Kvm { group: Some(104), run: Duration::from_micros(90) });
        let broken: Result<probe::Kvm, _> = Err("it is broken".to_owned());
        let pick = |choice, kvm: &Result<probe::Kvm, String>| accelerator(choice, || kvm.clone());
        let (used, group, _) = pick(AcceleratorChoice::Auto, &works).unwrap();
        assert_eq!((used, group), (Accelerator::Kvm, Some(104)));
        let (used, group, detail) = pick(AcceleratorChoice::Auto, &broken).unwrap();
        assert_eq!((used, group, &*detail), (Accelerator::Tcg, None, "tcg: it is broken"));
        let (used, ..) = pick(AcceleratorChoice::Tcg, &works).unwrap();
        assert_eq!(used, Accelerator::Tcg);
        assert!(pick(AcceleratorChoice::Kvm, &broken).is_err());
    }
}
