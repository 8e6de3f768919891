//! An engine whose machines live in memory: it fails, and dies, at any side effect on demand. It never starts anything.

pub mod effect;
mod hold;
mod world;

use crate::{EngineError, Hold, Machine, VmEngine, Wake};
use hold::{FakeHold, Held, Step};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tt_model::fault::{Fault, FaultHook, Moment};
use tt_model::{EngineFacts, StopMode, Vm, VmEngineFeat, VmId, VmResource, feat, names};
use world::Watcher;

pub use world::FakeWorld;

/// The engine of one daemon's life on a [`FakeWorld`].
pub struct FakeEngine {
    features: VmEngineFeat,
    unusable: Option<String>,
    faults: Faults,
}

/// What a [`FakeEngine`] can do unless told otherwise: as much as the contract has calls for.
pub const FEATURES: VmEngineFeat = feat::PAUSE
    | feat::SUSPEND
    | feat::SHUTDOWN
    | feat::SNAPSHOT
    | feat::MEMORY_SNAPSHOT
    | feat::LIVE_UPDATE
    | feat::NAT
    | feat::FLAT
    | feat::CONSOLE
    | feat::EXEC
    | feat::DISK_LIMIT;

/// Where side effects happen, if they do.
#[derive(Clone)]
struct Faults {
    world: Arc<FakeWorld>,
    hook: FaultHook,
    dead: Arc<AtomicBool>,
}

impl Faults {
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
}

impl FakeEngine {
    /// An engine on `world` that asks `hook` before and after every side effect.
    pub fn new(world: Arc<FakeWorld>, hook: FaultHook) -> Self {
        let faults = Faults { world, hook, dead: Arc::default() };
        Self { features: FEATURES, unusable: None, faults }
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
        &self.faults.world
    }

    /// Undoes [`Fault::Die`]. The engine's [`Wake`]s that came in between are lost, as with a real daemon.
    pub fn revive(&self) {
        self.faults.dead.store(false, Ordering::SeqCst);
    }

    fn kill(&self, id: VmId) -> Result<(), EngineError> {
        match self.world().machine(id) {
            Machine::Absent => Ok(()),
            Machine::Exited { .. } => self.faults.act(effect::REMOVE_REMAINS, |world| {
                world.lock().machines.remove(&id);
            }),
            _ => self.faults.act(effect::KILL, |world| {
                world.end(id, false, "the process was killed");
            }),
        }
    }

    fn refuse(&self, mode: StopMode) -> Result<(), EngineError> {
        match self.check_feat(&[mode.feature()]) {
            true => Ok(()),
            false => Err(EngineError::Mode { engine: self.name(), mode }),
        }
    }

    /// What there is, as the Vm sees it.
    fn seen(&self, vm: &Vm) -> Machine {
        match self.world().machine(vm.id) {
            Machine::Running | Machine::Paused
                if self.world().incarnation(vm.id) < Some(vm.incarnation) =>
            {
                Machine::Outdated
            }
            seen => seen,
        }
    }

    fn begin(&self, vm: &Vm) -> Result<(), EngineError> {
        let memory = self.world().memory(vm)?;
        if let Some((path, memory)) = &memory {
            world::check_size(path, memory, vm)?;
        }
        self.faults.act(effect::MAKE_REMAINS, |world| world.leave_remains(vm.id))?;
        let Some((path, memory)) = memory else {
            return self.faults.act(effect::MAKE_PROCESS, |world| world.start(vm, None));
        };
        let loaded = Some((path, memory));
        self.faults.act(effect::RESTORE, |world| world.start(vm, loaded))?;
        self.resume(vm)
    }

    /// Lets a machine that stands still go on. Memory that it could begin from anew is consumed first.
    fn resume(&self, vm: &Vm) -> Result<(), EngineError> {
        let loaded = self.world().with(vm.id, |fake| fake.loaded.clone()).flatten();
        let suspended = names::suspended(vm.id, vm.incarnation);
        let suspended = Some(suspended).filter(|path| self.world().memories().contains_key(path));
        if let Some(path) = loaded.or(suspended) {
            self.faults.act(effect::CONSUME, |world| world.consume(vm, &path))?;
        }
        self.faults.act(effect::RESUME, |world| {
            world.change(vm.id, |fake| fake.seen = Machine::Running);
        })
    }

