//! The snapshot: a frozen Vm.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A frozen Vm: its disk, its cached meta and, where the engine can, its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Snapshot {
    /// Unique among the snapshots of its Vm.
    pub name: String,
    /// Where the storage keeps it; not necessarily a file.
    pub path: String,
    /// The meta that was cached with it.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub meta_path: PathBuf,
    /// Seconds after which it is removed; `None` keeps it as long as its Vm.
    pub life_time: Option<u64>,
}

impl Snapshot {
    /// A snapshot without a bound on its life.
    pub fn new(name: String, meta_path: PathBuf) -> Self {
        Self::newx(name, None, meta_path)
    }

    /// A snapshot that is removed `life_time` seconds after it was taken.
    pub fn newx(name: String, life_time: Option<u64>, meta_path: PathBuf) -> Self {
        Self { name, path: String::new(), meta_path, life_time }
    }
}
