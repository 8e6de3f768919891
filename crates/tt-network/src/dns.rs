//! The resolver: one thread that answers names on the gateway of every Env, and asks others what
//! it does not know. When it is gone, names fail and nothing else does. It never answers anybody
//! but members: its sockets lie in the Envs' namespaces, whose rules let nobody else in.

use crate::answer::{self, MESSAGE_BYTES_MAX, Verdict, Zone};
use crate::{EnvNames, NetworkError};
use ipnet::Ipv4Net;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tt_model::EnvId;

/// How long one server may take; guests' resolvers give up after 5 s.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// Servers tried for one question, within the guests' patience.
const UPSTREAM_TRIES: usize = 2;
/// Questions under way for all Envs: each holds a socket.
const PENDING_MAX: usize = 512;
/// Questions under way for one Env, so that none starves the others.
const PENDING_PER_ENV_MAX: usize = 64;
/// Questions that an Env may ask in a second, and at once.
const RATE_PER_SECOND: f64 = 500.0;
const RATE_BURST: f64 = 1000.0;
/// Messages read from one socket before the others have their turn.
const READS_PER_TURN: usize = 32;
/// Events read at once.
const EVENTS_PER_TURN: usize = 64;
/// Envs whose names are kept; more than a host can carry.
const ZONES_MAX: usize = 16_384;
/// Largest answer that is passed on.
const ANSWER_BYTES_MAX: usize = 4096;

/// Event of a question under way; without this bit it is the Env's.
const PENDING: u64 = 1 << 63;
/// Event of the end.
const STOP: u64 = u64::MAX;

/// See the module.
#[derive(Debug)]
pub(crate) struct Resolver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    stop: OwnedFd,
    range: Ipv4Net,
    upstream: Vec<SocketAddr>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    zones: BTreeMap<EnvId, Zone>,
    doors: BTreeMap<EnvId, Door>,
    pending: BTreeMap<u64, Pending>,
    last_key: u64,
}

/// Where the members of an Env ask.
#[derive(Debug)]
struct Door {
    socket: UdpSocket,
    denied: BTreeSet<Ipv4Addr>,
    tokens: f64,
    filled: Instant,
}

/// A question that others are asked.
#[derive(Debug)]
struct Pending {
    env: EnvId,
    client: SocketAddr,
    question: Vec<u8>,
    /// Ours, not the guest's, so that nobody can guess it.
    id: [u8; 2],
    tries: usize,
    socket: UdpSocket,
    deadline: Instant,
}

