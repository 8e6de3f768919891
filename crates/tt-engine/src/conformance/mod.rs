//! The suite that every engine runs. It judges by the contract in `lib.rs` alone, and it panics at the first clause that
//! is broken, with its name. What an engine can not be asked for it says, clause by clause, as in docs/engines.md.

mod hold;
mod memory;
mod needs;

use crate::{EngineError, Machine, VmEngine, Wake};
use needs::{ALWAYS, Needs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tt_model::{StopMode, Vm, VmEngineFeat, VmId, feat};

/// How long an end may take to be told, and a guest to obey. A loaded host emulates slowly.
const END_MAX: Duration = Duration::from_secs(60);
/// How long nothing must happen for a clause to believe that nothing will.
const QUIET: Duration = Duration::from_millis(300);
/// How often a removal may be asked for.
const REMOVALS_MAX: u32 = 20;

/// What the suite can not know about an engine's surroundings.
pub trait Fixture {
    /// A Vm that never had a machine, with disk, network and template in place. Another one at every call.
    fn vm(&self) -> Vm;

    /// Another driver on the same host, as a restarted daemon makes it; not initialised.
    fn restarted(&self) -> Box<dyn VmEngine>;

    /// Whether the guest executes code: looks at something that only a running guest changes, for as long as it takes
    /// to tell.
    fn beats(&self, vm: &Vm) -> bool;

    /// Makes the running guest switch itself off.
    fn power_off(&self, vm: &Vm);

    /// Ends the machine's process from outside.
    fn kill(&self, vm: &Vm);

    /// Leaves what a start leaves that was cut short before it made a process.
    fn leave_remains(&self, vm: &Vm);

    /// As [`Fixture::vm`], with a disk that can get a layer on top; `None` if the engine reads raw disks only.
    fn layered_vm(&self) -> Option<Vm>;

    /// The Vm with one more layer on its disk, as plan and storage make it: the layer is there, and is empty.
    fn with_layer(&self, vm: &Vm) -> Vm;

    /// The Vm with its two lowest layers as one, as plan and storage make it: another one takes their place, and they
    /// are gone from record and disk.
    fn with_merge(&self, vm: &Vm) -> Vm;

    /// Lets the running guest change its memory; answers the new content. It never repeats in a machine's life and in
    /// what goes on from its memory, and 0 is the content after a boot.
    fn tick(&self, vm: &Vm) -> u64;

    /// The content of the running guest's memory.
    fn content(&self, vm: &Vm) -> u64;

    /// Whether the machine's process has `vm.runtime_image` open.
    fn has_open(&self, vm: &Vm) -> bool;

    /// The size of the disk of a Vm of [`Fixture::vm`], in MB; `None` if disks do not grow while machines live.
    fn disk_mb(&self, vm: &Vm) -> Option<u32>;

    /// How much memory the host lets a running machine take, in MB; `None` if that changes with the next start only.
    fn mem_mb(&self, vm: &Vm) -> Option<u32>;

    /// What the disk of a running machine may do in a second, as the machine itself says: KiB and operations, 0 for as much as
    /// it can. Only asked of an engine that can limit it.
    fn disk_limit(&self, vm: &Vm) -> (u32, u32);

    /// Whether the Vm has memory on disk that is complete and named so (relative to the data directory).
    fn has_memory(&self, path: &str) -> bool;
}

/// What became of a clause: `Err` says what the engine lacks for it, or that it has more.
pub type Outcome = Result<(), String>;

/// A clause: its name as in docs/engines.md, what it asks of an engine, and the check.
type Clause = (&'static str, Needs, fn(&Suite<'_>));

