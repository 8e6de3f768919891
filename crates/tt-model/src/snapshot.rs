//! The snapshot: a frozen Vm.

use crate::Trouble;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A frozen Vm: its disk, its cached meta and, where the engine can, its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Snapshot {
    /// Unique among the snapshots of its Vm.
    pub name: String,
    /// Its disk, relative to the host's data directory; empty until it is being taken.
    pub path: String,
    /// The meta that was cached with it, relative to the host's data directory.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub meta_path: PathBuf,
    /// Seconds after which it is removed; `None` keeps it as long as its Vm.
    pub life_time: Option<u64>,
    /// Which of the Vm's disks it is, once it is being taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u32>,
    /// Whether memory is to be kept, where there is a machine.
    pub with_memory: bool,
    /// Its memory, relative to the host's data directory. In a `Wanted` one: where it is to lie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// The engine and its version that wrote the memory, e.g. `qemu 10.0.2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// When it was taken, or wanted if it is not taken yet; seconds since the epoch.
    pub start_timestamp: u64,
    /// How far it is.
    pub state: SnapshotState,
}

/// How far a snapshot is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// Its host is to take it.
    #[default]
    Wanted,
    /// It can be applied.
    Ready,
    /// It could not be taken, and nothing of it is left but this.
    Failed(Trouble),
}

impl Snapshot {
    /// A snapshot without a bound on its life.
    pub fn new(name: String, meta_path: PathBuf) -> Self {
        Self::newx(name, None, meta_path)
    }

    /// A snapshot that is removed `life_time` seconds after it was taken.
    pub fn newx(name: String, life_time: Option<u64>, meta_path: PathBuf) -> Self {
        Self { name, meta_path, life_time, ..Self::default() }
    }

    /// When its life ends, seconds since the epoch; it has no end before it was taken.
    pub fn end_timestamp(&self) -> Option<u64> {
        let life_time = self.life_time.filter(|_| self.state != SnapshotState::Wanted);
        life_time.map(|life| self.start_timestamp.saturating_add(life))
    }

    /// Whether its life is over at `now` (seconds since the epoch).
    pub fn is_expired(&self, now: u64) -> bool {
        self.end_timestamp().is_some_and(|end| now >= end)
    }
}