impl Resolver {
    /// Starts the thread; it asks `upstream` from the calling thread's namespace.
    pub(crate) fn start(range: Ipv4Net, upstream: Vec<SocketAddr>) -> Result<Self, NetworkError> {
        let fail = |source| NetworkError::Resolve { action: "start", source };
        let errno = |errno: rustix::io::Errno| fail(errno.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(errno)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let stop = eventfd(0, flags).map_err(errno)?;
        epoll::add(&epoll, &stop, EventData::new_u64(STOP), EventFlags::IN).map_err(errno)?;
        let shared = Arc::new(Shared { epoll, stop, range, upstream, state: Mutex::default() });
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("resolver".into())
            .spawn(move || of_thread.run())
            .map_err(fail)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Replaces the names of an Env; no members forget it.
    pub(crate) fn set_names(&self, env: EnvId, names: &EnvNames) -> Result<(), NetworkError> {
        let mut state = self.shared.state();
        if names.members.is_empty() {
            state.zones.remove(&env);
        } else if state.zones.len() < ZONES_MAX || state.zones.contains_key(&env) {
            state.zones.insert(env, Zone::from(names));
        } else {
            return Err(NetworkError::KeepEnv { max: ZONES_MAX });
        }
        Ok(())
    }

    /// Whether an Env has a socket here.
    pub(crate) fn is_attached(&self, env: EnvId) -> bool {
        self.shared.state().doors.contains_key(&env)
    }

    /// Answers on `socket`, which lies in the Env's namespace. `denied`: members who get no answer
    /// from outside.
    pub(crate) fn attach(
        &self,
        env: EnvId,
        socket: UdpSocket,
        denied: BTreeSet<Ipv4Addr>,
    ) -> Result<(), NetworkError> {
        let mut state = self.shared.state();
        let data = EventData::new_u64(env.0);
        epoll::add(&self.shared.epoll, &socket, data, EventFlags::IN).map_err(|errno| {
            NetworkError::Resolve { action: "give a socket to", source: errno.into() }
        })?;
        let door = Door { socket, denied, tokens: RATE_BURST, filled: Instant::now() };
        state.doors.insert(env, door);
        Ok(())
    }

    /// Whether a member gets answers from outside.
    pub(crate) fn set_denied(&self, env: EnvId, member: Ipv4Addr, is_denied: bool) {
        if let Some(door) = self.shared.state().doors.get_mut(&env) {
            if is_denied {
                door.denied.insert(member);
            } else {
                door.denied.remove(&member);
            }
        }
    }

    /// Lets go of an Env's namespace.
    pub(crate) fn detach(&self, env: EnvId) {
        let mut state = self.shared.state();
        state.doors.remove(&env);
        state.pending.retain(|_, pending| pending.env != env);
    }

    /// Forgets an Env's names.
    pub(crate) fn forget(&self, env: EnvId) {
        self.shared.state().zones.remove(&env);
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let woken = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes()).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken)
            && thread.join().is_err()
        {
            tracing::error!("the resolver's thread had panicked");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut space = [MaybeUninit::<Event>::uninit(); EVENTS_PER_TURN];
        loop {
            let wait = self.state().wait().and_then(|wait| Timespec::try_from(wait).ok());
            let events = match epoll::wait(&self.epoll, &mut space, wait.as_ref()) {
                Ok((events, _)) => events,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "the resolver can not wait for questions and ends");
                    return;
                }
            };
            let mut state = self.state();
            for event in events {
                match event.data.u64() {
                    STOP => return,
                    key if key & PENDING != 0 => self.hear(&mut state, key),
                    env => self.read_questions(&mut state, EnvId(env)),
                }
            }
            self.expire(&mut state);
        }
    }

    fn read_questions(&self, state: &mut State, env: EnvId) {
        let mut buffer = [0; MESSAGE_BYTES_MAX + 1];
        for _ in 0..READS_PER_TURN {
            let Some(door) = state.doors.get_mut(&env) else {
                return;
            };
            let Ok((length, client)) = door.socket.recv_from(&mut buffer) else {
                return;
            };
            if !door.has_token(Instant::now()) {
                continue;
            }
            let question = &buffer[..length];
            let may_forward = match client.ip() {
                IpAddr::V4(addr) => !door.denied.contains(&addr),
                IpAddr::V6(_) => continue,
            };
            let nobody = Zone::default();
            let zone = state.zones.get(&env).unwrap_or(&nobody);
            match zone.decide(question, self.range, may_forward) {
                Verdict::Drop => {}
                Verdict::Answer(answer) => send(&door.socket, &answer, client),
                Verdict::Forward => self.forward(state, env, client, question),
            }
        }
    }

    /// Asks the first server, or says at once that nobody can be asked.
    fn forward(&self, state: &mut State, env: EnvId, client: SocketAddr, question: &[u8]) {
        let of_env = state.pending.values().filter(|pending| pending.env == env);
        let has_room = state.pending.len() < PENDING_MAX && of_env.count() < PENDING_PER_ENV_MAX;
        state.last_key = (state.last_key + 1) & !PENDING;
        let key = state.last_key | PENDING;
        let asked = if has_room { self.ask(key, question, 0).ok() } else { None };
        match asked {
            Some((socket, id)) => {
                let pending = Pending {
                    env,
                    client,
                    question: question.to_owned(),
                    id,
                    tries: 1,
                    socket,
                    deadline: Instant::now() + UPSTREAM_TIMEOUT,
                };
                state.pending.insert(key, pending);
            }
            None => state.give_up(env, client, question),
        }
    }

    /// Sends the question to the server of that number, from a port and with an id that nobody
    /// knows.
    fn ask(&self, key: u64, question: &[u8], number: usize) -> io::Result<(UdpSocket, [u8; 2])> {
        let server = self.upstream.get(number).ok_or(io::ErrorKind::NotFound)?;
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        socket.connect(server)?;
        let mut id = [0; 2];
        getrandom::fill(&mut id).map_err(|error| io::Error::other(error.to_string()))?;
        let mut message = question.to_owned();
        let head = message.get_mut(..2).ok_or(io::ErrorKind::InvalidData)?;
        head.copy_from_slice(&id);
        socket.send(&message)?;
        epoll::add(&self.epoll, &socket, EventData::new_u64(key), EventFlags::IN)?;
        Ok((socket, id))
    }

    /// Takes the answer of a server.
    fn hear(&self, state: &mut State, key: u64) {
        let Some(pending) = state.pending.get(&key) else {
            return;
        };
        let mut buffer = [0; ANSWER_BYTES_MAX];
        match pending.socket.recv(&mut buffer) {
            Ok(length) => {
                let answer = &mut buffer[..length];
                let is_ours = answer.starts_with(&pending.id);
                if !is_ours || !answer::is_answer(&pending.question, answer) {
                    return;
                }
                answer[..2].copy_from_slice(&pending.question[..2]);
                if let Some(door) = state.doors.get(&pending.env) {
                    send(&door.socket, answer, pending.client);
                }
                state.pending.remove(&key);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Nobody listens there.
            Err(_) => self.ask_next(state, key),
        }
    }

    fn expire(&self, state: &mut State) {
        let now = Instant::now();
        let late = state.pending.iter().filter(|(_, p)| p.deadline <= now);
        let late: Vec<u64> = late.map(|(key, _)| *key).collect();
        for key in late {
            self.ask_next(state, key);
        }
    }

    fn ask_next(&self, state: &mut State, key: u64) {
        let Some(mut pending) = state.pending.remove(&key) else {
            return;
        };
        let number = pending.tries;
        let asked = (number < UPSTREAM_TRIES).then(|| self.ask(key, &pending.question, number));
        match asked {
            Some(Ok((socket, id))) => {
                pending.tries += 1;
                (pending.socket, pending.id) = (socket, id);
                pending.deadline = Instant::now() + UPSTREAM_TIMEOUT;
                state.pending.insert(key, pending);
            }
            _ => state.give_up(pending.env, pending.client, &pending.question),
        }
    }
}

impl State {
    /// How long nothing is to be done.
    fn wait(&self) -> Option<Duration> {
        let next = self.pending.values().map(|pending| pending.deadline).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn give_up(&self, env: EnvId, client: SocketAddr, question: &[u8]) {
        if let (Some(door), Some(answer)) = (self.doors.get(&env), answer::give_up(question)) {
            send(&door.socket, &answer, client);
        }
    }
}

impl Door {
    fn has_token(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.tokens = (self.tokens + passed * RATE_PER_SECOND).min(RATE_BURST);
        let has_token = self.tokens >= 1.0;
        if has_token {
            self.tokens -= 1.0;
        }
        has_token
    }
}

/// A guest that does not listen loses its answer, as with any datagram.
fn send(socket: &UdpSocket, message: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(message, to) {
        tracing::debug!(%to, %error, "an answer was lost");
    }
}
