//! The resolver's questions: those of guests are answered from the Env's names and its cache, the
//! rest is asked outside, over UDP for who asked over UDP and over TCP for who asked so. Its share of
//! time, sockets and memory is bounded for each Env, so none starves another. It runs on the gate's
//! thread and never blocks.

use crate::answer::{self, MESSAGE_BYTES_MAX, Verdict, Zone};
use crate::gate::{READS_PER_TURN, Shared, Source, State, send};
use crate::streams::Talk;
use rustix::event::epoll::{self, EventFlags};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use tt_model::EnvId;

/// How long one server may take.
const UPSTREAM_TIMEOUT: Duration = Duration::from_millis(1300);
/// How often others are asked, all servers in turn: guests' resolvers give up after 5 s.
const UPSTREAM_TRIES: usize = 3;
/// Questions under way for all Envs: each holds a socket.
const PENDING_MAX: usize = 512;
/// Questions under way for one Env, so that none starves the others.
const PENDING_PER_ENV_MAX: usize = 64;
/// Questions under way for one member, so that it leaves room for its neighbours.
const PENDING_PER_MEMBER_MAX: usize = 24;
/// Largest answer that is read over UDP.
const ANSWER_BYTES_MAX: usize = 4096;
/// Largest answer over TCP: what its length can say.
const STREAM_ANSWER_BYTES_MAX: usize = u16::MAX as usize;

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// Over UDP, from there.
    Datagram(SocketAddr),
    /// On that connection.
    Stream(u64),
}

/// A question that others are asked.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) env: EnvId,
    member: Ipv4Addr,
    client: Client,
    question: Vec<u8>,
    /// Ours, not the guest's, so that nobody can guess it.
    id: [u8; 2],
    tries: usize,
    link: Link,
    pub(crate) deadline: Instant,
}

/// How a server is asked.
#[derive(Debug)]
enum Link {
    Datagram(UdpSocket),
    Stream(Talk),
}

impl Shared {
    /// Reads what came over UDP.
    pub(crate) fn read_questions(&self, state: &mut State, env: EnvId) {
        let mut buffer = [0; MESSAGE_BYTES_MAX + 1];
        for _ in 0..READS_PER_TURN {
            let Some(door) = state.doors.get(&env) else { return };
            let Ok((length, from)) = door.sockets.names.recv_from(&mut buffer) else { return };
            self.question(state, env, Client::Datagram(from), from.ip(), &buffer[..length]);
        }
    }

    /// Answers a question of a member, or asks others. Whether an answer was given or will be.
    pub(crate) fn question(
        &self,
        state: &mut State,
        env: EnvId,
        client: Client,
        from: IpAddr,
        question: &[u8],
    ) -> bool {
        let now = Instant::now();
        let Some(door) = state.doors.get_mut(&env) else { return false };
        let IpAddr::V4(member) = from else { return false };
        if !door.names.take(member, now) {
            return false;
        }
        let bounds = door.bounds(member);
        let nobody = Zone::default();
        let zone = state.zones.get(&env).unwrap_or(&nobody);
        match zone.decide(question, self.terms.range, &bounds) {
            Verdict::Drop => return false,
            Verdict::Answer(answer) => self.deliver(state, env, client, question, &answer),
            Verdict::Forward => match door.cache.get(question, now) {
                Some(answer) => self.tell(state, (env, member), client, question, answer),
                None => self.forward(state, (env, member), client, question),
            },
        }
        true
    }

    /// Gives a member an answer from outside, and opens to it what that says.
    fn tell(
        &self,
        state: &mut State,
        (env, member): (EnvId, Ipv4Addr),
        client: Client,
        question: &[u8],
        mut answer: Vec<u8>,
    ) {
        let Some(door) = state.doors.get_mut(&env) else { return };
        if let Err(error) = door.open(member, &mut answer, self.terms.range) {
            tracing::warn!(%env, %member, %error, "what a name stands for is not open");
            let Some(failure) = answer::give_up(question) else { return };
            answer = failure;
        }
        self.deliver(state, env, client, question, &answer);
    }

    /// Gives who asked its answer.
    fn deliver(
        &self,
        state: &mut State,
        env: EnvId,
        client: Client,
        question: &[u8],
        answer: &[u8],
    ) {
        match client {
            Client::Stream(key) => self.answer_stream(state, key, answer),
            Client::Datagram(to) => {
                let Some(door) = state.doors.get(&env) else { return };
                if answer.len() <= answer::room(question) {
                    send(&door.sockets.names, answer, to);
                } else if let Some(short) = answer::truncated(question) {
                    send(&door.sockets.names, &short, to);
                }
            }
        }
    }

    /// Asks the first server, or says at once that nobody can be asked.
    fn forward(
        &self,
        state: &mut State,
        (env, member): (EnvId, Ipv4Addr),
        client: Client,
        question: &[u8],
    ) {
        let of_env = state.pending.values().filter(|pending| pending.env == env);
        let of_member = of_env.clone().filter(|pending| pending.member == member).count();
        let has_room = state.pending.len() < PENDING_MAX
            && of_env.count() < PENDING_PER_ENV_MAX
            && of_member < PENDING_PER_MEMBER_MAX;
        let key = state.next_key();
        let asked = has_room.then(|| self.ask(key, client, question, 0));
        match asked {
            Some(Ok((link, id))) => {
                let deadline = Instant::now() + UPSTREAM_TIMEOUT;
                let question = question.to_owned();
                let pending =
                    Pending { env, member, client, question, id, tries: 1, link, deadline };
                state.pending.insert(key, pending);
            }
            _ => self.give_up(state, (env, member), client, question),
        }
    }

