//! What a machine's program sees of the host: a root of its own, in which few things lie under the same names for every machine.

use super::machine::{LOG, STATE};
use super::request::{DISK, SEED};
use super::{Host, channels};
use crate::EngineError;
use crate::jail::{self, Jail};
use crate::memory::files::Memory;
use crate::process::Process;
use crate::remains::{OWN, Remains, note};
use std::io;
use std::path::{Path, PathBuf};
use tt_model::{Layout, Vm, VmId};

/// The program.
pub(super) const PROGRAM: &str = "firecracker";
/// What a machine boots.
pub(super) const KERNEL: &str = "kernel";
/// What its kernel finds first.
pub(super) const INITRAMFS: &str = "initramfs";
/// The memory that a machine begins from.
pub(super) const RAM: &str = "ram";
/// Where a machine writes its memory to, while it does.
const SAVED: &str = "saved";
/// Below a machine's directory: there if its program has such a root. Those of earlier daemons have the host's.
const JAILED: &str = "jailed";

/// The path of a thing in a machine's root.
pub(super) fn inside(name: &str) -> PathBuf {
    Path::new("/").join(name)
}

/// The root for a machine that is about to be started, from memory if there is some. What it will see has to be there.
pub(super) fn make(
    layout: &Layout,
    program: &Path,
    remains: &Remains<'_>,
    vm: &Vm,
    memory: Option<&Memory>,
) -> Result<Jail, EngineError> {
    let made = |what| move |source| EngineError::Make { what, path: layout.run.clone(), source };
    let jail = Jail::new(&layout.run, OWN, layout.uid(vm.id));
    let mut jail = jail.map_err(made("root directory over"))?;
    let shown = jail.show_program(program, PROGRAM);
    shown.map_err(|source| EngineError::Read { path: program.to_owned(), source })?;
    let template = layout.template(vm);
    let mut all = vec![(remains.file(OWN), OWN), (remains.file(LOG), LOG), (layout.disk(vm), DISK)];
    if vm.has_seed() {
        all.push((remains.file(SEED), SEED));
    }
    match memory {
        Some(memory) => all.extend([(memory.ram(), RAM), (remains.file(STATE), STATE)]),
        None => {
            all.extend([(template.join(KERNEL), KERNEL), (template.join(INITRAMFS), INITRAMFS)])
        }
    }
    for (path, shown) in all {
        jail.show(&path, shown).map_err(|source| EngineError::Read { path, source })?;
    }
    jail.leave_empty(SAVED).map_err(made("name in the root directory over"))?;
    channels::link_disks(remains, vm.has_seed())?;
    note(remains, JAILED, "")?;
    Ok(jail)
}

impl Host {
    /// Shows a machine the file that it is to write its memory to; answers its name there.
    pub(super) fn show_saved(&self, id: VmId, ram: &Path) -> Result<PathBuf, EngineError> {
        if !self.remains(id).file(JAILED).exists() {
            return Ok(ram.to_owned());
        }
        self.change_saved(id, Some(ram))?;
        Ok(inside(SAVED))
    }

    /// Takes it away again: who could write to it on and on could change memory that others begin from.
    pub(super) fn hide_saved(&self, id: VmId) -> Result<(), EngineError> {
        match self.remains(id).file(JAILED).exists() {
            true => self.change_saved(id, None),
            false => Ok(()),
        }
    }

    fn change_saved(&self, id: VmId, ram: Option<&Path>) -> Result<(), EngineError> {
        let remains = self.remains(id);
        let pid = remains.pids()?.first().copied().unwrap_or_default();
        let failed = |source| EngineError::Process { action: "show memory to", pid, source };
        let process = Process::open(pid).map_err(failed)?;
        // Held by its descriptor and still in the cgroup: it is the machine's, not a later one of that number.
        if !remains.pids()?.contains(&pid) {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }
        jail::show_to(&process, ram, SAVED).map_err(failed)
    }
}
