//! Names of the side effects, as the [`FaultHook`](tt_model::fault::FaultHook) hears them.

/// A start makes the directory, the memory and the cgroup.
pub const MAKE_REMAINS: &str = "machine.make_remains";
/// A start makes the process, which boots.
pub const MAKE_PROCESS: &str = "machine.make_process";
/// A start makes the process, which stands still and has loaded memory.
pub const RESTORE: &str = "machine.restore";
/// The memory that was begun from is consumed.
pub const CONSUME: &str = "machine.consume";
/// A machine that stands still goes on.
pub const RESUME: &str = "machine.resume";
/// A running machine stands still.
pub const PAUSE: &str = "machine.pause";
/// The guest is asked to shut down.
pub const SHUTDOWN: &str = "machine.shutdown";
/// A machine stands still to be suspended.
pub const SUSPEND: &str = "machine.suspend";
/// Memory begins to be copied.
pub const COPY: &str = "machine.copy";
/// Memory lies complete on disk.
pub const CAPTURE: &str = "machine.capture";
/// A held machine stands still.
pub const HOLD: &str = "machine.hold";
/// The guest's writes go to another disk.
pub const SWITCH: &str = "machine.switch";
/// What the guest's disk lies on becomes what the record says.
pub const ARRANGE: &str = "machine.arrange";
/// A held machine goes on.
pub const RELEASE: &str = "machine.release";
/// The guest sees a larger disk.
pub const UPDATE: &str = "machine.update";
/// Memory on disk is removed.
pub const DROP_MEMORY: &str = "machine.drop_memory";
/// The process is killed.
pub const KILL: &str = "machine.kill";
/// What an ended machine left is removed.
pub const REMOVE_REMAINS: &str = "machine.remove_remains";

/// All of them.
pub const ALL: [&str; 18] = [
    MAKE_REMAINS,
    MAKE_PROCESS,
    RESTORE,
    CONSUME,
    RESUME,
    PAUSE,
    SHUTDOWN,
    SUSPEND,
    COPY,
    CAPTURE,
    HOLD,
    SWITCH,
    ARRANGE,
    RELEASE,
    UPDATE,
    DROP_MEMORY,
    KILL,
    REMOVE_REMAINS,
];
