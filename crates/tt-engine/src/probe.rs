//! Whether machines can use KVM here. It trusts no device file: it runs a guest and measures.

use crate::kvm::{self, Outcome, TURNS};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

/// KVM's device.
const DEVICE: &str = "/dev/kvm";
/// How long the test guest may take. A processor does its 40,000 instructions in some 20 us, and even an emulated one in
/// 1 ms; a KVM that interprets the code of stock guests (as PVM does) takes 1 to 2 us for each instruction.
const RUN_MAX: Duration = Duration::from_millis(10);
/// When the test guest is given up.
const BOUND: Duration = Duration::from_millis(800);

/// KVM can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kvm {
    /// The group that a machine has to be in to open the device; `None` if anyone may.
    pub group: Option<u32>,
    /// What the test guest took.
    pub run: Duration,
}

/// What [`probe`] finds on this host; it is found once, and all engines share it.
pub(crate) fn of_host() -> Result<Kvm, String> {
    static FOUND: OnceLock<Result<Kvm, String>> = OnceLock::new();
    FOUND.get_or_init(|| probe(Path::new(DEVICE))).clone()
}

/// Looks and tries, in less than a second.
///
/// # Errors
/// Why KVM can not be used, and what to do, in one sentence.
fn probe(device: &Path) -> Result<Kvm, String> {
    let shown = device.display();
    let meta = fs::metadata(device).map_err(|e| no_device(device, &e))?;
    let outcome = kvm::run(device, BOUND).map_err(|e| no_device(device, &e))?;
    let run = judge(outcome).map_err(|why| format!("{shown} is there, but {why}"))?;
    let group = access(meta.mode(), meta.gid())
        .map_err(|what| format!("{shown} works, but only root may use it: {what}"))?;
    Ok(Kvm { group, run })
}

fn no_device(device: &Path, error: &io::Error) -> String {
    let shown = device.display();
    match error.kind() {
        ErrorKind::NotFound => format!(
            "there is no {shown}: turn virtualisation on in the firmware and load `kvm_intel` or `kvm_amd`"
        ),
        _ => format!("{shown} can not be opened ({error})"),
    }
}

fn judge(outcome: Outcome) -> Result<Duration, String> {
    match outcome {
        Outcome::Ran(run) if run <= RUN_MAX => Ok(run),
        Outcome::Ran(run) => Err(format!(
            "it does not let the processor execute a guest's code: {} instructions took {} ms (at most {} are in order)",
            TURNS * 2,
            run.as_millis(),
            RUN_MAX.as_millis(),
        )),
        Outcome::Wrong { exit_reason } => {
            Err(format!("a test guest came to a wrong result (KVM exit {exit_reason})"))
        }
        Outcome::Refused { errno } => {
            Err(format!("it refused a test guest ({})", io::Error::from_raw_os_error(errno)))
        }
        Outcome::Hung => Err(format!("a test guest did not end within {} ms", BOUND.as_millis())),
    }
}

/// The group that lets an unprivileged user open a device of this mode and group.
fn access(mode: u32, gid: u32) -> Result<Option<u32>, &'static str> {
    match (mode & 0o006 == 0o006, mode & 0o060 == 0o060, gid) {
        (true, ..) => Ok(None),
        (_, true, 1..) => Ok(Some(gid)),
        _ => Err("give it to a group (`chgrp kvm`, `chmod 660`)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn time_and_answer_decide() {
        assert!(judge(Outcome::Ran(Duration::from_micros(100))).is_ok());
        assert!(judge(Outcome::Ran(RUN_MAX)).is_ok());
        for (outcome, part) in [
            (Outcome::Ran(Duration::from_millis(105)), "took 105 ms"),
            (Outcome::Wrong { exit_reason: 17 }, "KVM exit 17"),
            (Outcome::Refused { errno: libc::EINVAL }, "Invalid argument"),
            (Outcome::Hung, "within 800 ms"),
        ] {
            let why = judge(outcome).unwrap_err();
            assert!(why.contains(part), "{why}");
        }
    }

    #[test]
    fn whoever_may_open_the_device_may_use_it() {
        assert_eq!(access(0o20666, 0), Ok(None));
        assert_eq!(access(0o20660, 104), Ok(Some(104)));
        assert!(access(0o20660, 0).is_err());
        assert!(access(0o20600, 104).is_err());
    }

    #[test]
    fn a_device_that_is_none_is_refused() {
        let why = probe(Path::new("/dev/tt-no-such-device")).unwrap_err();
        assert!(why.contains("turn virtualisation on"), "{why}");
        let why = probe(Path::new("/dev/null")).unwrap_err();
        assert!(why.contains("refused"), "{why}");
    }

    #[test]
    fn the_verdict_comes_within_a_second() {
        let began = Instant::now();
        let verdict = probe(Path::new(DEVICE));
        assert!(began.elapsed() < Duration::from_secs(1), "{verdict:?}");
        println!("{verdict:?} after {:?}", began.elapsed());
    }
}
