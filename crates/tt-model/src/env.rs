//! The Env: a workspace with a lifetime.

use crate::{EnvId, Trouble, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The unit of use: a set of Vms that live, stop and end together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Env {
    /// Never used twice.
    pub id: EnvId,
    /// Unique among the living Envs; a DNS label.
    pub name: String,
    /// When it was planned, seconds since the epoch. Never changes.
    pub start_timestamp: u64,
    /// When its lifetime ends, seconds since the epoch. `extend` moves it.
    pub end_timestamp: u64,
    /// Its members. A member leaves the set when its host has confirmed that it is gone.
    pub vm_set: BTreeSet<VmId>,
    /// What was last asked of it as a whole.
    pub state: EnvState,
    /// What happens when `end_timestamp` passes.
    pub at_end: AtEnd,
    /// Chosen by the client that created it, so that a repeated request finds its own work.
    pub request_key: String,
    /// Whether every member has been ready once. Until then a failed member undoes the whole Env.
    pub is_created: bool,
    /// Whether it is on its way out: members only leave, and the record goes with the last.
    pub is_ending: bool,
    /// Why creation was undone, when it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// What was last asked of an Env as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct EnvState {
    /// Whether the Env was stopped (suspended, paused, shut down or killed).
    pub is_stopped: bool,
    /// Whether all members are denied to open connections to the outside.
    pub deny_outgoing: bool,
    /// Time of the latest `stop` or `start` (and the like), seconds since the epoch; 0 if none.
    pub last_mgmt_timestamp: u64,
}

/// What happens to an Env whose `end_timestamp` has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AtEnd {
    /// It is destroyed.
    #[default]
    Destroy,
    /// Its machines are shut down; disks, addresses and ports are kept.
    Stop,
}

/// The member because of which an Env's creation was undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Failure {
    /// Name of the member.
    pub vm_name: String,
    /// What went wrong with it.
    pub trouble: Trouble,
}

impl Env {
    /// Whether its lifetime is over at `now` (seconds since the epoch).
    pub fn is_expired(&self, now: u64) -> bool {
        now >= self.end_timestamp
    }
}
