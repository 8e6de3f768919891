//! Notices that tables, chains or rules of the namespace are made or removed, by whomever, and that it has other
//! addresses or another way out. It knows none of them and reads no more of a message than its kind and whose it is.

use crate::NetworkError;
use crate::env::HOST_END;
use crate::link::ROUTE_PROTOCOL;
use netlink_packet_core::NetlinkBuffer;
use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
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
/// Groups of changes of addresses and routes (`RTNLGRP_IPV4_*` of linux/rtnetlink.h).
const GROUP_ADDRESSES: u32 = 5;
const GROUP_ROUTES: u32 = 7;
/// The same of routes of IPv6: whether it has a way out.
const GROUP_ROUTES_SIX: u32 = 11;
// Messages of linux/rtnetlink.h.
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
/// The main table, and a route that drops (the same file).
const MAIN_TABLE: u8 = 254;
const BLACKHOLE: u8 = 6;
/// Routes of half the world are a default route in disguise, as VPN programs set them.
const DEFAULT_PREFIX_MAX: u8 = 1;
/// Length of `struct nlmsghdr`, of `struct ifaddrmsg` and `struct rtattr` behind it.
const HEADER_BYTES: usize = 16;
const ADDRESS_BYTES: usize = 8;
const ATTRIBUTE_BYTES: usize = 4;
/// An address's own attribute (`IFA_LOCAL` of linux/if_addr.h).
const LOCAL: u16 = 2;
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
        let rules = open(NETLINK_NETFILTER, &[GROUP]).map_err(fail)?;
        let routes = open(NETLINK_ROUTE, &[GROUP_ADDRESSES, GROUP_ROUTES, GROUP_ROUTES_SIX]);
        let routes = routes.map_err(fail)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let stop = Arc::new(eventfd(0, flags).map_err(|errno| fail(errno.into()))?);
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("rules".into())
            .spawn(move || listen(&[rules, routes], &stopped, &wake))
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

fn open(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    groups.iter().try_for_each(|group| socket.add_membership(*group))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

fn listen([rules, routes]: &[Socket; 2], stop: &OwnedFd, wake: &Wake) {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let mut fds = [rules, routes].map(|socket| PollFd::new(socket, PollFlags::IN)).to_vec();
        fds.push(PollFd::new(stop, PollFlags::IN));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                return tracing::warn!(%error, "changes of rules are seen late from now on");
            }
        }
        if fds.last().is_some_and(|stop| !stop.revents().is_empty()) {
            return;
        }
        let mut is_news = false;
        for (socket, tells) in
            [(rules, is_of_rules as fn(u16, &[u8]) -> bool), (routes, is_of_addresses)]
        {
            buffer.clear();
            is_news |= match socket.recv_from(&mut buffer, 0) {
                Ok(_) => any(&buffer, tells),
                // Others are: more came than there was room for.
                Err(error) => error.kind() != io::ErrorKind::WouldBlock,
            };
        }
        if is_news {
            wake();
        }
    }
}

/// Whether one of the messages in a datagram, a kind and what follows the header, is one that `tells`.
fn any(mut bytes: &[u8], tells: fn(u16, &[u8]) -> bool) -> bool {
    while let Ok(message) = NetlinkBuffer::new_checked(bytes) {
        let (kind, length) = (message.message_type(), message.length() as usize);
        if tells(kind, bytes.get(HEADER_BYTES..length).unwrap_or_default()) {
            return true;
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// Whether it is more than a change of elements.
fn is_of_rules(kind: u16, _: &[u8]) -> bool {
    let message = kind & 0xff;
    kind >> 8 == NFTABLES
        && matches!(message, DELETE_TABLE | NEW_CHAIN | DELETE_CHAIN | DELETE_RULE)
}

/// Whether the host has another address or another way out, or a reservation has gone. What Envs come and go
/// with is no news.
fn is_of_addresses(kind: u16, body: &[u8]) -> bool {
    match (kind, body) {
        (NEW_ADDRESS | DELETE_ADDRESS, _) => {
            let attributes = body.get(ADDRESS_BYTES..).unwrap_or_default();
            attribute(attributes, LOCAL) != Some(&HOST_END.octets())
        }
        // `struct rtmsg`: family, lengths of destination and source, tos, table, protocol, scope, type.
        (NEW_ROUTE | DELETE_ROUTE, [_, to_length, _, _, table, protocol, _, of, ..]) => {
            let is_default = *to_length <= DEFAULT_PREFIX_MAX && *protocol != ROUTE_PROTOCOL;
            let is_reservation = *of == BLACKHOLE && kind == DELETE_ROUTE;
            *table == MAIN_TABLE && (is_default || is_reservation)
        }
        _ => false,
    }
}

fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [a, b, c, d, ..] = bytes {
        let (length, kind) = (u16::from_ne_bytes([*a, *b]), u16::from_ne_bytes([*c, *d]));
        let length = usize::from(length).max(ATTRIBUTE_BYTES);
        if kind == wanted {
            return bytes.get(ATTRIBUTE_BYTES..length);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a header of netlink (netlink(7)).
    fn message_of(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = (16 + body.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(16, 0);
        bytes.extend(body);
        bytes
    }

    /// With the header of netfilter.
    fn message(kind: u16) -> Vec<u8> {
        message_of(kind, &[0; 4])
    }

    fn tells_of_rules(bytes: &[u8]) -> bool {
        any(bytes, is_of_rules)
    }

    #[test]
    fn what_comes_and_goes_with_envs_is_no_news() {
        let address = |addr: [u8; 4]| {
            let mut body = vec![2, 32, 0, 0, 7, 0, 0, 0];
            for kind in [1u16, LOCAL] {
                body.extend([8u16.to_ne_bytes(), kind.to_ne_bytes()].concat());
                body.extend(addr);
            }
            any(&message_of(DELETE_ADDRESS, &body), is_of_addresses)
        };
        assert!(address([192, 0, 2, 1]) && !address(HOST_END.octets()));
        let route = |kind, length, table, protocol, of| {
            let body = [2, length, 0, 0, table, protocol, 0, of, 0, 0, 0, 0];
            any(&message_of(kind, &body), is_of_addresses)
        };
        assert!(route(NEW_ROUTE, 0, MAIN_TABLE, 3, 1) && route(DELETE_ROUTE, 1, MAIN_TABLE, 3, 1));
        assert!(route(DELETE_ROUTE, 16, MAIN_TABLE, ROUTE_PROTOCOL, BLACKHOLE));
        assert!(!route(NEW_ROUTE, 32, MAIN_TABLE, ROUTE_PROTOCOL, 1), "a member's");
        assert!(!route(NEW_ROUTE, 0, 255, 2, 2), "another table");
        for length in 0..24 {
            any(&message_of(NEW_ADDRESS, &vec![0xff; length]), is_of_addresses);
            any(&message_of(NEW_ROUTE, &vec![0; length]), is_of_addresses);
        }
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
