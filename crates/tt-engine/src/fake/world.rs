//! The host on which fake machines live: processes, their memory, and memory on disk, as values. It knows no faults.

use crate::{EngineError, Machine, Wake};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tt_model::{MachineSize, Vm, VmId, names};

/// The host on which fake machines live. It outlives the engines, as a real one outlives daemons.
#[derive(Default)]
pub struct FakeWorld {
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub machines: BTreeMap<VmId, Fake>,
    pub watchers: Vec<Watcher>,
    /// Complete memory, by its path relative to the data directory.
    pub memories: BTreeMap<String, Memory>,
    /// Half-made memory.
    pub partial: BTreeSet<String>,
    /// Machines that have begun from the Vm's `memory`, with their incarnation.
    pub begun: BTreeSet<(VmId, u32)>,
    starts: BTreeMap<VmId, u32>,
    ticks: u64,
}

pub(super) struct Watcher {
    pub dead: Arc<AtomicBool>,
    pub wake: Wake,
}

/// A machine, or what is left of one.
#[derive(Clone, Debug)]
pub(super) struct Fake {
    pub seen: Machine,
    pub incarnation: u32,
    pub content: u64,
    pub size: MachineSize,
    /// The disk that it writes to, and what that lies on in turn.
    pub layers: Vec<String>,
    pub disk_mb: u32,
    /// What the disk may do in a second: KiB and operations.
    pub disk_limit: (Option<u32>, Option<u32>),
    /// The memory that it has loaded and not consumed.
    pub loaded: Option<String>,
    pub deaf: bool,
}

