//! The channels to the guests: readiness, streams, consoles. The guest is hostile: everything it
//! says is bounded, and nothing it says can end more than its own channel.

mod channel;
mod console;
mod door;
mod reach;
mod session;
mod stream;

pub use console::ConsoleStream;
pub use stream::GuestStream;

use channel::{Command, Shared};
use console::Console;
use door::Door;
use reach::Place;
use std::collections::HashMap;
use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;
use tt_guest::message::{NetworkSetup, Setup, SixSetup};
use tt_guest::session::Open;
use tt_model::{EnvId, ErrorCode, Host, Layout, Refusal, Vm, VmId, six};

/// Called with a Vm's id when its guest has something to look at.
pub(crate) type WakeGuest = Arc<dyn Fn(VmId) + Send + Sync>;

/// How far a guest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestState {
    /// Its agent has not answered, or is setting it up.
    Waiting,
    /// It is set up.
    Ready,
    /// It could not be set up, and why.
    Refused(String),
}

/// What settling needs of a guest.
pub trait GuestControl: Send + Sync + Debug {
    /// Who is who in an Env: what its guests find in their hosts file.
    fn set_names(&self, env: EnvId, members: &[(String, Ipv4Addr)]);

    /// Opens the channel to a running machine's guest, if it is not open, and says how far it is.
    fn ensure(&self, vm: &Vm) -> GuestState;

    /// The machine stood still and goes on: the guest's clock is set before anything else is asked
    /// of it.
    fn resumed(&self, id: VmId);

    /// Asks the guest to shut down. `false` if there is no agent to ask.
    fn shut_down(&self, id: VmId) -> bool;

    /// The Env is gone: forgets who was who in it.
    fn forget_names(&self, env: EnvId);

    /// The machine is gone: closes the channel.
    fn forget(&self, id: VmId);

    /// The Vm is going: closes the channel and removes its logs.
    fn erase(&self, id: VmId);
}

/// How long a guest may take to be there, as after a daemon's start, and to open a stream.
const OPEN_MAX: std::time::Duration = std::time::Duration::from_secs(15);
/// Commands under way to one guest's channel.
const COMMANDS_MAX: usize = 64;

/// The channels to all guests of this host.
pub struct Guests {
    runtime: Handle,
    layout: Layout,
    gateway: Ipv4Addr,
    prefix_len: u8,
    wake: WakeGuest,
    /// Told when a guest's state has changed.
    changed: Arc<Notify>,
    guests: Mutex<HashMap<VmId, Guest>>,
    names: Mutex<HashMap<EnvId, Vec<(String, Ipv4Addr)>>>,
}

impl Debug for Guests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guests").field("layout", &self.layout).finish_non_exhaustive()
    }
}

