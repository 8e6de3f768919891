//! Network namespaces without names: each ends with the last descriptor and process in it. Threads go in to open
//! sockets and start programs, and end there.

use crate::Must;
use crate::hostile::Frames;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long an answer that should come may take.
const ARRIVES: Duration = Duration::from_secs(10);
/// How long an answer that must not come is waited for.
const NEVER: Duration = Duration::from_millis(1500);
/// Pause of an [`Echo`] between two looks at its sockets.
const PACE: Duration = Duration::from_millis(2);

/// A network namespace.
#[derive(Clone, Debug)]
pub struct Space(Arc<File>);

impl Space {
    /// A new one, with its loopback up.
    pub fn new() -> io::Result<Self> {
        inside(|| {
            // SAFETY: a network namespace parts nothing that Rust relies on, and the thread ends here.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            ip("link set lo up");
            Ok(Self(Arc::new(File::open("/proc/thread-self/ns/net")?)))
        })
    }

    /// The one that a file stands for.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(File::open(path)?)))
    }

    /// A packet socket on a link inside.
    pub fn frames(&self, link: &str) -> Frames {
        self.run(|| Frames::on(link))
    }

    /// Runs `action` on a thread inside.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        inside(|| {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                .must("enter a network namespace");
            action()
        })
    }

    /// Runs `ip` inside; arguments are parted by blanks.
    pub fn ip(&self, arguments: &str) -> String {
        self.run(|| ip(arguments))
    }

    /// The namespace's path, as programs take it while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Opens a TCP connection, with timeouts set.
    ///
    /// # Errors
    /// If it is refused, or not answered.
    pub fn connect(&self, to: (Ipv4Addr, u16)) -> io::Result<TcpStream> {
        self.connect_within(to, ARRIVES)
    }

    /// Whether an [`Echo`] or the like answers on TCP.
    pub fn reaches_tcp(&self, to: (Ipv4Addr, u16)) -> bool {
        self.connect(to).is_ok_and(|mut stream| is_alive(&mut stream))
    }

    /// Whether nothing comes back on TCP: no connection comes about, or none that answers.
    pub fn misses_tcp(&self, to: (Ipv4Addr, u16)) -> bool {
        !self.connect_within(to, NEVER).is_ok_and(|mut stream| is_alive(&mut stream))
    }

    /// Whether an [`Echo`] or the like answers on UDP. A datagram may get lost, so several are sent.
    pub fn reaches_udp(&self, to: (Ipv4Addr, u16)) -> bool {
        (0..10).any(|_| self.asks_udp(to, Duration::from_secs(1)))
    }

    /// Whether nothing comes back on UDP.
    pub fn misses_udp(&self, to: (Ipv4Addr, u16)) -> bool {
        !self.asks_udp(to, NEVER)
    }

    fn asks_udp(&self, to: (Ipv4Addr, u16), wait: Duration) -> bool {
        let socket = self.run(|| UdpSocket::bind("0.0.0.0:0")).must("bind a socket");
        socket.set_read_timeout(Some(wait)).must("set a timeout");
        let mut answer = [0; 16];
        socket.send_to(b"echo\n", to).is_ok()
            && socket.recv(&mut answer).is_ok_and(|length| &answer[..length] == b"echo\n")
    }

    fn connect_within(&self, to: (Ipv4Addr, u16), wait: Duration) -> io::Result<TcpStream> {
        let stream = self.run(|| TcpStream::connect_timeout(&to.into(), wait))?;
        stream.set_read_timeout(Some(wait))?;
        stream.set_write_timeout(Some(wait))?;
        Ok(stream)
    }
}

/// Whether what is sent over a connection to an [`Echo`] or the like comes back.
pub fn is_alive(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 5];
    stream.write_all(b"echo\n").is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && &answer == b"echo\n"
}

/// Runs `ip` in the calling thread's namespace; arguments are parted by blanks.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().must("run ip");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `action` on a thread of its own.
fn inside<T: Send>(action: impl FnOnce() -> T + Send) -> T {
    let joined = thread::scope(|scope| scope.spawn(action).join());
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A TCP and a UDP server on one port of all addresses of a namespace, until dropped. It sends back what it gets, and
/// remembers who came.
#[derive(Debug)]
pub struct Echo {
    is_over: Arc<AtomicBool>,
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// Listens.
    pub fn new(space: &Space, port: u16) -> Self {
        let any = SocketAddr::from(([0, 0, 0, 0], port));
        let tcp = space.run(|| TcpListener::bind(any)).must("listen");
        tcp.set_nonblocking(true).must("listen without blocking");
        let udp = space.run(|| UdpSocket::bind(any)).must("bind a socket");
        udp.set_read_timeout(Some(Duration::from_millis(20))).must("set a timeout");
        let is_over = Arc::new(AtomicBool::new(false));
        let peers = Arc::new(Mutex::new(Vec::new()));
        let (over, seen) = (is_over.clone(), peers.clone());
        let of_tcp = thread::spawn(move || serve_tcp(&tcp, &over, &seen));
        let (over, seen) = (is_over.clone(), peers.clone());
        let of_udp = thread::spawn(move || serve_udp(&udp, &over, &seen));
        Self { is_over, peers, threads: vec![of_tcp, of_udp] }
    }

    /// Who came, oldest first.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Its panic was printed.
            let _ = thread.join();
        }
    }
}

fn serve_tcp(tcp: &TcpListener, over: &AtomicBool, seen: &Mutex<Vec<SocketAddr>>) {
    let mut streams = Vec::new();
    let mut data = [0; 4096];
    while !over.load(Ordering::Relaxed) {
        if let Ok((stream, from)) = tcp.accept() {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(from);
            if stream.set_nonblocking(true).is_ok() {
                streams.push(stream);
            }
        }
        streams.retain_mut(|stream| match stream.read(&mut data) {
            Ok(0) => false,
            Ok(length) => stream.write_all(&data[..length]).is_ok(),
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
        thread::sleep(PACE);
    }
}

fn serve_udp(udp: &UdpSocket, over: &AtomicBool, seen: &Mutex<Vec<SocketAddr>>) {
    let mut data = [0; 4096];
    while !over.load(Ordering::Relaxed) {
        if let Ok((length, from)) = udp.recv_from(&mut data) {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(from);
            // Who asked may be gone.
            let _ = udp.send_to(&data[..length], from);
        }
    }
}