/// Memory on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub content: u64,
    pub size: MachineSize,
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

    /// Ends every process and wakes nobody, as a power failure does; what lies on disk stays.
    pub fn lose_power(&self) {
        self.lock().machines.clear();
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

    /// Lets the running guest of `id` change its memory. Answers its new content, which no other one ever had; `None`
    /// if it does not run.
    pub fn tick(&self, id: VmId) -> Option<u64> {
        let mut state = self.lock();
        let ticks = state.ticks + 1;
        let fake = state.machines.get_mut(&id).filter(|f| f.seen == Machine::Running)?;
        fake.content = ticks;
        state.ticks = ticks;
        Some(ticks)
    }

    /// What there is of the machine of `id`; never `Outdated`, for that is a matter of the Vm.
    pub fn machine(&self, id: VmId) -> Machine {
        self.with(id, |fake| fake.seen.clone()).unwrap_or(Machine::Absent)
    }

    /// Content of the memory of the process of `id`: what the last [`tick`](Self::tick) answered that it, or whoever
    /// left the memory that it began from, has seen; 0 after a boot.
    pub fn content(&self, id: VmId) -> Option<u64> {
        self.with_process(id, |fake| fake.content)
    }

    /// The runtime image that the process of `id` has open.
    pub fn image(&self, id: VmId) -> Option<String> {
        self.with_process(id, |fake| fake.layers.first().cloned()).flatten()
    }

    /// The same, with everything that it lies on.
    pub fn layers(&self, id: VmId) -> Option<Vec<String>> {
        self.with_process(id, |fake| fake.layers.clone())
    }

    /// The size of the disk that the process of `id` sees, in MB.
    pub fn disk_mb(&self, id: VmId) -> Option<u32> {
        self.with_process(id, |fake| fake.disk_mb)
    }

    /// What the disk of the process of `id` may do in a second: KiB and operations.
    pub fn disk_limit(&self, id: VmId) -> Option<(Option<u32>, Option<u32>)> {
        self.with_process(id, |fake| fake.disk_limit)
    }

    /// Incarnation of the process of `id`.
    pub fn incarnation(&self, id: VmId) -> Option<u32> {
        self.with_process(id, |fake| fake.incarnation)
    }

    /// What the process of `id` was made with.
    pub fn size(&self, id: VmId) -> Option<MachineSize> {
        self.with_process(id, |fake| fake.size)
    }

    /// The paths of all complete memory on disk, with its content.
    pub fn memories(&self) -> BTreeMap<String, u64> {
        self.lock().memories.iter().map(|(path, m)| (path.clone(), m.content)).collect()
    }

    /// How many processes were ever made for `id`.
    pub fn starts(&self, id: VmId) -> u32 {
        self.lock().starts.get(&id).copied().unwrap_or(0)
    }

    /// Whether no machine, no remains and no memory on disk are left.
    pub fn is_empty(&self) -> bool {
        let state = self.lock();
        state.machines.is_empty()
            && state.memories.is_empty()
            && state.partial.is_empty()
            && state.begun.is_empty()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn with<T>(&self, id: VmId, get: impl FnOnce(&Fake) -> T) -> Option<T> {
        self.lock().machines.get(&id).map(get)
    }

    pub(super) fn change(&self, id: VmId, change: impl FnOnce(&mut Fake)) {
        if let Some(fake) = self.lock().machines.get_mut(&id) {
            change(fake);
        }
    }

    /// Makes a process: one that runs from its boot on, or one that stands still with loaded memory.
    pub(super) fn start(&self, vm: &Vm, memory: Option<(String, Memory)>) {
        let mut state = self.lock();
        *state.starts.entry(vm.id).or_default() += 1;
        let fake = Fake {
            seen: if memory.is_some() { Machine::Paused } else { Machine::Running },
            incarnation: vm.incarnation,
            content: memory.as_ref().map_or(0, |(_, memory)| memory.content),
            size: vm.machine,
            layers: layers(vm),
            disk_mb: vm.resource.disk_size,
            disk_limit: (vm.resource.disk_kib, vm.resource.disk_ops),
            loaded: memory.map(|(path, _)| path),
            deaf: false,
        };
        state.machines.insert(vm.id, fake);
    }

    /// What the next start begins from, if it is not to boot.
    pub(super) fn memory(&self, vm: &Vm) -> Result<Option<(String, Memory)>, EngineError> {
        let state = self.lock();
        let suspended = names::suspended(vm.id, vm.incarnation);
        if let Some(memory) = state.memories.get(&suspended) {
            return Ok(Some((suspended, *memory)));
        }
        let begun = state.begun.contains(&(vm.id, vm.incarnation));
        let Some(path) = vm.memory.clone().filter(|_| !begun) else { return Ok(None) };
        match state.memories.get(&path).copied() {
            Some(memory) => Ok(Some((path, memory))),
            None => Err(EngineError::Load { path: path.into(), problem: "it is not there".into() }),
        }
    }

    /// Notes that the memory at `path` has been begun from.
    pub(super) fn consume(&self, vm: &Vm, path: &str) {
        let mut state = self.lock();
        match path == names::suspended(vm.id, vm.incarnation) {
            true => drop(state.memories.remove(path)),
            false => drop(state.begun.insert((vm.id, vm.incarnation))),
        }
        if let Some(fake) = state.machines.get_mut(&vm.id) {
            fake.loaded = None;
        }
    }

    /// Copies the memory of the process of `id` to `path`.
    pub(super) fn capture(&self, id: VmId, path: &str, content: u64) {
        let mut state = self.lock();
        let Some(size) = state.machines.get(&id).map(|fake| fake.size) else { return };
        state.partial.remove(path);
        state.memories.insert(path.to_owned(), Memory { content, size });
    }

    pub(super) fn end(&self, id: VmId, clean: bool, why: &str) {
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

    fn with_process<T>(&self, id: VmId, get: impl FnOnce(&Fake) -> T) -> Option<T> {
        let state = self.lock();
        let fake = state.machines.get(&id);
        fake.filter(|fake| !matches!(fake.seen, Machine::Exited { .. })).map(get)
    }
}

impl fmt::Debug for FakeWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("FakeWorld")
            .field("machines", &state.machines)
            .field("memories", &state.memories)
            .field("partial", &state.partial)
            .field("begun", &state.begun)
            .finish_non_exhaustive()
    }
}

/// The disks of a machine: the one that it writes to, and what that lies on in turn.
pub(super) fn layers(vm: &Vm) -> Vec<String> {
    let below = vm.chain(vm.epoch).into_iter().skip(1);
    let below = below.map(|epoch| names::runtime_image(vm.storage, vm.id, epoch));
    [vm.runtime_image.clone()].into_iter().chain(below).collect()
}

/// Refuses memory of another size than the machine is to have.
pub(super) fn check_size(path: &str, memory: &Memory, vm: &Vm) -> Result<(), EngineError> {
    match memory.size == vm.machine {
        true => Ok(()),
        false => Err(EngineError::Load {
            path: path.into(),
            problem: format!("it is of {:?}, the machine has {:?}", memory.size, vm.machine),
        }),
    }
}

fn unstarted() -> Fake {
    Fake {
        seen: Machine::Exited { clean: false, why: "its start was cut short".into() },
        incarnation: 0,
        content: 0,
        size: MachineSize::default(),
        layers: Vec::new(),
        disk_mb: 0,
        disk_limit: (None, None),
        loaded: None,
        deaf: false,
    }
}

/// The id whose memory a path below the data directory is.
pub(super) fn owner(path: &str) -> Option<VmId> {
    path.split('/').nth(1)?.parse().ok()
}
