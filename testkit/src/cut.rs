//! A socket before another one on which each request is a connection, as Docker's is for its clients: it withholds a chosen
//! answer, at the moment at which a client dies that has just been served.

use crate::Must;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// What is done in place of an answer.
type Act = Box<dyn FnOnce() + Send>;

/// The socket. It listens for as long as this process lives.
#[derive(Debug)]
pub struct Cut {
    socket: PathBuf,
    next: Arc<Mutex<Next>>,
}

#[derive(Default)]
struct Next {
    /// How many answers still pass, and what follows; nothing if all do.
    act: Option<(u32, Act)>,
    has_acted: bool,
}

impl fmt::Debug for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").field("has_acted", &self.has_acted).finish_non_exhaustive()
    }
}

impl Cut {
    /// Listens at `socket` for what is served at `server`.
    ///
    /// # Panics
    /// If it can not.
    pub fn new(socket: PathBuf, server: &Path) -> Self {
        let listener = UnixListener::bind(&socket).must("listen");
        let (next, server) = (Arc::<Mutex<Next>>::default(), server.to_owned());
        let shared = next.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (next, server) = (shared.clone(), server.clone());
                // A client that is dead hears nothing.
                thread::spawn(move || drop(serve(client, &server, &next)));
            }
        });
        Self { socket, next }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `passing` more answers pass. In place of the next one, once it is there, `act` is called.
    pub fn arm(&self, passing: u32, act: impl FnOnce() + Send + 'static) {
        let mut next = lock(&self.next);
        *next = Next { act: Some((passing, Box::new(act))), has_acted: false };
    }

    /// Lets everything pass from now on. Whether it had acted.
    pub fn disarm(&self) -> bool {
        std::mem::take(&mut *lock(&self.next)).has_acted
    }
}

fn serve(mut client: UnixStream, server: &Path, next: &Mutex<Next>) -> io::Result<()> {
    let mut upstream = UnixStream::connect(server)?;
    let (mut asked, mut asking) = (client.try_clone()?, upstream.try_clone()?);
    thread::spawn(move || io::copy(&mut asked, &mut asking));
    if lock(next).act.is_none() {
        // It may be a stream without an end.
        return io::copy(&mut upstream, &mut client).map(drop);
    }
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    if let Some(act) = taken(&mut lock(next)) {
        act();
    }
    client.write_all(&answer)
}

/// What is to be done now.
fn taken(next: &mut Next) -> Option<Act> {
    match &mut next.act {
        Some((0, _)) => {
            next.has_acted = true;
            next.act.take().map(|(_, act)| act)
        }
        Some((passing, _)) => {
            *passing -= 1;
            None
        }
        None => None,
    }
}

fn lock(next: &Mutex<Next>) -> std::sync::MutexGuard<'_, Next> {
    next.lock().unwrap_or_else(PoisonError::into_inner)
}
