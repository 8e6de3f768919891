//! The thread that answers guests on the gateway of every Env: names by DNS, over UDP and TCP, and
//! addresses by DHCP, routers of IPv6. When it is gone, names fail, leases are renewed later, and nothing else
//! happens. It never answers anybody but members: its sockets lie in the Envs' namespaces, whose
//! rules let nobody else in.

use crate::advert;
use crate::answer::Zone;
use crate::dhcp::{self, Terms};
use crate::dns::Pending;
use crate::door::{Door, Sockets};
use crate::member::Known;
use crate::named::Bounds;
use crate::streams::Stream;
use crate::{EnvNames, NetworkError, sysctl};
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tt_model::{EnvId, six};

/// Messages read from one socket before the others have their turn.
pub(crate) const READS_PER_TURN: usize = 32;
/// Events read at once.
const EVENTS_PER_TURN: usize = 64;
/// Envs whose names are kept; more than a host can carry.
const ZONES_MAX: usize = 16_384;

/// What an event is about: its kind stands in the upper bits, an id below.
const KIND_SHIFT: u32 = 60;
const ID_MASK: u64 = (1 << KIND_SHIFT) - 1;

/// Whose socket has something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Datagrams for the resolver of an Env.
    Names(EnvId),
    /// Connections to the resolver of an Env.
    Listener(EnvId),
    /// Datagrams for an Env's DHCP.
    Leases(EnvId),
    /// An answer from outside.
    Pending(u64),
    /// A guest's connection.
    Stream(u64),
    /// A guest asks an Env's gateway for a router.
    Routers(EnvId),
    /// The end.
    Stop,
}

impl Source {
    pub(crate) fn data(self) -> EventData {
        let (kind, id) = match self {
            Self::Names(env) => (0, env.0),
            Self::Listener(env) => (1, env.0),
            Self::Leases(env) => (2, env.0),
            Self::Pending(key) => (3, key),
            Self::Stream(key) => (4, key),
            Self::Routers(env) => (5, env.0),
            Self::Stop => (6, 0),
        };
        EventData::new_u64(kind << KIND_SHIFT | id & ID_MASK)
    }

    fn of(data: u64) -> Self {
        let id = data & ID_MASK;
        match data >> KIND_SHIFT {
            0 => Self::Names(EnvId(id)),
            1 => Self::Listener(EnvId(id)),
            2 => Self::Leases(EnvId(id)),
            3 => Self::Pending(id),
            4 => Self::Stream(id),
            5 => Self::Routers(EnvId(id)),
            _ => Self::Stop,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Gate {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) epoll: OwnedFd,
    stop: OwnedFd,
    pub(crate) terms: Terms,
    pub(crate) upstream: Vec<SocketAddr>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) zones: BTreeMap<EnvId, Zone>,
    pub(crate) doors: BTreeMap<EnvId, Door>,
    pub(crate) pending: BTreeMap<u64, Pending>,
    pub(crate) streams: BTreeMap<u64, Stream>,
    last_key: u64,
    /// When guests are told unasked next.
    advertise_at: Option<Instant>,
}

impl Gate {
    /// Starts the thread; it asks `upstream` from the calling thread's namespace.
    pub(crate) fn start(terms: Terms, upstream: Vec<SocketAddr>) -> Result<Self, NetworkError> {
        let fail = |source| NetworkError::Resolve { action: "start", source };
        let errno = |errno: rustix::io::Errno| fail(errno.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(errno)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let stop = eventfd(0, flags).map_err(errno)?;
        epoll::add(&epoll, &stop, Source::Stop.data(), EventFlags::IN).map_err(errno)?;
        let shared = Arc::new(Shared { epoll, stop, terms, upstream, state: Mutex::default() });
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("gate".into())
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
            let gateway = self.shared.terms.gateway();
            state.zones.insert(env, Zone::new(names, gateway, sysctl::has_six()));
        } else {
            return Err(NetworkError::KeepEnv { max: ZONES_MAX });
        }
        Ok(())
    }

    /// Whether an Env has its sockets here.
    pub(crate) fn is_attached(&self, env: EnvId) -> bool {
        self.shared.state().doors.contains_key(&env)
    }

    /// Answers on `sockets`, which lie in the Env's namespace. `known`: what that says already.
    pub(crate) fn attach(
        &self,
        env: EnvId,
        sockets: Sockets,
        known: Known,
    ) -> Result<(), NetworkError> {
        let mut state = self.shared.state();
        let add = |socket: &dyn AsFd, source: Source| {
            epoll::add(&self.shared.epoll, socket.as_fd(), source.data(), EventFlags::IN).map_err(
                |errno| NetworkError::Resolve { action: "give a socket to", source: errno.into() },
            )
        };
        add(&sockets.names, Source::Names(env))?;
        add(&sockets.listener, Source::Listener(env))?;
        add(&sockets.leases, Source::Leases(env))?;
        if let Some(routers) = &sockets.routers {
            add(routers, Source::Routers(env))?;
            // Who asked while nobody answered does not ask again.
            routers.tell(None, self.shared.terms.mtu);
        }
        state.doors.insert(env, Door::new(sockets, known));
        Ok(())
    }