    fn suspend(&self, vm: &Vm, seen: &Machine) -> Result<(), EngineError> {
        let path = names::suspended(vm.id, vm.incarnation);
        // A daemon died between the memory's being complete and the kill, or before the loaded memory was consumed.
        let is_kept = *seen == Machine::Paused && self.world().memories().contains_key(&path)
            || self.world().with(vm.id, |fake| fake.loaded.is_some()) == Some(true);
        if !is_kept {
            self.capture(vm, path, seen)?;
        }
        self.kill(vm.id)
    }

    fn capture(&self, vm: &Vm, path: String, seen: &Machine) -> Result<(), EngineError> {
        let content = self.world().content(vm.id).unwrap_or(0);
        let captured = self
            .faults
            .act(effect::SUSPEND, |world| {
                world.change(vm.id, |fake| fake.seen = Machine::Paused);
                world.lock().partial.insert(path.clone());
            })
            .and_then(|()| {
                self.faults.act(effect::CAPTURE, |world| world.capture(vm.id, &path, content))
            });
        if captured.is_err() && self.faults.alive().is_ok() {
            self.world().lock().partial.remove(&path);
            self.world().lock().memories.remove(&path);
            self.world().change(vm.id, |fake| fake.seen = seen.clone());
        }
        captured
    }

    /// Lets the machine write to the disk of the record, and lie on what that says.
    fn arrange(&self, vm: &Vm) -> Result<(), EngineError> {
        if self.world().image(vm.id).is_some_and(|image| image != vm.runtime_image) {
            self.faults.act(effect::SWITCH, |world| {
                world.change(vm.id, |fake| fake.layers.insert(0, vm.runtime_image.clone()));
            })?;
        }
        let wanted = world::layers(vm);
        if self.world().layers(vm.id).is_some_and(|layers| layers != wanted) {
            self.faults.act(effect::ARRANGE, |world| {
                world.change(vm.id, |fake| fake.layers = wanted);
            })?;
        }
        Ok(())
    }

    /// Removes memory on disk that `is_needed` does not hold for.
    fn drop_memory(
        &self,
        id: VmId,
        is_needed: impl Fn(&str) -> bool,
        needs_mark: impl Fn(u32) -> bool,
    ) -> Result<(), EngineError> {
        let needless = |path: &String| world::owner(path) == Some(id) && !is_needed(path);
        let mark = |(owner, n): &(VmId, u32)| *owner == id && !needs_mark(*n);
        let is_clean = {
            let state = self.world().lock();
            !state.memories.keys().any(needless)
                && !state.partial.iter().any(|path| world::owner(path) == Some(id))
                && !state.begun.iter().any(mark)
        };
        if is_clean {
            return Ok(());
        }
        self.faults.act(effect::DROP_MEMORY, |world| {
            let mut state = world.lock();
            state.memories.retain(|path, _| !needless(path));
            state.partial.retain(|path| world::owner(path) != Some(id));
            state.begun.retain(|begun| !mark(begun));
        })
    }
}

impl VmEngine for FakeEngine {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn init(&self, wake: Wake) -> EngineFacts {
        let watcher = Watcher { dead: self.faults.dead.clone(), wake };
        self.world().lock().watchers.push(watcher);
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
        self.faults.alive()?;
        Ok(self.seen(vm))
    }

    fn start_vm(&self, vm: &Vm) -> Result<(), EngineError> {
        self.faults.alive()?;
        if let Some(why) = self.unusable.clone() {
            return Err(EngineError::Unusable { engine: self.name(), why });
        }
        match self.seen(vm) {
            Machine::Running => return Ok(()),
            Machine::Paused => return self.resume(vm),
            Machine::Outdated => {
                let found = self.world().incarnation(vm.id).unwrap_or_default();
                return Err(EngineError::Replace { id: vm.id, found, wanted: vm.incarnation });
            }
            Machine::Exited { .. } => self.kill(vm.id)?,
            Machine::Absent => {}
        }
        self.begin(vm)
    }

