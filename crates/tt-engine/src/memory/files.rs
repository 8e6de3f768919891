//! A machine's memory on disk: a directory that is complete, or is not there. It never touches a process.
//!
//! In it lie `ram` (the guest's memory as it is, sparse), `state` (what the engine needs beside it: QEMU's migration stream,
//! Firecracker's state file) and `meta` (JSON, see [`Meta`]).

use crate::EngineError;
use crate::remains::{self, PASSABLE, give, gone};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tt_model::{Layout, MachineSize, Vm, VmId, names};

const RAM: &str = "ram";
const STATE: &str = "state";
const META: &str = "meta";
/// Ends the name of a directory that is half made, or half removed.
const PARTIAL: &str = "new";
/// Begins the name of the mark that a machine has begun from its Vm's `memory`; its incarnation follows.
const BEGUN: &str = "begun-";
/// Version of [`Meta`].
const FORMAT: u32 = 1;
/// Most bytes of a meta.
const META_BYTES_MAX: u64 = 4096;
/// Most bytes of a state: 0.3 MB are usual, and each processor and device adds some KB.
pub(crate) const STATE_BYTES_MAX: u64 = 64 << 20;
/// Room that is kept free beside the memory itself, in MB: for the state, and for disks of others.
const SPARE_MB: u64 = STATE_BYTES_MAX >> 20;

/// What writes memory here, and what it can begin from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Writer {
    /// The engine's name.
    pub engine: &'static str,
    /// Version of its program.
    pub version: String,
    /// What guests' code is executed by.
    pub accelerator: &'static str,
    /// Whether machines are started by qboot.
    pub qboot: bool,
}

/// What memory is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    format: u32,
    /// The engine that wrote it.
    #[serde(default = "first_engine")]
    engine: String,
    /// Version of the program that wrote it.
    pub version: String,
    accelerator: String,
    cpu_num: u16,
    mem_mb: u32,
    /// Whether its firmware was qboot.
    qboot: bool,
    state_bytes: u64,
    state_crc32: u32,
}

/// Memory that lies complete on disk.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub dir: PathBuf,
    pub meta: Meta,
    /// Whether it was left by a suspend: then it goes when it is begun from.
    pub suspended: bool,
}

/// Memory that is being made. What there is of it goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Draft {
    partial: PathBuf,
    target: PathBuf,
}

impl Meta {
    pub fn new(writer: &Writer, size: MachineSize, state: &[u8]) -> Self {
        Self {
            format: FORMAT,
            engine: writer.engine.to_owned(),
            version: writer.version.clone(),
            accelerator: writer.accelerator.to_owned(),
            cpu_num: size.cpu_num,
            mem_mb: size.mem_size,
            qboot: writer.qboot,
            state_bytes: state.len() as u64,
            state_crc32: crc32fast::hash(state),
        }
    }

    /// Why a machine of this size can not begin from it here.
    fn misfit(&self, writer: &Writer, size: MachineSize) -> Option<String> {
        let here = Self::new(writer, size, b"");
        let unlike = |what: &str, its: &dyn std::fmt::Display, ours: &dyn std::fmt::Display| {
            Some(format!("it was written with {what} {its}, here is {ours}"))
        };
        match self {
            m if m.format != FORMAT => unlike("format", &m.format, &FORMAT),
            m if m.engine != here.engine => unlike("engine", &m.engine, &here.engine),
            m if m.version != here.version => unlike("version", &m.version, &here.version),
            m if m.accelerator != here.accelerator => {
                unlike("accelerator", &m.accelerator, &here.accelerator)
            }
            m if m.cpu_num != here.cpu_num => unlike("cpu_num", &m.cpu_num, &here.cpu_num),
            m if m.mem_mb != here.mem_mb => unlike("mem_size", &m.mem_mb, &here.mem_mb),
            m if m.qboot != here.qboot => unlike("qboot", &m.qboot, &here.qboot),
            _ => None,
        }
    }
}

impl Memory {
    /// What the next machine of `vm` begins from, if it is there.
    pub fn of(layout: &Layout, vm: &Vm) -> Result<Option<Self>, EngineError> {
        let suspended = layout.data.join(names::suspended(vm.id, vm.incarnation));
        if let Some(meta) = read_meta(&suspended)? {
            return Ok(Some(Self { dir: suspended, meta, suspended: true }));
        }
        let Some(memory) = &vm.memory else { return Ok(None) };
        if begun(layout, vm).exists() {
            return Ok(None);
        }
        let dir = layout.data.join(memory);
        match read_meta(&dir)? {
            Some(meta) => Ok(Some(Self { dir, meta, suspended: false })),
            None => Err(EngineError::Load { path: dir, problem: "it is not there".into() }),
        }
    }

