//! What an engine could not do. It never holds text that a guest wrote without bounding it first.

use std::io;
use std::path::PathBuf;
use tt_model::{StopMode, VmId};

/// What an engine could not do; named after the action that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The engine can not start machines on this host. No retry helps; do what `why` says and restart the daemon.
    #[error("{engine} can not start machines on this host: {why}")]
    Unusable {
        /// The engine.
        engine: &'static str,
        /// What is missing and what to install.
        why: String,
    },
    /// The engine lacks the feature. No retry helps; ask [`check_feat`](crate::VmEngine::check_feat) first.
    #[error("{engine} can not stop a machine by {mode:?}; see its features")]
    Mode {
        /// The engine.
        engine: &'static str,
        /// What was asked for.
        mode: StopMode,
    },
    /// The Vm asks for something that the engine can not express. No retry helps.
    #[error("{engine} can not run a machine with {what}: {problem}")]
    Describe {
        /// The engine.
        engine: &'static str,
        /// The offending value.
        what: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// Something of the machine could not be made. A retry helps once the source's reason is gone.
    #[error("make {what} {path:?}")]
    Make {
        /// What kind of thing, e.g. `RAM file`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something could not be looked at. A retry may help.
    #[error("read {path:?}")]
    Read {
        /// What.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something of the machine could not be removed. A retry may help.
    #[error("remove {path:?}")]
    Remove {
        /// What.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The Vm's tap could not be opened. A retry helps once the network is set.
    #[error("open tap {tap} in network namespace {netns:?}")]
    OpenTap {
        /// Name of the tap.
        tap: String,
        /// File of the namespace.
        netns: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The program could not be started. A retry may help.
    #[error("start {program:?}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A process could not be signalled or watched. A retry may help.
    #[error("{action} process {pid}")]
    Process {
        /// `kill`, `signal` or `watch`.
        action: &'static str,
        /// The process.
        pid: u32,
        /// Why not.
        source: io::Error,
    },
    /// The machine's monitor did not do what it was asked. A retry may help.
    #[error("ask the monitor {path:?} for {command}: {problem}")]
    Monitor {
        /// Socket of the monitor.
        path: PathBuf,
        /// What was asked for.
        command: &'static str,
        /// What came back instead, bounded.
        problem: String,
    },
    /// An engine's program did not do what it was asked. A retry may help.
    #[error("ask {program:?} to {verb}: {problem}")]
    Program {
        /// The program.
        program: PathBuf,
        /// What it was asked.
        verb: &'static str,
        /// What came back instead, bounded.
        problem: String,
    },
    /// A machine of an earlier incarnation lives where a new one is wanted. A retry helps once it is killed.
    #[error("start incarnation {wanted} of {id}: incarnation {found} has to be killed first")]
    Replace {
        /// The Vm.
        id: VmId,
        /// That of the process.
        found: u32,
        /// That of the Vm.
        wanted: u32,
    },
    /// There is no room for a machine's memory. A retry helps once there is.
    #[error(
        "keep memory in {path:?}: it needs {need_mb} MB and the file system has {free_mb} MB free: make room and retry"
    )]
    Room {
        /// Where it was to lie.
        path: PathBuf,
        /// How much it may take.
        need_mb: u64,
        /// How much there is.
        free_mb: u64,
    },
    /// A machine's memory could not be copied. A retry may help.
    #[error("copy memory to {path:?}: {problem}")]
    Capture {
        /// Where it was to lie.
        path: PathBuf,
        /// What went wrong, bounded.
        problem: String,
    },
    /// A machine can not begin from this memory. No retry helps.
    #[error("begin from the memory in {path:?}: {problem}")]
    Load {
        /// Where it lies.
        path: PathBuf,
        /// What is wrong with it and what would be right, bounded.
        problem: String,
    },
    /// A hold's calls came in another order than they may. No retry helps.
    #[error("{call} comes before the machine stands still")]
    Order {
        /// What was called.
        call: &'static str,
    },
    /// Docker did not do something. See the source.
    #[error(transparent)]
    Docker(#[from] tt_docker::DockerError),
    /// A container could not be given its network, or its network not be taken back. A retry may help.
    #[error("join {id} to its network")]
    Plug {
        /// The Vm.
        id: VmId,
        /// Why not.
        source: io::Error,
    },
    /// A container did not begin as it should. A retry may help.
    #[error("let the container of {id} begin: {problem}")]
    Begin {
        /// The Vm.
        id: VmId,
        /// What went wrong, bounded.
        problem: String,
    },
    /// A fake was told to fail here. A retry helps as soon as it is told otherwise.
    #[error("{effect} failed, as the test wants it")]
    Injected {
        /// Name of the side effect.
        effect: &'static str,
    },
    /// A fake was told to behave as if the daemon had died. No retry helps.
    #[error("the daemon has died, as the test wants it")]
    Died,
}

impl EngineError {
    /// Whether the same call may succeed later without the Vm or the configuration being changed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unusable { .. }
            | Self::Mode { .. }
            | Self::Describe { .. }
            | Self::Load { .. }
            | Self::Order { .. }
            | Self::Died => false,
            Self::Docker(source) => source.is_retryable(),
            Self::Make { .. }
            | Self::Read { .. }
            | Self::Remove { .. }
            | Self::OpenTap { .. }
            | Self::Spawn { .. }
            | Self::Process { .. }
            | Self::Monitor { .. }
            | Self::Program { .. }
            | Self::Replace { .. }
            | Self::Room { .. }
            | Self::Capture { .. }
            | Self::Plug { .. }
            | Self::Begin { .. }
            | Self::Injected { .. } => true,
        }
    }
}

/// An error with all of its causes, outermost first.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
