//! Tells what happens to containers: one thread that follows the daemon's events. When the daemon goes, and when it is
//! back, all Vms are looked at again.

use crate::Wake;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};
use tt_docker::{Docker, Ender};
use tt_model::VmId;
use tt_model::names::LABEL_VM;

/// The end of a machine, as Docker is asked for it, and as Podman is, which calls it `die` all the same.
const KINDS: [&str; 2] = ["die", "died"];
/// Pause between two tries to reach a daemon that is away. Asking costs one system call.
const AWAY_PAUSE: Duration = Duration::from_millis(500);

/// Follows until it is dropped.
#[derive(Debug)]
pub(super) struct Follower {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_over: bool,
    ender: Option<Ender>,
}

impl Follower {
    /// Starts the thread. `all`: the Vms that have a machine as far as this host knows without Docker.
    pub(super) fn start(
        docker: Arc<Docker>,
        label: String,
        wake: Wake,
        all: impl Fn() -> Vec<VmId> + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        let follow = move || follow(&own, &docker, &label, &wake, &all);
        let thread = thread::Builder::new().name("tt-docker".into()).spawn(follow)?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_over = true;
        if let Some(ender) = &state.ender {
            ender.end();
        }
        drop(state);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing to tell.
            let _ = thread.join();
        }
    }
}

fn follow(shared: &Shared, docker: &Docker, label: &str, wake: &Wake, all: &dyn Fn() -> Vec<VmId>) {
    let wake_all = || all().into_iter().for_each(|id| wake(id));
    let since = SystemTime::now();
    // Not known yet: that there is no Docker is no news to a host that has none.
    let mut was_there = None;
    loop {
        match docker.events(label, &KINDS, since) {
            Ok(events) => {
                if !shared.keep(events.ender().ok()) {
                    return;
                }
                if was_there.replace(true) == Some(false) {
                    tracing::info!("Docker is there");
                    // What happened meanwhile is not told.
                    wake_all();
                }
                for event in events {
                    let id = event.actor.attributes.get(LABEL_VM).and_then(|id| id.parse().ok());
                    if let Some(id) = id {
                        wake(VmId(id));
                    }
                }
                if shared.is_over() {
                    return;
                }
                was_there = Some(false);
                tracing::warn!("Docker went away");
                wake_all();
            }
            Err(error) => match was_there.replace(false) {
                Some(false) => {}
                None => tracing::debug!(error = crate::error::chain(&error), "no Docker"),
                Some(true) => {
                    tracing::warn!(error = crate::error::chain(&error), "Docker is away");
                    wake_all();
                }
            },
        }
        if !shared.pause() {
            return;
        }
    }
}

impl Shared {
    /// Keeps what ends the stream of events; whether it may go on.
    fn keep(&self, ender: Option<Ender>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.ender = ender;
        // One that can not be ended would keep its thread for ever.
        !state.is_over && state.ender.is_some()
    }

    fn is_over(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_over
    }

    /// Whether it may go on.
    fn pause(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.ender = None;
        let waited = self.changed.wait_timeout_while(state, AWAY_PAUSE, |state| !state.is_over);
        !waited.unwrap_or_else(PoisonError::into_inner).0.is_over
    }
}
