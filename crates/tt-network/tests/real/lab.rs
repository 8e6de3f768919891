//! A host to test on: network namespaces for the host, for a client outside and for stand-in
//! guests. A stand-in is a veth named as the member's tap, with the guest at its other end.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tempfile::TempDir;
use testkit::hostile::Frames;
use tt_model::{EnvId, Instance, Layout, Vm, names};
use tt_network::conformance::sample_vm;
use tt_network::{NetnsNetwork, Network, NetworkConfig, TUNNEL_PORT};

/// The host's and the client's address on the link between them.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Of every Env.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Where the stand-in for an upstream resolver listens on the host.
pub const UPSTREAM: &str = "127.0.0.1:5300";
/// How long a packet that should come may take, and one that should not is waited for.
pub const ARRIVES: Duration = Duration::from_secs(5);
pub const NEVER: Duration = Duration::from_millis(250);

/// A network namespace without a name: it ends with the last descriptor.
#[derive(Clone)]
pub struct Space(Arc<File>);

impl Space {
    pub fn new() -> Self {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    // SAFETY: a network namespace parts nothing that Rust relies on.
                    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                        .unwrap();
                    ip("link set lo up");
                    Self::own()
                })
                .join()
                .unwrap()
        })
    }

    pub fn own() -> Self {
        Self(Arc::new(File::open("/proc/thread-self/ns/net").unwrap()))
    }

    pub fn at(path: &Path) -> Self {
        Self(Arc::new(File::open(path).unwrap()))
    }

    /// Runs `action` on a thread inside.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = || {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(self.0.as_fd(), kind).unwrap();
                action()
            };
            scope.spawn(inside).join().unwrap()
        })
    }

    pub fn ip(&self, arguments: &str) {
        self.run(|| ip(arguments));
    }

    /// A packet socket on a stand-in's link.
    pub fn frames(&self) -> Frames {
        self.run(|| Frames::on("eth0"))
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// As `ip` takes it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Whether a TCP connection comes about and carries data both ways.
    pub fn reaches(&self, to: impl Into<SocketAddr>) -> bool {
        self.connect(to, ARRIVES).is_ok_and(|mut stream| echoes(&mut stream))
    }

    /// Whether no TCP connection comes about, refused or not answered.
    pub fn misses(&self, to: impl Into<SocketAddr>) -> bool {
        self.connect(to, NEVER).is_err()
    }

    pub fn connect(&self, to: impl Into<SocketAddr>, wait: Duration) -> io::Result<TcpStream> {
        let to = to.into();
        let stream = self.run(|| TcpStream::connect_timeout(&to, wait))?;
        stream.set_read_timeout(Some(wait))?;
        stream.set_write_timeout(Some(wait))?;
        Ok(stream)
    }

    /// Connects where it must be possible.
    pub fn open(&self, to: impl Into<SocketAddr>) -> TcpStream {
        self.connect(to, ARRIVES).unwrap()
    }

    pub fn udp(&self, from: impl Into<SocketAddr> + Send) -> UdpSocket {
        let from = from.into();
        self.run(|| UdpSocket::bind(from).unwrap())
    }

    /// Whether a datagram is answered by an [`Echo`].
    pub fn reaches_udp(&self, to: impl Into<SocketAddr>) -> bool {
        self.udp_echoes(to, ARRIVES)
    }

    /// As [`reaches_udp`](Self::reaches_udp), where it may well not.
    pub fn reaches_udp_soon(&self, to: impl Into<SocketAddr>) -> bool {
        self.udp_echoes(to, NEVER)
    }

    pub fn misses_udp(&self, to: impl Into<SocketAddr>) -> bool {
        !self.udp_echoes(to, NEVER)
    }

    fn udp_echoes(&self, to: impl Into<SocketAddr>, wait: Duration) -> bool {
        let to = to.into();
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        udp_echoes(&self.udp((any, 0)), to, wait)
    }
}

/// Runs `ip` in the calling thread's namespace.
pub fn ip(arguments: &str) {
    run("ip", arguments);
}

