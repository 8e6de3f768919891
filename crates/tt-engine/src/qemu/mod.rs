//! The QEMU driver: a confined, detached process for each machine, found again by its cgroup. It keeps no machine in
//! memory and never waits for a guest.

mod args;
mod argv;
mod begin;
mod boot;
mod capture;
mod disk;
mod hold;
mod host;
mod machine;
mod migration;
mod mould;
mod node;
mod qmp;
mod restore;
mod state;

use crate::cgroup::Cgroups;
use crate::memory::files as memory;
use crate::remains;
use crate::watch::Watcher;
use crate::{EngineError, GuestNetwork, Hold, Machine, VmEngine, Wake};
use host::Usable;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use tt_model::{EngineFacts, Layout, StopMode, Vm, VmEngineFeat, VmId, feat};

const NAME: &str = "qemu";
const FEATURES: VmEngineFeat = feat::PAUSE
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
/// Socket of the monitor, in the machine's directory.
const MONITOR: &str = "qmp.sock";
/// How guests' code is executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcceleratorChoice {
    /// By KVM if a test guest runs well in it, else by TCG.
    #[default]
    Auto,
    /// By KVM. The engine is not usable where the test guest does not run well.
    Kvm,
    /// By TCG, QEMU's translator: slow, and works everywhere.
    Tcg,
}

/// What the driver is told once.
#[derive(Clone, Debug)]
pub struct QemuConfig {
    /// Where its things go.
    pub layout: Layout,
    /// QEMU: a path, or a name that is looked up in `PATH` (`qemu-system-x86_64`).
    pub binary: PathBuf,
    /// How guests' code is executed.
    pub accelerator: AcceleratorChoice,
    /// What guests that set their network up themselves are told of it.
    pub network: GuestNetwork,
}

/// What a machine is really executed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accelerator {
    Kvm,
    Tcg,
}

/// See the module.
#[derive(Debug)]
pub struct QemuEngine {
    config: QemuConfig,
    host: OnceLock<Arc<Host>>,
}

/// What [`VmEngine::init`] found and made.
#[derive(Debug)]
struct Host {
    config: QemuConfig,
    groups: Cgroups,
    watcher: Option<Watcher>,
    usable: Result<Usable, String>,
    /// The machines that this daemon copies the memory of: their moulds are not stray.
    held: Mutex<BTreeSet<VmId>>,
}

impl QemuEngine {
    /// A driver that has not looked at the host yet.
    pub fn new(config: QemuConfig) -> Self {
        Self { config, host: OnceLock::new() }
    }

    /// What it can do here: UEFI only where there is firmware for it.
    fn features(&self) -> VmEngineFeat {
        let usable = self.host.get().and_then(|host| host.usable.as_ref().ok());
        let has_uefi = usable.is_some_and(|usable| usable.uefi.is_some());
        FEATURES | if has_uefi { feat::UEFI } else { 0 }
    }

    fn host(&self) -> Result<&Arc<Host>, EngineError> {
        self.host.get().ok_or_else(|| unusable("it was not initialised"))
    }
}

impl VmEngine for QemuEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn init(&self, wake: Wake) -> EngineFacts {
        let host = self.host.get_or_init(|| Arc::new(host::prepare(&self.config, wake)));
        let (version, detail, why) = match &host.usable {
            Ok(usable) => (usable.version.clone(), usable.detail.clone(), None),
            Err(why) => (String::new(), String::new(), Some(why.clone())),
        };
        let features = self.features();
        EngineFacts { name: NAME.to_owned(), version, detail, features, unusable: why }
    }

    fn check_feat(&self, wanted: &[VmEngineFeat]) -> bool {
        wanted.iter().all(|bits| self.features() & bits == *bits)
    }

    fn look(&self, vm: &Vm) -> Result<Machine, EngineError> {
        self.host()?.look(vm)
    }

    fn start_vm(&self, vm: &Vm) -> Result<(), EngineError> {
        let host = self.host()?;
        match host.look(vm)? {
            Machine::Running => return Ok(()),
            Machine::Outdated => return Err(host.life(vm.id).replace(vm)),
            Machine::Paused if host.is_loaded(vm)? => return host.resume(vm),
            Machine::Paused => host.end(vm)?,
            Machine::Exited { .. } => host.life(vm.id).remove()?,
            Machine::Absent => {}
        }
        host.begin(vm)
    }

    fn stop_vm(&self, vm: &Vm, mode: StopMode) -> Result<(), EngineError> {
        let host = self.host()?;
        // Without asking the monitor: a machine that does not answer can be killed.
        if mode == StopMode::Kill {
            return match host.kill(vm.id)? {
                true => Ok(()),
                false => host.life(vm.id).remove(),
            };
        }
        match (mode, host.look(vm)?) {
            (StopMode::Pause, Machine::Running) => host.pause(vm.id),
            (StopMode::Shutdown, Machine::Paused) => {
                self.start_vm(vm)?;
                host.order(vm.id, "system_powerdown")
            }
            (StopMode::Shutdown, Machine::Running) => host.order(vm.id, "system_powerdown"),
            (StopMode::Suspend, Machine::Outdated) => host.kill(vm.id).map(drop),
            (StopMode::Suspend, seen @ (Machine::Running | Machine::Paused)) => {
                hold::suspend(host, vm, seen == Machine::Running)
            }
            _ => Ok(()),
        }
    }

    fn update_vm(&self, vm: &Vm) -> Result<(), EngineError> {
        let host = self.host()?;
        match host.look(vm)? {
            Machine::Running => disk::update(&host.remains(vm.id), vm),
            Machine::Paused if host.is_loaded(vm)? => disk::update(&host.remains(vm.id), vm),
            _ => Ok(()),
        }
    }

    fn prepare_hold(&self, vm: &Vm, memory: Option<&str>) -> Result<Box<dyn Hold>, EngineError> {
        hold::prepare(self.host()?, vm, memory)
    }

    fn remove_memory(&self, vm: &Vm) -> Result<(), EngineError> {
        let host = self.host()?;
        host.end_stray_mould(vm.id)?;
        let needs_mark = |incarnation| crate::memory::needs_mark(vm, incarnation);
        memory::remove(&host.config.layout, vm.id, &crate::memory::named(vm), needs_mark)
    }

    fn memories(&self) -> Result<Vec<VmId>, EngineError> {
        memory::ids(&self.host()?.config.layout)
    }

    fn remove_stray_memory(&self, id: VmId) -> Result<(), EngineError> {
        let host = self.host()?;
        host.end_stray_mould(id)?;
        memory::remove(&host.config.layout, id, &[], |_| false)
    }

    fn machines(&self) -> Result<Vec<VmId>, EngineError> {
        let host = self.host()?;
        remains::ids(&host.config.layout, &host.groups)
    }

    fn clear(&self, id: VmId) -> Result<bool, EngineError> {
        let host = self.host()?;
        host.end_stray_mould(id)?;
        host.remains(id).clear()
    }

    fn close(&self) {
        if self.machines().is_ok_and(|ids| ids.is_empty())
            && let Ok(host) = self.host()
        {
            remains::close(&host.config.layout, &host.groups);
        }
    }
}

fn unusable(why: &str) -> EngineError {
    EngineError::Unusable { engine: NAME, why: why.to_owned() }
}
