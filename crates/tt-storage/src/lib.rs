//! Storage: the disks of Vms, and the contract that every back end keeps.
//!
//! A back end holds nothing in memory that a guest needs and takes every name from the plan; it never chooses one, never
//! writes into a template, and never follows what lies below the data directory to somewhere else.
//!
//! Modes, so that a machine of its own unprivileged user reaches its disk and nothing else: directories 0711 (entered,
//! not listed), files of templates 0644, runtime images 0600 and owned by [`Layout::uid`](tt_model::Layout::uid).

use std::fmt;
use std::sync::Arc;
use tt_model::{Layout, StorageKind, Vm, VmId};

mod choice;
pub mod conformance;
mod error;
pub mod fake;
mod file;
mod images;
mod qcow2;
mod template;

pub use choice::{Choice, choose};
pub use error::StorageError;

/// Name of a template's disk in its directory.
pub const TEMPLATE_DISK: &str = "disk.raw";

/// MB that every create leaves free, so that the store, logs and running guests' disks can still be written.
pub const RESERVE_MB: u64 = 64;

/// Room of the file system below the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Its size, in MB (2^20 bytes).
    pub total_mb: u64,
    /// What may still be written, in MB (2^20 bytes), rounded down.
    pub free_mb: u64,
}

/// A back end. Calls block; calls for different Vms may run at once, those for one Vm must not.
///
/// Every verb looks first and acts on the difference, so it may be repeated after an error, a kill or a power loss.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Which back end this is.
    fn kind(&self) -> StorageKind;

    /// Makes the runtime image of `vm` at its epoch, a clone of its template's disk: exactly `vm.resource.disk_size` MB,
    /// mode 0600, owned by the machine's user, and on disk when this returns. It is complete or absent.
    ///
    /// An image that exists keeps its content; a smaller one is grown. A machine may run on it meanwhile, but only its
    /// engine can grow a qcow2 that is open: update the running machine first, or get [`StorageError::InUse`].
    ///
    /// # Errors
    /// [`StorageError::NoSpace`] before anything is written, or with everything undone; [`StorageError::Shrink`] and
    /// [`StorageError::BelowTemplate`] with nothing changed; what the system refused.
    fn create_image(&self, vm: &Vm) -> Result<(), StorageError>;

    /// Removes every image of `vm`: all epochs, and what an interrupted create left. An absent one is fine.
    ///
    /// # Errors
    /// [`StorageError::Destroy`]; some images may be gone by then.
    fn destroy_image(&self, vm: &Vm) -> Result<(), StorageError>;

    /// Ids of all Vms that have anything here, complete or not, of this back end or another one on the same data
    /// directory; found by looking, in rising order.
    ///
    /// # Errors
    /// [`StorageError::List`].
    fn images(&self) -> Result<Vec<VmId>, StorageError>;

    /// As [`Storage::destroy_image`], for a Vm of which only the id is known.
    ///
    /// # Errors
    /// As [`Storage::destroy_image`].
    fn remove_stray(&self, id: VmId) -> Result<(), StorageError>;

    /// Room for images.
    ///
    /// # Errors
    /// [`StorageError::Space`].
    fn space(&self) -> Result<Space, StorageError>;
}

/// The back end of that kind on a data directory. It touches nothing before its first verb.
#[must_use]
pub fn open(kind: StorageKind, layout: &Layout) -> Arc<dyn Storage> {
    let format: Box<dyn images::Format> = match kind {
        StorageKind::File => Box::new(file::Raw),
        StorageKind::Qcow2 => Box::new(qcow2::Overlay),
    };
    Arc::new(images::Images::new(layout.clone(), format))
}
