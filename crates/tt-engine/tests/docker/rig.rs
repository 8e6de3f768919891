//! A dockerd, and what a container needs of network and storage, made by hand.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use testkit::{Dockerd, Must, within};
use tt_docker::Docker;
use tt_engine::conformance::Fixture;
use tt_engine::docker::{DockerConfig, DockerEngine, Plug};
use tt_engine::{Machine, VmEngine};
use tt_guest::frame::{Decoder, Kind};
use tt_guest::message::{GuestMessage, Hello, HostMessage, NetworkSetup, PROTOCOL_VERSION, Setup};
use tt_model::names::Instance;
use tt_model::{EnvId, Layout, StorageKind, Vm, VmId, names, sample};

/// How long anything may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A scratch host for containers.
pub struct Rig {
    pub layout: Layout,
    pub dockerd: Dockerd,
    next_id: Cell<u64>,
    /// The first processes whose guests were set up.
    set_up: RefCell<BTreeSet<u32>>,
    dir: tempfile::TempDir,
}

/// A network for tests of this crate: a pair of links for each container, and nobody at its other end.
#[derive(Debug)]
pub struct Pairs;

impl Plug for Pairs {
    fn plug(&self, vm: &Vm, into: BorrowedFd<'_>) -> io::Result<()> {
        let path = format!("/proc/{}/fd/{}", std::process::id(), into.as_raw_fd());
        let (mac, ip) = (vm.resource.mac_addr.to_string(), format!("{}/8", vm.resource.ip_addr));
        let inside = |args: &[&str]| {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={path}")).arg("ip").args(args);
            let done = command.status()?;
            if done.success() { Ok(()) } else { Err(io::Error::other(args.join(" "))) }
        };
        inside(&["link", "add", "eth0", "address", &mac, "type", "veth", "peer", "name", "far0"])?;
        inside(&["addr", "add", &ip, "dev", "eth0"])?;
        inside(&["link", "set", "far0", "up"])?;
        inside(&["link", "set", "eth0", "up"])?;
        inside(&["link", "set", "lo", "up"])?;
        inside(&["route", "add", "default", "via", "10.0.0.1"])
    }

    fn unplug(&self, _: &Vm) -> io::Result<()> {
        Ok(())
    }
}

impl Rig {
    /// Of the test `name`; none, after that was said, on a machine that lacks something.
    pub fn new(name: &str) -> Option<Self> {
        Self::with(name, Dockerd::start)
    }

    /// As [`Rig::new`], with Podman in Docker's place.
    pub fn with_podman(name: &str) -> Option<Self> {
        Self::with(name, Dockerd::start_podman)
    }

    fn with(name: &str, start: fn(&str) -> Option<Dockerd>) -> Option<Self> {
        let agent = agent();
        if !agent.is_file() {
            testkit::skip(name, &format!("there is no agent at {}", agent.display()));
            return None;
        }
        let dockerd = start(name)?;
        let dir = tempfile::tempdir().must("make a directory");
        let layout = layout(dir.path());
        for dir in [&layout.data, &layout.run] {
            fs::create_dir(dir).must("make a directory");
        }
        let beat = "while :; do n=$((n+1)); echo $n >/beat; sleep 0.02; done";
        let image = Dockerd::busybox(dir.path(), &["/bin/sh", "-c", beat]);
        let loaded = dockerd.docker().load(&image).must("load an image");
        dockerd.docker().tag(&loaded, &layout.docker_repo(), "base").must("name an image");
        Some(Self { layout, dockerd, next_id: Cell::new(1), set_up: RefCell::default(), dir })
    }

    pub fn docker(&self) -> Docker {
        self.dockerd.docker()
    }

    pub fn config(&self) -> DockerConfig {
        config(&self.layout, &self.dockerd.socket())
    }

