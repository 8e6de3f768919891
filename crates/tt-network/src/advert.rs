//! What the gateway says to guests that configure themselves by IPv6 (RFC 4861 6.2, RFC 4862): where they are and that it
//! is their way out. Pure but for the socket that it makes. It lends no addresses: those follow from hardware addresses.

use crate::env::bind_to_link;
use rustix::net::sockopt::{
    set_ipv6_add_membership, set_ipv6_multicast_hops, set_ipv6_multicast_loop,
    set_ipv6_unicast_hops,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrV6, SocketFlags, SocketType};
use rustix::net::{ipproto, recvfrom, sendto, socket_with};
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6 as Place};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use tt_model::six;

/// How long a guest believes what it was told, in seconds: as long as can be said (RFC 8319), for while no daemon runs
/// nobody says it again.
const LIFE_SECONDS: u16 = u16::MAX;
/// How often it is said unasked: four times in that time.
pub(crate) const EVERY: Duration = Duration::from_secs(4 * 3600);
/// What must be left of the hops of every such packet, so that it comes from the link.
const HOPS: u8 = 255;
/// The longest question that is read: eight bytes and an option.
const QUESTION_BYTES_MAX: usize = 64;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
/// `ICMPV6_FILTER` of linux/icmpv6.h: a bit for each kind that is not read.
const ICMPV6_FILTER: libc::c_int = 1;

/// The gateway's word. `mtu`: of the link, in bytes.
fn message(mtu: u16) -> Vec<u8> {
    let [high, low] = LIFE_SECONDS.to_be_bytes();
    // Kind, code, sum (the kernel's), hops, no flags (no DHCPv6), life of the router, no times.
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, 64, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
    // MTU.
    message.extend([5, 1, 0, 0, 0, 0]);
    message.extend(mtu.to_be_bytes());
    // The network: on the link, and to make addresses in, for ever.
    message.extend([3, 4, six::NETWORK.prefix_len(), 0xc0]);
    message.extend([0xff; 8]);
    message.extend([0; 4]);
    message.extend(six::NETWORK.network().octets());
    message
}

/// Where guests ask for routers, and are answered.
#[derive(Debug)]
pub(crate) struct Routers {
    socket: OwnedFd,
    link: u32,
}

impl Routers {
    /// On a link of the calling thread's namespace that has a link-local address.
    pub(crate) fn open(link: &str, index: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::INET6, SocketType::RAW, flags, Some(ipproto::ICMPV6))?;
        bind_to_link(&socket, link)?;
        read_solicitations_only(&socket)?;
        set_ipv6_add_membership(&socket, &ALL_ROUTERS, index)?;
        set_ipv6_multicast_loop(&socket, false)?;
        set_ipv6_multicast_hops(&socket, HOPS.into())?;
        set_ipv6_unicast_hops(&socket, Some(HOPS))?;
        Ok(Self { socket, link: index })
    }

    /// Who asks next; the address is unspecified for who has none yet. None if nobody does.
    pub(crate) fn next(&self) -> Option<Ipv6Addr> {
        let mut question = [0; QUESTION_BYTES_MAX];
        loop {
            let (length, _, from) =
                recvfrom(&self.socket, &mut question, RecvFlags::empty()).ok()?;
            let from = from.and_then(|from| Place::try_from(from).ok());
            if let Some(from) = from.filter(|_| length > 0 && question[0] == SOLICITATION) {
                return Some(*from.ip());
            }
        }
    }

    /// Says it to one, or to all if that one has no address of the link or nobody is named.
    pub(crate) fn tell(&self, to: Option<Ipv6Addr>, mtu: u16) {
        let to = to.filter(Ipv6Addr::is_unicast_link_local).unwrap_or(ALL_NODES);
        let place = SocketAddrV6::new(to, 0, 0, self.link);
        if let Err(error) = sendto(&self.socket, &message(mtu), SendFlags::empty(), &place) {
            tracing::debug!(%to, %error, "an advertisement was lost");
        }
    }
}

impl AsFd for Routers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn read_solicitations_only(socket: &OwnedFd) -> io::Result<()> {
    let mut filter = [u32::MAX; 8];
    filter[usize::from(SOLICITATION >> 5)] &= !(1 << (SOLICITATION & 31));
    // SAFETY: the option reads the whole array, as long as is said, and keeps no pointer.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_ICMPV6,
            ICMPV6_FILTER,
            (&raw const filter).cast(),
            size_of_val(&filter) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_word_is_laid_out_as_the_rfc_says() {
        let message = message(1500);
        assert_eq!(message.len(), 16 + 8 + 32);
        assert_eq!(message[16..24], [5, 1, 0, 0, 0, 0, 5, 220]);
        assert_eq!(message[24..28], [3, 4, 64, 0xc0], "on the link, and for addresses");
        assert_eq!(message[40..56], six::NETWORK.network().octets());
        assert!(u64::from(LIFE_SECONDS) > 4 * EVERY.as_secs(), "it is said again in time");
    }
}