const CLAUSES: &[Clause] = &[
    ("start makes it run, and is idempotent", ALWAYS, starts_twice),
    ("whatever is done to an absent machine leaves it absent", ALWAYS, absent_stays_absent),
    ("pause stands still, start goes on", Needs::Features(feat::PAUSE), pauses_and_resumes),
    ("shutdown asks the guest, and its end is clean", Needs::Features(feat::SHUTDOWN), shuts_down),
    (
        "a paused guest is asked, too",
        Needs::Features(feat::SHUTDOWN | feat::PAUSE),
        shuts_down_when_paused,
    ),
    ("a guest that switches itself off is told, and ends clean", ALWAYS, powers_off),
    ("a process that dies is told, and does not end clean", ALWAYS, dies),
    ("kill ends it, then removes everything", ALWAYS, kills),
    ("an exited machine is started anew", ALWAYS, starts_after_exit),
    ("machines lists all, and clear removes one without a record", ALWAYS, lists_and_clears),
    ("what a start left that was cut short is seen and removed", ALWAYS, removes_half_done),
    ("a start after one that was cut short succeeds", ALWAYS, starts_over_half_done),
    ("suspend is refused without the feature", Needs::Lack(feat::SUSPEND), refuses_suspend),
    ("a restarted daemon finds, controls and is told of every machine", ALWAYS, survives_restart),
];

/// Runs every clause on `engine`, which must not be initialised yet; then closes it. Answers what became of each.
///
/// # Panics
/// At the first clause that does not hold.
pub fn run(engine: &dyn VmEngine, fixture: &dyn Fixture) -> Vec<(&'static str, Outcome)> {
    let (wake, ends) = bell();
    let facts = engine.init(wake);
    assert_eq!(facts.unusable, None, "{} can not be tested here", engine.name());
    assert_eq!(facts.name, engine.name());
    let suite = Suite { engine, fixture, ends };
    let mut outcomes = Vec::new();
    for (name, needs, clause) in all() {
        tracing::info!(clause = name, "conformance");
        if let Err(lack) = suite.meets(*needs) {
            outcomes.push((*name, Err(lack)));
            continue;
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| clause(&suite)));
        if let Err(panic) = outcome {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?");
            panic!("clause \"{name}\" is broken: {text}");
        }
        outcomes.push((*name, Ok(())));
    }
    assert_eq!(done(engine.machines()), [], "machines are left over");
    assert_eq!(done(engine.memories()), [], "memory is left over");
    engine.close();
    outcomes
}

/// The names of all clauses, in the order in which they run.
pub fn names() -> impl Iterator<Item = &'static str> {
    all().map(|(name, _, _)| *name)
}

fn all() -> impl Iterator<Item = &'static Clause> {
    CLAUSES.iter().chain(memory::CLAUSES).chain(hold::CLAUSES)
}

struct Suite<'a> {
    engine: &'a dyn VmEngine,
    fixture: &'a dyn Fixture,
    ends: Receiver<VmId>,
}

impl Suite<'_> {
    fn look(&self, vm: &Vm) -> Machine {
        done(self.engine.look(vm))
    }

    fn start(&self, vm: &Vm) {
        done(self.engine.start_vm(vm));
    }

    fn stop(&self, vm: &Vm, mode: StopMode) {
        done(self.engine.stop_vm(vm, mode));
    }

    fn running(&self) -> Vm {
        let vm = self.fixture.vm();
        self.start(&vm);
        assert_eq!(self.look(&vm), Machine::Running);
        assert!(self.fixture.beats(&vm), "the guest does nothing");
        vm
    }

    fn has(&self, features: VmEngineFeat) -> bool {
        self.engine.check_feat(&[features])
    }

    fn exited(&self, vm: &Vm, clean_wanted: bool) {
        wait_for(&self.ends, vm.id);
        match self.look(vm) {
            Machine::Exited { clean, why } => {
                assert_eq!(clean, clean_wanted, "{why}");
                assert!(!why.is_empty());
            }
            other => panic!("it is {other:?} after its end was told"),
        }
    }

    /// Removes what is left of a machine, whatever its state.
    fn remove(&self, vm: &Vm) {
        for _ in 0..REMOVALS_MAX {
            self.stop(vm, StopMode::Kill);
            if self.look(vm) == Machine::Absent {
                assert!(!done(self.engine.machines()).contains(&vm.id));
                return;
            }
            std::thread::sleep(QUIET / 10);
        }
        panic!("it can not be removed: {:?}", self.look(vm));
    }
}

