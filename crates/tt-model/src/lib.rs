//! The nouns of TT and the decisions about them.
//!
//! Everything here is a value or a pure function: no I/O, no clock, no randomness. Callers bring
//! the time and the random bytes; what comes back says exactly what is to be done.

pub mod check;
mod disks;
pub mod env;
pub mod error;
pub mod fault;
pub mod goal;
pub mod host;
pub mod id;
pub mod image;
pub mod layers;
pub mod login;
pub mod names;
pub mod net;
pub mod plan;
pub mod recipe;
pub mod reference;
pub mod remote;
pub mod rule;
pub mod sample;
pub mod six;
pub mod snapshot;
pub mod spec;
pub mod status;
mod storage;
pub mod template;
mod traffic;
pub mod units;
mod url;
pub mod vm;

pub use env::{AtEnd, Env, EnvState};
pub use error::{ErrorCode, Refusal};
pub use goal::{Goal, StopMode};
pub use host::{ENGINE_EXEC, EngineFacts, Host, Usage};
pub use id::{EnvId, HostId, VmId};
pub use image::KeptImage;
pub use names::{Instance, Layout};
pub use net::{InnerPort, MacAddr, PortMap, Protocol};
pub use recipe::Recipe;
pub use reference::Reference;
pub use remote::{Push, PushSpec, Remote};
pub use rule::{Destination, NamePattern, NetRule};
pub use snapshot::{Snapshot, SnapshotState};
pub use spec::{EnvSpec, SnapshotSpec, VmSpec, VmUpdate};
pub use status::{Phase, Trouble, VmStatus};
pub use storage::StorageKind;
pub use template::{TemplateSource, TemplateSpec, VmTemplate};
pub use traffic::Traffic;
pub use url::{open_url, shown_url};
pub use vm::{Disk, MachineSize, Merge, NetKind, Vm, VmEngineFeat, VmResource, VmState, feat};
