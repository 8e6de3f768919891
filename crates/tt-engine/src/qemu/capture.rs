//! A machine's memory on its way to disk. It copies while the guest runs, needs it to stand still for the last bit, and
//! completes the copy while the guest runs again. Whether the guest goes on is its caller's choice.

use super::migration::{self, Pace, Progress};
use super::mould::{self, Mould};
use super::{Host, MONITOR, boot, disk, unusable};
use crate::EngineError;
use crate::memory::files::{Draft, Meta};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tt_model::Vm;

/// How small the rest is when the guest may be stopped for it: a copy does some GB in a second.
const REST_BYTES_MAX: u64 = 32 << 20;
/// After how many passes through its memory a guest is stopped for what is left, however much: it changes its memory faster
/// than it is copied, and will not wait.
const PASSES_MAX: u64 = 16;
/// How long nothing may move while memory is copied.
const STILL_MAX: Duration = Duration::from_secs(30);
/// How long a guest is given before the pause, so that what it changed since the first pass is copied.
const CHASE_MAX: Duration = Duration::from_millis(500);
/// How often a copy is looked at. The monitor serves one at a time: between the looks it is free for others.
const POLL: Duration = Duration::from_millis(2);
/// From where on it is watched more closely.
const NEAR_BYTES_MAX: u64 = 8 * REST_BYTES_MAX;
/// How often it is looked at then.
const POLL_NEAR: Duration = Duration::from_micros(200);

/// A copy that is under way. Dropped, it comes to nothing and leaves nothing.
#[derive(Debug)]
pub(super) struct Capture {
    host: Arc<Host>,
    vm: Vm,
    // Before the draft: a mould writes to it until it has ended.
    mould: Option<Mould>,
    draft: Option<Draft>,
    target: PathBuf,
    /// Nothing flows until [`Capture::stand`], from the beginning.
    is_frozen: bool,
}

impl Capture {
    /// Begins to copy the machine of `vm`, whose guest may run, to the directory `path`.
    pub fn begin(host: &Arc<Host>, vm: &Vm, path: &str) -> Result<Self, EngineError> {
        let usable = host.usable.as_ref().map_err(|why| unusable(why))?;
        let layout = &host.config.layout;
        let remains = host.remains(vm.id);
        let boot = boot::prepare(layout, usable, vm)?.blank()?;
        let monitor = remains.file(MONITOR);
        let mut qmp = host.monitor(vm.id)?;
        migration::cancel(&mut qmp, &monitor)?;
        if migration::was_sent(&mut qmp)? {
            // QEMU sends no machine twice that has not run in between; it does for some microseconds.
            qmp.run("cont")?;
            qmp.run("stop")?;
        }
        let disk_bytes = disk::top(&mut qmp, &monitor)?.bytes;
        drop(qmp);

        let (host_too, vm_too, target) = (host.clone(), vm.clone(), layout.data.join(path));
        // Of so little memory there is no beginning that is not also the end.
        let is_frozen = u64::from(vm.machine.mem_size) << 20 <= REST_BYTES_MAX;
        let (mould, draft) = (None, None);
        let mut capture = Self { host: host_too, vm: vm_too, mould, draft, target, is_frozen };
        // First the registration, or a look takes the mould for a stray one.
        host.held().insert(vm.id);
        let draft = capture.draft.insert(Draft::begin(layout, vm.id, path)?);
        let ram = draft.make_ram(vm.machine.mem_size, layout.uid(vm.id))?;
        let (config, groups) = (&host.config, &remains);
        let mould = mould::start(config, usable, groups, vm, boot, ram, disk_bytes)?;
        let mould = capture.mould.insert(mould);
        if is_frozen {
            mould.freeze()?;
        }
        if let Some(feed) = &mould.feed {
            migration::begin(&mut host.monitor(vm.id)?, feed.as_fd(), false)?;
        }
        Ok(capture)
    }

