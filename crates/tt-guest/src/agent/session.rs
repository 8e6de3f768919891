//! The reader's side: frames of the host become actions. It never waits for anything but the host, so a stream that
//! stands still holds up no other, and a new host is heard at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tt_guest::Error;
use tt_guest::flow::MAX_STREAMS;
use tt_guest::frame::{Decoder, Frame, Kind, MAX_PAYLOAD};
use tt_guest::message::{FailureCode, GuestMessage, Hello, HostMessage, PROTOCOL_VERSION, Setup};

use super::link::Input;
use super::log::{explain, say};
use super::outbox::Epoch;
use super::refusal::Refusal;
use super::setups::Setups;
use super::stream::Stream;
use super::{Agent, copy, exec, power, setup, spawn, time};

const AGENT_VERSION: &str = env!("CARGO_PKG_VERSION");

/// A host that connected before the guest ran has said `Hello` already: the port hands it over this soon after it was
/// opened, and the host need not be asked for it.
const HELLO_WAIT: Duration = Duration::from_millis(50);

/// When a host that has said nothing is told again.
const REMINDER_SECS: [u64; 8] = [1, 2, 2, 5, 5, 10, 10, 20];

type Streams = Arc<Mutex<HashMap<u32, Arc<Stream>>>>;

/// The session of the host that is connected now.
struct Current {
    nonce: u64,
    epoch: Epoch,
}

struct Session<'a> {
    agent: &'a Arc<Agent>,
    current: Option<Current>,
    streams: Streams,
    /// The host was told that there is no session, and has not answered.
    announced: bool,
    setups: Arc<Setups>,
}

