//! The beginning of a machine: its container, its process, its network, and then, only then, its guest.

use super::door::hand_over;
use super::host::{APPLIED, BEGUN, CONTAINER, Host, INCARNATION, applied};
use super::{NAME, spec};
use crate::EngineError;
use crate::remains::{PASSABLE, listen, make_dir};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use tt_docker::{Container, DockerError, Info};
use tt_guest::container::{START_SOCKET, Start};
use tt_guest::entry::Entry;
use tt_model::Vm;

/// What a container's door is below its machine's directory.
const DOOR_DIR: &str = "door";

/// Makes a machine of which there is nothing.
pub(super) fn begin(host: &Host, vm: &Vm) -> Result<(), EngineError> {
    host.has_agent().map_err(|why| EngineError::Unusable { engine: NAME, why })?;
    let name = host.config.layout.container(vm.id, vm.epoch);
    let sockets = prepare(host, vm, &name)?;
    let (entry, is_new) = ensure_container(host, vm, &name)?;
    host.config.docker.start(&name)?;
    let begun = match is_new {
        true => Ok(()),
        // Those that it was made with are an earlier record's. Only one with a process takes others everywhere.
        false => host.config.docker.update(&name, &spec::limits(vm.machine)).map_err(Into::into),
    };
    let begun = begun.and_then(|()| let_begin(host, vm, &name, Start { entry }, &sockets));
    if begun.is_err() {
        // What hangs on is killed by whoever finds it.
        let _ = host.kill(vm.id);
    }
    begun
}

/// The sockets of a machine, listening.
struct Sockets {
    door: UnixListener,
    agent: UnixListener,
    console: UnixListener,
}

/// Makes its directory, and notes what it is going to be.
fn prepare(host: &Host, vm: &Vm, name: &str) -> Result<Sockets, EngineError> {
    let layout = &host.config.layout;
    let dir = layout.vm_dir(vm.id);
    if let Some(all) = dir.parent() {
        make_dir(all, PASSABLE)?;
    }
    make_dir(&dir, 0o700)?;
    host.write_note(vm.id, CONTAINER, name)?;
    host.write_note(vm.id, INCARNATION, &vm.incarnation.to_string())?;
    let door = dir.join(DOOR_DIR);
    // A container's root passes it and finds one socket.
    make_dir(&door, 0o755)?;
    Ok(Sockets {
        door: listen(&door.join(START_SOCKET))?,
        agent: listen(&layout.agent_socket(vm.id))?,
        console: listen(&layout.console_socket(vm.id))?,
    })
}

/// The container, made with the limits of the record if it is not there. Answers its image's process, and whether it was made.
fn ensure_container(
    host: &Host,
    vm: &Vm,
    name: &str,
) -> Result<(Option<Entry>, bool), EngineError> {
    let docker = &host.config.docker;
    if let Some(container) = docker.container(name)? {
        return Ok((spec::entry(&container.config), false));
    }
    let image = host.config.layout.docker_image(vm.id, vm.epoch);
    let found = docker.image(&image)?.ok_or_else(|| EngineError::Read {
        path: image.into(),
        source: io::ErrorKind::NotFound.into(),
    })?;
    let entry = spec::entry(&found.config.unwrap_or_default());
    let door = host.config.layout.vm_dir(vm.id).join(DOOR_DIR);
    let agent = std::path::absolute(&host.config.agent)
        .map_err(|source| EngineError::Read { path: host.config.agent.clone(), source })?;
    let create = |with_size| {
        let layout = &host.config.layout;
        let body = spec::container(layout, vm, &agent, &door, entry.as_ref(), with_size);
        docker.create(name, &body)
    };
    match create(bounds_disks(&docker.info()?)) {
        // Its file system lacks what that takes, and only trying tells.
        Err(DockerError::Refuse { problem, .. }) if problem.contains("storage-opt") => {
            create(false)?;
        }
        created => created?,
    }
    Ok((entry, true))
}

/// Whether the size of a container's disk may be bounded.
fn bounds_disks(info: &Info) -> bool {
    let status = info.driver_status.iter().flatten();
    match info.driver.as_str() {
        "btrfs" | "zfs" | "devicemapper" => true,
        // Podman's name for it has no number.
        "overlay2" | "overlay" => {
            status.clone().any(|(name, value)| name == "Backing Filesystem" && value == "xfs")
        }
        _ => false,
    }
}

/// Joins the process to its network, and then hands it what it waits for.
fn let_begin(
    host: &Host,
    vm: &Vm,
    name: &str,
    start: Start,
    sockets: &Sockets,
) -> Result<(), EngineError> {
    let failed = |problem: String| EngineError::Begin { id: vm.id, problem };
    let pid = pid_of(host, name)?.ok_or_else(|| failed("it ended at once".into()))?;
    let network = open_namespace(pid, "net")?;
    if pid_of(host, name)? != Some(pid) {
        // The number may be another process's by now.
        return Err(failed("it ended at once".into()));
    }
    let plugged = host.config.plug.plug(vm, network.as_fd());
    plugged.map_err(|source| EngineError::Plug { id: vm.id, source })?;
    set_hostname(pid, &vm.name)?;
    // Before it begins: one that has begun is never without them, whoever dies here.
    host.write_note(vm.id, APPLIED, &applied(vm))?;
    host.write_note(vm.id, BEGUN, "")?;
    hand_over(&sockets.door, pid, &start, [&sockets.agent, &sockets.console])
        .map_err(|error| failed(format!("its agent did not come for its start: {error}")))
}

/// The first process of a container that runs.
fn pid_of(host: &Host, name: &str) -> Result<Option<u32>, EngineError> {
    let container = host.config.docker.container(name)?;
    Ok(container.map(|Container { state, .. }| state.pid).filter(|pid| *pid > 0))
}

fn open_namespace(pid: u32, kind: &str) -> Result<File, EngineError> {
    let path = Path::new("/proc").join(pid.to_string()).join("ns").join(kind);
    File::open(&path).map_err(|source| EngineError::Read { path, source })
}

/// Gives a container its host name: it may not do that itself, and Docker knows only the one that it was made with.
pub(super) fn set_hostname(pid: u32, name: &str) -> Result<(), EngineError> {
    let namespace = open_namespace(pid, "uts")?;
    let set = || -> io::Result<()> {
        // The number may be a process's of the host by now.
        let (its, own) = (namespace.metadata()?, std::fs::metadata("/proc/self/ns/uts")?);
        if (its.dev(), its.ino()) == (own.dev(), own.ino()) {
            return Err(io::Error::other("it has no host name of its own"));
        }
        move_into_link_name_space(
            namespace.as_fd(),
            Some(LinkNameSpaceType::HostNameAndNISDomainName),
        )?;
        Ok(rustix::system::sethostname(name.as_bytes())?)
    };
    // On a thread of its own: the caller's stays where it is.
    let done = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("uts".into()).spawn_scoped(scope, set)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    done.map_err(|source| EngineError::Process { action: "name", pid, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_bounded_where_the_driver_can() {
        let info = |driver: &str, backing: &str| Info {
            driver: driver.into(),
            driver_status: Some(vec![("Backing Filesystem".into(), backing.into())]),
            ..Info::default()
        };
        for (driver, backing, bounded) in [
            ("overlay2", "xfs", true),
            ("overlay2", "extfs", false),
            ("overlay", "xfs", true),
            ("btrfs", "", true),
            ("zfs", "", true),
            ("vfs", "xfs", false),
        ] {
            assert_eq!(bounds_disks(&info(driver, backing)), bounded, "{driver} on {backing}");
        }
    }
}
