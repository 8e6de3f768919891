//! A packet socket, which sees and sends whole frames.

use crate::Must;
use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a frame that should come may take, and one that should not is waited for.
const ARRIVES: Duration = Duration::from_secs(10);
const NEVER: Duration = Duration::from_millis(250);
/// How long one look waits.
const LOOK: Duration = Duration::from_millis(20);
/// Longer frames are cut; marks stand before that.
const FRAME_BYTES: usize = 2048;

/// A packet socket on one link: what comes and what goes there. It ends when it is dropped.
#[derive(Debug)]
pub struct Frames(OwnedFd);

impl Frames {
    /// On a link of the calling thread's namespace.
    pub fn on(link: &str) -> Self {
        let fd = open(link).must("open a packet socket");
        let timeout = rustix::net::sockopt::Timeout::Recv;
        rustix::net::sockopt::set_socket_timeout(&fd, timeout, Some(LOOK)).must("set a timeout");
        Self(fd)
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) {
        rustix::io::write(&self.0, frame).must("send a frame");
    }

    /// Sends a frame, where there may be no room for it.
    pub fn try_send(&self, frame: &[u8]) {
        let _ = rustix::io::write(&self.0, frame);
    }

    /// Whether a frame that contains `mark` comes.
    pub fn sees(&self, mark: &[u8]) -> bool {
        self.waits(mark, ARRIVES)
    }

    /// Whether no frame that contains `mark` comes.
    pub fn sees_not(&self, mark: &[u8]) -> bool {
        !self.waits(mark, NEVER)
    }

    /// All that came until now.
    pub fn drain(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut frame = [0; FRAME_BYTES];
        while let Ok((length, _)) =
            rustix::net::recv(&self.0, &mut frame, rustix::net::RecvFlags::DONTWAIT)
        {
            frames.push(frame[..length].to_vec());
        }
        frames
    }

    fn waits(&self, mark: &[u8], wait: Duration) -> bool {
        let end = Instant::now() + wait;
        let mut frame = [0; FRAME_BYTES];
        while Instant::now() < end {
            if let Ok(length) = rustix::io::read(&self.0, &mut frame)
                && holds(&frame[..length], mark)
            {
                return true;
            }
        }
        false
    }
}

/// Whether `mark` is somewhere in a frame.
pub fn holds(frame: &[u8], mark: &[u8]) -> bool {
    frame.windows(mark.len()).any(|part| part == mark)
}

/// See packet(7).
fn open(link: &str) -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let name = CString::new(link)?;
    // SAFETY: plain calls with numbers, a string and a structure of integers, for which all bits zero is a value and which
    // outlives its call; the descriptor belongs to nobody else.
    unsafe {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        let fd = libc::socket(libc::AF_PACKET, kind, i32::from(protocol));
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd_owned = OwnedFd::from_raw_fd(fd);
        let mut addr: libc::sockaddr_ll = mem::zeroed();
        addr.sll_family = libc::AF_PACKET as u16;
        addr.sll_protocol = protocol;
        addr.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        let length = size_of_val(&addr) as libc::socklen_t;
        if libc::bind(fd, (&raw const addr).cast(), length) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(fd_owned)
    }
}
