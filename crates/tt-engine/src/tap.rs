//! Opens the tap of a machine in its Env's network namespace, which it neither makes nor changes: that is the network's. A
//! machine that never runs gets one that leads nowhere.

use crate::EngineError;
use rustix::net::{AddressFamily, SocketType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long somebody else may have it open: a program that this daemon is about to start holds copies of all descriptors
/// until it is executed, and a machine that was killed holds its own until it is gone.
const BUSY_MAX: Duration = Duration::from_millis(250);

/// Opens `name` in the namespace of the file `netns`, for frames with a virtio header.
pub(crate) fn open(netns: &Path, name: &str) -> Result<OwnedFd, EngineError> {
    let until = Instant::now() + BUSY_MAX;
    let opened = loop {
        match on_thread(|| open_inside(netns, name)) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                thread::sleep(BUSY_MAX / 50);
            }
            opened => break opened,
        }
    };
    opened.map_err(|source| EngineError::OpenTap {
        tap: name.to_owned(),
        netns: netns.to_owned(),
        source,
    })
}

/// Makes a tap that leads nowhere, as a machine's one to look at. It goes with its descriptor.
pub(crate) fn nowhere() -> Result<OwnedFd, EngineError> {
    const NAME: &str = "mould";
    on_thread(|| {
        // SAFETY: no descriptor is shared; only the namespace of this thread, which then ends, changes.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET)? };
        attach(NAME)
    })
    .map_err(|source| EngineError::Make { what: "tap", path: NAME.into(), source })
}

/// A namespace belongs to a thread: a throw-away one spares every other thread of the daemon.
fn on_thread(open: impl FnOnce() -> io::Result<OwnedFd> + Send) -> io::Result<OwnedFd> {
    thread::scope(|scope| {
        let inside = thread::Builder::new().name("tt-tap".into()).spawn_scoped(scope, open)?;
        inside.join().unwrap_or(Err(io::ErrorKind::Other.into()))
    })
}

fn open_inside(netns: &Path, name: &str) -> io::Result<OwnedFd> {
    let namespace = File::open(netns)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    // The request below would silently make a tap that nothing is connected to.
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    rustix::net::netdevice::name_to_index(&socket, name)?;
    attach(name)
}

fn attach(name: &str) -> io::Result<OwnedFd> {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let request = request(name)?;
    // SAFETY: the kernel reads and writes one `ifreq`, which lives until the call has returned.
    let done = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    match done {
        0 => Ok(tun.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all bytes zero is a valid `ifreq`: numbers, and unions of numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: the name is a C string.
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    Ok(request)
}
