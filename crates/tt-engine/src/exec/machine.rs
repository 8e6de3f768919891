//! One machine: from the plan, over what the program answers, to a running process; and how it ended.

use super::protocol::{Call, Disk, Ended, Kernel, Program, Start, Verdict};
use super::{Host, unusable};
use crate::cgroup::Limits;
use crate::life::INCARNATION;
use crate::process::Confined;
use crate::remains::{self, MESSAGES, give, note};
use crate::{EngineError, Machine, tap};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use tt_model::template::FEATURE_KERNEL;
use tt_model::{ENGINE_EXEC, Layout, Vm, names};

/// Threads beside the processors': main loops and workers.
const THREADS: u32 = 128;
/// Characters of a program's word on how a machine ended.
const WHY_CHARS_MAX: usize = 500;

/// Makes everything that the machine needs, then its process. To be called when there is nothing of it.
pub(super) fn start(host: &Host, vm: &Vm) -> Result<(), EngineError> {
    if let Err(why) = &host.usable {
        return Err(unusable(why));
    }
    let (layout, remains) = (&host.config.layout, host.remains(vm.id));
    // First what may be missing, so that a start that can not succeed leaves nothing behind.
    let kernel = kernel(layout, vm)?;
    let image = layout.disk(vm);
    check_file(&image)?;
    let tap = tap::open(&layout.netns(vm.env_id), &names::tap(vm.id))?;

    let uid = layout.uid(vm.id);
    let dir = remains.make_dirs(uid)?;
    give(&image, Some(uid), uid)?;
    let stderr = remains.make_messages(MESSAGES)?;
    note(&remains, INCARNATION, &vm.incarnation.to_string())?;
    let listen = |path: &Path| remains::listen(path).map(OwnedFd::from);
    let fds = [tap, listen(&layout.console_socket(vm.id))?, listen(&layout.agent_socket(vm.id))?];
    let [tap_fd, console_fd, agent_fd] = fds.each_ref().map(AsRawFd::as_raw_fd);
    let start = Start {
        target: host.target(vm),
        disk: Disk { path: image, format: format(vm) },
        kernel,
        tap_fd,
        console_fd,
        agent_fd,
    };
    let program: Program = host.run("start", Call::Start(Box::new(start)))?;
    program.check().map_err(|problem| EngineError::Describe {
        engine: ENGINE_EXEC,
        what: format!("what {} answers", host.config.program.display()),
        problem,
    })?;
    let doors = remains.make_cgroup(&limits(vm, &program))?;
    remains.begin()?;
    let confined = Confined {
        program: program.program.clone(),
        args: program.args.into_iter().map(Into::into).collect(),
        dir: &dir,
        uid,
        extra_group: None,
        doors: &doors,
        netns: None,
        jail: None,
        fds: &fds,
        stdio: None,
        stderr,
    };
    let failed = |source| EngineError::Spawn { program: program.program.clone(), source };
    confined.spawn().map(drop).map_err(failed)
}

/// How a machine without a process ended.
pub(super) fn verdict(host: &Host, vm: &Vm) -> Machine {
    let remains = host.remains(vm.id);
    let exited = |clean, why: String| Machine::Exited { clean, why };
    if !remains.begun() {
        return exited(false, "its start or its removal was cut short".to_owned());
    }
    if remains.groups.was_out_of_memory(&remains.layout.cgroup(vm.id)) {
        return exited(
            false,
            "the kernel killed it: it took more memory than its limit".to_owned(),
        );
    }
    let ended = Ended { target: host.target(vm), messages: remains.messages(MESSAGES) };
    match host.run("ended", Call::Ended(ended)) {
        Ok(Verdict { clean, why }) => {
            let why: String = why.chars().filter(|c| !c.is_control()).take(WHY_CHARS_MAX).collect();
            match why.is_empty() {
                true => exited(clean, "its program does not say how it ended".to_owned()),
                false => exited(clean, why),
            }
        }
        Err(error) => exited(false, crate::error::chain(&error)),
    }
}

fn kernel(layout: &Layout, vm: &Vm) -> Result<Option<Kernel>, EngineError> {
    if !vm.template.has(FEATURE_KERNEL) {
        return Ok(None);
    }
    let dir = layout.template(vm);
    let kernel = Kernel { path: dir.join("kernel"), initramfs: dir.join("initramfs") };
    check_file(&kernel.path)?;
    check_file(&kernel.initramfs)?;
    Ok(Some(kernel))
}

fn format(vm: &Vm) -> &'static str {
    if vm.storage.is_layered() { "qcow2" } else { "raw" }
}

fn check_file(path: &Path) -> Result<(), EngineError> {
    let read = |source| EngineError::Read { path: path.to_owned(), source };
    fs::metadata(path).map(drop).map_err(read)
}

fn limits(vm: &Vm, program: &Program) -> Limits {
    let mb = u64::from(vm.machine.mem_size) + u64::from(program.overhead_mb);
    let pids = u32::from(vm.machine.cpu_num) + THREADS;
    Limits { mem_bytes: mb << 20, cpu_num: vm.machine.cpu_num, pids }
}
