//! Gives the guest its identity and address. Every step looks first and acts on the difference, so it may be repeated.

use std::io;

use tt_guest::message::{Facts, GuestMessage, Setup};

use super::log::say;
use super::{Agent, disk, files, network, time};

/// Does all of the set-up; the answer is for the host.
pub fn run(agent: &Agent, setup: &Setup) -> GuestMessage {
    if agent.options.no_setup {
        return failed("setup", "the agent was started with --no-setup");
    }
    match steps(agent, setup) {
        Ok(disk_mb) => GuestMessage::SetupDone { facts: facts(agent, setup, disk_mb) },
        Err((what, error)) => failed(what, &error.to_string()),
    }
}

/// The answer for a set-up that stopped.
pub fn failed(what: &str, why: &str) -> GuestMessage {
    GuestMessage::SetupFailed { what: what.to_owned(), why: why.to_owned() }
}

/// Says that the guest is ready, the first time that it is.
pub fn note_ready(agent: &Agent, answer: &GuestMessage) {
    if let GuestMessage::SetupDone { facts } = answer
        && agent.ready.set()
        && agent.pid1
    {
        say(format!("ready {} ms after boot", facts.boot_ms));
    }
}

fn steps(agent: &Agent, setup: &Setup) -> Result<u64, (&'static str, io::Error)> {
    let step = |what: &'static str| move |error| (what, error);
    if let Some(entropy) = setup.entropy.as_ref().filter(|_| agent.owns_kernel()) {
        time::add_entropy(entropy).map_err(step("entropy"))?;
    }
    files::set_hostname(&setup.hostname).map_err(step("hostname"))?;
    if let Some(wanted) = &setup.network {
        network::set(wanted).map_err(step("network"))?;
    }
    files::write_names(setup).map_err(step("files"))?;
    files::write_machine_id(setup.machine_id.as_deref()).map_err(step("machine_id"))?;
    files::add_keys(&setup.ssh_keys).map_err(step("ssh_keys"))?;
    // The host's file system is not a container's to grow.
    let disk_mb = if agent.is_container { disk::mounted_mb() } else { disk::grow_root() };
    disk_mb.map_err(step("disk"))
}

fn facts(agent: &Agent, setup: &Setup, disk_mb: u64) -> Facts {
    Facts {
        boot_ms: agent.boot_ms.get().copied().unwrap_or_default(),
        address: setup.network.as_ref().and_then(|wanted| network::address(&wanted.mac)),
        disk_mb,
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
    }
}