/// Runs a program in the calling thread's namespace; arguments are parted by blanks.
pub fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether a program is in the path.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// Sends something over a connection to an [`Echo`] and waits for it.
pub fn echoes(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 4];
    stream.write_all(b"echo").is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && &answer == b"echo"
}

/// Whether nothing comes back over an open connection.
pub fn is_cut(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(NEVER)).unwrap();
    !echoes(stream)
}

fn udp_echoes(socket: &UdpSocket, to: SocketAddr, wait: Duration) -> bool {
    socket.set_read_timeout(Some(wait)).unwrap();
    let mut answer = [0; 64];
    socket.send_to(b"echo", to).is_ok()
        && socket.recv_from(&mut answer).is_ok_and(|(length, _)| &answer[..length] == b"echo")
}

/// A TCP and a UDP server on one port of all addresses of a namespace, until dropped. It remembers
/// who came last.
pub struct Echo {
    is_over: Arc<AtomicBool>,
    last: Arc<std::sync::Mutex<Option<SocketAddr>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    pub fn new(space: &Space, port: u16) -> Self {
        Self::at(space, ([0, 0, 0, 0], port).into())
    }

    /// On IPv6 alone or beside it, as the address says.
    pub fn at(space: &Space, any: SocketAddr) -> Self {
        let tcp = space.run(|| TcpListener::bind(any).unwrap());
        tcp.set_nonblocking(true).unwrap();
        let udp = space.udp(any);
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let last = Arc::new(std::sync::Mutex::new(None));
        let (over, seen) = (Arc::clone(&is_over), Arc::clone(&last));
        let of_tcp = thread::spawn(move || {
            let mut streams = Vec::new();
            while !over.load(Ordering::Relaxed) {
                if let Ok((stream, from)) = tcp.accept() {
                    stream.set_nonblocking(true).unwrap();
                    *seen.lock().unwrap() = Some(from);
                    streams.push(stream);
                }
                let mut data = [0; 64];
                streams.retain_mut(|stream| match stream.read(&mut data) {
                    Ok(0) => false,
                    Ok(length) => stream.write_all(&data[..length]).is_ok(),
                    Err(error) => error.kind() == ErrorKind::WouldBlock,
                });
                thread::sleep(Duration::from_millis(1));
            }
        });
        let (over, seen) = (Arc::clone(&is_over), Arc::clone(&last));
        let of_udp = thread::spawn(move || {
            let mut data = [0; 64];
            while !over.load(Ordering::Relaxed) {
                if let Ok((length, from)) = udp.recv_from(&mut data) {
                    *seen.lock().unwrap() = Some(from);
                    let _ = udp.send_to(&data[..length], from);
                }
            }
        });
        Self { is_over, last, threads: vec![of_tcp, of_udp] }
    }