fn starts_twice(suite: &Suite<'_>) {
    let vm = suite.fixture.vm();
    assert_eq!(suite.look(&vm), Machine::Absent);
    suite.start(&vm);
    assert_eq!(suite.look(&vm), Machine::Running);
    suite.start(&vm);
    assert_eq!(suite.look(&vm), Machine::Running);
    assert!(suite.fixture.beats(&vm), "the guest does nothing");
    assert_eq!(done(suite.engine.machines()), [vm.id]);
    suite.remove(&vm);
}

fn absent_stays_absent(suite: &Suite<'_>) {
    let vm = suite.fixture.vm();
    for mode in [StopMode::Pause, StopMode::Shutdown, StopMode::Kill] {
        suite.stop(&vm, mode);
        assert_eq!(suite.look(&vm), Machine::Absent);
    }
    assert!(done(suite.engine.clear(vm.id)));
}

fn pauses_and_resumes(suite: &Suite<'_>) {
    let vm = suite.running();
    for _ in 0..2 {
        suite.stop(&vm, StopMode::Pause);
        assert_eq!(suite.look(&vm), Machine::Paused);
    }
    assert!(!suite.fixture.beats(&vm), "a paused guest goes on");
    suite.start(&vm);
    assert_eq!(suite.look(&vm), Machine::Running);
    assert!(suite.fixture.beats(&vm), "a resumed guest stands still");
    suite.stop(&vm, StopMode::Pause);
    // A machine that is being killed may still be seen, but never an error.
    suite.stop(&vm, StopMode::Kill);
    let until = Instant::now() + END_MAX;
    while !matches!(suite.look(&vm), Machine::Exited { .. }) {
        assert!(Instant::now() < until, "a killed machine goes on living");
    }
    suite.remove(&vm);
}

fn shuts_down(suite: &Suite<'_>) {
    let vm = suite.running();
    suite.stop(&vm, StopMode::Shutdown);
    suite.exited(&vm, true);
    suite.stop(&vm, StopMode::Shutdown);
    suite.stop(&vm, StopMode::Pause);
    assert!(matches!(suite.look(&vm), Machine::Exited { clean: true, .. }));
    suite.remove(&vm);
}

fn shuts_down_when_paused(suite: &Suite<'_>) {
    let vm = suite.running();
    suite.stop(&vm, StopMode::Pause);
    suite.stop(&vm, StopMode::Shutdown);
    suite.exited(&vm, true);
    suite.remove(&vm);
}

fn powers_off(suite: &Suite<'_>) {
    let vm = suite.running();
    suite.fixture.power_off(&vm);
    suite.exited(&vm, true);
    suite.remove(&vm);
}

fn dies(suite: &Suite<'_>) {
    let vm = suite.running();
    suite.fixture.kill(&vm);
    suite.exited(&vm, false);
    suite.remove(&vm);
}

fn kills(suite: &Suite<'_>) {
    let vm = suite.running();
    suite.stop(&vm, StopMode::Kill);
    suite.exited(&vm, false);
    suite.stop(&vm, StopMode::Kill);
    assert_eq!(suite.look(&vm), Machine::Absent);
    assert_eq!(done(suite.engine.machines()), []);
    suite.stop(&vm, StopMode::Kill);
}

fn starts_after_exit(suite: &Suite<'_>) {
    let vm = suite.running();
    suite.fixture.kill(&vm);
    suite.exited(&vm, false);
    suite.start(&vm);
    assert_eq!(suite.look(&vm), Machine::Running);
    assert!(suite.fixture.beats(&vm), "the guest does nothing");
    suite.remove(&vm);
}