    fn stop_vm(&self, vm: &Vm, mode: StopMode) -> Result<(), EngineError> {
        self.faults.alive()?;
        self.refuse(mode)?;
        match (mode, self.seen(vm)) {
            (StopMode::Kill, _) | (StopMode::Suspend, Machine::Outdated) => self.kill(vm.id),
            (StopMode::Suspend, seen @ (Machine::Running | Machine::Paused)) => {
                self.suspend(vm, &seen)
            }
            (StopMode::Pause, Machine::Running) => self.faults.act(effect::PAUSE, |world| {
                world.change(vm.id, |fake| fake.seen = Machine::Paused);
            }),
            (StopMode::Shutdown, seen @ (Machine::Running | Machine::Paused)) => {
                if seen == Machine::Paused {
                    self.resume(vm)?;
                }
                self.faults.act(effect::SHUTDOWN, |world| {
                    if world.with(vm.id, |fake| fake.deaf) == Some(false) {
                        world.exit(vm.id, true);
                    }
                })
            }
            _ => Ok(()),
        }
    }

    fn update_vm(&self, vm: &Vm) -> Result<(), EngineError> {
        self.faults.alive()?;
        let has_memory = self.world().with(vm.id, |fake| fake.loaded.is_none()) == Some(true);
        if !has_memory || !matches!(self.seen(vm), Machine::Running | Machine::Paused) {
            return Ok(());
        }
        self.arrange(vm)?;
        let VmResource { disk_size: disk_mb, disk_kib, disk_ops, .. } = vm.resource;
        let limit = (disk_kib, disk_ops);
        if self.world().disk_mb(vm.id).is_some_and(|has| has < disk_mb) {
            self.faults.act(effect::UPDATE, |world| {
                world.change(vm.id, |fake| fake.disk_mb = disk_mb);
            })?;
        }
        match self.world().disk_limit(vm.id).is_some_and(|has| has != limit) {
            true => self.faults.act(effect::UPDATE, |world| {
                world.change(vm.id, |fake| fake.disk_limit = limit);
            }),
            false => Ok(()),
        }
    }

    fn prepare_hold(&self, vm: &Vm, memory: Option<&str>) -> Result<Box<dyn Hold>, EngineError> {
        self.faults.alive()?;
        let seen = self.seen(vm);
        let loaded = self.world().with(vm.id, |fake| fake.loaded.is_some()) == Some(true);
        let held = match seen {
            Machine::Running | Machine::Paused if !loaded => {
                Held::Machine { ran: seen == Machine::Running, step: Step::Prepared }
            }
            _ if memory.is_none() => Held::Memory(None),
            _ => Held::Memory(self.world().memory(vm)?.map(|(path, _)| path)),
        };
        let hold = FakeHold {
            faults: self.faults.clone(),
            id: vm.id,
            memory: memory.map(str::to_owned),
            held,
        };
        if let (Held::Machine { .. }, Some(path)) = (&hold.held, memory) {
            self.faults.act(effect::COPY, |world| {
                world.lock().partial.insert(path.to_owned());
            })?;
        }
        Ok(Box::new(hold))
    }

    fn remove_memory(&self, vm: &Vm) -> Result<(), EngineError> {
        self.faults.alive()?;
        let named = crate::memory::named(vm);
        self.drop_memory(
            vm.id,
            |path| named.iter().any(|n| n == path),
            |incarnation| crate::memory::needs_mark(vm, incarnation),
        )
    }

    fn memories(&self) -> Result<Vec<VmId>, EngineError> {
        self.faults.alive()?;
        let state = self.world().lock();
        let paths = state.memories.keys().chain(&state.partial);
        let mut ids: Vec<_> = paths.filter_map(|path| world::owner(path)).collect();
        ids.extend(state.begun.iter().map(|(id, _)| *id));
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn remove_stray_memory(&self, id: VmId) -> Result<(), EngineError> {
        self.faults.alive()?;
        self.drop_memory(id, |_| false, |_| false)
    }

    fn machines(&self) -> Result<Vec<VmId>, EngineError> {
        self.faults.alive()?;
        Ok(self.world().lock().machines.keys().copied().collect())
    }

    fn clear(&self, id: VmId) -> Result<bool, EngineError> {
        self.faults.alive()?;
        self.kill(id)?;
        Ok(self.world().machine(id) == Machine::Absent)
    }

    fn close(&self) {
        self.faults.dead.store(true, Ordering::SeqCst);
    }
}

impl fmt::Debug for FakeEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeEngine")
            .field("world", self.world())
            .field("features", &self.features)
            .field("unusable", &self.unusable)
            .field("dead", &self.faults.dead)
            .finish_non_exhaustive()
    }
}
