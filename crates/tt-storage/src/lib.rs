//! Storage: the disks of Vms, and the contract that every back end keeps.
//!
//! A back end holds nothing in memory that a guest needs and takes every name from the plan; it never chooses one, never
//! writes into a template, and never follows what lies below the data directory to somewhere else.
//!
//! # Who may do what
//!
//! A machine runs as a user of its own ([`Layout::uid`](tt_model::Layout::uid)), reaches its disk and what that lies on,
//! and nothing else. Directories are entered and not listed (0711), names in them are numbers.
//!
//! | file | user, group, mode | why |
//! |---|---|---|
//! | runtime image | machine, machine, 0600 | |
//! | a `qcow2` disk that a layer lies on | root, machine, 0440 | QEMU opens what lies below read-only. A machine that still has it open goes on writing until it is switched to the layer, but can not open it for writing again. |
//! | a `file` or `btrfs` snapshot | root, root, 0600 | it is cloned by the daemon; no machine opens it. One of `zfs` or `zvol` is no file. |
//! | a kept image and what it lies on | root, root, 0600 | |
//! | the same, once a `qcow2` disk of another Vm lies on it | root, root, 0444 | that machine has another user. It stays so: the record of a Vm does not say on what its kept image lies in turn. |
//! | template | root, root, 0644 | |

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use tt_docker::Docker;
use tt_model::{Layout, Snapshot, StorageKind, Vm, VmId};
use zfs::Form;

mod btrfs;
mod choice;
pub mod conformance;
mod docker;
mod error;
mod export;
pub mod fake;
mod file;
mod images;
mod layers;
mod qcow2;
mod shelf;
mod source;
mod tree;
mod zfs;

pub use choice::{Choice, Pool, choose};
pub use error::StorageError;
pub use zfs::check_pool;

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

    /// Makes the runtime image of `vm` at its epoch: exactly `vm.resource.disk_size` MB, of the machine's user, and on disk
    /// when this returns. It is complete or absent. `vm.disks` says what it is made from: a parent of the same Vm, or
    /// for epoch 0 the kept image `vm.base`, else the template's disk. What is missing between the two is made too, but
    /// a disk that was complete once ([`Vm::was_made`]) is never made again with another content.
    ///
    /// An image that exists keeps its content; a smaller one is grown, unless a machine has it open.
    ///
    /// # Errors
    /// [`StorageError::NoSpace`] before anything is written, or with everything undone; [`StorageError::Shrink`] and
    /// [`StorageError::BelowSource`] with nothing changed; [`StorageError::InUse`]: its engine has to grow it;
    /// [`StorageError::Lost`]; what the system refused.
    fn create_image(&self, vm: &Vm) -> Result<(), StorageError>;

    /// Makes the disk of a snapshot that [`plan_take`](tt_model::plan::plan_take) named; complete or absent. It may be
    /// called while a guest stands still for it, so it waits for no disk where it need not: only
    /// [`Storage::sync_disk`] makes durable what it made, and a power loss before that may leave anything at that name.
    ///
    /// All but `qcow2`: a clone of the runtime image of this moment, to be called while nothing writes there. As long as the
    /// snapshot is `Wanted`, what another try left at that name is replaced; afterwards this only looks.
    /// `qcow2`: the snapshot's disk can not be opened for writing any more, and the runtime image lies on it, ready for
    /// a machine to be switched to it. Call it before the machine is switched.
    ///
    /// # Errors
    /// As [`Storage::create_image`]. No disk that was there has lost anything then.
    fn create_snapshot(&self, vm: &Vm, snapshot: &Snapshot) -> Result<(), StorageError>;

    /// Brings to disk what the disk `epoch` of `vm` holds at this moment, and its name. Its machine may go on writing
    /// there. To be called before a guest is held still, so that little is left to be written then, and for the disk of
    /// a snapshot after the guest went on, before the snapshot is `Ready`.
    ///
    /// # Errors
    /// [`StorageError::Lost`] if it is not there; [`StorageError::Sync`].
    fn sync_disk(&self, vm: &Vm, epoch: u32) -> Result<(), StorageError>;

    /// Makes the runtime image that [`plan_apply`](tt_model::plan::plan_apply) named from the disk of a snapshot, which
    /// stays as it is.
    ///
    /// # Errors
    /// As [`Storage::create_image`]; [`StorageError::Lost`] if the snapshot's disk is gone.
    fn apply_snapshot(&self, vm: &Vm, snapshot: &Snapshot) -> Result<(), StorageError>;

    /// Removes every disk of `vm`, complete or not, that neither `vm.disks` nor `vm.merge` names. What is layered says
    /// afterwards itself what it lies on, but for what a machine writes to. Cheap when there is nothing to do.
    /// `zfs`, `zvol`: what a machine has open stays until a later call finds it free.
    ///
    /// # Errors
    /// [`StorageError::Destroy`]; some may be gone by then. [`StorageError::Away`], and nothing is removed, if a disk that the
    /// record names, and that was complete once, is not there.
    fn destroy_snapshot(&self, vm: &Vm) -> Result<(), StorageError>;

    /// What each disk of `vm` that is there takes on the file system, by epoch, in MB (2^20 bytes), rounded up.
    ///
    /// Only merges are planned by it: a back end without layers need not say.
    ///
    /// # Errors
    /// [`StorageError::List`].
    fn taken_mb(&self, _: &Vm) -> Result<BTreeMap<u32, u64>, StorageError> {
        Ok(BTreeMap::new())
    }

    /// Begins the merge that [`plan_merge`](tt_model::plan::plan_merge) named: a disk that holds what `top` holds and lies
    /// on what `bottom` lies on. `top` and `bottom` stay as they are, to the byte. What an earlier try left is cleared;
    /// a merge that an earlier one completed is taken as it is.
    ///
    /// # Errors
    /// [`StorageError::NoMerge`] if none is named, or if this back end has no layers.
    fn begin_merge(&self, vm: &Vm) -> Result<Box<dyn Merging>, StorageError> {
        Err(StorageError::NoMerge { id: vm.id })
    }

    /// Lets the runtime image outlive `vm`: what it lies on stays with it, everything else of this Vm is removed, and no
    /// machine can reach it any more. One that was planned by an apply and is not there yet is made first.
    ///
    /// Answers whether there is anything to keep: not if no disk of this Vm was ever made.
    ///
    /// # Errors
    /// As [`Storage::create_image`] and [`Storage::destroy_snapshot`]; the runtime image is untouched.
    fn keep_image(&self, vm: &Vm) -> Result<bool, StorageError>;

    /// Writes the content of a disk that nothing writes to any more into `to`, an empty file, byte for byte as a guest sees
    /// it, with holes for zeros; what is no disk but an image of Docker's, as `docker save` writes it. `layers`, from [`tt_model::layers`], names the disk, and below it all that it lies on.
    /// `goes_on` is told from time to time how many bytes of how many are done, and ends it by answering no.
    ///
    /// # Errors
    /// [`StorageError::OpenDisk`] or [`StorageError::Damaged`] for a disk that is gone or no such disk;
    /// [`StorageError::NoSpace`]; [`StorageError::Export`], also if it was ended. `to` is then of no use.
    fn export(
        &self,
        layers: &[String],
        to: &std::fs::File,
        goes_on: &dyn Fn(u64, u64) -> bool,
    ) -> Result<(), StorageError>;

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

    /// Removes what it keeps of templates whose digest is not `in_use`, to make images from; nothing that an image goes on
    /// needing. It comes again with the next image, so a call with too small a set costs time and nothing else.
    ///
    /// # Errors
    /// [`StorageError::List`], [`StorageError::Destroy`]; some may be gone by then.
    fn collect_templates(&self, in_use: &dyn Fn(&str) -> bool) -> Result<(), StorageError>;

    /// Room for images.
    ///
    /// # Errors
    /// [`StorageError::Space`].
    fn space(&self) -> Result<Space, StorageError>;
}