    /// Sends the question to the next server, from a port and with an id that nobody knows.
    fn ask(
        &self,
        key: u64,
        client: Client,
        question: &[u8],
        tries: usize,
    ) -> io::Result<(Link, [u8; 2])> {
        let number = tries.checked_rem(self.upstream.len()).ok_or(io::ErrorKind::NotFound)?;
        let server = self.upstream[number];
        let mut id = [0; 2];
        getrandom::fill(&mut id).map_err(|error| io::Error::other(error.to_string()))?;
        let mut message = question.to_owned();
        let head = message.get_mut(..2).ok_or(io::ErrorKind::InvalidData)?;
        head.copy_from_slice(&id);
        let source = Source::Pending(key).data();
        let link = match client {
            Client::Datagram(_) => {
                let socket = connect_datagram(server)?;
                socket.send(&message)?;
                epoll::add(&self.epoll, &socket, source, EventFlags::IN)?;
                Link::Datagram(socket)
            }
            Client::Stream(_) => {
                let mut talk = Talk::connect(server)?;
                talk.push(&message);
                epoll::add(&self.epoll, talk.socket(), source, EventFlags::OUT)?;
                Link::Stream(talk)
            }
        };
        Ok((link, id))
    }

    /// Takes the answer of a server.
    pub(crate) fn hear(&self, state: &mut State, key: u64, flags: EventFlags) {
        let Some(pending) = state.pending.get_mut(&key) else { return };
        let heard = match &mut pending.link {
            Link::Datagram(socket) => hear_datagram(socket),
            Link::Stream(talk) => self.hear_stream(talk, key, flags),
        };
        match heard {
            Ok(Some(mut answer)) => {
                let is_ours = answer.starts_with(&pending.id);
                if !is_ours || !answer::is_answer(&pending.question, &answer) {
                    return;
                }
                answer[..2].copy_from_slice(&pending.question[..2]);
                let Some(pending) = state.pending.remove(&key) else { return };
                let Pending { env, member, client, question, .. } = pending;
                if let Some(door) = state.doors.get_mut(&env) {
                    door.cache.insert(&question, &answer, Instant::now());
                }
                self.tell(state, (env, member), client, &question, answer);
            }
            Ok(None) => {}
            // Nobody listens there.
            Err(_) => self.ask_next(state, key),
        }
    }

    fn hear_stream(
        &self,
        talk: &mut Talk,
        key: u64,
        flags: EventFlags,
    ) -> io::Result<Option<Vec<u8>>> {
        if flags.contains(EventFlags::OUT) && talk.write()? {
            let source = Source::Pending(key).data();
            epoll::modify(&self.epoll, talk.socket(), source, EventFlags::IN)?;
        }
        match flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            true => talk.read(STREAM_ANSWER_BYTES_MAX),
            false => Ok(None),
        }
    }

    /// Asks again where no answer came in time.
    pub(crate) fn expire(&self, state: &mut State, now: Instant) {
        let late = state.pending.iter().filter(|(_, pending)| pending.deadline <= now);
        let late: Vec<u64> = late.map(|(key, _)| *key).collect();
        for key in late {
            self.ask_next(state, key);
        }
    }

    fn ask_next(&self, state: &mut State, key: u64) {
        let Some(mut pending) = state.pending.remove(&key) else { return };
        let (tries, client) = (pending.tries, pending.client);
        let asked =
            (tries < UPSTREAM_TRIES).then(|| self.ask(key, client, &pending.question, tries));
        match asked {
            Some(Ok((link, id))) => {
                (pending.link, pending.id, pending.tries) = (link, id, tries + 1);
                pending.deadline = Instant::now() + UPSTREAM_TIMEOUT;
                state.pending.insert(key, pending);
            }
            // Another server may be reachable.
            Some(Err(_)) => {
                pending.tries += 1;
                pending.deadline = Instant::now();
                state.pending.insert(key, pending);
            }
            None => {
                let asker = (pending.env, pending.member);
                self.give_up(state, asker, client, &pending.question);
            }
        }
    }

    /// An answer that is out of date is better than none (RFC 8767).
    fn give_up(
        &self,
        state: &mut State,
        (env, member): (EnvId, Ipv4Addr),
        client: Client,
        question: &[u8],
    ) {
        let Some(door) = state.doors.get(&env) else { return };
        let stale = door.cache.stale(question, Instant::now());
        if let Some(answer) = stale.or_else(|| answer::give_up(question)) {
            self.tell(state, (env, member), client, question, answer);
        }
    }
}

fn connect_datagram(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(server)?;
    Ok(socket)
}

fn hear_datagram(socket: &UdpSocket) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = [0; ANSWER_BYTES_MAX];
    match socket.recv(&mut buffer) {
        Ok(length) => Ok(Some(buffer[..length].to_vec())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
