//! Makes this host match the store. Vms move only through [`settle`]; everything else here finds
//! out which Vm to look at again.
//!
//! It never decides a name, an address or a place: those come with the record. It never talks to
//! a client: streams are handed out by [`Guests`] and joined to the API by the daemon.

mod backoff;
mod cache;
mod clock;
mod erase;
mod expire;
mod failpoint;
mod guest;
mod kept;
mod layers;
mod merges;
mod meta;
mod peers;
mod publish;
mod queue;
mod recover;
mod report;
mod service;
mod settle;
mod snapshots;
mod stale;
mod sweep;
mod templates;
mod visit;
mod volumes;
mod watch;

pub use clock::{Clock, SystemClock};
pub use guest::{ConsoleStream, GuestControl, GuestState, GuestStream, Guests};
pub use layers::{Drivers, Image, Machine, Net, Ready};
pub use merges::{LayerMerger, Unmerged};
pub use meta::{MetaError, Metas};
pub use queue::Queue;
pub use recover::{Recovered, recover};
pub use service::{HostConfig, HostService};
pub use settle::{Layer, Pause, settle};
pub use snapshots::SnapshotTaker;
pub use stale::take_back;
pub use sweep::{Finding, FindingKind, Report};
pub use visit::{Errands, Next, Visitor};

/// Why the host's work could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The store could not be read or written.
    #[error("the records could not be read or written")]
    Records(#[from] tt_store::tables::TablesError),
    /// A meta could not be written, read or removed.
    #[error("a meta could not be kept")]
    Meta(#[from] MetaError),
    /// A store that is to be rebuilt holds Envs.
    #[error("the store holds Envs; only a lost one is rebuilt")]
    NotEmpty,
    /// Metas can not be used, and what they describe would be lost.
    #[error("not rebuilt, because of {} unusable metas: {}", refused.len(), refused.join("; "))]
    Refused {
        /// Each with its reason.
        refused: Vec<String>,
    },
    /// A disk could not be kept.
    #[error("could not keep the image of vm {id}")]
    KeepImage {
        /// The Vm.
        id: tt_model::VmId,
        /// Why.
        source: tt_storage::StorageError,
    },
    /// Layers of a disk could not be merged.
    #[error("could not merge layers of vm {id}")]
    Merge {
        /// The Vm.
        id: tt_model::VmId,
        /// Why.
        source: tt_storage::StorageError,
    },
    /// A disk that is kept could not be removed.
    #[error("could not remove kept image {id}")]
    RemoveImage {
        /// The Vm that it was of.
        id: tt_model::VmId,
        /// Why.
        source: tt_storage::StorageError,
    },
    /// The host could not be looked at.
    #[error("could not look at {what}")]
    Look {
        /// `machines`, `images` or `networks`.
        what: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A thread could not be started.
    #[error("could not start thread {name}")]
    Thread {
        /// Its name.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// A Vm's Env or its host's usage has no record.
    #[error("vm {id} has a record, but its Env or its host's usage has none; the store is damaged")]
    Incomplete {
        /// The Vm.
        id: tt_model::VmId,
    },
    /// Others changed the same records again and again.
    #[error("the records of {what} changed under every one of {tries} tries")]
    Contended {
        /// Whose records.
        what: String,
        /// How often it was tried.
        tries: u32,
    },
}