/// A merge that is under way; see [`Storage::begin_merge`]. Dropped before [`Merging::finish`], nothing of it is left.
///
/// Between begin and finish any other call may be made for its Vm, by any thread: what is merged may even go meanwhile.
pub trait Merging: Send {
    /// Copies; takes as long as the disk is large, and leaves guests their part of the file system's time. `goes_on` is
    /// asked now and then. Answers whether the merge is complete and on disk; not if `goes_on` said no.
    ///
    /// # Errors
    /// [`StorageError::NoSpace`]; [`StorageError::Damaged`] if a layer is not what this back end and its machine make;
    /// [`StorageError::Lost`]; what the system refused.
    fn copy(&mut self, goes_on: &dyn Fn() -> bool) -> Result<bool, StorageError>;

    /// Gives a complete merge its name, durably. No other call may be made for its Vm meanwhile.
    ///
    /// # Errors
    /// [`StorageError::Create`]
    fn finish(self: Box<Self>) -> Result<(), StorageError>;
}

/// The back end of that kind on a data directory. It touches nothing before its first verb. `zfs` and `zvol` need a pool, see
/// [`open_in`].
#[must_use]
pub fn open(kind: StorageKind, layout: &Layout) -> Arc<dyn Storage> {
    open_in(None, kind, layout)
}

/// The back end for containers of `docker`.
#[must_use]
pub fn open_docker(layout: &Layout, docker: Arc<Docker>) -> Arc<dyn Storage> {
    Arc::new(docker::Images::new(layout.clone(), docker))
}

/// The same as [`open`]. `pool`: what the data sets of `zfs` and the volumes of `zvol` lie below; without it these say so at
/// every verb.
#[must_use]
pub fn open_in(pool: Option<&Pool>, kind: StorageKind, layout: &Layout) -> Arc<dyn Storage> {
    let in_pool = |form| -> Box<dyn images::Disks> {
        let pool = pool.map(|pool| pool.name.as_str());
        Box::new(zfs::DataSets::new(form, pool, layout.instance))
    };
    let disks: Box<dyn images::Disks> = match kind {
        StorageKind::Docker => {
            return open_docker(layout, Arc::new(Docker::new(tt_docker::SOCKET)));
        }
        StorageKind::File => Box::new(images::Files(file::Raw)),
        StorageKind::Qcow2 => Box::new(images::Files(qcow2::Overlay)),
        StorageKind::Btrfs => Box::new(btrfs::Subvolumes),
        StorageKind::Zfs => in_pool(Form::File),
        StorageKind::Zvol => in_pool(Form::Volume),
    };
    Arc::new(images::Images::new(layout.clone(), disks))
}
