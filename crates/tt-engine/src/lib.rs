//! The machine: the contract that every engine keeps, its conformance suite, a fake, and the drivers.
//!
//! A driver looks first and acts on the difference. It keeps nothing in memory that a machine needs: machines outlive
//! the daemon, and the next driver finds them by what carries their id. It never touches a disk's content, a network's
//! rules or the store, and it decides nothing that is in the [`Vm`].

use std::fmt;
use std::sync::Arc;
use tt_model::{EngineFacts, StopMode, Vm, VmEngineFeat, VmId};

mod absent;
mod cgroup;
pub mod conformance;
pub mod docker;
mod error;
pub mod exec;
pub mod fake;
pub mod firecracker;
mod jail;
mod kvm;
mod life;
mod limit;
mod memory;
mod probe;
mod process;
pub mod qemu;
mod remains;
mod seed;
mod tap;
mod unix;
mod watch;

pub use error::EngineError;
pub use seed::GuestNetwork;

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
    /// It runs or stands still, and is of an earlier incarnation than the Vm, or nobody can say any more what it does, for what
    /// it was asked through was removed: it is to be killed, whatever it does.
    Outdated,
}

/// Runs machines. Calls block for milliseconds, those that copy memory for as long as that takes (a GB a second where
/// hosts are fast, bounded in any case), never for a guest; any number of threads may make them at once, but
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
    /// removed first. Disk, tap and template have to be there. Does not wait for the guest; what
    /// [`Layout`](tt_model::Layout) has for its console and its agent is there on return, as sockets or as pipes and a vsock.
    ///
    /// A new machine has the sizes of `vm.machine`. It begins from memory if there is some that it has not begun from
    /// yet: what a suspend in this incarnation left, else `vm.memory`; else it boots. Before its guest executes
    /// anything, that memory is consumed durably: what was suspended is gone, and that `vm.memory` was begun from is
    /// noted for this incarnation. So no memory ever runs twice against a disk that has moved on.
    ///
    /// # Errors
    /// The engine is unusable, a thing that the machine needs is missing, the host refuses, or a machine of an earlier
    /// incarnation lives. [`EngineError::Load`]: the memory can not be begun from, and nothing was changed.
    fn start_vm(&self, vm: &Vm) -> Result<(), EngineError>;

    /// Brings the machine to rest; one that is absent, exited (but see `Kill`) or already at rest is left alone.
    ///
    /// - `Pause`: it stands still on return.
    /// - `Shutdown`: the guest has been asked on return; whether it obeys is its choice. A paused one goes on, or it
    ///   could not hear.
    /// - `Kill`: a running one is killed on return, and its end is told through [`Wake`]. Of one that has no process
    ///   everything is removed: after that it is [`Machine::Absent`].
    /// - `Suspend`: on return its memory lies complete and durable in [`suspended`](tt_model::names::suspended), for the
    ///   next start, and it is killed as by `Kill`. One of an earlier incarnation is just killed.
    ///
    /// # Errors
    /// The engine can not do `mode` (see [`VmEngine::check_feat`]), or the host refuses. A failed `Suspend` has changed
    /// nothing: the machine goes on as before.
    fn stop_vm(&self, vm: &Vm, mode: StopMode) -> Result<(), EngineError>;

    /// Applies to a machine with a process what can be applied while it lives: that it writes to `vm.runtime_image`, and
    /// lies on what `vm.disks` says and on nothing else (see [`Hold::switch_disk`] for what may be different, and
    /// [`plan_merge`](tt_model::plan::plan_merge): what the runtime image lies on itself stays); the size
    /// of its disk, which only grows and is told to the guest; with [`feat::DISK_LIMIT`](tt_model::feat::DISK_LIMIT) what the
    /// disk may do in a second, which a machine has from its start on, whatever it began from. Cheap, and without a machine nothing is done.
    ///
    /// # Errors
    /// The machine does not do it.
    fn update_vm(&self, vm: &Vm) -> Result<(), EngineError>;

    /// Prepares to hold the machine still for a moment, in which its disk, and its memory, can be taken. The guest still
    /// runs on return. `memory`: the directory, relative to the data directory, where its memory is to lie after
    /// [`Hold::finish`]; most of the copying is done here.
    ///
    /// Without a process, or with one of an earlier incarnation, the calls on the [`Hold`] do nothing but
    /// [`Hold::finish`]: memory that the next start would begin from is the machine's memory.
    ///
    /// # Errors
    /// No room for the memory, or the machine does not do it; nothing is left over.
    fn prepare_hold(&self, vm: &Vm, memory: Option<&str>) -> Result<Box<dyn Hold>, EngineError>;

    /// Removes the memory that lies on disk and that `vm` does not name: it names that of its snapshots, taken or
    /// wanted, `vm.memory`, and what a suspend in this incarnation left unless it is stopped. A Vm whose goal is `Gone`
    /// names none. Cheap when there is nothing to do. Not to be called during a hold.
    ///
    /// # Errors
    /// The host refuses.
    fn remove_memory(&self, vm: &Vm) -> Result<(), EngineError>;

    /// Every id that has memory, or a part of it, on disk; in order.
    ///
    /// # Errors
    /// The host can not be looked at.
    fn memories(&self) -> Result<Vec<VmId>, EngineError>;

    /// Removes all memory of an id that no record knows.
    ///
    /// # Errors
    /// The host refuses.
    fn remove_stray_memory(&self, id: VmId) -> Result<(), EngineError>;

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

/// A machine that is held still for a moment; see [`VmEngine::prepare_hold`]. The calls come in the order in which they
/// stand here, each at most once.
///
/// Dropped before [`Hold::release`], the guest goes on if it ran before; dropped before [`Hold::finish`] has returned,
/// no memory is left over. A guest that stands still because the daemon died is [`Machine::Paused`] to the next one.
/// No other call for this Vm is made meanwhile but [`VmEngine::look`].
pub trait Hold: Send {
    /// The guest stands still on return, and what it wrote to its disk is in the file. Takes milliseconds, more if the
    /// guest has changed much of its memory lately.
    ///
    /// # Errors
    /// It does not stand still; drop the hold.
    fn pause(&mut self) -> Result<(), EngineError>;

    /// From now on the guest's writes go to `vm.runtime_image`, an empty overlay over the disk that it had. Only while
    /// it stands still.
    ///
    /// # Errors
    /// The disk is as it was; drop the hold.
    fn switch_disk(&mut self, vm: &Vm) -> Result<(), EngineError>;

    /// The memory of this moment is safe from the guest's changes, and the guest goes on if it ran before.
    ///
    /// # Errors
    /// The memory is lost; drop the hold, and the guest goes on.
    fn release(&mut self) -> Result<(), EngineError>;

    /// Whether memory lies in the directory, complete and durable. False if none was asked for, and if there was neither
    /// a process nor memory that one would begin from.
    ///
    /// # Errors
    /// The memory is lost, e.g. because the disk is full.
    fn finish(self: Box<Self>) -> Result<bool, EngineError>;
}
