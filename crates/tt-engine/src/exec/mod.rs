//! Engines of others: a program that is asked, in JSON, what is to be executed as a machine, and how that stands still
//! and ends. See docs/exec-engine.md for what is said.
//!
//! The program starts no process itself. What it answers runs as every machine does: confined, with its own user, in its
//! own control group, detached from the daemon, and found by its id. So whatever the program gets wrong, nothing of a
//! machine is lost or left over.

mod call;
mod machine;
mod protocol;

use crate::cgroup::Cgroups;
use crate::life::{Life, PAUSED};
use crate::remains::{self, Remains, gone, note};
use crate::watch::Watcher;
use crate::{EngineError, Hold, Machine, VmEngine, Wake};
use protocol::{About, Call, Done, PROTOCOL, Request, Stillness, Target};
use serde::de::DeserializeOwned;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use tt_model::{ENGINE_EXEC, EngineFacts, Layout, StopMode, Vm, VmEngineFeat, VmId};

/// What the driver is told once.
#[derive(Clone, Debug)]
pub struct ExecConfig {
    /// Where its things go.
    pub layout: Layout,
    /// The engine's program, an absolute path. It runs as root.
    pub program: PathBuf,
}

/// See the module.
#[derive(Debug)]
pub struct ExecEngine {
    config: ExecConfig,
    host: OnceLock<Host>,
}

/// What [`VmEngine::init`] found and made.
#[derive(Debug)]
struct Host {
    config: ExecConfig,
    groups: Cgroups,
    watcher: Option<Watcher>,
    usable: Result<Usable, String>,
}

#[derive(Clone, Debug)]
struct Usable {
    version: String,
    detail: String,
    features: VmEngineFeat,
}

impl ExecEngine {
    /// A driver that has not looked at the host yet.
    pub fn new(config: ExecConfig) -> Self {
        Self { config, host: OnceLock::new() }
    }

    fn host(&self) -> Result<&Host, EngineError> {
        self.host.get().ok_or_else(|| unusable("it was not initialised"))
    }

    fn features(&self) -> VmEngineFeat {
        let usable = self.host.get().and_then(|host| host.usable.as_ref().ok());
        usable.map_or(0, |usable| usable.features)
    }
}

