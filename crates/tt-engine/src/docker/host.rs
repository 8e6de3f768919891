//! A host's containers: looked at, changed, ended.

use super::follow::Follower;
use super::{DockerConfig, spec};
use crate::remains::{gone, ids_in};
use crate::{EngineError, Machine, Wake};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::PathBuf;
use tt_docker::{Container, DockerError, Listed};
use tt_guest::container::AGAIN_CODE;
use tt_model::names::LABEL_VM;
use tt_model::{Layout, Vm, VmId};

/// In a machine's directory, from before anything else of it: the name of its container.
pub(super) const CONTAINER: &str = "container";
/// The incarnation of its process.
pub(super) const INCARNATION: &str = "incarnation";
/// There once its first process was handed what it starts with, until its remains are removed.
pub(super) const BEGUN: &str = "begun";
/// What was applied last: its limits and its name.
pub(super) const APPLIED: &str = "applied";
/// Longest of these files, in bytes.
const NOTE_BYTES_MAX: u64 = 4096;
/// What the agent takes for an order to end for good.
const POWER_OFF: &str = "SIGUSR2";
/// What a process ends with that was killed (128 and the signal's number).
const KILLED_CODE: i64 = 137;

/// What [`VmEngine::init`](crate::VmEngine::init) found and made.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) config: DockerConfig,
    _follower: Option<Follower>,
}

/// Which Docker there is.
pub(super) struct Found {
    pub(super) version: String,
    pub(super) detail: String,
}

impl Host {
    pub(super) fn open(config: DockerConfig, wake: Wake) -> Self {
        let layout = config.layout.clone();
        let label = layout.docker_label();
        let all = move || local(&layout).unwrap_or_default();
        let follower = Follower::start(config.docker.clone(), label, wake, all);
        let follower = follower
            .inspect_err(|error| tracing::error!(%error, "ends of containers are not told"));
        Self { config, _follower: follower.ok() }
    }

    /// Which Docker there is, or what is missing and how to get it.
    pub(super) fn probe(&self) -> Result<Found, String> {
        self.has_agent()?;
        let docker = &self.config.docker;
        let asked = docker.server().and_then(|server| Ok((server, docker.info()?)));
        match asked {
            Ok((_, info)) if info.remaps_users() => Err(
                "its users are others than the host's (userns-remap or rootless), and the agent in a container could not be \
                 reached; use one without that (`docker.socket`)"
                    .to_owned(),
            ),
            Ok((server, info)) => {
                let name = if server.is_podman() { "Podman, " } else { "" };
                let socket = docker.socket().display();
                let detail = format!("{name}{}, API {}, {socket}", info.driver, server.api_version);
                Ok(Found { version: server.version, detail })
            }
            Err(error) if error.is_away() => Err(format!(
                "no Docker answers at {}; install docker.io or podman and start its service, or name its socket (`docker.socket`)",
                docker.socket().display()
            )),
            Err(error) => Err(crate::error::chain(&error)),
        }
    }

    /// Whether there is an agent, or how to get it.
    pub(super) fn has_agent(&self) -> Result<(), String> {
        let agent = &self.config.agent;
        if agent.is_file() {
            return Ok(());
        }
        let agent = agent.display();
        Err(format!("there is no agent at {agent}; install tt-guest, or name it (`guest_agent`)"))
    }

    pub(super) fn file(&self, id: VmId, name: &str) -> PathBuf {
        self.config.layout.vm_dir(id).join(name)
    }

    /// What a file in a machine's directory says.
    pub(super) fn note(&self, id: VmId, name: &str) -> Option<String> {
        let path = self.file(id, name);
        let is_short = fs::metadata(&path).is_ok_and(|meta| meta.len() <= NOTE_BYTES_MAX);
        is_short.then(|| fs::read_to_string(&path).ok()).flatten()
    }

    pub(super) fn write_note(&self, id: VmId, name: &str, text: &str) -> Result<(), EngineError> {
        let path = self.file(id, name);
        fs::write(&path, text).map_err(|source| EngineError::Make { what: "marker", path, source })
    }

