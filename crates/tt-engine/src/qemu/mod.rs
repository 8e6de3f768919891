//! The QEMU driver: a confined, detached process for each machine, found again by its cgroup. It keeps no machine in
//! memory and never waits for a guest.

mod argv;
mod host;
mod kvm;
mod machine;
mod probe;
mod qmp;
mod tap;

use crate::cgroup::Cgroups;
use crate::process::Process;
use crate::remains::{self, Remains};
use crate::watch::Watcher;
use crate::{EngineError, Hold, Machine, VmEngine, Wake};
use host::Usable;
use qmp::Qmp;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};
use tt_model::{EngineFacts, Layout, StopMode, Vm, VmEngineFeat, VmId, feat};

const NAME: &str = "qemu";
const FEATURES: VmEngineFeat =
    feat::PAUSE | feat::SHUTDOWN | feat::NAT | feat::CONSOLE | feat::EXEC;
/// Socket of the monitor, in the machine's directory.
const MONITOR: &str = "qmp.sock";
/// There from before a machine is paused until after it went on: without it nobody needs to ask the monitor.
const PAUSED: &str = "paused";
/// How often the process of a machine is looked up anew because it ended meanwhile.
const LOOKS_MAX: u32 = 10;
/// How long a process that hung up may take to be gone: the kernel frees its memory meanwhile.
const DYING_MAX: Duration = Duration::from_millis(250);

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
    host: OnceLock<Host>,
}

/// What [`VmEngine::init`] found and made.
#[derive(Debug)]
struct Host {
    groups: Cgroups,
    watcher: Option<Watcher>,
    usable: Result<Usable, String>,
}

impl QemuEngine {
    /// A driver that has not looked at the host yet.
    pub fn new(config: QemuConfig) -> Self {
        Self { config, host: OnceLock::new() }
    }

    fn host(&self) -> Result<&Host, EngineError> {
        self.host.get().ok_or_else(|| unusable("it was not initialised"))
    }

    fn remains(&self, id: VmId) -> Result<Remains<'_>, EngineError> {
        Ok(Remains { layout: &self.config.layout, groups: &self.host()?.groups, id })
    }

    /// Whether the machine has a process; if so, its end will be told.
    fn lives(&self, remains: &Remains<'_>) -> Result<bool, EngineError> {
        for _ in 0..LOOKS_MAX {
            let Some(pid) = remains.pids()?.first().copied() else {
                return Ok(false);
            };
            let Some(watcher) = &self.host()?.watcher else {
                return Ok(true);
            };
            if watcher.watches(remains.id, pid) {
                return Ok(true);
            }
            let failed = |source| EngineError::Process { action: "watch", pid, source };
            match Process::open(pid) {
                // Held by its descriptor and still in the cgroup: it is the machine's, not a later one of that number.
                Ok(process) if remains.pids()?.contains(&pid) => {
                    watcher.watch(remains.id, process).map_err(failed)?;
                    return Ok(true);
                }
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(true)
    }

    fn state(&self, remains: &Remains<'_>) -> Result<Machine, EngineError> {
        if self.lives(remains)? {
            if !remains.file(PAUSED).exists() {
                return Ok(Machine::Running);
            }
            let monitor = remains.file(MONITOR);
            match Qmp::connect(&monitor).and_then(|mut qmp| qmp.running()) {
                Ok(true) => return Ok(Machine::Running),
                Ok(false) => return Ok(Machine::Paused),
                Err(error) if self.stays(remains)? => return Err(error),
                Err(_) => {}
            }
        }
        match remains.exist()? {
            true => Ok(machine::verdict(remains)),
            false => Ok(Machine::Absent),
        }
    }

    /// Whether it goes on living: a process that is being killed hangs up before it is gone.
    fn stays(&self, remains: &Remains<'_>) -> Result<bool, EngineError> {
        let until = Instant::now() + DYING_MAX;
        while Instant::now() < until {
            if !self.lives(remains)? {
                return Ok(false);
            }
            thread::sleep(DYING_MAX / 50);
        }
        Ok(true)
    }

    fn pause(&self, remains: &Remains<'_>) -> Result<(), EngineError> {
        let marker = remains.file(PAUSED);
        fs::File::create(&marker).map_err(|source| EngineError::Make {
            what: "marker",
            path: marker,
            source,
        })?;
        Qmp::connect(&remains.file(MONITOR))?.run("stop")
    }

    fn resume(&self, remains: &Remains<'_>) -> Result<(), EngineError> {
        Qmp::connect(&remains.file(MONITOR))?.run("cont")?;
        let marker = remains.file(PAUSED);
        match fs::remove_file(&marker) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(EngineError::Remove { path: marker, source })
            }
            _ => Ok(()),
        }
    }

    /// Removes everything of a machine without a process.
    fn remove(&self, remains: &Remains<'_>) -> Result<(), EngineError> {
        match remains.remove()? {
            true => Ok(()),
            false => Err(EngineError::Remove {
                path: self.config.layout.cgroup(remains.id),
                source: io::Error::from_raw_os_error(libc::EBUSY),
            }),
        }
    }
}

