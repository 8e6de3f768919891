//! What a machine begins with: a kernel of its template, a BIOS, or UEFI with variables of its own. It starts nothing.

use super::NAME;
use super::begin::{Boot, Kernel, Uefi};
use super::host::{UefiFiles, Usable};
use super::machine::read;
use super::node::Disk;
use crate::EngineError;
use crate::memory::files::{make_dirs, sync_dir};
use crate::remains::{PASSABLE, give, make_dir};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use tt_model::template::{FEATURE_KERNEL, FEATURE_UEFI};
use tt_model::{Layout, Vm, names};

/// UEFI's variables, in the directory of the firmware's memory.
const VARS: &str = "vars";
/// Largest file of variables; OVMF's have 0.5 MB.
const VARS_BYTES_MAX: u64 = 16 << 20;

/// What `vm` begins with. The variables of UEFI are made where there are none yet: a machine finds those that the last
/// one left.
pub(super) fn prepare(layout: &Layout, usable: &Usable, vm: &Vm) -> Result<Boot, EngineError> {
    if vm.template.has(FEATURE_KERNEL) {
        return kernel(layout, usable, vm).map(Boot::Kernel);
    }
    if !vm.template.has(FEATURE_UEFI) {
        return Ok(Boot::Bios);
    }
    let files = usable.uefi.as_ref().ok_or_else(|| EngineError::Unusable {
        engine: NAME,
        why: "there is no UEFI firmware: install it (Debian, Ubuntu: `ovmf`)".to_owned(),
    })?;
    let file = vars(layout, vm, files)?;
    Ok(Boot::Uefi(Uefi { code: files.code.clone(), vars: Disk::Image { format: "raw", file } }))
}

impl Boot {
    /// The same for a machine that never runs: it has flash chips of the same size, and writes to none.
    pub fn blank(self) -> Result<Self, EngineError> {
        match self {
            Self::Uefi(Uefi { code, vars: Disk::Image { file, .. } }) => {
                let bytes = fs::metadata(&file).map_err(|e| read(&file, e))?.len();
                Ok(Self::Uefi(Uefi { code, vars: Disk::Null { bytes } }))
            }
            other => Ok(other),
        }
    }
}

fn kernel(layout: &Layout, usable: &Usable, vm: &Vm) -> Result<Kernel, EngineError> {
    let dir = layout.template(vm);
    let kernel = dir.join("kernel");
    let initramfs = dir.join("initramfs");
    fs::metadata(&kernel).map_err(|source| read(&kernel, source))?;
    fs::metadata(&initramfs).map_err(|source| read(&initramfs, source))?;
    let (firmware, machine_id) = (usable.firmware.clone(), vm.machine_id.clone());
    Ok(Kernel { kernel, initramfs, firmware, machine_id })
}

/// The file of `vm`'s variables, complete or not there.
fn vars(layout: &Layout, vm: &Vm, files: &UefiFiles) -> Result<PathBuf, EngineError> {
    let dir = layout.data.join(names::firmware(vm.id));
    let path = dir.join(VARS);
    let uid = layout.uid(vm.id);
    if !path.exists() {
        make_dirs(layout, vm.id)?;
        make_dir(&dir, PASSABLE)?;
        copy(&files.vars, &dir.join("new"), &path)?;
    }
    give(&path, Some(uid), uid)?;
    Ok(path)
}

fn copy(from: &Path, temporary: &Path, to: &Path) -> Result<(), EngineError> {
    let bytes = fs::metadata(from).map_err(|e| read(from, e))?.len();
    if bytes > VARS_BYTES_MAX {
        let problem = format!("{bytes} bytes of UEFI variables are more than {VARS_BYTES_MAX}");
        return Err(read(from, io::Error::other(problem)));
    }
    let copied = || {
        fs::copy(from, temporary)?;
        File::open(temporary)?.sync_all()?;
        fs::rename(temporary, to)?;
        to.parent().map_or(Ok(()), sync_dir)
    };
    let failed = |source| EngineError::Make { what: "UEFI variables", path: to.to_owned(), source };
    copied().map_err(failed)
}
