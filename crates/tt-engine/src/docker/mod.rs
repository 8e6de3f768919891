//! The Docker driver: a container for each Vm, found again by its labels. The container is the disk, too: what it wrote
//! stays in it while it has no process, so a machine is removed without it, and the back end `docker` of `tt-storage`
//! removes it with the disk. The driver keeps no machine in memory and never waits for a guest but for its first moment.

mod begin;
mod door;
mod follow;
mod hold;
mod host;
mod spec;

use crate::{EngineError, Hold, Machine, VmEngine, Wake};
use host::Host;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use tt_docker::Docker;
use tt_model::{EngineFacts, Layout, StopMode, Vm, VmEngineFeat, VmId, feat};

const NAME: &str = "docker";
const FEATURES: VmEngineFeat = feat::PAUSE
    | feat::SHUTDOWN
    | feat::SNAPSHOT
    | feat::LIVE_UPDATE
    | feat::NAT
    | feat::FLAT
    | feat::EXEC;

/// Gives containers their network. The network plane has made the member's port before, and knows what it needs.
pub trait Plug: Send + Sync + fmt::Debug {
    /// Moves the other end of the Vm's port into the network namespace `into`, as `eth0`, up, with address and route;
    /// loopback is up, too. One that is there already is fine.
    ///
    /// # Errors
    /// The port is not there, or the kernel refuses.
    fn plug(&self, vm: &Vm, into: BorrowedFd<'_>) -> io::Result<()>;

    /// Makes the port ready to be plugged in again: it ended with the container's namespace. An absent one is fine.
    ///
    /// # Errors
    /// The kernel refuses.
    fn unplug(&self, vm: &Vm) -> io::Result<()>;
}

/// What the driver is told once.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    /// Where its things go.
    pub layout: Layout,
    /// The daemon that runs the containers.
    pub docker: Arc<Docker>,
    /// The agent, a static program; every container finds it at [`tt_guest::container::AGENT`].
    pub agent: PathBuf,
    /// Gives containers their network.
    pub plug: Arc<dyn Plug>,
}

/// See the module.
#[derive(Debug)]
pub struct DockerEngine {
    config: DockerConfig,
    host: OnceLock<Arc<Host>>,
}

impl DockerEngine {
    /// A driver that has not looked at the host yet.
    pub fn new(config: DockerConfig) -> Self {
        Self { config, host: OnceLock::new() }
    }

    fn host(&self) -> Result<&Arc<Host>, EngineError> {
        self.host.get().ok_or_else(|| EngineError::Unusable {
            engine: NAME,
            why: "it was not initialised".to_owned(),
        })
    }
}

impl VmEngine for DockerEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn init(&self, wake: Wake) -> EngineFacts {
        let host = self.host.get_or_init(|| Arc::new(Host::open(self.config.clone(), wake)));
        let (version, detail, why) = match host.probe() {
            Ok(found) => (found.version, found.detail, None),
            Err(why) => (String::new(), String::new(), Some(why)),
        };
        EngineFacts { name: NAME.to_owned(), version, detail, features: FEATURES, unusable: why }
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
            Machine::Outdated => return Err(host.replace(vm)),
            Machine::Paused => return host.resume(vm.id),
            Machine::Exited { .. } => host.remove(vm.id, Some(vm))?,
            Machine::Absent => {}
        }
        begin::begin(host, vm)
    }

    fn stop_vm(&self, vm: &Vm, mode: StopMode) -> Result<(), EngineError> {
        let host = self.host()?;
        match mode {
            StopMode::Suspend => Err(EngineError::Mode { engine: NAME, mode }),
            StopMode::Kill => match host.kill(vm.id)? {
                true => Ok(()),
                false => host.remove(vm.id, Some(vm)),
            },
            StopMode::Pause => match host.look(vm)? {
                Machine::Running => host.pause(vm.id),
                _ => Ok(()),
            },
            StopMode::Shutdown => match host.look(vm)? {
                Machine::Running => host.shut_down(vm.id),
                Machine::Paused => {
                    host.resume(vm.id)?;
                    host.shut_down(vm.id)
                }
                _ => Ok(()),
            },
        }
    }

    fn update_vm(&self, vm: &Vm) -> Result<(), EngineError> {
        self.host()?.update(vm)
    }

    fn prepare_hold(&self, vm: &Vm, memory: Option<&str>) -> Result<Box<dyn Hold>, EngineError> {
        hold::prepare(self.host()?, vm, memory)
    }

    fn remove_memory(&self, _: &Vm) -> Result<(), EngineError> {
        Ok(())
    }

    fn memories(&self) -> Result<Vec<VmId>, EngineError> {
        Ok(Vec::new())
    }

    fn remove_stray_memory(&self, _: VmId) -> Result<(), EngineError> {
        Ok(())
    }

    fn machines(&self) -> Result<Vec<VmId>, EngineError> {
        self.host()?.machines()
    }

    fn clear(&self, id: VmId) -> Result<bool, EngineError> {
        self.host()?.clear(id)
    }

    fn close(&self) {
        if let Ok(host) = self.host() {
            host.close();
        }
    }
}
