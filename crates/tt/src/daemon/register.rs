//! Who this daemon is: its instance, its host's record, and the block of addresses it hands out.

use super::DaemonError;
use crate::config::Config;
use ipnet::Ipv4Net;
use std::io::{self, Read, Seek, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use tt_host::Clock;
use tt_model::{EngineFacts, Host, HostId, Instance, StorageKind};
use tt_store::tables::{Change, Committed, Row, Tables};

/// Part of the host's memory that Vms do not get, so that host and daemon can live: an eighth.
const MEMORY_RESERVE: u64 = 8;
/// How often an id is asked for again after another daemon took it.
const TRIES: u32 = 16;

/// What a host's record says beside its identity.
pub(super) struct Findings {
    pub(super) engines: Vec<EngineFacts>,
    pub(super) storage: StorageKind,
    pub(super) storage_reason: String,
}

/// The data directory's instance; drawn once, kept in a file of its own.
pub(super) fn instance(data: &Path) -> Result<Instance, DaemonError> {
    let path = data.join("instance");
    let failed = |source| DaemonError::Prepare { path: path.clone(), source };
    match std::fs::read_to_string(&path) {
        Ok(text) => u16::from_str_radix(text.trim(), 16).map(Instance).map_err(|_| {
            failed(io::Error::new(
                io::ErrorKind::InvalidData,
                "it holds no four hexadecimal digits",
            ))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut bytes = [0; 2];
            getrandom::fill(&mut bytes).map_err(|e| failed(e.into()))?;
            let instance = Instance(u16::from_le_bytes(bytes));
            write_whole(&path, format!("{instance}\n").as_bytes()).map_err(failed)?;
            Ok(instance)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Refuses a run directory that a daemon without an instance yet could not claim. Changes nothing.
pub(super) fn check_run(run: &Path) -> Result<(), DaemonError> {
    let path = run.join("instance");
    let failed = |source| DaemonError::Prepare { path: path.clone(), source };
    let is_locked = match std::fs::File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(failed(error)),
        Ok(file) => match tt_store::sqlite::lock_exclusive(&file) {
            Err(std::fs::TryLockError::WouldBlock) => true,
            locked => locked.map(|()| false).map_err(|error| failed(error.into()))?,
        },
    };
    if is_locked || is_used(run) {
        return Err(DaemonError::ClaimRun { dir: run.to_owned() });
    }
    Ok(())
}

/// Whether machines or networks have things of theirs below a run directory.
fn is_used(run: &Path) -> bool {
    ["vm", "netns"].iter().any(|part| holds_any(&run.join(part)))
}

/// Takes the run directory for this daemon. Namespaces, sockets and memory below it are named by
/// ids that every store begins to count at 1, so no other instance may have things of its own here.
/// The claim ends with the value.
pub(super) fn claim_run(run: &Path, instance: Instance) -> Result<std::fs::File, DaemonError> {
    let path = run.join("instance");
    let failed = |source| DaemonError::Prepare { path: path.clone(), source };
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed)?;
    let refused = || DaemonError::ClaimRun { dir: run.to_owned() };
    match tt_store::sqlite::lock_exclusive(&file) {
        Err(std::fs::TryLockError::WouldBlock) => return Err(refused()),
        locked => locked.map_err(|error| failed(error.into()))?,
    }
    let mut owner = String::new();
    file.read_to_string(&mut owner).map_err(failed)?;
    let is_ours = owner.trim() == instance.to_string();
    if !is_ours && is_used(run) {
        return Err(refused());
    }
    file.set_len(0).map_err(failed)?;
    file.rewind().map_err(failed)?;
    writeln!(file, "{instance}").map_err(failed)?;
    Ok(file)
}

/// Refuses to begin anew beside disks of a store that was lost: they would be cleared as strays, or
/// given to other Vms of the same ids.
pub(super) fn check_store_is_ours(data: &Path, known: Option<&Host>) -> Result<(), DaemonError> {
    let dir = data.join("images");
    if known.is_none() && holds_any(&dir) {
        return Err(DaemonError::LostStore { dir });
    }
    Ok(())
}

fn holds_any(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

/// The record of this host as the last daemon left it.
pub(super) fn known_host(tables: &Tables) -> Result<Option<Row<Host>>, DaemonError> {
    // A store of one host: the embedded one.
    Ok(tables.hosts()?.into_iter().next())
}

/// The block that this host hands out: as before, as configured, or the first one that is free.
pub(super) fn block(
    config: &Config,
    known: Option<&Host>,
    tables: &Tables,
) -> Result<Ipv4Net, DaemonError> {
    let wanted = |host: &Host| {
        host.range == config.range && config.block.is_none_or(|block| block == host.block)
    };
    match known {
        Some(host) if wanted(host) => return Ok(host.block),
        Some(host) if !tables.vms()?.is_empty() => {
            return Err(DaemonError::MoveBlock { range: host.range, block: host.block });
        }
        _ => {}
    }
    if let Some(block) = config.block {
        return Ok(block);
    }
    let taken = tt_network::host_networks()?;
    tt_network::choose_block(config.range, &taken)
        .ok_or(DaemonError::ChooseBlock { range: config.range })
}

/// Writes what this host is now.
pub(super) fn register(
    config: &Config,
    known: Option<&Host>,
    block: Ipv4Net,
    findings: Findings,
    tables: &Tables,
    clock: &dyn Clock,
) -> Result<Host, DaemonError> {
    let id = match known {
        Some(host) => host.id,
        None => new_id(tables)?,
    };
    let host = Host {
        id,
        name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        start_timestamp: clock.now(),
        public_addr: config.public_addr.unwrap_or_else(tt_network::public_address),
        underlay_addr: underlay(config),
        range: config.range,
        block,
        port_min: config.port_min,
        port_max: config.port_max,
        cpu_num: config.host.cpu_num.unwrap_or_else(cpu_num),
        mem_size: config.host.mem_size.unwrap_or_else(mem_size),
        disk_size: disk_size(&config.data_dir)?,
        storage: findings.storage,
        storage_reason: findings.storage_reason,
        engines: findings.engines,
    };
    tables.commit(&Change::new().host(&host)?)?;
    Ok(host)
}

/// Where other hosts' tunnels reach this one; nowhere if it has no address but its own loopback.
pub(super) fn underlay(config: &Config) -> Option<Ipv4Addr> {
    let found = || Some(tt_network::public_address()).filter(|addr| !addr.is_loopback());
    config.underlay_addr.or_else(found)
}

fn new_id(tables: &Tables) -> Result<HostId, DaemonError> {
    for _ in 0..TRIES {
        let row = tables.next_id()?;
        let id = row.as_ref().map_or(1, |row| row.value);
        let change = Change::new().next_id(id + 1, row.as_ref())?;
        if let Committed::Done(_) = tables.commit(&change)? {
            return Ok(HostId(id));
        }
    }
    Err(DaemonError::TakeId { tries: TRIES })
}

fn cpu_num() -> u16 {
    let number = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u16::try_from(number).unwrap_or(u16::MAX)
}

fn mem_size() -> u32 {
    let info = rustix::system::sysinfo();
    let bytes = u64::from(info.mem_unit).saturating_mul(info.totalram);
    let mb = bytes >> 20;
    u32::try_from(mb - mb / MEMORY_RESERVE).unwrap_or(u32::MAX)
}

fn disk_size(data: &Path) -> Result<u32, DaemonError> {
    let failed = |source: rustix::io::Errno| DaemonError::Prepare {
        path: data.to_owned(),
        source: source.into(),
    };
    let stat = rustix::fs::statvfs(data).map_err(failed)?;
    Ok(u32::try_from(stat.f_blocks.saturating_mul(stat.f_frsize) >> 20).unwrap_or(u32::MAX))
}

/// Writes a file that is whole or not there, also after a power loss.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_of_somebody_else_is_refused_before_anything_is_made() {
        let run = tempfile::tempdir().unwrap();
        let run = run.path();
        check_run(&run.join("none")).unwrap();
        check_run(run).unwrap();
        let claim = claim_run(run, Instance(7)).unwrap();
        assert!(matches!(check_run(run), Err(DaemonError::ClaimRun { .. })));
        drop(claim);
        check_run(run).unwrap();
        std::fs::create_dir_all(run.join("vm/1")).unwrap();
        assert!(matches!(check_run(run), Err(DaemonError::ClaimRun { .. })));
        assert!(claim_run(run, Instance(7)).is_ok() && claim_run(run, Instance(8)).is_err());
    }
}