    /// Its container that has a process, of whatever epoch: the one that was noted, or that is found where the note was
    /// lost. Lists lag behind what containers do, so each is asked itself.
    pub(super) fn living(&self, id: VmId) -> Result<Option<Container>, EngineError> {
        let docker = &self.config.docker;
        let name = match self.note(id, CONTAINER) {
            Some(name) => Some(name),
            None => {
                let labels = [self.config.layout.docker_label(), format!("{LABEL_VM}={id}")];
                let listed = docker.containers(&labels)?;
                let mut own = listed.into_iter().filter(|container| self.is_own(container));
                own.find(Listed::has_process).map(|listed| listed.id)
            }
        };
        let found = name.map(|name| docker.container(&name)).transpose()?.flatten();
        Ok(found.filter(|container| container.state.has_process()))
    }

    /// Whether it is a machine of this daemon. Its labels alone do not say so: whoever makes a container of an image that was
    /// kept makes one with the same labels.
    fn is_own(&self, container: &Listed) -> bool {
        let prefix = self.config.layout.container_prefix();
        container.name().is_some_and(|name| name.starts_with(&prefix))
    }

    pub(super) fn look(&self, vm: &Vm) -> Result<Machine, EngineError> {
        let Some(living) = self.living(vm.id)? else {
            return match self.file(vm.id, "").exists() {
                true => self.verdict(vm.id),
                false => Ok(Machine::Absent),
            };
        };
        match self.note(vm.id, INCARNATION).and_then(|text| text.parse::<u32>().ok()) {
            Some(found) if found >= vm.incarnation && living.state.is_paused() => {
                Ok(Machine::Paused)
            }
            Some(found) if found >= vm.incarnation => Ok(Machine::Running),
            // One whose directory was lost can not be reached any more.
            _ => Ok(Machine::Outdated),
        }
    }

    /// How a machine without a process ended.
    fn verdict(&self, id: VmId) -> Result<Machine, EngineError> {
        let exited = |clean, why: &str| Ok(Machine::Exited { clean, why: why.to_owned() });
        let Some(name) = self.note(id, CONTAINER).filter(|_| self.file(id, BEGUN).exists()) else {
            return exited(false, "its start or its removal was cut short");
        };
        match self.config.docker.container(&name)? {
            None => {
                exited(false, "somebody removed its container, and with it what it had written")
            }
            Some(Container { state, .. }) if state.oom_killed => {
                exited(false, "the kernel killed it: it took more memory than its limit")
            }
            Some(Container { state, .. }) => match state.exit_code {
                0 => exited(true, "the guest switched itself off"),
                code if code == i64::from(AGAIN_CODE) => {
                    exited(false, "it was told to end, and begins anew")
                }
                KILLED_CODE => exited(false, "its process was killed"),
                code => exited(false, &format!("its first process ended with code {code}")),
            },
        }
    }

    /// That a machine of an earlier incarnation is in the way.
    pub(super) fn replace(&self, vm: &Vm) -> EngineError {
        let found = self.note(vm.id, INCARNATION).and_then(|text| text.parse().ok());
        EngineError::Replace { id: vm.id, found: found.unwrap_or_default(), wanted: vm.incarnation }
    }