    pub fn engine(&self) -> DockerEngine {
        DockerEngine::new(self.config())
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The container's first process.
    pub fn pid(&self, vm: &Vm) -> u32 {
        let name = self.layout.container(vm.id, vm.epoch);
        let container = self.docker().container(&name).must("look at a container");
        container.must("a container").state.pid
    }

    /// A file of a running container, as the host sees it.
    pub fn inside(&self, vm: &Vm, path: &str) -> PathBuf {
        Path::new("/proc").join(self.pid(vm).to_string()).join("root").join(path)
    }

    /// Sets the guest up as the daemon does, so that its image's process begins; the connection stays for what follows.
    pub fn set_up(&self, vm: &Vm) -> UnixStream {
        let socket = self.layout.agent_socket(vm.id);
        let mut stream = UnixStream::connect(socket).must("reach the agent");
        let hello = HostMessage::Hello(Hello {
            version: PROTOCOL_VERSION,
            session: 7,
            time_unix_ns: 0,
            entropy: None,
        });
        let setup = HostMessage::Setup(Setup {
            hostname: vm.name.clone(),
            network: Some(NetworkSetup {
                mac: vm.resource.mac_addr.to_string(),
                address: vm.resource.ip_addr,
                prefix_len: 8,
                gateway: Ipv4Addr::new(10, 0, 0, 1),
                mtu: 0,
                six: None,
            }),
            dns: Vec::new(),
            hosts: Vec::new(),
            machine_id: None,
            ssh_keys: Vec::new(),
            entropy: None,
        });
        stream.write_all(&tt_guest::frame::resync()).must("begin a session");
        for message in [hello, setup] {
            self.say(&mut stream, &message);
        }
        // An agent that can not answer does nothing more.
        is_set_up(&mut stream);
        stream
    }

    fn say(&self, stream: &mut UnixStream, message: &HostMessage) {
        stream.write_all(&message.encode().must("a message")).must("tell the agent");
    }
}

/// Waits until the agent has said that its guest is set up.
fn is_set_up(stream: &mut UnixStream) {
    stream.set_read_timeout(Some(PATIENCE)).must("a timeout");
    let (mut decoder, mut is_done) = (Decoder::default(), false);
    let mut buffer = [0; 4096];
    while !is_done {
        let length = stream.read(&mut buffer).must("the agent's answer");
        assert!(length > 0, "the agent went away");
        decoder.feed(&buffer[..length], |frame| {
            let control = frame.ok().filter(|frame| frame.kind == Kind::Control);
            match control.map(|frame| GuestMessage::parse(&frame.payload)) {
                Some(Ok(GuestMessage::SetupDone { .. })) => is_done = true,
                Some(Ok(GuestMessage::SetupFailed { what, why })) => panic!("{what}: {why}"),
                _ => {}
            }
        });
    }
}

/// A host at those directories, with the Docker that listens at `socket`.
pub fn config(layout: &Layout, socket: &Path) -> DockerConfig {
    DockerConfig {
        layout: layout.clone(),
        docker: Arc::new(Docker::new(socket)),
        agent: agent(),
        plug: Arc::new(Pairs),
    }
}

/// The directories of a scratch host.
pub fn layout(dir: &Path) -> Layout {
    Layout { data: dir.join("data"), run: dir.join("run"), instance: Instance(0x1234) }
}

/// The Vm of that number.
pub fn vm(id: u64) -> Vm {
    let vm = sample::vm(id, "docker", StorageKind::Docker);
    Vm { env_id: EnvId(id), id: VmId(id), ..vm }
}

/// Where the agent is: named, or beside this test's own program.
fn agent() -> PathBuf {
    if let Some(path) = std::env::var_os("TT_GUEST_AGENT") {
        return path.into();
    }
    let test = std::env::current_exe().must("find this program");
    // A test lies in TARGET_DIR/PROFILE/deps.
    let target = test.ancestors().nth(3).unwrap_or(Path::new("/"));
    target.join("x86_64-unknown-linux-gnu/guest/tt-guest")
}

impl Fixture for Rig {
    fn vm(&self) -> Vm {
        let id = self.next_id.replace(self.next_id.get() + 1);
        let vm = vm(id);
        let (docker, repo) = (self.docker(), self.layout.docker_repo());
        let tag = names::docker_tag(vm.id, vm.epoch);
        docker.tag(&format!("{repo}:base"), &repo, &tag).must("name an image");
        vm
    }

    fn restarted(&self) -> Box<dyn VmEngine> {
        Box::new(self.engine())
    }

    fn beats(&self, vm: &Vm) -> bool {
        let pid = self.pid(vm);
        let path = self.inside(vm, "beat");
        let read = || fs::read_to_string(&path).unwrap_or_default();
        let before = read();
        if self.set_up.borrow_mut().insert(pid) {
            drop(self.set_up(vm));
            return within(PATIENCE, || read() != before && !read().is_empty());
        }
        within(Duration::from_millis(1500), || read() != before && !read().is_empty())
    }

    fn power_off(&self, vm: &Vm) {
        let mut stream = self.set_up(vm);
        self.say(&mut stream, &HostMessage::Shutdown { reboot: false });
        // It ends the connection by its end, and hears all that was said before.
        let _ = io::copy(&mut stream, &mut io::sink());
    }

    fn kill(&self, vm: &Vm) {
        let pid = i32::try_from(self.pid(vm)).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.must("a process"), rustix::process::Signal::KILL)
            .must("kill a process");
    }

    fn leave_remains(&self, vm: &Vm) {
        let dir = self.layout.vm_dir(vm.id);
        fs::create_dir_all(&dir).must("make a directory");
        fs::write(dir.join("container"), self.layout.container(vm.id, vm.epoch)).must("a note");
    }

    fn layered_vm(&self) -> Option<Vm> {
        None
    }

    fn with_layer(&self, _: &Vm) -> Vm {
        unreachable!("a container's disk has no layers")
    }

    fn with_merge(&self, _: &Vm) -> Vm {
        unreachable!("a container's disk has no layers")
    }

    fn tick(&self, _: &Vm) -> u64 {
        unreachable!("a container has no memory on disk")
    }

    fn content(&self, _: &Vm) -> u64 {
        unreachable!("a container has no memory on disk")
    }

    fn has_open(&self, _: &Vm) -> bool {
        unreachable!("a container's disk has no layers")
    }

    fn disk_mb(&self, _: &Vm) -> Option<u32> {
        None
    }

    fn disk_limit(&self, _: &Vm) -> (u32, u32) {
        unreachable!("the disk of a container is not limited")
    }

    fn mem_mb(&self, vm: &Vm) -> Option<u32> {
        let bytes = self.dockerd.mem_bytes(&self.layout.container(vm.id, vm.epoch));
        u32::try_from(bytes >> 20).ok()
    }

    fn has_memory(&self, _: &str) -> bool {
        false
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for container in self.docker().containers(&[]).unwrap_or_default() {
            let _ = self.docker().kill(&container.id, "SIGKILL");
        }
    }
}

/// Kills and removes until nothing is left.
pub fn remove(engine: &dyn VmEngine, vm: &Vm) {
    let gone = within(PATIENCE, || {
        engine.stop_vm(vm, tt_model::StopMode::Kill).must("kill");
        engine.look(vm).must("look") == Machine::Absent
    });
    assert!(gone, "the end does not come");
}
