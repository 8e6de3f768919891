//! How much of a Vm should exist.

use crate::{VmEngineFeat, feat};
use serde::{Deserialize, Serialize};

/// How much of a Vm should exist now: a height in its stack of layers (image, net, machine, ready).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Nothing is left; the record goes last.
    Gone,
    /// Disk, address and ports are kept; no machine.
    Stopped,
    /// As `Stopped`, with the machine's memory kept on disk.
    Suspended,
    /// The machine exists and stands still.
    Paused,
    /// The machine runs and its guest has said that it is ready.
    Running,
}

impl Goal {
    /// All goals, lowest first.
    pub const ALL: [Self; 5] =
        [Self::Gone, Self::Stopped, Self::Suspended, Self::Paused, Self::Running];

    /// How many layers of the stack should exist.
    pub fn height(self) -> usize {
        match self {
            Self::Gone => 0,
            Self::Stopped | Self::Suspended => 2,
            Self::Paused => 3,
            Self::Running => 4,
        }
    }
}

/// How a running machine is brought to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// Stands still; memory stays in the host's memory.
    Pause,
    /// Memory goes to disk, the host's memory is freed.
    Suspend,
    /// The guest is asked to shut down; when its grace time is over it is killed.
    Shutdown,
    /// The machine ends at once, as when the power fails.
    Kill,
}

impl StopMode {
    /// What an engine must be able to do for it: bits of [`feat`].
    pub fn feature(self) -> VmEngineFeat {
        match self {
            Self::Pause => feat::PAUSE,
            Self::Suspend => feat::SUSPEND,
            Self::Shutdown => feat::SHUTDOWN,
            Self::Kill => 0,
        }
    }

    /// The goal that the mode leads to.
    pub fn goal(self) -> Goal {
        match self {
            Self::Pause => Goal::Paused,
            Self::Suspend => Goal::Suspended,
            Self::Shutdown | Self::Kill => Goal::Stopped,
        }
    }
}
