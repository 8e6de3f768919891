//! Tells when processes end: one thread for all of them. It never polls, and it reaps only what it was given.

use crate::Wake;
use crate::process::Process;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, epoll};
use rustix::process::{WaitId, WaitIdOptions};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use tt_model::VmId;

/// What the kernel may hand over at once; more ends wait for the next turn.
const EVENTS_MAX: usize = 64;
/// The event that ends the thread; no Vm has this id.
const STOP: u64 = 0;

/// Watches the processes of machines until it is dropped.
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    epoll: OwnedFd,
    stop: OwnedFd,
    watched: Mutex<HashMap<u64, Process>>,
    wake: Wake,
}

impl Watcher {
    /// Starts the thread.
    ///
    /// # Errors
    /// The kernel has no descriptor or thread left.
    pub fn start(wake: Wake) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(STOP);
        epoll::add(&epoll, &stop, data, epoll::EventFlags::IN)?;
        let shared = Arc::new(Shared { epoll, stop, watched: Mutex::default(), wake });
        let thread = {
            let shared = shared.clone();
            thread::Builder::new().name("tt-exits".into()).spawn(move || shared.run())?
        };
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Whether the end of process `pid` of `id` is going to be told already.
    pub fn watches(&self, id: VmId, pid: u32) -> bool {
        let watched = self.shared.lock();
        watched.get(&id.0).is_some_and(|process| process.pid == pid)
    }

    /// Tells the end of `process`, the one process of `id`; if it has ended already, at once.
    ///
    /// # Errors
    /// The kernel's limit of watched descriptors is reached.
    pub fn watch(&self, id: VmId, process: Process) -> io::Result<()> {
        let mut watched = self.shared.lock();
        if let Some(old) = watched.remove(&id.0) {
            self.shared.forget(old);
        }
        let data = epoll::EventData::new_u64(id.0);
        epoll::add(&self.shared.epoll, &process.fd, data, epoll::EventFlags::IN)?;
        watched.insert(id.0, process);
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Can not fail: the counter is far from its end and the descriptor is open.
        let _ = rustix::io::write(&self.shared.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let watched = self.shared.lock();
        f.debug_map().entries(watched.iter().map(|(id, p)| (id, p.pid))).finish()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Process>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "ends of machines are no longer told");
                    return;
                }
            }
            for event in &events {
                match event.data.u64() {
                    STOP => return,
                    id => self.ended(id),
                }
            }
        }
    }

    fn ended(&self, id: u64) {
        let ended = {
            let mut watched = self.lock();
            // The event may be that of a process which another one has replaced meanwhile.
            match watched.get(&id).is_some_and(has_ended) {
                true => watched.remove(&id),
                false => None,
            }
        };
        if let Some(process) = ended {
            self.forget(process);
            (self.wake)(VmId(id));
        }
    }

    fn forget(&self, process: Process) {
        let _ = epoll::delete(&self.epoll, &process.fd);
        // Fails if it is no child of this daemon; then its own parent reaps it.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = rustix::process::waitid(WaitId::PidFd(process.fd.as_fd()), options);
    }
}

fn has_ended(process: &Process) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(&process.fd, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn an_end_is_told_once_and_the_child_reaped() {
        let (send, ends) = mpsc::channel();
        let watcher = Watcher::start(Arc::new(move |id| send.send(id).unwrap())).unwrap();
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        watcher.watch(VmId(5), Process::open(pid).unwrap()).unwrap();
        assert!(watcher.watches(VmId(5), pid));
        assert!(ends.recv_timeout(Duration::from_millis(50)).is_err());
        drop(child);
        assert_eq!(ends.recv_timeout(Duration::from_secs(5)), Ok(VmId(5)));
        assert!(!watcher.watches(VmId(5), pid));
        assert!(ends.recv_timeout(Duration::from_millis(50)).is_err());
        assert!(Process::open(pid).is_err(), "not reaped");
    }
}