    /// Changes what a member gets from outside.
    pub(crate) fn set_bounds(
        &self,
        env: EnvId,
        member: Ipv4Addr,
        bounds: Bounds,
    ) -> Result<(), NetworkError> {
        let fail = |source| NetworkError::Resolve { action: "close addresses by", source };
        match self.shared.state().doors.get_mut(&env) {
            Some(door) => door.set_bounds(member, bounds).map_err(fail),
            None => Ok(()),
        }
    }

    /// The rules of an Env were put back: opens again what answers had opened.
    pub(crate) fn open_again(&self, env: EnvId) -> Result<(), NetworkError> {
        let fail = |source| NetworkError::Resolve { action: "open addresses by", source };
        match self.shared.state().doors.get_mut(&env) {
            Some(door) => door.open_again().map_err(fail),
            None => Ok(()),
        }
    }

    /// Lets go of an Env's namespace.
    pub(crate) fn detach(&self, env: EnvId) {
        let mut state = self.shared.state();
        state.doors.remove(&env);
        state.pending.retain(|_, pending| pending.env != env);
        state.streams.retain(|_, stream| stream.env != env);
    }

    /// Forgets an Env's names.
    pub(crate) fn forget(&self, env: EnvId) {
        self.shared.state().zones.remove(&env);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let woken = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes()).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken)
            && thread.join().is_err()
        {
            tracing::error!("the gate's thread had panicked");
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
                    tracing::error!(%error, "the gate can not wait for questions and ends");
                    return;
                }
            };
            let mut state = self.state();
            for event in events {
                match Source::of(event.data.u64()) {
                    Source::Stop => return,
                    Source::Names(env) => self.read_questions(&mut state, env),
                    Source::Listener(env) => self.accept(&mut state, env),
                    Source::Leases(env) => self.read_leases(&mut state, env),
                    Source::Routers(env) => self.read_solicitations(&mut state, env),
                    Source::Pending(key) => self.hear(&mut state, key, event.flags),
                    Source::Stream(key) => self.serve_stream(&mut state, key, event.flags),
                }
            }
            let now = Instant::now();
            self.expire(&mut state, now);
            state.streams.retain(|_, stream| stream.deadline > now);
            self.advertise(&mut state, now);
        }
    }

    /// Answers who asks for a router.
    fn read_solicitations(&self, state: &mut State, env: EnvId) {
        let Some(door) = state.doors.get_mut(&env) else { return };
        let Some(routers) = &door.sockets.routers else { return };
        let [first, ..] = self.terms.range.network().octets();
        for _ in 0..READS_PER_TURN {
            let Some(from) = routers.next() else { return };
            // Those that have no address yet share what is left to one.
            let member = six::owner(from, first).unwrap_or(Ipv4Addr::UNSPECIFIED);
            if door.routers.take(member, Instant::now()) {
                routers.tell(Some(from), self.terms.mtu);
            }
        }
    }

    /// Says to all, now and then, what they were told when they asked.
    fn advertise(&self, state: &mut State, now: Instant) {
        if state.advertise_at.is_some_and(|at| at > now) {
            return;
        }
        state.advertise_at = Some(now + advert::EVERY);
        for routers in state.doors.values().filter_map(|door| door.sockets.routers.as_ref()) {
            routers.tell(None, self.terms.mtu);
        }
    }

    /// Answers who asks for an address.
    fn read_leases(&self, state: &mut State, env: EnvId) {
        let mut buffer = [0; dhcp::MESSAGE_BYTES_MAX + 1];
        let State { zones, doors, .. } = state;
        let Some(door) = doors.get_mut(&env) else { return };
        for _ in 0..READS_PER_TURN {
            let Ok((length, from)) = door.sockets.leases.recv_from(&mut buffer) else { return };
            let IpAddr::V4(from) = from.ip() else { continue };
            let name_of = |addr| zones.get(&env)?.name_of(addr);
            let answer = self.terms.answer(&buffer[..length], from, name_of);
            let answer = answer.filter(|to| door.leases.take(to.member, Instant::now()));
            if let Some(answer) = answer {
                let to = SocketAddr::from((answer.to, dhcp::CLIENT_PORT));
                send(&door.sockets.leases, &answer.message, to);
            }
        }
    }
}

impl State {
    /// A number that nothing else has.
    pub(crate) fn next_key(&mut self) -> u64 {
        self.last_key = (self.last_key + 1) & ID_MASK;
        self.last_key
    }

    /// How long nothing is to be done.
    fn wait(&self) -> Option<Duration> {
        let pending = self.pending.values().map(|pending| pending.deadline);
        let streams = self.streams.values().map(|stream| stream.deadline);
        let next = pending.chain(streams).chain(self.advertise_at).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }
}

/// A guest that does not listen loses its answer, as with any datagram.
pub(crate) fn send(socket: &UdpSocket, message: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(message, to) {
        tracing::debug!(%to, %error, "an answer was lost");
    }
}
