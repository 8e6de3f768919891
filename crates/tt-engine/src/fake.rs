//! An engine whose machines live in memory: it fails, and dies, at any side effect on demand. It never starts anything.

use crate::{EngineError, Machine, VmEngine, Wake};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tt_model::fault::{Fault, FaultHook, Moment};
use tt_model::{EngineFacts, StopMode, Vm, VmEngineFeat, VmId, feat};

/// Names of the side effects, as the [`FaultHook`] hears them.
pub mod effect {
    /// A start makes the directory, the memory and the cgroup.
    pub const MAKE_REMAINS: &str = "machine.make_remains";
    /// A start makes the process.
    pub const MAKE_PROCESS: &str = "machine.make_process";
    /// A paused machine goes on.
    pub const RESUME: &str = "machine.resume";
    /// A running machine stands still.
    pub const PAUSE: &str = "machine.pause";
    /// The guest is asked to shut down.
    pub const SHUTDOWN: &str = "machine.shutdown";
    /// The process is killed.
    pub const KILL: &str = "machine.kill";
    /// What an ended machine left is removed.
    pub const REMOVE_REMAINS: &str = "machine.remove_remains";

    /// All of them.
    pub const ALL: [&str; 7] =
        [MAKE_REMAINS, MAKE_PROCESS, RESUME, PAUSE, SHUTDOWN, KILL, REMOVE_REMAINS];
}

/// The host on which fake machines live. It outlives the engines, as a real one outlives daemons.
#[derive(Default)]
pub struct FakeWorld {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    machines: BTreeMap<VmId, Fake>,
    watchers: Vec<Watcher>,
    starts: BTreeMap<VmId, u32>,
}

struct Watcher {
    dead: Arc<AtomicBool>,
    wake: Wake,
}

#[derive(Clone)]
struct Fake {
    seen: Machine,
    deaf: bool,
}

impl FakeWorld {
    /// A host without machines.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Ends the process of `id` and wakes every living engine. `clean`: as if the guest had switched itself off.
    /// Nothing happens if it has none.
    pub fn exit(&self, id: VmId, clean: bool) {
        let why = match clean {
            true => "the guest switched itself off",
            false => "the process was killed",
        };
        self.end(id, clean, why);
    }

    /// Whether the guest of `id` ignores shutdown requests. False until said otherwise and after every start.
    pub fn set_deaf(&self, id: VmId, deaf: bool) {
        if let Some(fake) = self.lock().machines.get_mut(&id) {
            fake.deaf = deaf;
        }
    }

    /// Leaves what a start leaves that was cut short before it made a process.
    pub fn leave_remains(&self, id: VmId) {
        self.lock().machines.entry(id).or_insert_with(unstarted);
    }

    /// What there is of the machine of `id`.
    pub fn machine(&self, id: VmId) -> Machine {
        let state = self.lock();
        let fake = state.machines.get(&id);
        fake.map_or(Machine::Absent, |fake| fake.seen.clone())
    }

    /// How many processes were ever made for `id`.
    pub fn starts(&self, id: VmId) -> u32 {
        self.lock().starts.get(&id).copied().unwrap_or(0)
    }

    /// Whether no machine and no remains are left.
    pub fn is_empty(&self) -> bool {
        self.lock().machines.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, id: VmId, seen: Machine) {
        if let Some(fake) = self.lock().machines.get_mut(&id) {
            fake.seen = seen;
        }
    }

    fn start(&self, id: VmId) {
        let mut state = self.lock();
        *state.starts.entry(id).or_default() += 1;
        let fake = Fake { seen: Machine::Running, deaf: false };
        state.machines.insert(id, fake);
    }

    fn end(&self, id: VmId, clean: bool, why: &str) {
        let mut wakes = Vec::new();
        {
            let mut state = self.lock();
            let Some(fake) = state.machines.get_mut(&id) else {
                return;
            };
            if matches!(fake.seen, Machine::Exited { .. }) {
                return;
            }
            fake.seen = Machine::Exited { clean, why: why.to_owned() };
            state.watchers.retain(|w| !w.dead.load(Ordering::SeqCst));
            wakes.extend(state.watchers.iter().map(|w| w.wake.clone()));
        }
        wakes.iter().for_each(|wake| wake(id));
    }
}

impl fmt::Debug for FakeWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        let machines = state.machines.iter().map(|(id, fake)| (id, &fake.seen));
        f.debug_map().entries(machines).finish()
    }
}

fn unstarted() -> Fake {
    Fake {
        seen: Machine::Exited { clean: false, why: "its start was cut short".into() },
        deaf: false,
    }
}

/// The engine of one daemon's life on a [`FakeWorld`].
pub struct FakeEngine {
    world: Arc<FakeWorld>,
    features: VmEngineFeat,
    unusable: Option<String>,
    hook: FaultHook,
    dead: Arc<AtomicBool>,
}

/// What a [`FakeEngine`] can do unless told otherwise: as much as the contract has calls for.
pub const FEATURES: VmEngineFeat =
    feat::PAUSE | feat::SHUTDOWN | feat::NAT | feat::CONSOLE | feat::EXEC;

impl FakeEngine {
    /// An engine on `world` that asks `hook` before and after every side effect.
    pub fn new(world: Arc<FakeWorld>, hook: FaultHook) -> Self {
        Self { world, features: FEATURES, unusable: None, hook, dead: Arc::default() }
    }

