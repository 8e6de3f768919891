//! What the driver and an engine's program say to each other: JSON documents, as docs/exec-engine.md describes them. Pure.

use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;
use std::path::PathBuf;
use tt_model::{Vm, VmEngineFeat, feat};

/// The protocol's version: a program that does not know it refuses.
pub(super) const PROTOCOL: u32 = 1;
/// What a program may claim. The rest is for engines that hold machines still or keep memory, and those are drivers of TT.
const FEATURES: VmEngineFeat =
    feat::PAUSE | feat::SHUTDOWN | feat::NAT | feat::FLAT | feat::CONSOLE | feat::EXEC | feat::UEFI;
/// What a machine's program may need beside the guest's memory, in MB.
const OVERHEAD_MB_MAX: u32 = 4096;
/// Arguments of a machine's program.
const ARGS_MAX: usize = 1024;

/// A question or an order, on the program's standard input.
#[derive(Debug, Serialize)]
pub(super) struct Request<'a> {
    pub protocol: u32,
    #[serde(flatten)]
    pub call: Call<'a>,
}

/// What is wanted.
#[derive(Debug, Serialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub(super) enum Call<'a> {
    /// What it is and can do.
    Init,
    /// What is to be executed as the machine.
    Start(Box<Start<'a>>),
    /// Let it stand still.
    Pause(Target<'a>),
    /// Let it go on.
    Resume(Target<'a>),
    /// Ask its guest to shut down.
    Shutdown(Target<'a>),
    /// Whether it stands still.
    IsPaused(Target<'a>),
    /// How it ended.
    Ended(Ended<'a>),
}

/// The machine that a call is about.
#[derive(Debug, Serialize)]
pub(super) struct Target<'a> {
    pub vm: &'a Vm,
    /// The working directory of its process, the only place that it can write to.
    pub dir: PathBuf,
}

/// What a machine is made of.
#[derive(Debug, Serialize)]
pub(super) struct Start<'a> {
    #[serde(flatten)]
    pub target: Target<'a>,
    pub disk: Disk,
    pub kernel: Option<Kernel>,
    /// The tap, for frames with a virtio header.
    pub tap_fd: RawFd,
    /// The serial console: a socket that listens.
    pub console_fd: RawFd,
    /// The agent's channel: a socket that listens.
    pub agent_fd: RawFd,
}

/// The machine's disk.
#[derive(Debug, Serialize)]
pub(super) struct Disk {
    pub path: PathBuf,
    /// `raw` or `qcow2`.
    pub format: &'static str,
}

/// A kernel to boot straight into.
#[derive(Debug, Serialize)]
pub(super) struct Kernel {
    pub path: PathBuf,
    pub initramfs: PathBuf,
}

/// What is left of a machine.
#[derive(Debug, Serialize)]
pub(super) struct Ended<'a> {
    #[serde(flatten)]
    pub target: Target<'a>,
    /// The end of what its process wrote to its standard error.
    pub messages: String,
}

/// The answer to `init`.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct About {
    pub version: String,
    #[serde(default)]
    pub detail: String,
    features: Vec<String>,
    /// Why it can not run machines here, and what to do about it.
    #[serde(default)]
    pub unusable: Option<String>,
}

impl About {
    /// The bits of its features.
    ///
    /// # Errors
    /// One of them is not known, or not for programs.
    pub fn bits(&self) -> Result<VmEngineFeat, String> {
        self.features.iter().try_fold(0, |bits, name| {
            let known = feat::NAMES.iter().find(|(_, known)| known == name);
            match known.filter(|(bit, _)| FEATURES & bit != 0) {
                Some((bit, _)) => Ok(bits | bit),
                None => {
                    let known = feat::names(FEATURES).join(", ");
                    Err(format!("it claims the feature {name:?}; there are: {known}"))
                }
            }
        })
    }
}

/// The answer to `start`: what is executed as the machine.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Program {
    pub program: PathBuf,
    pub args: Vec<String>,
    /// What it needs beside the guest's memory, in MB.
    pub overhead_mb: u32,
}

impl Program {
    /// # Errors
    /// What is wrong with it, and what would be right.
    pub fn check(&self) -> Result<(), String> {
        if !self.program.is_absolute() {
            return Err(format!("program {:?} is not an absolute path", self.program));
        }
        if self.args.len() > ARGS_MAX {
            return Err(format!("{} arguments are more than {ARGS_MAX}", self.args.len()));
        }
        if self.args.iter().any(|arg| arg.contains('\0')) {
            return Err("an argument has a zero byte".to_owned());
        }
        match self.overhead_mb {
            1..=OVERHEAD_MB_MAX => Ok(()),
            mb => Err(format!("overhead_mb is {mb}; 1 to {OVERHEAD_MB_MAX} are possible")),
        }
    }
}

/// The answer to `is_paused`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stillness {
    pub paused: bool,
}

/// The answer to `ended`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Verdict {
    /// Whether the guest switched itself off.
    pub clean: bool,
    /// How it ended, in one sentence for people.
    pub why: String,
}

/// The answer to an order.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Done {}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(text: &str) -> Result<Program, String> {
        let program: Program = serde_json::from_str(text).map_err(|error| error.to_string())?;
        program.check().map(|()| program)
    }

    #[test]
    fn a_program_is_checked_before_it_is_run() {
        let good = program(r#"{"program":"/bin/x","args":["-a"],"overhead_mb":64}"#).unwrap();
        assert_eq!((good.args, good.overhead_mb), (vec!["-a".to_owned()], 64));
        for (text, part) in [
            (r#"{"program":"x","args":[],"overhead_mb":1}"#, "absolute"),
            (r#"{"program":"/x","args":["\u0000"],"overhead_mb":1}"#, "zero byte"),
            (r#"{"program":"/x","args":[],"overhead_mb":0}"#, "1 to 4096"),
            (r#"{"program":"/x","args":[],"overhead_mb":1,"uid":0}"#, "unknown field `uid`"),
            (r#"{"program":"/x","args":[]}"#, "missing field"),
        ] {
            let refused = program(text).unwrap_err();
            assert!(refused.contains(part), "{refused}");
        }
    }

    #[test]
    fn only_features_that_programs_can_have_are_believed() {
        let about = |features: &str| {
            let text = format!(r#"{{"version":"1","features":{features}}}"#);
            serde_json::from_str::<About>(&text).unwrap().bits()
        };
        assert_eq!(about(r#"["pause","nat"]"#), Ok(feat::PAUSE | feat::NAT));
        for other in [r#"["suspend"]"#, r#"["snapshot"]"#, r#"["wings"]"#] {
            assert!(about(other).unwrap_err().contains("there are: pause, shutdown"), "{other}");
        }
    }

    #[test]
    fn requests_are_flat_documents() {
        let vm = tt_model::sample::vm(1, "qemu", tt_model::StorageKind::File);
        let target = Target { vm: &vm, dir: "/d".into() };
        let call = Call::Ended(Ended { target, messages: "m".into() });
        let json = serde_json::to_value(Request { protocol: PROTOCOL, call }).unwrap();
        assert_eq!((&json["protocol"], &json["verb"]), (&1.into(), &"ended".into()));
        assert_eq!((&json["dir"], &json["messages"]), (&"/d".into(), &"m".into()));
        assert_eq!(json["vm"]["name"], *vm.name);
    }
}
