//! The mould: a QEMU that never runs, into which a running machine is copied while it goes on. It takes nothing of the
//! machine's but its memory and its devices' state, and it ends when that lies on disk.

use super::argv::{Channel, Incoming, MachineSpec, Ram, argv};
use super::begin::Boot;
use super::host::Usable;
use super::migration::{self, Progress};
use super::node::Disk;
use super::qmp::Qmp;
use super::{QemuConfig, machine};
use crate::memory::files::STATE_BYTES_MAX;
use crate::process::{self, Confined, Process};
use crate::remains::Remains;
use crate::{EngineError, tap};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::process::Signal;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tt_model::Vm;

/// Below a machine's directory: the mould's messages.
const MESSAGES: &str = "mould-messages";
/// How long a mould may take over what was sent to it: it has the last bit still to read.
const ARRIVE_MAX: Duration = Duration::from_secs(60);
/// How long a state may take.
const STATE_MAX: Duration = Duration::from_secs(60);
/// What a frozen mould's feed holds, in bytes; the kernel takes the least that it does. It is worth some hundred pages.
const FROZEN_BYTES: usize = 1;
/// What the feed holds otherwise; the kernel takes no more than its limit.
const FLOWING_BYTES: usize = 1 << 20;
/// How long a killed mould is waited for: the kernel unmaps its memory meanwhile.
const END_MAX: Duration = Duration::from_secs(5);

/// A mould that takes what is sent to `feed`.
#[derive(Debug)]
pub(super) struct Mould {
    qmp: Qmp,
    /// Where to send to; gone once it is sent.
    pub feed: Option<UnixStream>,
    process: Ended,
}

/// A process that ends, and is reaped, when this is dropped.
#[derive(Debug)]
struct Ended(Process);

impl Drop for Ended {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.0.kill();
        self.0.reap(END_MAX);
    }
}

/// Starts the mould of a machine that has a disk of `disk_bytes`; its memory goes to `ram`.
pub(super) fn start(
    config: &QemuConfig,
    usable: &Usable,
    remains: &Remains<'_>,
    vm: &Vm,
    boot: Boot,
    ram: PathBuf,
    disk_bytes: u64,
) -> Result<Mould, EngineError> {
    let uid = config.layout.uid(vm.id);
    // As a machine's: the pages of its file count as the machine's memory does, and never exceed it.
    let limits = machine::limits(usable.accelerator, vm.machine);
    let doors = remains.groups.create(&remains.mould(), &limits)?;
    let own = remains.own("");
    let dir = File::open(&own).map_err(|source| EngineError::Read { path: own, source })?;
    let (monitor, its_monitor) = pair()?;
    let (feed, its_feed) = pair()?;
    let fds = [tap::nowhere()?, its_monitor.into(), its_feed.into()];
    let [tap, its_monitor, its_feed] = fds.each_ref().map(OwnedFd::as_raw_fd);
    let spec = MachineSpec {
        name: format!("tt-{}-{}-mould", config.layout.instance, vm.id),
        end: None,
        accelerator: usable.accelerator,
        cpu_num: vm.machine.cpu_num,
        mem_mb: vm.machine.mem_size,
        ram: Ram::Shared(ram),
        boot,
        disk: Disk::Null { bytes: disk_bytes },
        seed: vm.has_seed().then_some(Disk::Null { bytes: crate::seed::BYTES }),
        mac: vm.resource.mac_addr,
        tap,
        console: Channel::Null,
        agent: Channel::Null,
        monitor: Channel::Connected(its_monitor),
        waits: true,
        incoming: Some(Incoming::Fd(its_feed)),
    };
    let confined = Confined {
        program: config.binary.clone(),
        args: argv(&spec),
        dir: &dir,
        uid,
        extra_group: usable.kvm_group,
        doors: &doors,
        netns: None,
        jail: None,
        fds: &fds,
        stdio: None,
        stderr: remains.make_messages(MESSAGES)?,
    };
    let process = Ended(
        confined
            .spawn()
            .map_err(|source| EngineError::Spawn { program: config.binary.clone(), source })?,
    );
    drop(fds);
    let qmp = Qmp::over(monitor, &remains.file("mould"))?;
    Ok(Mould { qmp, feed: Some(feed), process })
}

impl Mould {
    /// Takes nothing any more until [`Mould::thaw`]: whoever sends waits, having sent no more than `FROZEN_BYTES`.
    pub fn freeze(&self) -> Result<(), EngineError> {
        self.set_feed(FROZEN_BYTES)?;
        self.signal(Signal::STOP)
    }

    /// Goes on taking what is sent.
    pub fn thaw(&self) -> Result<(), EngineError> {
        self.set_feed(FLOWING_BYTES)?;
        self.signal(Signal::CONT)
    }

    fn set_feed(&self, bytes: usize) -> Result<(), EngineError> {
        let feed = self.feed.as_ref();
        let set = feed.map_or(Ok(()), |feed| set_socket_send_buffer_size(feed, bytes));
        set.map_err(|e| EngineError::Make {
            what: "buffer of the socket",
            path: "pair".into(),
            source: e.into(),
        })
    }

    fn signal(&self, signal: Signal) -> Result<(), EngineError> {
        let process = &self.process.0;
        rustix::process::pidfd_send_signal(&process.fd, signal).map_err(|e| EngineError::Process {
            action: "signal",
            pid: process.pid,
            source: e.into(),
        })
    }

    /// Waits until everything that was sent has arrived, then answers the state without the memory.
    pub fn state(&mut self, target: &Path) -> Result<Vec<u8>, EngineError> {
        migration::wait(&mut self.qmp, target, ARRIVE_MAX, Progress::is_complete)?;
        let (ours, its) = pair()?;
        migration::begin(&mut self.qmp, its.as_fd(), true)?;
        drop(its);
        let failed = |problem| EngineError::Capture { path: target.to_owned(), problem };
        ours.set_read_timeout(Some(STATE_MAX)).map_err(|e| failed(e.to_string()))?;
        let mut state = Vec::new();
        // It ends when the mould has closed its end, which it does when it has sent everything, or fails.
        let read = ours.take(STATE_BYTES_MAX + 1).read_to_end(&mut state);
        read.map_err(|e| failed(format!("read the state: {e}")))?;
        if state.len() as u64 > STATE_BYTES_MAX {
            return Err(failed(format!("the state has more than {STATE_BYTES_MAX} bytes")));
        }
        migration::wait(&mut self.qmp, target, STATE_MAX, Progress::is_complete)?;
        Ok(state)
    }
}

/// Ends the mould of a machine. False if its process is still ending; then its cgroup is still there.
pub(super) fn end(remains: &Remains<'_>) -> Result<bool, EngineError> {
    process::kill_group(remains.groups, &remains.mould())?;
    remains.groups.remove(&remains.mould())
}

/// What the mould said last, for errors.
pub(super) fn last_words(remains: &Remains<'_>) -> String {
    let said = remains.messages(MESSAGES);
    let mut lines = said.lines().rev();
    let error = lines.find(|line| !line.contains(": warning: "));
    error.map(super::qmp::quote).unwrap_or_default()
}

fn pair() -> Result<(UnixStream, UnixStream), EngineError> {
    UnixStream::pair().map_err(|source| EngineError::Make {
        what: "socket",
        path: "pair".into(),
        source,
    })
}
