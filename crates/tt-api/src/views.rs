//! The bodies of requests and answers: records as clients see them, and the pure folding that
//! makes them. Nothing here reads or writes anything.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use tt_guest::message::FailureCode;
use tt_model::Push;
use tt_model::template::Progress;
use tt_model::{
    Env, Goal, Host, KeptImage, Phase, StopMode, TemplateSource, Trouble, Usage, Vm, VmStatus,
    VmTemplate, feat, six,
};
use tt_store::tables::TemplateRecord;
use utoipa::ToSchema;

mod read;
mod snapshot;

pub use snapshot::{SnapshotList, SnapshotMember, SnapshotPhase, SnapshotView};

/// What answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    /// Version of the daemon.
    pub version: String,
    /// Version of the API: `v1`.
    pub api: String,
}

/// An Env with its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EnvView {
    /// The record.
    #[serde(flatten)]
    pub env: Env,
    /// Its members, oldest first.
    pub vms: Vec<VmView>,
    /// Folded from its members.
    pub phase: EnvPhase,
}

/// Where an Env stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EnvPhase {
    /// Not all members have been ready yet.
    Creating,
    /// Every member is where it should be, and one at least runs.
    Ready,
    /// A member is on its way to rest.
    Stopping,
    /// Every member is where it should be, and none has a machine or kept its memory.
    Stopped,
    /// Every member is where it should be; none has a machine, one at least kept its memory.
    Suspended,
    /// Every member is where it should be; none runs, one at least stands still.
    Paused,
    /// A member is on its way up again.
    Starting,
    /// It is being destroyed.
    Ending,
    /// A member is not where it should be, and says why.
    Trouble,
}

impl EnvPhase {
    /// The word for people, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Suspended => "suspended",
            Self::Paused => "paused",
            Self::Starting => "starting",
            Self::Ending => "ending",
            Self::Trouble => "trouble",
        }
    }
}

/// A Vm with what its host last saw of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct VmView {
    /// The record.
    #[serde(flatten)]
    pub vm: Vm,
    /// What its host last saw; nothing as long as it has not looked.
    pub status: Option<VmStatus>,
    /// Whether the host has answered the record as it is now: the Vm is where its goal says, and
    /// nothing is wrong with it.
    pub is_settled: bool,
    /// Whether a changed number of CPUs or size of memory waits until it is shut down and started.
    pub needs_restart: bool,
    /// Its address by IPv6, which follows from `ip_addr`.
    #[schema(value_type = String)]
    pub ip_addr_six: Ipv6Addr,
    /// By what its guest is seen to be ready, where no agent says so: what *ready* is worth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen_by: Option<String>,
}

/// All Envs, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EnvList {
    /// See the type.
    pub envs: Vec<EnvView>,
}

/// All Vms, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmList {
    /// See the type.
    pub vms: Vec<VmView>,
}

/// How machines are to be brought to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// See the type; without it each machine is suspended if its engine can, else shut down.
    #[serde(default)]
    pub mode: Option<StopMode>,
}

/// How far an Env's end is to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendRequest {
    /// Seconds beyond its present end, or beyond now if that has passed; at least 1.
    pub life_time: u64,
}

/// All kept images: disks that outlived their Vms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// Those of the oldest Vms first.
    pub images: Vec<KeptImage>,
}

/// A template, or what is becoming of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateView {
    /// Globally unique.
    pub name: String,
    /// What it is made from; not known any more of one that a recovery found.
    pub source: Option<TemplateSource>,
    /// Where it stands.
    pub phase: TemplatePhase,
    /// What is being done, while it is made or pushed.
    pub step: Option<String>,
    /// How much of that step is done, where it can be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What it is, once it is made.
    pub template: Option<VmTemplate>,
    /// What went wrong, if it could not be made or removed.
    pub trouble: Option<Trouble>,
    /// Its last push to a registry, and what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<Push>,
}

/// Where a template stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplatePhase {
    /// It is being made.
    Building,
    /// Vms can be made from it.
    Ready,
    /// It could not be made.
    Failed,
    /// It is being removed.
    Removing,
}

impl TemplatePhase {
    /// The word for people, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Removing => "removing",
        }
    }
}

/// All templates, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateList {
    /// See the type.
    pub templates: Vec<TemplateView>,
}

/// A host with how much of it is handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    /// The record.
    #[serde(flatten)]
    pub host: Host,
    /// How much of it is handed out.
    pub usage: Usage,
    /// The names of each engine's features, by the engine's name.
    pub engine_features: BTreeMap<String, Vec<String>>,
}

/// All hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostList {
    /// See the type.
    pub hosts: Vec<HostView>,
}

/// How the host and the records differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifyReport {
    /// What does not match; nothing if all is well.
    pub findings: Vec<Finding>,
    /// What did not match and does now; nothing unless a repair was asked for.
    pub repaired: Vec<Finding>,
    /// How much was compared.
    pub checked: Checked,
}

