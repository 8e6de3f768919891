//! A host of fakes that outlives the daemons which come and die on it.

mod kv;

use kv::DyingKv;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tt_engine::fake::{FakeEngine, FakeWorld as FakeMachines, effect};
use tt_engine::{Machine, VmEngine};
use tt_host::{
    Clock, Drivers, Errands, GuestControl, GuestState, LayerMerger, Metas, Queue, SnapshotTaker,
    Visitor,
};
use tt_model::fault::{Fault, FaultHook, Moment};
use tt_model::{EnvId, Host, HostId, Instance, Layout, StorageKind, Vm, VmId, sample};
use tt_network::fake::{FakeNetwork, FakeWorld as FakeNets};
use tt_storage::Storage;
use tt_storage::fake::{FakeDisk, FakeStorage};
use tt_store::memory::MemoryKv;
use tt_store::tables::{Change, Tables};

/// When the daemon dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    Never,
    /// At this side of this effect, counted from 1.
    At(u32),
}

/// How the fakes behave towards the daemon.
#[derive(Debug, Default)]
pub struct Script {
    /// Effects so far, each side counted.
    pub steps: u32,
    die_at: Option<u32>,
    pub is_dead: bool,
    /// This effect fails, if it can.
    pub fail_at: Option<u32>,
    /// Effects that begin with this fail that many times more.
    pub failing: Option<(&'static str, u32)>,
}

/// The names of the members that were told for each Env, with their addresses.
pub type Names = BTreeMap<EnvId, Vec<(String, Ipv4Addr)>>;

/// See the module.
pub struct World {
    pub kv: Arc<MemoryKv>,
    pub machines: Arc<FakeMachines>,
    pub nets: Arc<Mutex<FakeNets>>,
    pub disk: Arc<FakeDisk>,
    pub script: Arc<Mutex<Script>>,
    pub clock: Arc<FakeClock>,
    /// What the present daemon told the guests.
    pub names: Arc<Mutex<Names>>,
    /// Whose machine has ended.
    pub woken: Arc<Mutex<BTreeSet<VmId>>>,
    pub host: Host,
    /// Metas are files; these lie in memory.
    pub dir: tempfile::TempDir,
}

/// A daemon on the world.
pub struct Daemon {
    pub visitor: Arc<Visitor>,
    pub taker: SnapshotTaker,
    pub merger: LayerMerger,
}

impl World {
    pub fn with(storage: StorageKind) -> Self {
        let world = Self {
            kv: Arc::new(MemoryKv::new()),
            machines: FakeMachines::new(),
            nets: Arc::default(),
            disk: FakeDisk::new(1 << 30),
            script: Arc::default(),
            clock: Arc::new(FakeClock(AtomicU64::new(1_000_000))),
            names: Arc::default(),
            woken: Arc::default(),
            host: Host { storage, ..sample::host("fake") },
            dir: tempfile::tempdir_in("/dev/shm").unwrap(),
        };
        world.register();
        world
    }

    /// The host says what it is, as its daemon does when it starts.
    pub fn register(&self) {
        let registered = Change::new().host(&self.host).unwrap();
        self.tables().commit(&registered).unwrap();
    }

    /// The next daemon begins to live, and dies as `death` says.
    pub fn begin(&self, death: Death) {
        reopen(&self.machines, &self.disk);
        let mut script = self.script.lock().unwrap();
        script.steps = 0;
        script.is_dead = false;
        script.die_at = match death {
            Death::Never => None,
            Death::At(step) => Some(step),
        };
    }

    pub fn tables(&self) -> Tables {
        Tables::new(self.kv.clone())
    }

    /// The records as a daemon has them: it can die at each commit.
    pub fn dying_tables(&self) -> Tables {
        Tables::new(Arc::new(DyingKv { inner: self.kv.clone(), hook: self.hook() }))
    }

    /// The drivers of one daemon.
    pub fn drivers(&self) -> Drivers {
        let hook = self.hook();
        let engine = FakeEngine::new(self.machines.clone(), hook.clone());
        let woken = self.woken.clone();
        engine.init(Arc::new(move |id| {
            woken.lock().unwrap().insert(id);
        }));
        // Setting the host up is not what is tested here.
        self.nets.lock().unwrap().host = true;
        Drivers {
            engines: vec![Arc::new(engine)],
            storages: vec![Arc::new(
                FakeStorage::new(self.disk.clone(), hook.clone()).with_kind(self.host.storage),
            )],
            network: Arc::new(FakeNetwork::new(self.nets.clone(), hook)),
        }
    }