    pub fn ram(&self) -> PathBuf {
        self.dir.join(RAM)
    }

    /// Its state, after everything that can be known beforehand is checked.
    pub fn check(&self, writer: &Writer, size: MachineSize) -> Result<Vec<u8>, EngineError> {
        let refuse = |problem| EngineError::Load { path: self.dir.clone(), problem };
        if let Some(misfit) = self.meta.misfit(writer, size) {
            return Err(refuse(misfit));
        }
        let ram = self.ram();
        let len = fs::metadata(&ram).map_err(|e| read(&ram, e))?.len();
        if len != u64::from(self.meta.mem_mb) << 20 {
            return Err(refuse(format!("{RAM} has {len} bytes, not {} MB", self.meta.mem_mb)));
        }
        let path = self.dir.join(STATE);
        let state = read_bounded(&path, STATE_BYTES_MAX)?;
        match (state.len() as u64, crc32fast::hash(&state)) {
            (len, crc) if (len, crc) == (self.meta.state_bytes, self.meta.state_crc32) => Ok(state),
            (len, _) => Err(refuse(format!("{STATE} ({len} bytes) is not what was written"))),
        }
    }

    /// Sees to it, durably, that no machine begins from it again in this incarnation of `vm`.
    pub fn consume(&self, layout: &Layout, vm: &Vm) -> Result<(), EngineError> {
        if self.suspended {
            return consume_suspended(layout, vm);
        }
        let mark = begun(layout, vm);
        let dir = layout.memory_of(vm.id);
        make_dirs(layout, vm.id)?;
        let made = File::create(&mark).and_then(|file| file.sync_all());
        made.and_then(|()| sync_dir(&dir)).map_err(|e| make("mark", &mark, e))
    }
}

/// As [`Memory::consume`], for what a suspend in this incarnation left, if anything.
pub(crate) fn consume_suspended(layout: &Layout, vm: &Vm) -> Result<(), EngineError> {
    discard(&layout.data.join(names::suspended(vm.id, vm.incarnation)))
}

/// Whether what a suspend in this incarnation left is there and complete.
pub(crate) fn is_suspended(layout: &Layout, vm: &Vm) -> Result<bool, EngineError> {
    let dir = layout.data.join(names::suspended(vm.id, vm.incarnation));
    Ok(read_meta(&dir)?.is_some())
}

impl Draft {
    /// Begins memory at `path` (relative to the data directory).
    pub fn begin(layout: &Layout, id: VmId, path: &str) -> Result<Self, EngineError> {
        make_dirs(layout, id)?;
        let target = layout.data.join(path);
        let draft = Self { partial: partial(&target), target };
        draft.remove()?;
        remains::make_dir(&draft.partial, PASSABLE)?;
        Ok(draft)
    }

    /// Makes its `ram`, which the machine's user may write to, if there is room for all of it.
    pub fn make_ram(&self, mem_mb: u32, uid: u32) -> Result<PathBuf, EngineError> {
        let path = self.partial.join(RAM);
        let stat = rustix::fs::statvfs(&self.partial).map_err(|e| read(&self.partial, e.into()))?;
        let free_mb = (stat.f_bavail * stat.f_frsize) >> 20;
        let need_mb = u64::from(mem_mb) + SPARE_MB;
        if free_mb < need_mb {
            return Err(EngineError::Room { path: self.target.clone(), need_mb, free_mb });
        }
        let mut options = OpenOptions::new();
        let made = options.create_new(true).write(true).mode(0o600).open(&path);
        made.and_then(|file| file.set_len(u64::from(mem_mb) << 20))
            .map_err(|e| make("RAM file", &path, e))?;
        give(&path, Some(uid), uid)?;
        Ok(path)
    }

    /// Completes it with a state. `read_only`: whether a machine can use `ram` without the right to write.
    pub fn publish(
        self,
        state: &[u8],
        meta: &Meta,
        uid: u32,
        read_only: bool,
    ) -> Result<(), EngineError> {
        let ram = self.partial.join(RAM);
        let synced = File::open(&ram).and_then(|file| file.sync_all());
        synced.map_err(|e| self.failed(format!("write {RAM}: {e}")))?;
        if read_only {
            // Immutable from here on, for the machine, too.
            remains::open_to(&ram, uid)?;
        }
        self.write(STATE, state)?;
        let text = serde_json::to_vec(meta).map_err(|e| self.failed(e.to_string()))?;
        self.write(META, &text)?;
        self.settle()
    }

    /// Completes it with the files of other memory, which never change.
    pub fn publish_link(self, memory: &Memory) -> Result<(), EngineError> {
        for name in [RAM, STATE, META] {
            fs::hard_link(memory.dir.join(name), self.partial.join(name))
                .map_err(|e| self.failed(format!("link {name}: {e}")))?;
        }
        self.settle()
    }

