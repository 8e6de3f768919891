//! DNS over TCP (RFC 7766): connections of guests to the resolver, one question at a time, and the
//! length-prefixed messages of both sides. Sockets never block, and who is slow is cut off.

use crate::answer::MESSAGE_BYTES_MAX;
use crate::dns::Client;
use crate::gate::{READS_PER_TURN, Shared, Source, State};
use rustix::event::epoll::{self, EventFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tt_model::EnvId;

/// Connections of one member, of one Env, and of all: each holds a descriptor of the daemon.
const STREAMS_PER_MEMBER_MAX: usize = 8;
const STREAMS_PER_ENV_MAX: usize = 32;
const STREAMS_MAX: usize = 512;
/// How long a question and its answer may take, waiting for others included.
const STREAM_TIMEOUT: Duration = Duration::from_secs(8);
/// Bytes of a message's length.
const LENGTH_BYTES: usize = 2;
/// Bytes that are read at once.
const READ_BYTES: usize = 4096;

/// A guest's connection.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) env: EnvId,
    from: IpAddr,
    talk: Talk,
    /// Whether a question of it is under way.
    is_waiting: bool,
    pub(crate) deadline: Instant,
}

/// Messages on a connection.
#[derive(Debug)]
pub(crate) struct Talk {
    stream: TcpStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Shared {
    /// Takes the connections that guests have made.
    pub(crate) fn accept(&self, state: &mut State, env: EnvId) {
        for _ in 0..READS_PER_TURN {
            let Some(door) = state.doors.get(&env) else { return };
            let Ok((stream, from)) = door.sockets.listener.accept() else { return };
            let of_env = state.streams.values().filter(|stream| stream.env == env);
            let of_member = of_env.clone().filter(|stream| stream.from == from.ip()).count();
            let has_room = state.streams.len() < STREAMS_MAX
                && of_env.count() < STREAMS_PER_ENV_MAX
                && of_member < STREAMS_PER_MEMBER_MAX;
            if !has_room {
                continue;
            }
            if let Err(error) = self.keep(state, env, stream, from.ip()) {
                tracing::debug!(%env, %error, "a connection to the resolver was not kept");
            }
        }
    }

    fn keep(
        &self,
        state: &mut State,
        env: EnvId,
        stream: TcpStream,
        from: IpAddr,
    ) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let key = state.next_key();
        epoll::add(&self.epoll, &stream, Source::Stream(key).data(), EventFlags::IN)?;
        let deadline = Instant::now() + STREAM_TIMEOUT;
        let talk = Talk::new(stream);
        state.streams.insert(key, Stream { env, from, talk, is_waiting: false, deadline });
        Ok(())
    }

    /// Reads a question, or goes on writing an answer.
    pub(crate) fn serve_stream(&self, state: &mut State, key: u64, flags: EventFlags) {
        if self.try_serve(state, key, flags).is_err() {
            state.streams.remove(&key);
        }
    }

    /// Writes an answer on a connection that may be gone.
    pub(crate) fn answer_stream(&self, state: &mut State, key: u64, answer: &[u8]) {
        let Some(stream) = state.streams.get_mut(&key) else { return };
        stream.talk.push(answer);
        if self.go_on(stream, key).is_err() {
            state.streams.remove(&key);
        }
    }

    fn try_serve(&self, state: &mut State, key: u64, flags: EventFlags) -> io::Result<()> {
        let Some(stream) = state.streams.get_mut(&key) else { return Ok(()) };
        if stream.is_waiting {
            if !stream.talk.outgoing.is_empty() && flags.contains(EventFlags::OUT) {
                return self.go_on(stream, key);
            }
            // It waits for nothing but the guest's end.
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let question = stream.talk.read(MESSAGE_BYTES_MAX)?;
        let wanted = if question.is_some() { EventFlags::empty() } else { EventFlags::IN };
        epoll::modify(&self.epoll, &stream.talk.stream, Source::Stream(key).data(), wanted)?;
        let Some(question) = question else { return Ok(()) };
        stream.is_waiting = true;
        stream.deadline = Instant::now() + STREAM_TIMEOUT;
        let (env, from) = (stream.env, stream.from);
        match self.question(state, env, Client::Stream(key), from, &question) {
            true => Ok(()),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Writes what can be written, and reads the next question after that.
    fn go_on(&self, stream: &mut Stream, key: u64) -> io::Result<()> {
        let flags = if stream.talk.write()? {
            stream.is_waiting = false;
            stream.deadline = Instant::now() + STREAM_TIMEOUT;
            // The next question may have come with the last one: then no event tells of it.
            if stream.talk.incoming.is_empty() { EventFlags::IN } else { EventFlags::OUT }
        } else {
            EventFlags::OUT
        };
        Ok(epoll::modify(&self.epoll, &stream.talk.stream, Source::Stream(key).data(), flags)?)
    }
}

impl Talk {
    fn new(stream: TcpStream) -> Self {
        Self { stream, incoming: Vec::new(), outgoing: Vec::new() }
    }

    /// Begins to connect; the socket can be written once that is done.
    pub(crate) fn connect(server: SocketAddr) -> io::Result<Self> {
        let family = match server {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        match connect(&socket, &server) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(Self::new(socket.into())),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// Adds a message to what is to be written. Longer ones than a length can say are left out.
    pub(crate) fn push(&mut self, message: &[u8]) {
        if let Ok(length) = u16::try_from(message.len()) {
            self.outgoing.extend(length.to_be_bytes());
            self.outgoing.extend(message);
        }
    }

    /// Writes what the socket takes. Whether that was all.
    pub(crate) fn write(&mut self) -> io::Result<bool> {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => drop(self.outgoing.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// One whole message of at most `bytes_max`, or none as long as it has not come. An error ends
    /// the connection: also its end, and a longer message.
    pub(crate) fn read(&mut self, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(message) = self.take(bytes_max)? {
                return Ok(Some(message));
            }
            let mut buffer = [0; READ_BYTES];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.incoming.extend(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn take(&mut self, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
        let Some([high, low]) = self.incoming.get(..LENGTH_BYTES) else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length > bytes_max {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if self.incoming.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        let rest = self.incoming.split_off(LENGTH_BYTES + length);
        let message = self.incoming.split_off(LENGTH_BYTES);
        self.incoming = rest;
        Ok(Some(message))
    }
}
