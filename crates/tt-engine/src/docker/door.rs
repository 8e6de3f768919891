//! The door of a container: where its agent is met once, and handed what it starts with.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::{cmsg_space, net::sockopt::socket_peercred};
use std::io::{self, ErrorKind, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};
use tt_guest::container::Start;

/// How long a container's first process may take to come, on a loaded host.
const COME_MAX: Duration = Duration::from_secs(60);
/// How long it may leave what it is handed unread.
const TAKE_MAX: Duration = Duration::from_secs(10);

/// Waits at `door` for process `pid`, and hands it `start` and the listening sockets of the agent and the console.
pub(super) fn hand_over(
    door: &UnixListener,
    pid: u32,
    start: &Start,
    [agent, console]: [&UnixListener; 2],
) -> io::Result<()> {
    let mut stream = meet(door, pid)?;
    stream.set_write_timeout(Some(TAKE_MAX))?;
    let fds = [agent.as_fd(), console.as_fd()];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(&stream, &[IoSlice::new(b"\n")], &mut control, SendFlags::NOSIGNAL)?;
    if sent != 1 {
        return Err(ErrorKind::WriteZero.into());
    }
    // At once: each write would wake the reader.
    stream.write_all(&serde_json::to_vec(start)?)?;
    stream.shutdown(Shutdown::Write)
}

/// The first one who comes and is that process.
fn meet(door: &UnixListener, pid: u32) -> io::Result<UnixStream> {
    door.set_nonblocking(true)?;
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(ErrorKind::InvalidInput)?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let until = Instant::now() + COME_MAX;
    loop {
        match door.accept() {
            Ok((stream, _)) => {
                let peer = socket_peercred(&stream)?.pid.as_raw_nonzero().get();
                if u32::try_from(peer) == Ok(pid) {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(ErrorKind::TimedOut.into());
                }
                let left = Timespec::try_from(left).unwrap_or_default();
                let mut polled =
                    [PollFd::new(door, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
                match poll(&mut polled, Some(&left)) {
                    Ok(_) if polled[0].revents().is_empty() && !polled[1].revents().is_empty() => {
                        return Err(io::Error::other("its first process ended"));
                    }
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