    /// With these features (bits of [`feat`]) instead of [`FEATURES`].
    #[must_use]
    pub fn with_features(self, features: VmEngineFeat) -> Self {
        Self { features, ..self }
    }

    /// Not able to start machines, for this reason.
    #[must_use]
    pub fn with_unusable(self, why: &str) -> Self {
        Self { unusable: Some(why.to_owned()), ..self }
    }

    /// The host that it works on.
    pub fn world(&self) -> &Arc<FakeWorld> {
        &self.world
    }

    /// Undoes [`Fault::Die`]. The engine's [`Wake`]s that came in between are lost, as with a real daemon.
    pub fn revive(&self) {
        self.dead.store(false, Ordering::SeqCst);
    }

    fn alive(&self) -> Result<(), EngineError> {
        match self.dead.load(Ordering::SeqCst) {
            true => Err(EngineError::Died),
            false => Ok(()),
        }
    }

    fn ask(&self, moment: Moment, effect: &'static str) -> Result<(), EngineError> {
        match (self.hook)(moment, effect) {
            Fault::None => Ok(()),
            Fault::Fail => Err(EngineError::Injected { effect }),
            Fault::Die => {
                self.dead.store(true, Ordering::SeqCst);
                Err(EngineError::Died)
            }
        }
    }

    fn act(&self, effect: &'static str, act: impl FnOnce(&FakeWorld)) -> Result<(), EngineError> {
        self.ask(Moment::Before, effect)?;
        act(&self.world);
        self.ask(Moment::After, effect)
    }

    fn kill(&self, id: VmId) -> Result<(), EngineError> {
        match self.world.machine(id) {
            Machine::Absent => Ok(()),
            Machine::Running | Machine::Paused => self.act(effect::KILL, |world| {
                world.end(id, false, "the process was killed");
            }),
            Machine::Exited { .. } => self.act(effect::REMOVE_REMAINS, |world| {
                world.lock().machines.remove(&id);
            }),
        }
    }

    fn refuse(&self, mode: StopMode) -> Result<(), EngineError> {
        let feature = match mode {
            StopMode::Pause => feat::PAUSE,
            // Whatever its features say, the fake keeps no memory.
            StopMode::Suspend => return Err(EngineError::Mode { engine: self.name(), mode }),
            StopMode::Shutdown => feat::SHUTDOWN,
            StopMode::Kill => return Ok(()),
        };
        match self.check_feat(&[feature]) {
            true => Ok(()),
            false => Err(EngineError::Mode { engine: self.name(), mode }),
        }
    }
}

impl VmEngine for FakeEngine {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn init(&self, wake: Wake) -> EngineFacts {
        self.world.lock().watchers.push(Watcher { dead: self.dead.clone(), wake });
        EngineFacts {
            name: self.name().to_owned(),
            version: "1".to_owned(),
            detail: "in memory".to_owned(),
            features: self.features,
            unusable: self.unusable.clone(),
        }
    }

    fn check_feat(&self, wanted: &[VmEngineFeat]) -> bool {
        wanted.iter().all(|bits| self.features & bits == *bits)
    }

    fn look(&self, vm: &Vm) -> Result<Machine, EngineError> {
        self.alive()?;
        Ok(self.world.machine(vm.id))
    }

    fn start_vm(&self, vm: &Vm) -> Result<(), EngineError> {
        self.alive()?;
        if let Some(why) = self.unusable.clone() {
            return Err(EngineError::Unusable { engine: self.name(), why });
        }
        match self.world.machine(vm.id) {
            Machine::Running => return Ok(()),
            Machine::Paused => {
                return self.act(effect::RESUME, |world| world.set(vm.id, Machine::Running));
            }
            Machine::Exited { .. } => self.kill(vm.id)?,
            Machine::Absent => {}
        }
        self.act(effect::MAKE_REMAINS, |world| world.leave_remains(vm.id))?;
        self.act(effect::MAKE_PROCESS, |world| {
            world.start(vm.id);
        })
    }

    fn stop_vm(&self, vm: &Vm, mode: StopMode) -> Result<(), EngineError> {
        self.alive()?;
        self.refuse(mode)?;
        match (mode, self.world.machine(vm.id)) {
            (StopMode::Kill, _) => self.kill(vm.id),
            (StopMode::Pause, Machine::Running) => {
                self.act(effect::PAUSE, |world| world.set(vm.id, Machine::Paused))
            }
            (StopMode::Shutdown, Machine::Running | Machine::Paused) => {
                self.act(effect::SHUTDOWN, |world| {
                    world.set(vm.id, Machine::Running);
                    let deaf = world.lock().machines.get(&vm.id).is_some_and(|f| f.deaf);
                    if !deaf {
                        world.exit(vm.id, true);
                    }
                })
            }
            _ => Ok(()),
        }
    }

    fn machines(&self) -> Result<Vec<VmId>, EngineError> {
        self.alive()?;
        Ok(self.world.lock().machines.keys().copied().collect())
    }

    fn clear(&self, id: VmId) -> Result<bool, EngineError> {
        self.alive()?;
        self.kill(id)?;
        Ok(self.world.machine(id) == Machine::Absent)
    }

    fn close(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }
}

impl fmt::Debug for FakeEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeEngine")
            .field("world", &self.world)
            .field("features", &self.features)
            .field("unusable", &self.unusable)
            .field("dead", &self.dead)
            .finish_non_exhaustive()
    }
}
