//! One machine: from the plan to a running process, and from what is left to how it ended.

use super::channels::{API, console};
use super::host::Usable;
use super::request::{self, MachineSpec, SEED};
use super::view::{self, INITRAMFS, KERNEL, PROGRAM, inside};
use super::{FirecrackerConfig, Host, NAME, unusable};
use crate::cgroup::Limits;
use crate::life::{INCARNATION, LOADING, PAUSED};
use crate::limit::DiskLimit;
use crate::memory::files::Memory;
use crate::process::{Confined, Process};
use crate::remains::{self, MESSAGES, Remains, give, note};
use crate::{EngineError, Machine, seed, tap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use tt_model::template::FEATURE_KERNEL;
use tt_model::{MachineSize, Vm, names};

/// What Firecracker needs beside the guest's memory, in MB: itself (some 5), the kernel's tables for the guest, and room in
/// which pages of a snapshot wait to be written.
const PROGRAM_MB: u32 = 96;
/// Threads beside the processors': main loop, API, and what the kernel counts with them for KVM.
const THREADS: u32 = 16;
/// Firecracker's bound of processors.
const CPU_NUM_MAX: u16 = 32;
/// Below a machine's directory: what its program says of its own life. It may write to it, and not put another in its place.
pub(super) const LOG: &str = "log";
/// Below a machine's directory: what it begins from beside its memory.
pub(super) const STATE: &str = "state";
/// Below a machine's directory: there if the guest has booted in this process, so that what it never touched is zero.
pub(super) const BOOTED: &str = "booted";
/// What Firecracker says last when its guest has reset the machine, which is how one of its guests ends.
const CLEAN: &str = "Firecracker exiting successfully. exit_code=0";
/// How an ELF file begins: no other kernel is taken by all versions.
const ELF: [u8; 4] = *b"\x7fELF";

impl Host {
    /// Starts a machine of which there is nothing: from memory if there is some, else by booting.
    pub fn begin(&self, vm: &Vm) -> Result<(), EngineError> {
        let usable = self.usable.as_ref().map_err(|why| unusable(why))?;
        let layout = &self.config.layout;
        let memory = Memory::of(layout, vm)?;
        let state = memory.as_ref().map(|m| m.check(&usable.writer(), vm.machine)).transpose()?;
        let spec = describe(&self.config, vm)?;
        let remains = self.remains(vm.id);
        let begins = memory.as_ref().zip(state.as_deref());
        let process = start(&self.config, usable, &remains, vm, begins)?;
        let pid = process.pid;
        tracing::debug!(vm = %vm.id, pid, from_memory = memory.is_some(), "machine started");
        if let Some(watcher) = &self.watcher {
            let watched = watcher.watch(vm.id, process);
            watched.map_err(|source| EngineError::Process { action: "watch", pid, source })?;
        }
        let begun = match memory {
            Some(memory) => self.load(vm, &memory).map_err(|error| {
                let problem = format!("{} {}", crate::error::chain(&error), last_words(&remains));
                EngineError::Load { path: memory.dir, problem }
            }),
            None => self.boot(vm, &spec),
        };
        if begun.is_err() {
            self.life(vm.id).end()?;
        }
        begun
    }

    fn boot(&self, vm: &Vm, spec: &MachineSpec) -> Result<(), EngineError> {
        note(&self.remains(vm.id), BOOTED, "")?;
        // Before it has them: one that was not told all is no machine.
        spec.limit.note_told(&self.remains(vm.id))?;
        let mut api = self.first_api(vm.id)?;
        request::boot(spec).iter().try_for_each(|request| api.ask(request).map(drop))?;
        self.forget_pause(vm.id)
    }

    fn load(&self, vm: &Vm, memory: &Memory) -> Result<(), EngineError> {
        let request = request::load(&names::tap(vm.id), vm.machine.mem_size);
        self.first_api(vm.id)?.ask(&request)?;
        // It has those of the machine whose memory it is.
        self.limit(vm)?;
        let state = self.remains(vm.id).file(STATE);
        remains::gone(fs::remove_file(&state), &state)?;
        memory.consume(&self.config.layout, vm)?;
        self.go_on(vm.id)
    }
}

/// What can be known of a machine before anything of it is made: a start that can not succeed leaves nothing.
fn describe(config: &FirecrackerConfig, vm: &Vm) -> Result<MachineSpec, EngineError> {
    let refuse = |what: &str, problem: &str| {
        let (what, problem) = (what.to_owned(), problem.to_owned());
        Err(EngineError::Describe { engine: NAME, what, problem })
    };
    let MachineSize { cpu_num, mem_size } = vm.machine;
    if !(1..=CPU_NUM_MAX).contains(&cpu_num) {
        return refuse(&format!("{cpu_num} processors"), "1 to 32 are possible");
    }
    if mem_size == 0 {
        return refuse("0 MB of memory", "it needs 1 MB or more");
    }
    if vm.storage.is_layered() {
        return refuse("a disk of layers", "its disks have to be raw; configure storage `file`");
    }
    if !vm.template.has(FEATURE_KERNEL) {
        return refuse("a template without a kernel", "it has no firmware; use one with a kernel");
    }
    let dir = config.layout.template(vm);
    let (kernel, initramfs) = (dir.join(KERNEL), dir.join(INITRAMFS));
    let mut magic = [0; ELF.len()];
    File::open(&kernel).and_then(|mut f| f.read_exact(&mut magic)).map_err(read(&kernel))?;
    if magic != ELF {
        return refuse("a packed kernel", "it starts ELF kernels (`vmlinux`) only");
    }
    for path in [&initramfs, &config.layout.disk(vm)] {
        fs::metadata(path).map_err(read(path))?;
    }
    Ok(MachineSpec {
        cpu_num,
        mem_mb: mem_size,
        machine_id: vm.machine_id.clone(),
        has_seed: vm.has_seed(),
        limit: DiskLimit::of(vm),
        mac: vm.resource.mac_addr,
        tap: names::tap(vm.id),
    })
}

/// Makes everything that the machine needs, then its process, which waits to be told what it is. `begins`: the memory that it
/// begins from, and its state.
fn start(
    config: &FirecrackerConfig,
    usable: &Usable,
    remains: &Remains<'_>,
    vm: &Vm,
    begins: Option<(&Memory, &[u8])>,
) -> Result<Process, EngineError> {
    let layout = &config.layout;
    let seed = match vm.has_seed() {
        true => Some(seed::image(vm, layout.instance, config.network)?),
        false => None,
    };
    let netns = layout.netns(vm.env_id);
    // Opened by name, it would silently be made if it were not there; and another machine may still have it.
    drop(tap::open(&netns, &names::tap(vm.id))?);
    let netns = File::open(&netns).map_err(read(&netns))?;

    let (uid, disk) = (layout.uid(vm.id), layout.disk(vm));
    let dir = remains.make_dirs(uid)?;
    let doors = remains.make_cgroup(&limits(vm.machine, false))?;
    give(&disk, Some(uid), uid)?;
    let stderr = remains.make_messages(MESSAGES)?;
    drop(remains.make_messages(LOG)?);
    give(&remains.file(LOG), Some(uid), uid)?;
    for (name, bytes) in [(SEED, seed.as_deref()), (STATE, begins.map(|(_, state)| state))] {
        bytes.map_or(Ok(()), |bytes| write(&remains.file(name), bytes, uid))?;
    }
    let memory = begins.map(|(memory, _)| memory);
    let jail = view::make(layout, &usable.program, remains, vm, memory)?;
    let stdio = console(remains)?;
    note(remains, INCARNATION, &vm.incarnation.to_string())?;
    // Until it runs nobody may take it for a machine that does.
    note(remains, LOADING, "")?;
    note(remains, PAUSED, "")?;
    remains.begin()?;
    let name = format!("tt-{}-{}", layout.instance, vm.id);
    let confined = Confined {
        program: inside(PROGRAM),
        args: argv(&name),
        dir: &dir,
        uid,
        extra_group: None,
        doors: &doors,
        netns: Some(&netns),
        jail: Some(jail),
        fds: &[],
        stdio: Some(stdio),
        stderr,
    };
    confined
        .spawn()
        .map_err(|source| EngineError::Spawn { program: usable.program.clone(), source })
}

/// Firecracker's arguments, without the program. Of what it says only its own life is kept: guests provoke the rest.
fn argv(name: &str) -> Vec<std::ffi::OsString> {
    let words = ["--id", name, "--api-sock", API, "--level", "Info", "--module", "firecracker"];
    let mut argv: Vec<_> = words.map(Into::into).into();
    argv.extend(["--log-path".into(), inside(LOG).into()]);
    argv
}

/// Lays a file beside the machine's channels, where it may read it.
fn write(path: &Path, bytes: &[u8], uid: u32) -> Result<(), EngineError> {
    remains::gone(fs::remove_file(path), path)?;
    let mut options = OpenOptions::new();
    let made = options.create_new(true).write(true).mode(0o600).open(path);
    made.and_then(|mut file| io::Write::write_all(&mut file, bytes))
        .map_err(|source| EngineError::Make { what: "file", path: path.to_owned(), source })?;
    remains::open_to(path, uid)
}

/// How a machine without a process ended.
pub(super) fn verdict(remains: &Remains<'_>) -> Machine {
    let group = remains.layout.cgroup(remains.id);
    let out_of_memory = remains.groups.was_out_of_memory(&group);
    let (clean, why) =
        judge(remains.begun(), out_of_memory, &remains.messages(LOG), &remains.messages(MESSAGES));
    Machine::Exited { clean, why }
}

fn judge(begun: bool, out_of_memory: bool, log: &str, messages: &str) -> (bool, String) {
    if begun && log.trim_end().ends_with(CLEAN) {
        return (true, "the guest switched itself off".to_owned());
    }
    let said = words(log, messages);
    let why = match (begun, said.is_empty()) {
        (false, _) => "its start or its removal was cut short".to_owned(),
        (true, _) if out_of_memory => {
            "the kernel killed it: it took more memory than its limit".to_owned()
        }
        (true, false) => said,
        (true, true) => "its process was killed".to_owned(),
    };
    (false, why)
}

/// What the program said last about what it could not do.
pub(super) fn last_words(remains: &Remains<'_>) -> String {
    words(&remains.messages(LOG), &remains.messages(MESSAGES))
}

fn words(log: &str, messages: &str) -> String {
    let is_error = |line: &&str| line.contains("rror");
    // `2026-01-01T00:00:00.1 [tt-0001-7:main] words`
    let without_time = |line: &str| line.split_once("] ").map_or(line, |(_, said)| said).to_owned();
    let logged = || log.lines().rev().find(is_error).map(without_time);
    let said = messages.lines().map(str::trim).rfind(|line| !line.is_empty());
    super::api::quote(&said.map(str::to_owned).or_else(logged).unwrap_or_default())
}

/// What a machine of this size may use; see QEMU's for one that began from memory. `saves`: whether it may write its memory to
/// disk, whose pages count with it until they are written, and for good where the disk is memory itself.
pub(super) fn limits(size: MachineSize, saves: bool) -> Limits {
    let mb = u64::from(size.mem_size) * if saves { 2 } else { 1 } + u64::from(PROGRAM_MB);
    Limits { mem_bytes: mb << 20, cpu_num: size.cpu_num, pids: u32::from(size.cpu_num) + THREADS }
}

fn read(path: &Path) -> impl FnOnce(io::Error) -> EngineError {
    move |source| EngineError::Read { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_it_ended_follows_from_what_it_left() {
        let clean = "2026-01-01T00:00:00.1 [tt-0001-7:main] Running Firecracker v1.15.1\n\
                     2026-01-01T00:00:01.1 [tt-0001-7:main] Firecracker exiting successfully. exit_code=0\n";
        let failed = "2026-01-01T00:00:00.1 [x:main] RunWithApi error: no\u{7} kvm\n";
        for ((begun, out_of_memory, log, messages), wanted, part) in [
            ((true, false, clean, ""), true, "switched itself off"),
            ((true, false, "", ""), false, "killed"),
            ((true, true, "", ""), false, "memory"),
            ((true, false, failed, ""), false, "RunWithApi error: no kvm"),
            ((true, false, failed, "Error: odd\n"), false, "Error: odd"),
            ((false, false, clean, ""), false, "cut short"),
            ((true, false, "exit_code=0\nlater\n", ""), false, "killed"),
        ] {
            let (clean, why) = judge(begun, out_of_memory, log, messages);
            assert_eq!(clean, wanted, "{log:?}");
            assert!(why.contains(part) && !why.contains('\u{7}'), "{why:?}");
        }
    }

    #[test]
    fn the_program_is_told_where_its_channels_are() {
        insta::assert_snapshot!(format!("{:?}", argv("tt-0001-7")));
    }
}