/// Something on the host that no record explains, or that a record misses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// What kind of thing it is, e.g. `image`, `netns`, `cgroup`.
    pub kind: String,
    /// Its name on the host.
    pub name: String,
    /// What is wrong with it.
    pub what: String,
    /// The id that it carries, if it carries one.
    pub id: Option<u64>,
}

/// How much was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checked {
    /// Envs.
    pub envs: usize,
    /// Vms.
    pub vms: usize,
}

/// The first message of the server on a stream: whether it is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamOpened {
    /// Why it is not, if it is not; nothing follows then.
    pub problem: Option<crate::error::Problem>,
}

/// The last message on a stream's channel 2: how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamEnd {
    /// Exit code, unless a signal ended the program; 0 for a complete copy.
    pub code: Option<i32>,
    /// The signal that ended the program.
    pub signal: Option<i32>,
    /// Why it could not be opened, or failed.
    pub failure: Option<StreamFailure>,
}

/// Why a stream failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamFailure {
    /// For a program, e.g. `not_found`.
    #[schema(value_type = String)]
    pub code: FailureCode,
    /// For a reader.
    pub why: String,
}

/// The last event of an Env: its record is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GoneView {
    /// The name that it had.
    pub name: String,
}

impl VmView {
    /// Joins a Vm with its status.
    pub fn new(vm: Vm, status: Option<VmStatus>) -> Self {
        let is_settled = status.as_ref().is_some_and(|status| {
            status.generation == vm.generation
                && Some(status.phase) == final_phase(vm.goal)
                && status.trouble.is_none()
        });
        let (needs_restart, seen_by) = (vm.needs_restart(), vm.seen_by());
        let ip_addr_six = six::address(vm.resource.ip_addr);
        Self { vm, status, is_settled, needs_restart, ip_addr_six, seen_by }
    }

    /// What is wrong with it now; what was wrong before its latest change does not count.
    pub fn trouble(&self) -> Option<&Trouble> {
        let status = self.status.as_ref().filter(|s| s.generation == self.vm.generation)?;
        status.trouble.as_ref()
    }
}

impl EnvView {
    /// Joins an Env with its members.
    pub fn new(env: Env, vms: Vec<VmView>) -> Self {
        let phase = env_phase(&env, &vms);
        Self { env, vms, phase }
    }

    /// Whether every member is where it should be.
    pub fn is_settled(&self) -> bool {
        self.vms.iter().all(|vm| vm.is_settled)
    }
}

impl From<TemplateRecord> for TemplateView {
    fn from(record: TemplateRecord) -> Self {
        let phase = match (record.is_wanted, &record.template, &record.trouble) {
            (false, _, _) => TemplatePhase::Removing,
            (true, Some(_), _) => TemplatePhase::Ready,
            (true, None, Some(_)) => TemplatePhase::Failed,
            (true, None, None) => TemplatePhase::Building,
        };
        Self {
            name: record.name,
            source: record.source.map(TemplateSource::open),
            phase,
            step: record.step,
            progress: record.progress,
            template: record.template,
            trouble: record.trouble,
            push: record.push,
        }
    }
}

impl HostView {
    /// Joins a host with its usage.
    pub fn new(host: Host, usage: Usage) -> Self {
        let names = |features| feat::names(features).into_iter().map(str::to_owned).collect();
        let engine_features =
            host.engines.iter().map(|e| (e.name.clone(), names(e.features))).collect();
        Self { host, usage, engine_features }
    }
}

/// Where a Vm of that goal comes to rest; nowhere if it goes.
fn final_phase(goal: Goal) -> Option<Phase> {
    match goal {
        Goal::Gone => None,
        Goal::Stopped | Goal::Suspended => Some(Phase::Stopped),
        Goal::Paused => Some(Phase::Paused),
        Goal::Running => Some(Phase::Ready),
    }
}

fn env_phase(env: &Env, vms: &[VmView]) -> EnvPhase {
    let any_goal = |goal| vms.iter().any(|view| view.vm.goal == goal);
    if env.is_ending {
        EnvPhase::Ending
    } else if vms.iter().any(|view| view.trouble().is_some()) {
        EnvPhase::Trouble
    } else if !env.is_created {
        EnvPhase::Creating
    } else if vms.iter().any(|view| !view.is_settled && view.vm.goal == Goal::Running) {
        EnvPhase::Starting
    } else if vms.iter().any(|view| !view.is_settled) {
        EnvPhase::Stopping
    } else if any_goal(Goal::Running) {
        EnvPhase::Ready
    } else if any_goal(Goal::Paused) {
        EnvPhase::Paused
    } else if any_goal(Goal::Suspended) {
        EnvPhase::Suspended
    } else {
        EnvPhase::Stopped
    }
}

#[cfg(test)]
#[path = "views_tests.rs"]
mod tests;
