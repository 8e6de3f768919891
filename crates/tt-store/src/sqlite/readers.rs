//! The connections that read. There are a fixed few; who finds all of them busy waits for one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rusqlite::Connection;

/// Enough to keep a small host's cores busy; each may cache some 2 MiB of pages.
pub(super) const READERS: usize = 4;

/// Connections, each used by one thread at a time.
#[derive(Debug)]
pub(super) struct Readers {
    connections: Vec<Mutex<Connection>>,
    turn: AtomicUsize,
}

impl Readers {
    pub(super) fn new(connections: Vec<Connection>) -> Self {
        Self {
            connections: connections.into_iter().map(Mutex::new).collect(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Runs `read` on a connection: an idle one, or the next in turn as soon as it is.
    pub(super) fn with<T>(&self, read: impl FnOnce(&mut Connection) -> T) -> T {
        if let Some(mut idle) =
            self.connections.iter().find_map(|connection| connection.try_lock().ok())
        {
            return read(&mut idle);
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        read(&mut self.connections[turn].lock().unwrap_or_else(PoisonError::into_inner))
    }
}