    fn failed(&self, problem: String) -> EngineError {
        EngineError::Capture { path: self.target.clone(), problem }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), EngineError> {
        let mut options = OpenOptions::new();
        let file = options.create_new(true).write(true).mode(0o600).open(self.partial.join(name));
        file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .map_err(|e| self.failed(format!("write {name}: {e}")))
    }

    fn settle(&self) -> Result<(), EngineError> {
        let above = self.target.parent().unwrap_or(&self.target);
        let settle = || {
            sync_dir(&self.partial)?;
            fs::rename(&self.partial, &self.target)?;
            sync_dir(above)
        };
        settle().map_err(|e| self.failed(format!("complete it: {e}")))
    }

    fn remove(&self) -> Result<(), EngineError> {
        gone(fs::remove_dir_all(&self.partial), &self.partial)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // What was published has another name. What can not be removed now, the next look removes.
        let _ = self.remove();
    }
}

/// Removes the directories of `id` that are half made.
pub(crate) fn remove_partial(layout: &Layout, id: VmId) -> Result<(), EngineError> {
    for path in entries(&layout.memory_of(id))? {
        if path.extension().is_some_and(|e| e == PARTIAL) {
            gone(fs::remove_dir_all(&path), &path)?;
        }
    }
    Ok(())
}

/// Removes what there is of `id` but the directories in `named` and the mark that `needs_mark` holds for.
pub(crate) fn remove(
    layout: &Layout,
    id: VmId,
    named: &[String],
    needs_mark: impl Fn(u32) -> bool,
) -> Result<(), EngineError> {
    let dir = layout.memory_of(id);
    let named: Vec<PathBuf> = named.iter().map(|n| layout.data.join(n)).collect();
    let mut is_empty = true;
    for path in entries(&dir)? {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let mark = name.strip_prefix(BEGUN).map(|n| n.parse().is_ok_and(&needs_mark));
        match mark {
            Some(true) => is_empty = false,
            Some(false) => gone(fs::remove_file(&path), &path)?,
            None if named.contains(&path) => is_empty = false,
            None => discard(&path)?,
        }
    }
    if is_empty {
        gone(fs::remove_dir(&dir), &dir)?;
    }
    Ok(())
}

/// Every id that has a directory of memory.
pub(crate) fn ids(layout: &Layout) -> Result<Vec<VmId>, EngineError> {
    let mut ids = remains::ids_in(&layout.data.join("memory"))?;
    ids.sort_unstable();
    Ok(ids)
}

/// Removes a directory so that no crash leaves a part of it under its name.
fn discard(dir: &Path) -> Result<(), EngineError> {
    let failed = |source| EngineError::Remove { path: dir.to_owned(), source };
    let aside = partial(dir);
    if aside != dir {
        gone(fs::remove_dir_all(&aside), &aside)?;
        match fs::rename(dir, &aside) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(failed)?,
        }
        dir.parent().map_or(Ok(()), sync_dir).map_err(failed)?;
    }
    gone(fs::remove_dir_all(&aside), &aside)
}

fn partial(target: &Path) -> PathBuf {
    target.with_extension(PARTIAL)
}

fn begun(layout: &Layout, vm: &Vm) -> PathBuf {
    layout.memory_of(vm.id).join(format!("{BEGUN}{}", vm.incarnation))
}

pub(crate) fn make_dirs(layout: &Layout, id: VmId) -> Result<(), EngineError> {
    remains::make_dir(&layout.data.join("memory"), PASSABLE)?;
    remains::make_dir(&layout.memory_of(id), PASSABLE)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| read(dir, e))?,
    };
    entries.map(|entry| Ok(entry.map_err(|e| read(dir, e))?.path())).collect()
}

fn read_meta(dir: &Path) -> Result<Option<Meta>, EngineError> {
    let path = dir.join(META);
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(e) => return Err(read(&path, e)),
    }
    let meta = serde_json::from_slice(&read_bounded(&path, META_BYTES_MAX)?);
    meta.map(Some).map_err(|e| EngineError::Load {
        path: dir.to_owned(),
        problem: format!("{META} is not what was written: {e}"),
    })
}

fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, EngineError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map(|file| io::Read::take(file, bytes_max));
    file.and_then(|mut file| io::Read::read_to_end(&mut file, &mut bytes))
        .map_err(|e| read(path, e))?;
    Ok(bytes)
}

/// What wrote memory whose meta does not say it.
fn first_engine() -> String {
    "qemu".to_owned()
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn read(path: &Path, source: io::Error) -> EngineError {
    EngineError::Read { path: path.to_owned(), source }
}

fn make(what: &'static str, path: &Path, source: io::Error) -> EngineError {
    EngineError::Make { what, path: path.to_owned(), source }
}