    /// Waits until nearly everything is copied, and sees to it that the rest waits for [`Capture::stand`].
    pub fn settle(&self) -> Result<(), EngineError> {
        let mut pace = Pace::new(STILL_MAX);
        loop {
            let mut qmp = self.host.monitor(self.vm.id)?;
            let progress = Progress::of(&mut qmp)?;
            if self.is_frozen && progress.remaining().is_some() {
                // It moves no more: how much is left now does not count.
                return Ok(());
            }
            if is_down_to(&progress, NEAR_BYTES_MAX) || progress.stands() {
                break;
            }
            pace.see(progress, Instant::now()).map_err(|problem| self.failed(problem))?;
            drop(qmp);
            thread::sleep(POLL);
        }
        // From here on it may be over in some milliseconds, and the guest would stand still too early.
        let mut qmp = self.host.monitor(self.vm.id)?;
        loop {
            let progress = Progress::of(&mut qmp)?;
            if is_down_to(&progress, REST_BYTES_MAX) {
                return self.mould.as_ref().map_or(Ok(()), Mould::freeze);
            }
            if progress.stands() {
                return Ok(());
            }
            pace.see(progress, Instant::now()).map_err(|problem| self.failed(problem))?;
            thread::sleep(POLL_NEAR);
        }
    }

    /// Brings the guest to a halt, and everything to disk but the devices' state.
    pub fn stand(&self) -> Result<(), EngineError> {
        let mut qmp = self.host.monitor(self.vm.id)?;
        let passes = Progress::of(&mut qmp)?.passes();
        self.mould.as_ref().map_or(Ok(()), Mould::thaw)?;
        let until = Instant::now() + CHASE_MAX;
        migration::wait(&mut qmp, &self.target, STILL_MAX, |progress| {
            let is_near = is_down_to(progress, REST_BYTES_MAX);
            progress.stands() || is_near && progress.passes() > passes || Instant::now() > until
        })?;
        qmp.run("stop")?;
        migration::wait(&mut qmp, &self.target, STILL_MAX, Progress::stands)
    }

    /// Sends the rest. On return the machine's memory may change.
    pub fn complete(&self) -> Result<(), EngineError> {
        let mut qmp = self.host.monitor(self.vm.id)?;
        migration::go_on(&mut qmp)?;
        migration::wait(&mut qmp, &self.target, STILL_MAX, Progress::is_complete)
    }

    /// Lets the mould write the devices' state, and completes the directory.
    pub fn save(mut self) -> Result<(), EngineError> {
        let usable = self.host.usable.as_ref().map_err(|why| unusable(why))?;
        let (Some(mut mould), Some(draft)) = (self.mould.take(), self.draft.take()) else {
            return Err(self.failed("it has not begun".into()));
        };
        mould.feed = None;
        let state = mould.state(&self.target).map_err(|error| self.explain(error))?;
        // It has nothing to write any more.
        drop(mould);
        let meta = Meta::new(&usable.writer(), self.vm.machine, &state);
        let uid = self.host.config.layout.uid(self.vm.id);
        draft.publish(&state, &meta, uid, usable.reads_only)
    }

    /// An error, with what the mould said about it.
    pub fn explain(&self, error: EngineError) -> EngineError {
        let said = mould::last_words(&self.host.remains(self.vm.id));
        let problem = match error {
            EngineError::Capture { problem, .. } => problem,
            error => crate::error::chain(&error),
        };
        self.failed(if said.is_empty() { problem } else { format!("{problem}; {said}") })
    }

    fn failed(&self, problem: String) -> EngineError {
        EngineError::Capture { path: self.target.clone(), problem }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.mould = None;
        self.draft = None;
        // What can not be removed now, the next look finds.
        let _ = mould::end(&self.host.remains(self.vm.id));
        self.host.held().remove(&self.vm.id);
    }
}

/// Whether no more than this is left, or it will not get less.
fn is_down_to(progress: &Progress, bytes: u64) -> bool {
    progress.remaining().is_some_and(|rest| rest <= bytes || progress.passes() > PASSES_MAX)
}