    pub(super) fn pause(&self, id: VmId) -> Result<(), EngineError> {
        match self.living(id)? {
            Some(living) if !living.state.is_paused() => {
                at_rest(self.config.docker.pause(&living.id))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn resume(&self, id: VmId) -> Result<(), EngineError> {
        match self.living(id)? {
            Some(living) => at_rest(self.config.docker.unpause(&living.id)),
            None => Ok(()),
        }
    }

    pub(super) fn shut_down(&self, id: VmId) -> Result<(), EngineError> {
        match self.living(id)? {
            Some(living) => at_rest(self.config.docker.kill(&living.id, POWER_OFF)),
            None => Ok(()),
        }
    }

    /// Kills its process. True if there was one.
    pub(super) fn kill(&self, id: VmId) -> Result<bool, EngineError> {
        let Some(living) = self.living(id)? else { return Ok(false) };
        // Docker lets what stands still go on for it.
        at_rest(self.config.docker.kill(&living.id, "SIGKILL"))?;
        Ok(true)
    }

    /// Removes what is left of a machine without a process; the container, its disk, stays.
    pub(super) fn remove(&self, id: VmId, vm: Option<&Vm>) -> Result<(), EngineError> {
        // First what says that there was a process, so that a removal cut short is not taken for a clean end.
        let begun = self.file(id, BEGUN);
        gone(fs::remove_file(&begun), &begun)?;
        if let Some(vm) = vm.filter(|_| self.file(id, CONTAINER).exists()) {
            let unplugged = self.config.plug.unplug(vm);
            unplugged.map_err(|source| EngineError::Plug { id, source })?;
        }
        let dir = self.config.layout.vm_dir(id);
        gone(fs::remove_dir_all(&dir), &dir)
    }

    /// Brings limits and name of a living machine to those of the record.
    pub(super) fn update(&self, vm: &Vm) -> Result<(), EngineError> {
        let wanted = applied(vm);
        // Without asking Docker where there is nothing to do.
        let begun = self.file(vm.id, BEGUN).exists();
        if !begun || self.note(vm.id, APPLIED).is_some_and(|note| note == wanted) {
            return Ok(());
        }
        let Some(living) = self.living(vm.id)? else { return Ok(()) };
        self.config.docker.update(&living.id, &spec::limits(vm.machine))?;
        super::begin::set_hostname(living.state.pid, &vm.name)?;
        self.write_note(vm.id, APPLIED, &wanted)
    }

    pub(super) fn machines(&self) -> Result<Vec<VmId>, EngineError> {
        let mut ids = local(&self.config.layout)?;
        match self.config.docker.containers(&[self.config.layout.docker_label()]) {
            Ok(all) => {
                let living = all.iter().filter(|container| container.has_process());
                let own = living.filter(|container| self.is_own(container));
                let named = own.filter_map(|container| container.label(LABEL_VM));
                ids.extend(named.filter_map(|id| id.parse().ok()).map(VmId));
            }
            // What runs there has a directory here, too; and a Docker that is no use must not hold up who looks for what
            // is left of all engines.
            Err(error) => tracing::debug!(%error, "containers are not listed"),
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    pub(super) fn clear(&self, id: VmId) -> Result<bool, EngineError> {
        match self.kill(id) {
            Ok(true) => return Ok(false),
            Ok(false) => {}
            // It can have nothing where there is nothing of it here.
            Err(EngineError::Docker(error)) if error.is_away() => {
                if self.file(id, CONTAINER).exists() {
                    return Err(error.into());
                }
                return Ok(true);
            }
            Err(error) => return Err(error),
        }
        self.remove(id, None)?;
        Ok(true)
    }

    pub(super) fn close(&self) {
        // Refuses if something is left in it after all, and then has to stay.
        let _ = fs::remove_dir(self.config.layout.run.join("vm"));
    }
}

/// What stands for all that [`Host::update`] applies.
pub(super) fn applied(vm: &Vm) -> String {
    format!("{} {}", spec::limits(vm.machine).docker(), vm.name)
}

/// Every id that has a directory with a container's name in it.
fn local(layout: &Layout) -> Result<Vec<VmId>, EngineError> {
    let mut ids = ids_in(&layout.run.join("vm"))?;
    ids.retain(|id| match File::open(layout.vm_dir(*id).join(CONTAINER)) {
        Err(e) => e.kind() != ErrorKind::NotFound,
        Ok(_) => true,
    });
    Ok(ids)
}

/// That a container is not there, or is in the wanted state, is no failure.
fn at_rest(done: Result<(), DockerError>) -> Result<(), EngineError> {
    match done {
        Err(error) if error.is_absent() || error.is_conflict() => Ok(()),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tt_model::{StorageKind, sample};

    #[test]
    fn what_was_applied_names_limits_and_name() {
        let vm = sample::vm(7, "docker", StorageKind::Docker);
        let mut other = vm.clone();
        assert_eq!(applied(&vm), applied(&other));
        other.name = "x".into();
        assert_ne!(applied(&vm), applied(&other));
        other.name.clone_from(&vm.name);
        other.machine.mem_size += 1;
        assert_ne!(applied(&vm), applied(&other));
    }
}
