//! The machine: the contract that every engine keeps, its conformance suite, a fake, and the drivers.
//!
//! A driver looks first and acts on the difference. It keeps nothing in memory that a machine needs: machines outlive
//! the daemon, and the next driver finds them by what carries their id. It never touches a disk's content, a network's
//! rules or the store, and it decides nothing that is in the [`Vm`].

use std::fmt;
use std::sync::Arc;
use tt_model::{EngineFacts, StopMode, Vm, VmEngineFeat, VmId};

mod cgroup;
pub mod conformance;
mod error;
pub mod fake;
mod process;
pub mod qemu;
mod remains;
mod watch;

pub use error::EngineError;

/// Called with a Vm's id when its machine ended. It carries no news: look again. Called from any thread, possibly more
/// than once for one end; it must return at once and call no engine.
pub type Wake = Arc<dyn Fn(VmId) + Send + Sync>;

/// What looking at a Vm's machine found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Machine {
    /// No process, and nothing that one left.
    Absent,
    /// Its processors run. A machine that has just been started counts as running.
    Running,
    /// It stands still, its memory is kept.
    Paused,
    /// There is no process, but things of the machine are left: it ended, or its start or its removal was cut short.
    Exited {
        /// Whether the guest switched itself off.
        clean: bool,
        /// How it ended, in one sentence for people.
        why: String,
    },
}

/// Runs machines. Calls block for milliseconds, never for a guest; any number of threads may make them at once, but
/// only one at a time for one Vm.
///
/// Every call is idempotent, and whoever is killed in the middle of one leaves a host on which the same call, made
/// again, does the rest. Where nothing else is said, an [`EngineError`] means that a part may have been done.
pub trait VmEngine: Send + Sync + fmt::Debug {
    /// Its name in records and specs, e.g. `qemu`.
    fn name(&self) -> &'static str;

    /// Checks the host and prepares what all machines share. To be called once, before anything else.
    ///
    /// What is missing, and how to get it, is said in [`EngineFacts::unusable`]; machines of an unusable engine are
    /// still found, stopped and cleared, but none is started.
    fn init(&self, wake: Wake) -> EngineFacts;

    /// Whether it has every one of the features (bits of [`feat`](tt_model::feat)) in `wanted`.
    fn check_feat(&self, wanted: &[VmEngineFeat]) -> bool;

    /// What there is of the Vm's machine. Cheap: no program is started. From now on the end of a running machine is
    /// told through [`Wake`].
    ///
    /// # Errors
    /// The host can not be looked at.
    fn look(&self, vm: &Vm) -> Result<Machine, EngineError>;

    /// Makes the machine run: a paused one goes on, one that runs is left alone, of one that exited the remains are
    /// removed first. Disk, tap and template have to be there. Does not wait for the guest; the sockets of
    /// [`Layout`](tt_model::Layout) accept connections on return.
    ///
    /// # Errors
    /// The engine is unusable, a thing that the machine needs is missing, or the host refuses.
    fn start_vm(&self, vm: &Vm) -> Result<(), EngineError>;

    /// Brings the machine to rest; one that is absent, exited (but see `Kill`) or already at rest is left alone.
    ///
    /// - `Pause`: it stands still on return.
    /// - `Shutdown`: the guest has been asked on return; whether it obeys is its choice. A paused one goes on, or it
    ///   could not hear.
    /// - `Kill`: a running one is killed on return, and its end is told through [`Wake`]. Of one that has no process
    ///   everything is removed: after that it is [`Machine::Absent`].
    /// - `Suspend`: memory goes to disk.
    ///
    /// # Errors
    /// The engine can not do `mode` (see [`VmEngine::check_feat`]), or the host refuses.
    fn stop_vm(&self, vm: &Vm, mode: StopMode) -> Result<(), EngineError>;

    /// Every id that has a machine or the remains of one on this host, in order; found by looking.
    ///
    /// # Errors
    /// The host can not be looked at.
    fn machines(&self) -> Result<Vec<VmId>, EngineError>;

    /// Kills and removes the machine of an id that no record knows. True if nothing is left, false if its process is
    /// still ending: call again.
    ///
    /// # Errors
    /// The host refuses.
    fn clear(&self, id: VmId) -> Result<bool, EngineError>;

    /// Removes what [`VmEngine::init`] prepared, if no machine and no remains are left; else leaves everything alone.
    fn close(&self);
}
