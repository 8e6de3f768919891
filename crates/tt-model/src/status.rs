//! What the host last saw of a Vm. For people and for waiting; never needed for safety.

use crate::ErrorCode;
use serde::{Deserialize, Serialize};

/// What the host last saw of a Vm; written only when it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmStatus {
    /// Where it stands.
    pub phase: Phase,
    /// The `generation` of the Vm that this answers.
    pub generation: u64,
    /// When the phase was entered, milliseconds since the epoch.
    pub since_ms: u64,
    /// From its start (or its creation) until its guest was ready, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_ms: Option<u64>,
    /// Why it is not where it should be, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
}

/// Where a Vm stands on its way up or down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Planned; its host has not begun.
    Planned,
    /// Its runtime image is being made.
    Image,
    /// Its network is being made.
    Net,
    /// Its machine is being started.
    Machine,
    /// The machine runs; its guest has not said that it is ready.
    Guest,
    /// The guest is ready.
    Ready,
    /// The machine stands still.
    Paused,
    /// The machine is being brought to rest.
    Stopping,
    /// No machine; disk and network are kept.
    Stopped,
    /// It is being removed.
    Removing,
}

impl Phase {
    /// The word for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Image => "image",
            Self::Net => "net",
            Self::Machine => "machine",
            Self::Guest => "guest",
            Self::Ready => "ready",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Removing => "removing",
        }
    }
}

/// What went wrong on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Trouble {
    /// The stable code.
    pub code: ErrorCode,
    /// The whole chain of causes, outermost first.
    pub why: String,
    /// Whether TT tries again by itself.
    pub retry: bool,
}