impl VmEngine for QemuEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn init(&self, wake: Wake) -> EngineFacts {
        let host = self.host.get_or_init(|| host::prepare(&self.config, wake));
        let (version, detail, why) = match &host.usable {
            Ok(usable) => (usable.version.clone(), usable.detail.clone(), None),
            Err(why) => (String::new(), String::new(), Some(why.clone())),
        };
        EngineFacts { name: NAME.to_owned(), version, detail, features: FEATURES, unusable: why }
    }

    fn check_feat(&self, wanted: &[VmEngineFeat]) -> bool {
        wanted.iter().all(|bits| FEATURES & bits == *bits)
    }

    fn look(&self, vm: &Vm) -> Result<Machine, EngineError> {
        self.state(&self.remains(vm.id)?)
    }

    fn start_vm(&self, vm: &Vm) -> Result<(), EngineError> {
        let remains = self.remains(vm.id)?;
        match self.state(&remains)? {
            Machine::Running => return Ok(()),
            Machine::Paused => return self.resume(&remains),
            Machine::Exited { .. } => self.remove(&remains)?,
            Machine::Absent | Machine::Outdated => {}
        }
        let host = self.host()?;
        let usable = host.usable.as_ref().map_err(|why| unusable(why))?;
        let process = machine::start(&self.config, usable, &remains, vm)?;
        let pid = process.pid;
        tracing::debug!(vm = %vm.id, pid, "machine started");
        if let Some(watcher) = &host.watcher {
            let watched = watcher.watch(vm.id, process);
            watched.map_err(|source| EngineError::Process { action: "watch", pid, source })?;
        }
        Ok(())
    }

    fn stop_vm(&self, vm: &Vm, mode: StopMode) -> Result<(), EngineError> {
        let remains = self.remains(vm.id)?;
        match mode {
            StopMode::Suspend => {
                return Err(EngineError::Mode { engine: NAME, mode });
            }
            // Without asking the monitor: a machine that does not answer can be killed.
            StopMode::Kill if self.lives(&remains)? => return remains.kill().map(drop),
            StopMode::Kill => return self.remove(&remains),
            StopMode::Pause | StopMode::Shutdown => {}
        }
        match (mode, self.state(&remains)?) {
            (StopMode::Pause, Machine::Running) => self.pause(&remains),
            (StopMode::Shutdown, Machine::Paused) => {
                self.resume(&remains)?;
                Qmp::connect(&remains.file(MONITOR))?.run("system_powerdown")
            }
            (StopMode::Shutdown, Machine::Running) => {
                Qmp::connect(&remains.file(MONITOR))?.run("system_powerdown")
            }
            _ => Ok(()),
        }
    }

    fn update_vm(&self, _: &Vm) -> Result<(), EngineError> {
        Ok(())
    }

    fn prepare_hold(&self, _: &Vm, _: Option<&str>) -> Result<Box<dyn Hold>, EngineError> {
        Err(EngineError::Mode { engine: NAME, mode: StopMode::Suspend })
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
        remains::ids(&self.config.layout, &self.host()?.groups)
    }

    fn clear(&self, id: VmId) -> Result<bool, EngineError> {
        let remains = self.remains(id)?;
        match remains.kill()? {
            true => Ok(false),
            false => remains.remove(),
        }
    }

    fn close(&self) {
        if self.machines().is_ok_and(|ids| ids.is_empty())
            && let Ok(host) = self.host()
        {
            remains::close(&self.config.layout, &host.groups);
        }
    }
}

fn unusable(why: &str) -> EngineError {
    EngineError::Unusable { engine: NAME, why: why.to_owned() }
}