impl VmEngine for ExecEngine {
    fn name(&self) -> &'static str {
        ENGINE_EXEC
    }

    fn init(&self, wake: Wake) -> EngineFacts {
        let host = self.host.get_or_init(|| prepare(&self.config, wake));
        let (usable, why) = match &host.usable {
            Ok(usable) => (Some(usable.clone()), None),
            Err(why) => (None, Some(why.clone())),
        };
        EngineFacts {
            name: ENGINE_EXEC.to_owned(),
            version: usable.as_ref().map(|usable| usable.version.clone()).unwrap_or_default(),
            detail: usable.map(|usable| usable.detail).unwrap_or_default(),
            features: self.features(),
            unusable: why,
        }
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
            Machine::Running => Ok(()),
            Machine::Outdated => Err(host.life(vm.id).replace(vm)),
            Machine::Paused => host.resume(vm),
            Machine::Exited { .. } => {
                host.life(vm.id).remove()?;
                machine::start(host, vm)
            }
            Machine::Absent => machine::start(host, vm),
        }
    }

    fn stop_vm(&self, vm: &Vm, mode: StopMode) -> Result<(), EngineError> {
        let host = self.host()?;
        if mode != StopMode::Kill && !self.check_feat(&[mode.feature()]) {
            return Err(EngineError::Mode { engine: ENGINE_EXEC, mode });
        }
        // Without asking the program: a machine that it can not deal with can be killed.
        if mode == StopMode::Kill {
            let life = host.life(vm.id);
            return match life.kill()? {
                true => Ok(()),
                false => life.remove(),
            };
        }
        match (mode, host.look(vm)?) {
            (StopMode::Pause, Machine::Running) => {
                note(&host.remains(vm.id), PAUSED, "")?;
                host.order("pause", vm, Call::Pause)
            }
            (StopMode::Shutdown, seen @ (Machine::Running | Machine::Paused)) => {
                if seen == Machine::Paused {
                    host.resume(vm)?;
                }
                host.order("shutdown", vm, Call::Shutdown)
            }
            _ => Ok(()),
        }
    }

    /// A disk that grows is seen at the machine's next start.
    fn update_vm(&self, _vm: &Vm) -> Result<(), EngineError> {
        Ok(())
    }

    fn prepare_hold(&self, _vm: &Vm, _memory: Option<&str>) -> Result<Box<dyn Hold>, EngineError> {
        Err(EngineError::Describe {
            engine: ENGINE_EXEC,
            what: "a snapshot".to_owned(),
            problem: "programs do not hold machines still; see its features".to_owned(),
        })
    }

    fn remove_memory(&self, _vm: &Vm) -> Result<(), EngineError> {
        Ok(())
    }

    fn memories(&self) -> Result<Vec<VmId>, EngineError> {
        Ok(Vec::new())
    }

    fn remove_stray_memory(&self, _id: VmId) -> Result<(), EngineError> {
        Ok(())
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

impl Host {
    fn remains(&self, id: VmId) -> Remains<'_> {
        Remains { layout: &self.config.layout, groups: &self.groups, id }
    }

    fn life(&self, id: VmId) -> Life<'_> {
        Life { remains: self.remains(id), watcher: self.watcher.as_ref() }
    }

    fn look(&self, vm: &Vm) -> Result<Machine, EngineError> {
        let (remains, life) = (self.remains(vm.id), self.life(vm.id));
        if life.lives()? {
            if life.incarnation() < vm.incarnation {
                return Ok(Machine::Outdated);
            }
            if !remains.file(PAUSED).exists() {
                return Ok(Machine::Running);
            }
            match self.ask::<Stillness>("is_paused", vm, Call::IsPaused) {
                Ok(Stillness { paused: true }) => return Ok(Machine::Paused),
                Ok(Stillness { paused: false }) => return Ok(Machine::Running),
                Err(error) if life.stays()? => return Err(error),
                Err(_) => {}
            }
        }
        match remains.exist()? {
            true => Ok(machine::verdict(self, vm)),
            false => Ok(Machine::Absent),
        }
    }

    /// Lets a machine go on that stands still.
    fn resume(&self, vm: &Vm) -> Result<(), EngineError> {
        self.order("resume", vm, Call::Resume)?;
        let marker = self.remains(vm.id).file(PAUSED);
        gone(fs::remove_file(&marker), &marker)
    }

    fn order<'a>(
        &self,
        verb: &'static str,
        vm: &'a Vm,
        call: impl FnOnce(Target<'a>) -> Call<'a>,
    ) -> Result<(), EngineError> {
        self.ask(verb, vm, call).map(|Done {}| ())
    }

    fn ask<'a, T: DeserializeOwned>(
        &self,
        verb: &'static str,
        vm: &'a Vm,
        call: impl FnOnce(Target<'a>) -> Call<'a>,
    ) -> Result<T, EngineError> {
        self.run(verb, call(self.target(vm)))
    }

    fn target<'a>(&self, vm: &'a Vm) -> Target<'a> {
        Target { vm, dir: self.remains(vm.id).own("") }
    }

    fn run<T: DeserializeOwned>(
        &self,
        verb: &'static str,
        call: Call<'_>,
    ) -> Result<T, EngineError> {
        run(&self.config, verb, call)
    }
}

/// Asks the program, and reads its answer.
fn run<T: DeserializeOwned>(
    config: &ExecConfig,
    verb: &'static str,
    call: Call<'_>,
) -> Result<T, EngineError> {
    let failed =
        |problem: String| EngineError::Program { program: config.program.clone(), verb, problem };
    let request = serde_json::to_vec(&Request { protocol: PROTOCOL, call });
    let request = request.map_err(|error| failed(format!("it can not be asked: {error}")))?;
    let answer = call::call(&config.program, verb, &request)?;
    serde_json::from_slice(&answer).map_err(|error| failed(format!("its answer is odd: {error}")))
}

fn prepare(config: &ExecConfig, wake: Wake) -> Host {
    let watcher = Watcher::start(wake).map_err(|e| format!("processes can not be watched ({e})"));
    let groups = Cgroups::detect();
    let usable = check(config).and_then(|usable| match (&groups, &watcher) {
        (Err(why), _) | (_, Err(why)) => Err(why.clone()),
        _ => Ok(usable),
    });
    Host {
        config: config.clone(),
        groups: groups.unwrap_or_else(|_| Cgroups::none()),
        watcher: watcher.ok(),
        usable,
    }
}

fn check(config: &ExecConfig) -> Result<Usable, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("the daemon does not run as root".to_owned());
    }
    remains::make_run_dir(&config.layout).map_err(|error| crate::error::chain(&error))?;
    let about: About =
        run(config, "init", Call::Init).map_err(|error| crate::error::chain(&error))?;
    let features = about.bits().map_err(|why| format!("{}: {why}", config.program.display()))?;
    match about.unusable {
        Some(why) => Err(why),
        None => Ok(Usable { version: about.version, detail: about.detail, features }),
    }
}

fn unusable(why: &str) -> EngineError {
    EngineError::Unusable { engine: ENGINE_EXEC, why: why.to_owned() }
}
