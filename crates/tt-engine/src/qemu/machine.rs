//! One machine: from the plan to a running process, and from what is left to how it ended.

use super::argv::{Channel, END, Incoming, MachineSpec, Ram, TRANSLATIONS_MB, argv};
use super::host::Usable;
use super::node::Disk;
use super::{Accelerator, MONITOR, NAME, QemuConfig, boot, disk};
use crate::cgroup::Limits;
use crate::life::{INCARNATION, LOADING, PAUSED};
use crate::limit::DiskLimit;
use crate::memory::files::Memory;
use crate::process::{Confined, Process};
use crate::remains::{self, MESSAGES, Remains, give, note};
use crate::{EngineError, Machine, seed, tap};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use tt_model::{MachineSize, StorageKind, Vm, names};

/// What QEMU needs beside the guest's memory and its translations, in MB: its own heap and stacks, device buffers, and
/// a kernel image of 64 MB that it hands to the firmware.
const PROGRAM_MB: u32 = 192;
/// Threads beside the processors': main loop, RCU, and up to 64 workers for disk requests.
const THREADS: u32 = 96;
/// The seed disk, in the machine's directory.
const SEED: &str = "seed";
/// What QEMU says when it obeys a signal of the host's; then it tidies up as for its guest.
const SIGNAL: &str = ": terminating on signal ";
/// QEMU's bound of processors on both machine types without an interrupt remapper.
const CPU_NUM_MAX: u16 = 255;

/// Makes everything that the machine needs, then its process, which boots or, with `memory`, stands still and waits for
/// its state; or for the limits of its disk, if it has some. To be called when there is nothing of it.
pub(super) fn start(
    config: &QemuConfig,
    usable: &Usable,
    remains: &Remains<'_>,
    vm: &Vm,
    memory: Option<&Memory>,
) -> Result<Process, EngineError> {
    let layout = &config.layout;
    check(vm)?;
    // First what may be missing, so that a start that can not succeed leaves nothing behind.
    let boot = boot::prepare(layout, usable, vm)?;
    let seed = match vm.has_seed() {
        true => Some(seed::image(vm, layout.instance, config.network)?),
        false => None,
    };
    let image = layout.disk(vm);
    fs::metadata(&image).map_err(|source| read(&image, source))?;
    let tap = tap::open(&layout.netns(vm.env_id), &names::tap(vm.id))?;

    let uid = layout.uid(vm.id);
    let dir = remains.make_dirs(uid)?;
    let doors = remains.make_cgroup(&limits(usable.accelerator, vm.machine))?;
    give(&image, Some(uid), uid)?;
    let stderr = remains.make_messages(MESSAGES)?;
    note(remains, INCARNATION, &vm.incarnation.to_string())?;
    let listen = |path: &Path| remains::listen(path).map(OwnedFd::from);
    let fds = [
        tap,
        listen(&layout.console_socket(vm.id))?,
        listen(&layout.agent_socket(vm.id))?,
        listen(&remains.file(MONITOR))?,
        listen(&remains.own(END))?,
    ];
    let waits = memory.is_some() || DiskLimit::of(vm) != DiskLimit::default();
    let [tap, console, agent, monitor, end] = fds.each_ref().map(AsRawFd::as_raw_fd);
    let spec = MachineSpec {
        name: format!("tt-{}-{}", layout.instance, vm.id),
        end: Some(end),
        accelerator: usable.accelerator,
        cpu_num: vm.machine.cpu_num,
        mem_mb: vm.machine.mem_size,
        ram: memory.map_or(Ram::Host, |memory| Ram::Private {
            file: memory.ram(),
            read_only: usable.reads_only,
        }),
        boot,
        disk: disk::disk(layout, vm),
        seed: seed.map(|image| make_seed(remains, uid, &image)).transpose()?,
        mac: vm.resource.mac_addr,
        tap,
        console: Channel::Listening(console),
        agent: Channel::Listening(agent),
        monitor: Channel::Listening(monitor),
        waits,
        incoming: memory.map(|_| Incoming::Deferred),
    };
    if memory.is_some() {
        // Until it has loaded its memory nobody may let it run.
        note(remains, LOADING, "")?;
    }
    if waits {
        note(remains, PAUSED, "")?;
    }
    disk::note_chain(remains, vm)?;
    remains.begin()?;
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
        stderr,
    };
    confined.spawn().map_err(|source| EngineError::Spawn { program: config.binary.clone(), source })
}

/// QEMU's name for the format of a disk.
pub(super) fn format(storage: StorageKind) -> &'static str {
    match storage {
        StorageKind::Qcow2 => "qcow2",
        StorageKind::File
        | StorageKind::Btrfs
        | StorageKind::Zfs
        | StorageKind::Zvol
        | StorageKind::Docker => "raw",
    }
}

/// How a machine without a process ended.
pub(super) fn verdict(remains: &Remains<'_>) -> Machine {
    let group = remains.layout.cgroup(remains.id);
    let end = End {
        begun: remains.begun(),
        tidied_up: !remains.own(END).exists(),
        out_of_memory: remains.groups.was_out_of_memory(&group),
        messages: remains.messages(MESSAGES),
    };
    let (clean, why) = end.judge();
    Machine::Exited { clean, why }
}

