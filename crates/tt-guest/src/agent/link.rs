//! The channel to the host: a virtio-serial port, or a unix socket or a vsock that this side listens on. Bytes only; it
//! knows no frames. It never spins while the host is away.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};
use rustix::time::Timespec;
use tt_guest::message::{PORT_NAME, VSOCK_PORT};

/// While no host is connected, a port's `poll` returns at once; so it is asked this often.
const ABSENT_POLL: Duration = Duration::from_millis(20);

/// The port appears as its driver is loaded, so a young guest asks often, and an old one (which has no port) seldom.
const PORT_POLLS: [(u32, Duration); 2] =
    [(2000, Duration::from_millis(1)), (u32::MAX, Duration::from_secs(1))];

/// What a read brought.
pub enum Input {
    /// That many bytes are in the buffer.
    Bytes(usize),
    /// Another host took the place of the last one; what it sends begins with a frame.
    NewPeer,
}

/// The channel.
pub enum Link {
    /// A virtio-serial port: one host at a time; when it changes, the bytes just go on.
    Port(File),
    /// A listening socket and its latest connection.
    Socket { listener: OwnedFd, peer: Mutex<Option<Arc<OwnedFd>>>, is_vsock: bool },
}

impl Link {
    /// Opens the virtio-serial port at `path`, or the one with the agent's name; waits for it.
    pub fn open_port(path: Option<&Path>) -> io::Result<Self> {
        let path = path.map_or_else(find_port, |path| Ok(path.to_owned()))?;
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY);
        Ok(Self::Port(options.open(path)?))
    }

    /// Listens on a new unix socket at `path`; a socket that a predecessor left there is replaced.
    pub fn listen(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        Self::listening(UnixListener::bind(path)?)
    }

    /// Takes over a socket that is listening.
    pub fn listening(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::Socket { listener: listener.into(), peer: Mutex::new(None), is_vsock: false })
    }

    /// Listens on the machine's vsock. Its driver may come later: then no host is refused before somebody listens.
    pub fn listen_vsock() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener =
            rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
        // SAFETY: all bytes zero is a valid `sockaddr_vm`: numbers.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_port = VSOCK_PORT;
        address.svm_cid = libc::VMADDR_CID_ANY;
        let (start, len) = (&raw const address, size_of_val(&address) as libc::socklen_t);
        // SAFETY: the kernel reads `len` bytes of an address that lives until the call has returned.
        if unsafe { libc::bind(listener.as_raw_fd(), start.cast(), len) } != 0 {
            return Err(io::Error::last_os_error());
        }
        rustix::net::listen(&listener, 1)?;
        Ok(Self::Socket { listener, peer: Mutex::new(None), is_vsock: true })
    }

    /// Whether the machine can not be switched off, and ends when its guest restarts: those with a vsock are so.
    pub fn ends_by_restart(&self) -> bool {
        matches!(self, Self::Socket { is_vsock: true, .. })
    }

    /// Whether bytes of the host come within `timeout`; `false` at once if no host is connected.
    pub fn expect_input(&self, timeout: Duration) -> bool {
        let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() };
        match self {
            Self::Port(port) => {
                let mut fds = [PollFd::new(port, PollFlags::IN)];
                poll(&mut fds, Some(&timeout)).is_ok() && fds[0].revents() == PollFlags::IN
            }
            Self::Socket { .. } => true,
        }
    }

    /// Waits for bytes of the host.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Input> {
        loop {
            match self {
                Self::Port(port) => {
                    wait(port, PollFlags::IN)?;
                    match rustix::io::read(port, &mut *buffer) {
                        Ok(0) => thread::sleep(ABSENT_POLL),
                        Err(Errno::AGAIN | Errno::INTR) => (),
                        count => return Ok(Input::Bytes(count?)),
                    }
                }
                Self::Socket { listener, peer, .. } => {
                    if let Some(input) = read_socket(listener, peer, buffer)? {
                        return Ok(input);
                    }
                }
            }
        }
    }

    /// Writes all of `bytes`, waiting for the host as long as need be, unless they turn `stale` meanwhile: then the rest
    /// is dropped, for the preamble of the next session makes up for it.
    pub fn write(&self, mut bytes: &[u8], stale: &dyn Fn() -> bool) -> io::Result<()> {
        while !bytes.is_empty() && !stale() {
            let written = match self {
                Self::Port(port) => match rustix::io::write(port, bytes) {
                    Err(Errno::AGAIN) => {
                        wait_writable(port)?;
                        continue;
                    }
                    written => written,
                },
                Self::Socket { peer, .. } => {
                    let peer = lock(peer).clone();
                    let Some(peer) = peer else { return Ok(()) };
                    rustix::net::send(&peer, bytes, rustix::net::SendFlags::NOSIGNAL)
                }
            };
            match (written, self) {
                (Ok(count), _) => bytes = &bytes[count..],
                (Err(Errno::INTR), _) => (),
                // The peer is gone, and with it whoever wanted these bytes.
                (Err(_), Self::Socket { .. }) => return Ok(()),
                (Err(error), Self::Port(_)) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// One wait on listener and connection; `None` when there was nothing to hand over.
fn read_socket(
    listener: &OwnedFd,
    peer: &Mutex<Option<Arc<OwnedFd>>>,
    buffer: &mut [u8],
) -> io::Result<Option<Input>> {
    let current = lock(peer).clone();
    let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
    fds.extend(current.as_deref().map(|peer| PollFd::new(peer, PollFlags::IN)));
    match poll(&mut fds, None) {
        Err(Errno::INTR) => return Ok(None),
        done => done?,
    };
    let (new_peer, has_bytes) =
        (!fds[0].revents().is_empty(), fds.get(1).is_some_and(|fd| !fd.revents().is_empty()));
    if new_peer {
        let stream = match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(stream) => stream,
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if let Some(old) = lock(peer).replace(Arc::new(stream)) {
            // Wakes a writer that waits for the old peer.
            let _ = rustix::net::shutdown(&old, Shutdown::Both);
        }
        return Ok(Some(Input::NewPeer));
    }
    let Some(current) = current.filter(|_| has_bytes) else { return Ok(None) };
    match rustix::io::read(&*current, buffer) {
        Ok(count @ 1..) => Ok(Some(Input::Bytes(count))),
        Err(Errno::INTR) => Ok(None),
        _ => {
            *lock(peer) = None;
            Ok(None)
        }
    }
}

fn wait_writable(port: &File) -> io::Result<()> {
    let flags = wait(port, PollFlags::OUT)?;
    if !flags.contains(PollFlags::OUT) {
        thread::sleep(ABSENT_POLL);
    }
    Ok(())
}

fn wait(fd: &impl AsFd, flags: PollFlags) -> io::Result<PollFlags> {
    let mut fds = [PollFd::new(fd, flags)];
    match poll(&mut fds, None) {
        Err(Errno::INTR) => Ok(PollFlags::empty()),
        done => done.map(|_| fds[0].revents()).map_err(io::Error::from),
    }
}

fn find_port() -> io::Result<PathBuf> {
    for (times, pause) in PORT_POLLS {
        for _ in 0..times {
            if let Some(path) = named_port() {
                return Ok(path);
            }
            thread::sleep(pause);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("no virtio-serial port is named {PORT_NAME}"),
    ))
}

fn named_port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let port = ports.flatten().find(|port| {
        let name = fs::read_to_string(port.path().join("name"));
        name.is_ok_and(|name| name.trim_end() == PORT_NAME)
    })?;
    let path = Path::new("/dev").join(port.file_name());
    path.exists().then_some(path)
}

fn lock(peer: &Mutex<Option<Arc<OwnedFd>>>) -> std::sync::MutexGuard<'_, Option<Arc<OwnedFd>>> {
    peer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes a thread that waits in `poll`; written by any number of others.
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// A new one, not set.
    pub fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Sets it.
    pub fn set(&self) {
        // It can only fail when the counter is full, and then it is set.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Clears it.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// Waits until it is set, and clears it.
    pub fn wait(&self) {
        let _ = wait(&self.0, PollFlags::IN);
        self.clear();
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
