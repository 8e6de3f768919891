//! The Firecracker driver: a confined, detached process for each machine, found again by its cgroup, and asked over its API
//! socket. It keeps no machine in memory and never waits for a guest.

mod api;
mod channels;
mod hold;
mod host;
mod machine;
mod request;
mod state;
mod view;

use crate::cgroup::Cgroups;
use crate::life::Life;
use crate::memory::files as memory;
use crate::remains::{self, Remains};
use crate::watch::Watcher;
use crate::{EngineError, GuestNetwork, Hold, Machine, VmEngine, Wake};
use host::Usable;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use tt_model::{EngineFacts, Layout, StopMode, Vm, VmEngineFeat, VmId, feat};

const NAME: &str = "firecracker";
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

/// What the driver is told once.
#[derive(Clone, Debug)]
pub struct FirecrackerConfig {
    /// Where its things go.
    pub layout: Layout,
    /// Firecracker: a path, or a name that is looked up in `PATH` (`firecracker`).
    pub binary: PathBuf,
    /// Whether KVM has to work. Only a stand-in in tests runs without.
    pub needs_kvm: bool,
    /// Whether new disks of this host are layers, which Firecracker can not read.
    pub has_layers: bool,
    /// What guests that set their network up themselves are told of it.
    pub network: GuestNetwork,
}

/// See the module.
#[derive(Debug)]
pub struct FirecrackerEngine {
    config: FirecrackerConfig,
    host: OnceLock<Arc<Host>>,
}

/// What [`VmEngine::init`] found and made.
#[derive(Debug)]
struct Host {
    config: FirecrackerConfig,
    groups: Cgroups,
    watcher: Option<Watcher>,
    usable: Result<Usable, String>,
}

impl FirecrackerEngine {
    /// A driver that has not looked at the host yet.
    pub fn new(config: FirecrackerConfig) -> Self {
        Self { config, host: OnceLock::new() }
    }

    fn host(&self) -> Result<&Arc<Host>, EngineError> {
        self.host.get().ok_or_else(|| unusable("it was not initialised"))
    }
}

impl Host {
    fn remains(&self, id: VmId) -> Remains<'_> {
        Remains { layout: &self.config.layout, groups: &self.groups, id }
    }

    fn life(&self, id: VmId) -> Life<'_> {
        Life { remains: self.remains(id), watcher: self.watcher.as_ref() }
    }
}

impl VmEngine for FirecrackerEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn init(&self, wake: Wake) -> EngineFacts {
        let host = self.host.get_or_init(|| Arc::new(host::prepare(&self.config, wake)));
        let (version, detail, why) = match &host.usable {
            Ok(usable) => (usable.version.clone(), usable.detail.clone(), None),
            Err(why) => (String::new(), String::new(), Some(why.clone())),
        };
        let name = NAME.to_owned();
        EngineFacts { name, version, detail, features: FEATURES, unusable: why }
    }

    fn check_feat(&self, wanted: &[VmEngineFeat]) -> bool {
        wanted.iter().all(|bits| FEATURES & bits == *bits)
    }

    fn look(&self, vm: &Vm) -> Result<Machine, EngineError> {
        self.host()?.look(vm)
    }

    fn start_vm(&self, vm: &Vm) -> Result<(), EngineError> {
        let host = self.host()?;
        match host.look(vm)? {
            Machine::Running => return Ok(()),
            Machine::Outdated => return Err(host.life(vm.id).replace(vm)),
            Machine::Paused if host.can_go_on(vm)? => return host.resume(vm),
            Machine::Paused => host.life(vm.id).end()?,
            Machine::Exited { .. } => host.life(vm.id).remove()?,
            Machine::Absent => {}
        }
        host.begin(vm)
    }

    fn stop_vm(&self, vm: &Vm, mode: StopMode) -> Result<(), EngineError> {
        let host = self.host()?;
        // Without asking the program: a machine that does not answer can be killed.
        if mode == StopMode::Kill {
            return match host.life(vm.id).kill()? {
                true => Ok(()),
                false => host.life(vm.id).remove(),
            };
        }
        match (mode, host.look(vm)?) {
            (StopMode::Pause, Machine::Running) => host.pause(vm.id),
            (StopMode::Shutdown, Machine::Paused) => {
                self.start_vm(vm)?;
                host.ask(vm.id, &request::ask_to_end())
            }
            (StopMode::Shutdown, Machine::Running) => host.ask(vm.id, &request::ask_to_end()),
            (StopMode::Suspend, Machine::Outdated) => host.life(vm.id).kill().map(drop),
            (StopMode::Suspend, seen @ (Machine::Running | Machine::Paused)) => {
                hold::suspend(host, vm, seen == Machine::Running)
            }
            _ => Ok(()),
        }
    }

    fn update_vm(&self, vm: &Vm) -> Result<(), EngineError> {
        let host = self.host()?;
        match host.look(vm)? {
            Machine::Running => host.update_disk(vm),
            Machine::Paused if host.can_go_on(vm)? => host.update_disk(vm),
            _ => Ok(()),
        }
    }

    fn prepare_hold(&self, vm: &Vm, memory: Option<&str>) -> Result<Box<dyn Hold>, EngineError> {
        hold::prepare(self.host()?, vm, memory)
    }

    fn remove_memory(&self, vm: &Vm) -> Result<(), EngineError> {
        let needs_mark = |incarnation| crate::memory::needs_mark(vm, incarnation);
        let layout = &self.host()?.config.layout;
        memory::remove(layout, vm.id, &crate::memory::named(vm), needs_mark)
    }

    fn memories(&self) -> Result<Vec<VmId>, EngineError> {
        memory::ids(&self.host()?.config.layout)
    }

    fn remove_stray_memory(&self, id: VmId) -> Result<(), EngineError> {
        memory::remove(&self.host()?.config.layout, id, &[], |_| false)
    }

    fn machines(&self) -> Result<Vec<VmId>, EngineError> {
        let host = self.host()?;
        remains::ids(&host.config.layout, &host.groups)
    }

    fn clear(&self, id: VmId) -> Result<bool, EngineError> {
        self.host()?.remains(id).clear()
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