fn lists_and_clears(suite: &Suite<'_>) {
    let (one, two) = (suite.running(), suite.running());
    let mut both = [one.id, two.id];
    both.sort_unstable();
    assert_eq!(done(suite.engine.machines()), both);
    for _ in 0..REMOVALS_MAX {
        if done(suite.engine.clear(one.id)) {
            break;
        }
        std::thread::sleep(QUIET / 10);
    }
    assert_eq!(suite.look(&one), Machine::Absent);
    assert_eq!(done(suite.engine.machines()), [two.id]);
    assert!(suite.fixture.beats(&two), "another machine was hit");
    suite.remove(&two);
}

fn removes_half_done(suite: &Suite<'_>) {
    let vm = suite.fixture.vm();
    suite.fixture.leave_remains(&vm);
    assert!(matches!(suite.look(&vm), Machine::Exited { clean: false, .. }));
    assert_eq!(done(suite.engine.machines()), [vm.id]);
    suite.stop(&vm, StopMode::Shutdown);
    suite.stop(&vm, StopMode::Kill);
    assert_eq!(suite.look(&vm), Machine::Absent);
    suite.fixture.leave_remains(&vm);
    assert!(done(suite.engine.clear(vm.id)));
    assert_eq!(done(suite.engine.machines()), []);
}

fn starts_over_half_done(suite: &Suite<'_>) {
    let vm = suite.fixture.vm();
    suite.fixture.leave_remains(&vm);
    suite.start(&vm);
    assert_eq!(suite.look(&vm), Machine::Running);
    assert!(suite.fixture.beats(&vm), "the guest does nothing");
    suite.remove(&vm);
}

fn refuses_suspend(suite: &Suite<'_>) {
    let vm = suite.fixture.vm();
    let refused = suite.engine.stop_vm(&vm, StopMode::Suspend);
    assert!(matches!(refused, Err(EngineError::Mode { .. })), "{refused:?}");
    assert_eq!(suite.look(&vm), Machine::Absent);
}

fn survives_restart(suite: &Suite<'_>) {
    let (one, two, three) = (suite.running(), suite.running(), suite.fixture.vm());
    suite.fixture.leave_remains(&three);
    if suite.has(feat::PAUSE) {
        suite.stop(&two, StopMode::Pause);
    }
    let engine = suite.fixture.restarted();
    let (wake, ends) = bell();
    assert_eq!(engine.init(wake).unusable, None);
    let mut all = [one.id, two.id, three.id];
    all.sort_unstable();
    assert_eq!(done(engine.machines()), all);
    let restarted = Suite { engine: &*engine, fixture: suite.fixture, ends };
    assert_eq!(restarted.look(&one), Machine::Running);
    if suite.has(feat::PAUSE) {
        assert_eq!(restarted.look(&two), Machine::Paused);
        restarted.start(&two);
    }
    assert_eq!(restarted.look(&two), Machine::Running);
    assert!(suite.fixture.beats(&one) && suite.fixture.beats(&two), "a guest stands still");
    suite.fixture.power_off(&one);
    restarted.exited(&one, true);
    suite.fixture.kill(&two);
    restarted.exited(&two, false);
    for vm in [&one, &two, &three] {
        restarted.remove(vm);
    }
    // The old daemon would have been told, too; here it still lives.
    while suite.ends.recv_timeout(QUIET).is_ok() {}
}

fn bell() -> (Wake, Receiver<VmId>) {
    let (send, ends) = channel();
    let send = std::sync::Mutex::new(send);
    let wake = move |id| {
        if let Ok(send) = send.lock() {
            // The suite may have ended; then nobody wants to know.
            let _ = send.send(id);
        }
    };
    (Arc::new(wake), ends)
}

/// Waits until the end of `id` is told. Ends of earlier machines may be told meanwhile.
fn wait_for(ends: &Receiver<VmId>, id: VmId) {
    let until = Instant::now() + END_MAX;
    while let Ok(ended) = ends.recv_timeout(until.saturating_duration_since(Instant::now())) {
        if ended == id {
            return;
        }
    }
    panic!("the end of {id} was not told within {END_MAX:?}");
}

fn done<T>(outcome: Result<T, EngineError>) -> T {
    match outcome {
        Ok(value) => value,
        Err(error) => panic!("{}", crate::error::chain(&error)),
    }
}