    pub fn daemon(&self, drivers: Drivers) -> Daemon {
        self.names.lock().unwrap().clear();
        let guests = FakeGuests { machines: self.machines.clone(), names: self.names.clone() };
        let tables = self.dying_tables();
        let clock = self.clock.clone();
        let visitor = Arc::new(Visitor::new(
            tables.clone(),
            drivers,
            Arc::new(guests),
            clock.clone(),
            HostId(1),
            self.metas(),
            Errands::default(),
        ));
        let vms: Arc<Queue<VmId>> = Arc::default();
        let merger = LayerMerger::new(
            tables.clone(),
            visitor.clone(),
            HostId(1),
            vms.clone(),
            Arc::default(),
            Arc::default(),
        );
        let taker = SnapshotTaker::new(tables, visitor.clone(), clock, vms);
        Daemon { visitor, taker, merger }
    }

    pub fn metas(&self) -> Metas {
        let data = self.dir.path().to_owned();
        Metas::new(&Layout { run: data.join("run"), data, instance: Instance(1) })
    }

    fn hook(&self) -> FaultHook {
        let (script, machines, disk) =
            (self.script.clone(), self.machines.clone(), self.disk.clone());
        Arc::new(move |moment, effect| {
            if moment == Moment::After && effect.starts_with("machine.") {
                reopen(&machines, &disk);
                if effect == effect::UPDATE {
                    grow(&machines, &disk);
                }
            }
            let mut script = script.lock().unwrap();
            if script.is_dead {
                return Fault::Die;
            }
            script.steps += 1;
            if Some(script.steps) == script.die_at {
                script.is_dead = true;
                return Fault::Die;
            }
            if Some(script.steps) == script.fail_at {
                return Fault::Fail;
            }
            match &mut script.failing {
                Some((prefix, times))
                    if effect.starts_with(*prefix) && *times > 0 && moment == Moment::Before =>
                {
                    *times -= 1;
                    Fault::Fail
                }
                _ => Fault::None,
            }
        })
    }
}

/// Lets each machine have the disk open that it was made with or switched to, and no other one.
fn reopen(machines: &FakeMachines, disk: &Arc<FakeDisk>) {
    for (id, epoch) in open_epochs(machines, disk) {
        match epoch {
            Some(epoch) => disk.open(id, epoch),
            None => disk.close(id),
        }
    }
}

/// An engine that lets a guest see a larger disk has made the disk larger.
fn grow(machines: &FakeMachines, disk: &Arc<FakeDisk>) {
    for (id, epoch) in open_epochs(machines, disk) {
        if let (Some(epoch), Some(size_mb)) = (epoch, machines.disk_mb(id)) {
            disk.grow(id, epoch, size_mb);
        }
    }
}

fn open_epochs(machines: &FakeMachines, disk: &Arc<FakeDisk>) -> Vec<(VmId, Option<u32>)> {
    let ids = FakeStorage::reliable(disk.clone()).images().unwrap();
    ids.into_iter().map(|id| (id, open_epoch(machines, id))).collect()
}

/// The epoch of the disk that the machine of `id` writes to, if it has a process.
pub fn open_epoch(machines: &FakeMachines, id: VmId) -> Option<u32> {
    let image = machines.image(id)?;
    image.rsplit_once('/')?.1.split_once('.')?.0.parse().ok()
}

/// Guests that are ready as soon as their machine runs.
#[derive(Debug)]
struct FakeGuests {
    machines: Arc<FakeMachines>,
    names: Arc<Mutex<Names>>,
}

impl GuestControl for FakeGuests {
    fn set_names(&self, env: EnvId, members: &[(String, Ipv4Addr)]) {
        self.names.lock().unwrap().insert(env, members.to_vec());
    }

    fn forget_names(&self, env: EnvId) {
        self.names.lock().unwrap().remove(&env);
    }

    fn ensure(&self, vm: &Vm) -> GuestState {
        match self.machines.machine(vm.id) {
            Machine::Running => GuestState::Ready,
            _ => GuestState::Waiting,
        }
    }

    fn resumed(&self, _id: VmId) {}

    fn shut_down(&self, _id: VmId) -> bool {
        false
    }

    fn forget(&self, _id: VmId) {}

    fn erase(&self, _id: VmId) {}
}

/// A clock that moves when a test moves it; milliseconds since the epoch.
#[derive(Debug)]
pub struct FakeClock(pub AtomicU64);

impl Clock for FakeClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}