/// Serves the channel for ever.
pub fn serve(agent: &Arc<Agent>) {
    let mut session = Session {
        agent,
        current: None,
        streams: Streams::default(),
        announced: false,
        setups: Arc::default(),
    };
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; MAX_PAYLOAD];
    agent.outbox.note_used();
    if !agent.link.expect_input(HELLO_WAIT) {
        session.announce();
    }
    loop {
        match agent.link.read(&mut buffer) {
            Ok(Input::Bytes(count)) => decoder.feed(&buffer[..count], |frame| match frame {
                Ok(frame) => session.handle(frame),
                Err(error) => say(explain(&error)),
            }),
            Ok(Input::NewPeer) => decoder = Decoder::default(),
            Err(error) => {
                say(format!("cannot read from the host: {error}"));
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

/// Says again and again, for a bounded time, that no session was ever opened: what was said once may be lost with a
/// frame that the guest's former life left unfinished.
pub fn remind(agent: &Arc<Agent>) {
    for pause in REMINDER_SECS {
        std::thread::sleep(Duration::from_secs(pause));
        if agent.boot_ms.get().is_some() {
            return;
        }
        let agent_version = AGENT_VERSION.to_owned();
        agent.outbox.tell_now(&GuestMessage::Ready { version: PROTOCOL_VERSION, agent_version });
    }
}

impl Session<'_> {
    fn handle(&mut self, frame: Frame) {
        if frame.kind == Kind::Control {
            return match HostMessage::parse(&frame.payload) {
                Ok(HostMessage::Hello(hello)) => self.open(&hello),
                Ok(message) => match self.epoch() {
                    Some(epoch) => self.act(epoch, message),
                    None => self.announce(),
                },
                Err(error) => self.reject(&error),
            };
        }
        if self.current.is_none() {
            return self.announce();
        }
        // A frame for a stream that has just ended is no error: the host cannot know yet.
        let Some(stream) = self.lock().get(&frame.stream).cloned() else { return };
        match (frame.kind, frame.credit()) {
            (Kind::Stdin, _) => {
                if let Err(error) = stream.push_input(&frame.payload) {
                    say(format!("stream {}: {}", stream.id, explain(&error)));
                    stream.cancel();
                }
            }
            (Kind::StdinEof, _) => stream.end_input(),
            (_, Some(credit)) => stream.grant(credit),
            _ => say(format!("stream {}: the host may not send {:?}", stream.id, frame.kind)),
        }
    }

    fn epoch(&self) -> Option<Epoch> {
        self.current.as_ref().map(|current| current.epoch)
    }

    fn announce(&mut self) {
        if !std::mem::replace(&mut self.announced, true) {
            let agent_version = AGENT_VERSION.to_owned();
            self.agent
                .outbox
                .restart(&GuestMessage::Ready { version: PROTOCOL_VERSION, agent_version });
        }
    }

    fn open(&mut self, hello: &Hello) {
        let ack = GuestMessage::HelloAck {
            version: PROTOCOL_VERSION,
            session: hello.session,
            agent_version: AGENT_VERSION.to_owned(),
            pid1: self.agent.pid1,
        };
        if hello.version == PROTOCOL_VERSION
            && self.current.as_ref().is_some_and(|current| current.nonce == hello.session)
        {
            return self.agent.outbox.tell_now(&ack);
        }
        for (_, stream) in self.lock().drain() {
            stream.cancel();
        }
        let _ = self.agent.boot_ms.set(time::uptime_ms());
        if self.agent.owns_kernel() {
            time::advance_clock(hello.time_unix_ns)
                .unwrap_or_else(|error| say(format!("cannot set the clock: {error}")));
            let entropy = hello.entropy.as_deref().map_or(Ok(()), time::add_entropy);
            entropy.unwrap_or_else(|error| say(format!("cannot add entropy: {error}")));
        }
        let epoch = self.agent.outbox.restart(&ack);
        self.announced = false;
        self.current =
            (hello.version == PROTOCOL_VERSION).then_some(Current { nonce: hello.session, epoch });
    }

    fn act(&mut self, epoch: Epoch, message: HostMessage) {
        match message {
            HostMessage::Hello(_) => (),
            HostMessage::Setup(setup) => self.set_up(epoch, setup),
            HostMessage::Exec(exec) => self.begin(exec.stream, epoch, move |agent, stream| {
                exec::run(&agent.processes, &agent.outbox, stream, &exec)
            }),
            HostMessage::CopyIn { stream, path, mode } => {
                self.begin(stream, epoch, move |agent, stream| {
                    copy::copy_in(&agent.outbox, stream, &path, mode)
                })
            }
            HostMessage::CopyOut { stream, path } => {
                self.begin(stream, epoch, move |agent, stream| {
                    copy::copy_out(&agent.outbox, stream, &path)
                })
            }
            HostMessage::Signal { stream, signal } => self.signal(stream, signal),
            HostMessage::Resize { stream, rows, cols } => self.resize(stream, rows, cols),
            HostMessage::Cancel { stream } => {
                if let Some(stream) = self.lock().get(&stream) {
                    stream.cancel();
                }
            }
            HostMessage::Shutdown { reboot } => self.shut_down(epoch, reboot),
            HostMessage::SetClock { time_unix_ns } if self.agent.owns_kernel() => {
                time::set_clock(time_unix_ns)
                    .unwrap_or_else(|error| say(format!("cannot set the clock: {error}")));
            }
            HostMessage::SetClock { .. } => (),
            HostMessage::Ping { n } => self.agent.outbox.tell_now(&GuestMessage::Pong { n }),
        }
    }

    /// Opens a stream and runs it on a thread of its own.
    fn begin<F>(&mut self, id: u32, epoch: Epoch, run: F)
    where
        F: FnOnce(&Agent, &Arc<Stream>) -> Result<GuestMessage, Refusal> + Send + 'static,
    {
        let mut streams = self.lock();
        if streams.contains_key(&id) {
            return say(format!("stream {id} is open; the same request again is ignored"));
        }
        let opened = if id == 0 {
            Err(Refusal::new(FailureCode::BadMessage, "stream 0 is for messages"))
        } else if streams.len() >= MAX_STREAMS {
            Err(Refusal::new(
                FailureCode::TooMany,
                format!("{MAX_STREAMS} streams are open, no more are allowed"),
            ))
        } else {
            Stream::new(id, epoch).map_err(|error| Refusal::io("cannot open a stream", &error))
        };
        let started = opened.and_then(|stream| {
            let stream = Arc::new(stream);
            streams.insert(id, Arc::clone(&stream));
            let (agent, all) = (Arc::clone(self.agent), Arc::clone(&self.streams));
            let started = super::thread("stream", move || carry(&agent, &all, &stream, run));
            started.map_err(|error| {
                streams.remove(&id);
                Refusal::io("cannot start a thread", &error)
            })
        });
        drop(streams);
        if let Err(Refusal { code, why }) = started {
            self.agent.outbox.tell_now(&GuestMessage::Failed { stream: id, code, why });
        }
    }

    fn set_up(&mut self, epoch: Epoch, setup: Setup) {
        let (agent, setups) = (Arc::clone(self.agent), Arc::clone(&self.setups));
        if !setups.add(&setup) {
            return self
                .agent
                .outbox
                .tell_now(&setup::failed("setup", "too many set-ups wait already"));
        }
        let started = super::thread("setup", move || {
            let (turn, newest) = setups.take_turn(setup);
            let answer = setup::run(&agent, &newest);
            // If the session has ended, the next host asks again.
            let _ = agent.outbox.tell(epoch, &answer);
            drop(turn);
            agent.tell_entry();
            setup::note_ready(&agent, &answer);
        });
        if let Err(error) = started {
            self.setups.give_up();
            self.agent.outbox.tell_now(&setup::failed("setup", &error.to_string()));
        }
    }

    fn signal(&self, id: u32, signal: i32) {
        let pid = self.lock().get(&id).and_then(|stream| stream.pid.get().copied());
        if let Some(pid) = pid.filter(|_| (1..=64).contains(&signal)) {
            self.agent.processes.signal_group(pid, signal);
        }
    }

    fn resize(&self, id: u32, rows: u16, cols: u16) {
        let Some(stream) = self.lock().get(&id).cloned() else { return };
        if let Some(terminal) = stream.terminal.get() {
            // It can only fail when the terminal is gone, and then its size is of no use.
            let _ = rustix::termios::tcsetwinsize(terminal, spawn::window_size(rows, cols));
        }
    }

    fn shut_down(&self, epoch: Epoch, reboot: bool) {
        let agent = Arc::clone(self.agent);
        let started = super::thread("shutdown", move || {
            if let Err(Refusal { code, why }) = power::shut_down(&agent, reboot) {
                let _ = agent.outbox.tell(epoch, &GuestMessage::Failed { stream: 0, code, why });
            }
        });
        started.unwrap_or_else(|error| say(format!("cannot shut down: {error}")));
    }

    fn reject(&mut self, error: &Error) {
        let why = explain(error);
        say(&why);
        if self.current.is_some() {
            self.agent.outbox.tell_now(&GuestMessage::Failed {
                stream: 0,
                code: FailureCode::BadMessage,
                why,
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Stream>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The life of a stream's thread.
fn carry<F>(agent: &Agent, streams: &Mutex<HashMap<u32, Arc<Stream>>>, stream: &Arc<Stream>, run: F)
where
    F: FnOnce(&Agent, &Arc<Stream>) -> Result<GuestMessage, Refusal>,
{
    let id = stream.id;
    let answer = run(agent, stream).unwrap_or_else(|Refusal { code, why }| GuestMessage::Failed {
        stream: id,
        code,
        why,
    });
    let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
    // A later session may have a stream of the same number.
    if streams.get(&id).is_some_and(|known| Arc::ptr_eq(known, stream)) {
        streams.remove(&id);
    }
    drop(streams);
    // If the session has ended, nobody waits for the answer.
    let _ = agent.outbox.tell(stream.epoch, &answer);
}