    pub fn last(&self) -> Option<SocketAddr> {
        *self.last.lock().unwrap()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A member with its stand-in.
pub struct Guest {
    pub vm: Vm,
    pub space: Space,
}

impl Guest {
    pub fn addr(&self) -> Ipv4Addr {
        self.vm.resource.ip_addr
    }

    /// The public TCP port, which leads to port 80.
    pub fn tcp(&self) -> u16 {
        self.vm.resource.port_map[&"80".parse().unwrap()]
    }

    /// The public UDP port, which leads to port 53.
    pub fn udp(&self) -> u16 {
        self.vm.resource.port_map[&"53/udp".parse().unwrap()]
    }
}

/// The host of one test.
pub struct Lab {
    pub host: Space,
    pub client: Space,
    pub layout: Layout,
    pub net: NetnsNetwork,
    dir: TempDir,
}

impl Lab {
    /// Runs `test` on a fresh host. The thread's namespaces end with it, and with them all links,
    /// rules and mounts.
    pub fn run(test: impl FnOnce(&mut Lab) + Send) {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let flags =
                    rustix::thread::UnshareFlags::NEWNET | rustix::thread::UnshareFlags::NEWNS;
                // SAFETY: no descriptors or memory are parted from other threads; file systems of
                // this thread are, and nothing here relies on them being shared.
                unsafe { rustix::thread::unshare_unsafe(flags) }.unwrap();
                let private = rustix::mount::MountPropagationFlags::PRIVATE
                    | rustix::mount::MountPropagationFlags::REC;
                rustix::mount::mount_change("/", private).unwrap();
                let mut lab = Self::new();
                test(&mut lab);
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    }

    fn new() -> Self {
        ip("link set lo up");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let (host, client) = (Space::own(), Space::new());
        ip(&format!("link add up0 type veth peer name eth0 netns {}", client.path()));
        ip("addr add 192.0.2.1/24 dev up0");
        ip("link set up0 up");
        ip("route add default via 192.0.2.2");
        client.ip("addr add 192.0.2.2/24 dev eth0");
        client.ip("link set eth0 up");
        // The kernel says later that both ends are up, and tests compare what it says.
        while !run("ip", "-br link show up0").contains(" UP ") {
            thread::sleep(Duration::from_millis(1));
        }
        let dir = tempfile::Builder::new().prefix("tt-network-test-").tempdir().unwrap();
        let layout = Layout {
            data: dir.path().join("data"),
            run: dir.path().join("run"),
            instance: Instance(0x5e),
        };
        std::fs::create_dir(&layout.run).unwrap();
        let net = Self::network(&layout);
        Self { host, client, layout, net, dir }
    }

    fn network(layout: &Layout) -> NetnsNetwork {
        NetnsNetwork::new(NetworkConfig {
            layout: layout.clone(),
            range: "10.0.0.0/8".parse().unwrap(),
            block: "10.0.0.0/16".parse().unwrap(),
            public: None,
            underlay: None,
            is_underlay_found: false,
            tunnel_port: TUNNEL_PORT,
            upstream_dns: vec![UPSTREAM.parse().unwrap()],
        })
    }

    /// The daemon dies and the next one starts.
    pub fn restart(&mut self) {
        self.net = Self::network(&self.layout);
        self.net.init().unwrap();
    }

    /// The daemon dies.
    pub fn die(&mut self) {
        self.net = Self::network(&self.layout);
    }

    /// The namespace of an Env.
    pub fn env(&self, env: EnvId) -> Space {
        Space::at(&self.layout.netns(env))
    }

    /// Sets the network of a member and puts a stand-in behind it.
    pub fn guest(&self, env: EnvId, index: usize) -> Guest {
        let vm = sample_vm(env, index);
        self.net.set_net(&vm).unwrap();
        let guest = Guest { vm, space: Space::new() };
        self.plug(&guest);
        guest
    }

    /// Puts a stand-in in the place of the member's tap, which goes and is made anew.
    pub fn plug(&self, guest: &Guest) {
        plug(&self.net, &self.layout, guest);
    }

    pub fn run_dir(&self) -> &Path {
        self.dir.path()
    }
}

/// See [`Lab::plug`]; for any host's network.
pub fn plug(net: &NetnsNetwork, layout: &Layout, guest: &Guest) {
    let Guest { vm, space } = guest;
    let tap = names::tap(vm.id);
    let inside = Space::at(&layout.netns(vm.env_id));
    inside.ip(&format!("link del {tap}"));
    inside.ip(&format!("link add {tap} type veth peer name eth0 netns {}", space.path()));
    // Half-done work: the link is there, but not in the bridge.
    net.set_net(vm).unwrap();
    let (mac, addr) = (vm.resource.mac_addr, vm.resource.ip_addr);
    space.run(|| {
        ip(&format!("link set eth0 address {mac}"));
        ip(&format!("addr add {addr}/8 dev eth0"));
        ip("link set eth0 up");
        ip(&format!("route add default via {GATEWAY}"));
    });
}

impl Drop for Lab {
    /// What is mounted can not be removed with the directory.
    fn drop(&mut self) {
        let entries = std::fs::read_dir(self.layout.netns_dir()).into_iter().flatten();
        for entry in entries.flatten() {
            let _ = rustix::mount::unmount(entry.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}