struct Guest {
    /// As the last visit saw it.
    vm: Vm,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    console: Console,
    has_agent: bool,
    /// Serves the agent's channel, or watches for the guest.
    task: Option<AbortHandle>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Guests {
    /// Channels that run on `runtime` and tell `wake` what happened.
    pub fn new(
        runtime: Handle,
        layout: Layout,
        host: &Host,
        wake: impl Fn(VmId) + Send + Sync + 'static,
    ) -> Self {
        let changed = Arc::new(Notify::new());
        let told = changed.clone();
        let wake = move |id| {
            told.notify_waiters();
            wake(id);
        };
        Self {
            runtime,
            layout,
            gateway: host.gateway(),
            prefix_len: host.range.prefix_len(),
            wake: Arc::new(wake),
            changed,
            guests: Mutex::default(),
            names: Mutex::default(),
        }
    }

    /// Opens a stream in a guest; one that is not ready yet is waited for.
    pub async fn open(&self, id: VmId, open: Open) -> Result<GuestStream, Refusal> {
        let ready = tokio::time::timeout(OPEN_MAX, self.ready(id)).await;
        let commands = ready.map_err(|_| no_agent(id))??;
        let (reply, answer) = oneshot::channel();
        let command = Command::Open { open, reply };
        commands.try_send(command).map_err(|_| no_agent(id))?;
        let answer = tokio::time::timeout(OPEN_MAX, answer).await;
        answer.map_err(|_| no_agent(id))?.map_err(|_| no_agent(id))?
    }

    async fn ready(&self, id: VmId) -> Result<mpsc::Sender<Command>, Refusal> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(guest) = self.guests().get(&id) {
                if !guest.has_agent {
                    return Err(Refusal::new(
                        ErrorCode::Agent,
                        format!("vm {id}"),
                        "its guest has no TT agent",
                        "use its ports, or a template with the agent",
                    ));
                }
                if guest.shared.state() == GuestState::Ready {
                    return Ok(guest.commands.clone());
                }
            }
            changed.await;
        }
    }

    /// Connects to a TCP port of a guest, from inside its Env's namespace.
    pub async fn connect(&self, vm: &Vm, port: u16) -> Result<ConsoleStream, Refusal> {
        reach::open(&self.place(vm, port)).await.map_err(|error| {
            Refusal::new(
                ErrorCode::Agent,
                format!("port {port} of vm {}", vm.full_name()),
                format!("nothing answers there: {error}"),
                "wait until its guest has started what listens there; see `tt vm log`",
            )
        })
    }

    fn place(&self, vm: &Vm, port: u16) -> Place {
        Place { netns: self.layout.netns(vm.env_id), address: vm.resource.ip_addr, port }
    }

    /// Attaches to the serial console of a running machine.
    pub fn console(&self, id: VmId) -> Result<ConsoleStream, Refusal> {
        let guests = self.guests();
        let guest = guests.get(&id).ok_or_else(|| {
            Refusal::new(
                ErrorCode::State,
                format!("vm {id}"),
                "it has no machine",
                "start it first",
            )
        })?;
        guest.console.attach()
    }

    /// The last `tail_bytes` bytes of the console's log, also of a stopped Vm.
    pub fn console_log(&self, id: VmId, tail_bytes: u64) -> std::io::Result<Vec<u8>> {
        console::read_log(&self.layout.console_log(id), tail_bytes)
    }

    /// Ids that have a log here; found by looking.
    pub(crate) fn logs(&self) -> std::io::Result<Vec<VmId>> {
        console::list_logs(&self.layout)
    }

    fn setup(&self, vm: &Vm) -> Setup {
        let names = self.names();
        let peers = names.get(&vm.env_id).map(Vec::as_slice).unwrap_or_default();
        let others = peers.iter().filter(|(name, _)| *name != vm.name);
        Setup {
            hostname: vm.name.clone(),
            network: Some(NetworkSetup {
                mac: vm.resource.mac_addr.to_string(),
                address: vm.resource.ip_addr,
                prefix_len: self.prefix_len,
                gateway: self.gateway,
                mtu: 0,
                six: Some(SixSetup {
                    address: six::address(vm.resource.ip_addr),
                    prefix_len: six::NETWORK.prefix_len(),
                    gateway: six::link_local(self.gateway),
                }),
            }),
            dns: vec![self.gateway],
            hosts: others.cloned().collect(),
            machine_id: vm.machine_id.clone(),
            ssh_keys: vm.ssh_keys.clone(),
            entropy: None,
        }
    }

    /// Tells a guest what has changed about it. One that is not there yet hears it first of all.
    fn refresh(&self, guest: &Guest, is_news: bool) {
        if guest.shared.set_setup(self.setup(&guest.vm)) || is_news {
            // A full or closed channel opens a session anew, and that begins with the set-up.
            let _ = guest.commands.try_send(Command::Refresh);
        }
    }

    fn start(&self, vm: &Vm) -> Guest {
        let shared = Arc::new(Shared::new(vm.id, self.setup(vm), self.wake.clone()));
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let has_agent = vm.has_agent();
        let task = match vm.ready_port {
            _ if has_agent => {
                let door = Door::new(&self.layout, vm.id);
                Some(self.runtime.spawn(channel::run(door, shared.clone(), receiver)))
            }
            Some(port) => {
                Some(self.runtime.spawn(reach::watch(self.place(vm, port), shared.clone())))
            }
            None => {
                // Nothing is seen of its guest: it is ready when its machine runs.
                shared.set_state(GuestState::Ready);
                None
            }
        };
        let task = task.map(|task| task.abort_handle());
        let log = self.layout.console_log(vm.id);
        let console = Console::start(&self.runtime, Door::new(&self.layout, vm.id), log);
        Guest { vm: vm.clone(), shared, commands, console, has_agent, task }
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<VmId, Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names(&self) -> MutexGuard<'_, HashMap<EnvId, Vec<(String, Ipv4Addr)>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GuestControl for Guests {
    fn set_names(&self, env: EnvId, members: &[(String, Ipv4Addr)]) {
        self.names().insert(env, members.to_vec());
        for guest in self.guests().values().filter(|guest| guest.vm.env_id == env) {
            self.refresh(guest, false);
        }
    }

    fn forget_names(&self, env: EnvId) {
        self.names().remove(&env);
    }

    fn ensure(&self, vm: &Vm) -> GuestState {
        let mut guests = self.guests();
        let guest = guests.entry(vm.id).or_insert_with(|| self.start(vm));
        // A larger disk is no news in the set-up, but with it the guest grows its file system.
        let has_grown = guest.vm.resource.disk_size != vm.resource.disk_size;
        if has_grown || guest.vm.generation != vm.generation {
            guest.vm = vm.clone();
            self.refresh(guest, has_grown);
        }
        let state = guest.shared.state();
        if guest.has_agent
            && state != GuestState::Ready
            && guest.commands.capacity() == COMMANDS_MAX
        {
            // One that waits is enough; a session that has none to wait for leaves it alone.
            let _ = guest.commands.try_send(Command::SetUp);
        }
        state
    }

    fn resumed(&self, id: VmId) {
        if let Some(guest) = self.guests().get(&id) {
            // A channel that is full or closed opens a session anew, and that sets the clock.
            let _ = guest.commands.try_send(Command::SetClock);
        }
    }

    fn shut_down(&self, id: VmId) -> bool {
        let guests = self.guests();
        guests.get(&id).is_some_and(|guest| {
            guest.shared.state() == GuestState::Ready
                && guest.has_agent
                && guest.commands.try_send(Command::ShutDown).is_ok()
        })
    }

    fn forget(&self, id: VmId) {
        self.guests().remove(&id);
    }

    fn erase(&self, id: VmId) {
        self.forget(id);
        remove_log(&self.layout.console_log(id));
    }
}

fn remove_log(log: &Path) {
    for path in [log.to_owned(), console::older(log)] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "log not removed");
            }
            _ => {}
        }
    }
}

fn no_agent(id: VmId) -> Refusal {
    Refusal::new(
        ErrorCode::Agent,
        format!("vm {id}"),
        "its guest's agent does not answer",
        "wait until `tt vm show` says ready, or look at `tt vm log`",
    )
}