/// What an ended machine left.
struct End {
    begun: bool,
    tidied_up: bool,
    out_of_memory: bool,
    messages: String,
}

impl End {
    fn judge(&self) -> (bool, String) {
        // What else it said it has lived with: a failed copy of its memory, or what a guest provoked.
        if self.begun && self.tidied_up && !self.messages.contains(SIGNAL) {
            return (true, "the guest switched itself off".to_owned());
        }
        // QEMU marks what it can live with; whatever else it says may be why it ended, on one line or two.
        let lines = self.messages.lines().map(str::trim);
        let errors = lines.filter(|l| !l.is_empty() && !l.contains(": warning: "));
        let errors: Vec<&str> = errors.collect();
        let last = errors.iter().rposition(|l| l.starts_with("qemu"));
        let error = errors.get(last.unwrap_or(0)..).unwrap_or_default().join(" ");
        let error = without_argument(&error);
        let why = match (self.begun, error.is_empty()) {
            (false, _) => "its start or its removal was cut short".to_owned(),
            (true, _) if self.out_of_memory => {
                "the kernel killed it: it took more memory than its limit".to_owned()
            }
            (true, false) => error.chars().filter(|c| !c.is_control()).collect(),
            (true, true) => "its process was killed".to_owned(),
        };
        (false, why)
    }
}

/// QEMU repeats the argument that it could not take: of a node of JSON what follows says enough, with the file's name.
fn without_argument(error: &str) -> String {
    match (error.split_once(" -blockdev {"), error.rsplit_once("}: ")) {
        (Some((program, _)), Some((_, problem))) => format!("{program} {problem}"),
        _ => error.to_owned(),
    }
}

fn check(vm: &Vm) -> Result<(), EngineError> {
    let describe = |what: String, problem: &str| EngineError::Describe {
        engine: NAME,
        what,
        problem: problem.to_owned(),
    };
    match (vm.machine.cpu_num, vm.machine.mem_size) {
        (1..=CPU_NUM_MAX, 1..) => Ok(()),
        (n @ 1..=CPU_NUM_MAX, _) => {
            Err(describe(format!("{n} processors and 0 MB of memory"), "it needs 1 MB or more"))
        }
        (n, _) => Err(describe(format!("{n} processors"), "1 to 255 are possible")),
    }
}

/// Lays the seed beside the machine's sockets, where it may read it. It is made anew for each machine, so a new name is
/// seen at the next boot; what has begun from memory has read it before.
fn make_seed(remains: &Remains<'_>, uid: u32, image: &[u8]) -> Result<Disk, EngineError> {
    let file = remains.file(SEED);
    let made = fs::write(&file, image);
    made.map_err(|source| EngineError::Make { what: "seed disk", path: file.clone(), source })?;
    remains::open_to(&file, uid)?;
    Ok(Disk::Image { format: "raw", file })
}

/// What a machine of this size may use.
///
/// Of one that began from memory, pages of that file count, too; they are clean, so the kernel drops them before it
/// kills anything, and what the guest has changed is bounded by its size.
pub(super) fn limits(accelerator: Accelerator, size: MachineSize) -> Limits {
    let translations = match accelerator {
        Accelerator::Kvm => 0,
        Accelerator::Tcg => TRANSLATIONS_MB,
    };
    let mb = u64::from(size.mem_size) + u64::from(translations + PROGRAM_MB);
    Limits { mem_bytes: mb << 20, cpu_num: size.cpu_num, pids: u32::from(size.cpu_num) + THREADS }
}

pub(super) fn read(path: &Path, source: io::Error) -> EngineError {
    EngineError::Read { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_it_ended_follows_from_what_it_left() {
        let cases = [
            ((true, true, false, ""), true, "switched itself off"),
            ((true, true, false, "qemu: warning: TCG lacks x\n"), true, "switched itself off"),
            ((true, true, false, "qemu: Unable to write to socket\n"), true, "switched itself off"),
            ((true, false, false, ""), false, "killed"),
            ((true, false, true, ""), false, "memory"),
            (
                (true, false, false, "qemu: warning: x\nqemu: -fsdev: no\u{7}\n\n"),
                false,
                "qemu: -fsdev: no",
            ),
            ((true, true, false, "qemu: terminating on signal 15 from\n"), false, "signal 15"),
            (
                (true, false, false, "qemu: no lock\nIs it in use?\n"),
                false,
                "qemu: no lock Is it in use?",
            ),
            (
                (true, false, false, "qemu: -blockdev {\"a\":{\"b\":1}}: '/d' is odd\n"),
                false,
                "qemu: '/d' is odd",
            ),
            ((true, false, false, "odd\n"), false, "odd"),
            ((false, true, false, ""), false, "cut short"),
        ];
        for ((begun, tidied_up, out_of_memory, messages), clean, part) in cases {
            let end = End { begun, tidied_up, out_of_memory, messages: messages.into() };
            let (judged, why) = end.judge();
            assert_eq!(judged, clean, "{messages:?}");
            assert!(why.contains(part) && !why.contains('\u{7}'), "{why:?}");
        }
    }
}
