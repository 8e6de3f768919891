//! Notices that tables, chains or rules of the namespace are made or removed, by whomever. It knows
//! none of them and reads no more of a message than its kind.

use crate::NetworkError;
use netlink_packet_core::NetlinkBuffer;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// Whom changes are told to.
pub(crate) type Wake = Arc<dyn Fn() + Send + Sync>;

/// The group of changes of rules (`NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h).
const GROUP: u32 = 7;
/// The subsystem (`NFNL_SUBSYS_NFTABLES`, the same file).
const NFTABLES: u16 = 10;
// Messages of linux/netfilter/nf_tables.h. A chain is announced again when its policy changes.
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const DELETE_RULE: u16 = 8;
/// Room for one datagram of the kernel's.
const BUFFER_BYTES: usize = 64 << 10;

/// A thread that listens until this is dropped.
pub(crate) struct RuleWatch {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for RuleWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RuleWatch")
    }
}

impl RuleWatch {
    /// Listens in the calling thread's namespace.
    pub(crate) fn start(wake: Wake) -> Result<Self, NetworkError> {
        let fail = |source| NetworkError::WatchRules { source };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(fail)?;
        socket.bind_auto().map_err(fail)?;
        socket.add_membership(GROUP).map_err(fail)?;
        socket.set_non_blocking(true).map_err(fail)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let stop = Arc::new(eventfd(0, flags).map_err(|errno| fail(errno.into()))?);
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("rules".into())
            .spawn(move || listen(&socket, &stopped, &wake))
            .map_err(fail)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for RuleWatch {
    fn drop(&mut self) {
        // It fails only if it is told already.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that watches rules had panicked");
        }
    }
}

fn listen(socket: &Socket, stop: &OwnedFd, wake: &Wake) {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                return tracing::warn!(%error, "changes of rules are seen late from now on");
            }
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        buffer.clear();
        match socket.recv_from(&mut buffer, 0) {
            Ok(_) if !tells_of_rules(&buffer) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Among others: more came than there was room for.
            Ok(_) | Err(_) => wake(),
        }
    }
}

/// Whether one of the messages in a datagram is more than a change of elements.
fn tells_of_rules(mut bytes: &[u8]) -> bool {
    while let Ok(message) = NetlinkBuffer::new_checked(bytes) {
        let (kind, length) = (message.message_type(), message.length() as usize);
        let is_of_rules =
            matches!(kind & 0xff, DELETE_TABLE | NEW_CHAIN | DELETE_CHAIN | DELETE_RULE);
        if kind >> 8 == NFTABLES && is_of_rules {
            return true;
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16) -> Vec<u8> {
        // A header of netlink (netlink(7)) and that of netfilter.
        let mut bytes = 20u32.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(20, 0);
        bytes
    }

    #[test]
    fn changes_of_elements_are_no_news() {
        const NEW_ELEMENT: u16 = 12;
        let kind = |message: u16| NFTABLES << 8 | message;
        let elements = [message(kind(NEW_ELEMENT)), message(kind(NEW_ELEMENT + 2))].concat();
        assert!(!tells_of_rules(&elements));
        assert!(!tells_of_rules(&message(1 << 8 | DELETE_TABLE)), "another subsystem");
        assert!(tells_of_rules(&[elements, message(kind(DELETE_TABLE))].concat()));
        assert!(!tells_of_rules(&[0; 7]) && !tells_of_rules(&[]));
    }
}
