//! What a host's network is like before we touch it: its networks, its address, its taken ports.
//! It only looks.

use crate::NetworkError;
use crate::foreign;
use crate::link::{Links, Route};
use ipnet::Ipv4Net;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use tt_model::Protocol;

/// A host gives each Env's member an address of its own block: 254 and a few at least.
const BLOCK_PREFIX_MAX: u8 = 24;
/// Blocks per range, as a power of two.
const BLOCK_BITS: u8 = 8;
/// Routes of half the world are a default route in disguise, as VPN programs set them.
const DEFAULT_PREFIX_MAX: u8 = 1;
/// State of a listening TCP socket in `/proc/net/tcp` (`TCP_LISTEN` of net/tcp_states.h).
const TCP_LISTEN: &str = "0A";

/// A network that somebody uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) net: Ipv4Net,
    pub(crate) owner: String,
}

/// The first block of `range` that overlaps none of the networks in `taken`. A block has 8 bits
/// more of prefix than the range, but at most 24; a smaller range is one block.
pub fn choose_block(range: Ipv4Net, taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    let wanted = (range.prefix_len() + BLOCK_BITS).min(BLOCK_PREFIX_MAX);
    let mut blocks = range.trunc().subnets(wanted.max(range.prefix_len())).ok()?;
    blocks.find(|block| !taken.iter().any(|net| overlap(*block, *net)))
}

/// The networks of the calling thread's namespace, by its addresses and routes: what
/// [`choose_block`] takes. Blocks that daemons have reserved are among them, single members and
/// the default route are not.
///
/// # Errors
/// The kernel could not be asked.
pub fn host_networks() -> Result<Vec<Ipv4Net>, NetworkError> {
    let taken = taken(&mut Links::open()?, &|_| false, &|_| false)?;
    Ok(taken.into_iter().map(|taken| taken.net).collect())
}

/// Where clients reach the calling thread's namespace: the source address of its default route,
/// else its first global address, else 127.0.0.1.
pub fn public_address() -> Ipv4Addr {
    let look = || {
        let mut links = Links::open()?;
        Ok::<_, NetworkError>((links.routes()?, links.addresses()?))
    };
    match look() {
        Ok((routes, addresses)) => choose_address(&routes, &addresses),
        Err(error) => {
            tracing::warn!(%error, "the public address is unknown");
            Ipv4Addr::LOCALHOST
        }
    }
}

/// As [`public_address`], for who knows which one it was: as long as the host has that one, nothing but a default
/// route speaks for another one. None while there is no address but of loopback, of Envs and of what others
/// keep on the host.
pub(crate) fn follow_address(
    links: &mut Links,
    last: Option<Ipv4Addr>,
    range: Ipv4Net,
) -> Result<Option<Ipv4Addr>, NetworkError> {
    let (routes, all) = (links.routes()?, links.all()?);
    let is_others = |index: u32| {
        all.iter().any(|link| link.index == index && foreign::is_of_others(&link.name))
    };
    let own = |(index, net): &(u32, Ipv4Net)| !is_others(*index) && !range.contains(&net.addr());
    let addresses: Vec<_> = links.addresses()?.into_iter().filter(own).collect();
    Ok(choose_next(&routes, &addresses, last))
}

fn choose_next(
    routes: &[Route],
    addresses: &[(u32, Ipv4Net)],
    last: Option<Ipv4Addr>,
) -> Option<Ipv4Addr> {
    let has_default = routes.iter().any(|route| route.to.prefix_len() == 0);
    let is_there = |addr: &Ipv4Addr| addresses.iter().any(|(_, net)| net.addr() == *addr);
    match last.filter(|last| !has_default && is_there(last)) {
        Some(last) => Some(last),
        None => Some(choose_address(routes, addresses)).filter(|addr| !addr.is_loopback()),
    }
}

/// The local ports of the calling thread's namespace that something listens on, TCP and UDP, IPv4
/// and IPv6. Published ports are not among them: nothing listens there.
///
/// # Errors
/// `/proc/net` could not be read.
pub fn listening_ports() -> Result<BTreeSet<(Protocol, u16)>, NetworkError> {
    let mut ports = BTreeSet::new();
    for (file, protocol) in [
        ("tcp", Protocol::Tcp),
        ("tcp6", Protocol::Tcp),
        ("udp", Protocol::Udp),
        ("udp6", Protocol::Udp),
    ] {
        let path = Path::new("/proc/thread-self/net").join(file);
        match fs::read_to_string(&path) {
            Ok(text) => ports.extend(listening(&text, protocol).map(|port| (protocol, port))),
            // A kernel without IPv6 has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(NetworkError::UseFile { action: "read", path, source });
            }
        }
    }
    Ok(ports)
}

/// The networks in use, except by links and routes that the caller knows to be its own.
pub(crate) fn taken(
    links: &mut Links,
    is_own_link: &dyn Fn(&str) -> bool,
    is_own_route: &dyn Fn(&Route) -> bool,
) -> Result<Vec<Taken>, NetworkError> {
    let all = links.all()?;
    let name = |index: u32| {
        let link = all.iter().find(|link| link.index == index);
        link.map_or("a link", |link| link.name.as_str()).to_owned()
    };
    let mut taken = Vec::new();
    for (index, net) in links.addresses()? {
        let owner = name(index);
        if !is_own_link(&owner) {
            let net = net.trunc();
            taken.push(Taken { net, owner });
        }
    }
    for route in links.routes()? {
        let is_member = route.is_ours && route.link.is_some();
        if is_member || is_own_route(&route) || route.to.prefix_len() <= DEFAULT_PREFIX_MAX {
            continue;
        }
        let owner = match route.link {
            Some(index) => name(index),
            None if route.is_ours => "another daemon".to_owned(),
            None => "a route".to_owned(),
        };
        taken.push(Taken { net: route.to, owner });
    }
    Ok(taken)
}

/// Whether the two have an address in common.
pub(crate) fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn choose_address(routes: &[Route], addresses: &[(u32, Ipv4Net)]) -> Ipv4Addr {
    let default = routes.iter().filter(|route| route.to.prefix_len() == 0);
    let default = default.min_by_key(|route| route.metric);
    // The kernel sends with the address beside the next hop, else with the first one.
    let of_link = |link: u32, via: Option<Ipv4Addr>| {
        let of_link = || addresses.iter().filter(|(index, _)| *index == link).map(|(_, net)| net);
        let beside = of_link().find(|net| via.is_some_and(|via| net.contains(&via)));
        beside.or_else(|| of_link().next()).map(Ipv4Net::addr)
    };
    let is_global = |addr: &Ipv4Addr| !addr.is_loopback() && !addr.is_link_local();
    let mut all = addresses.iter().map(|(_, net)| net.addr());
    default
        .and_then(|route| route.source.or_else(|| of_link(route.link?, route.via)))
        .or_else(|| all.find(is_global))
        .unwrap_or(Ipv4Addr::LOCALHOST)
}

/// Lines are `sl local_address rem_address st …`, addresses end with `:PORT` in hexadecimal digits.
fn listening(text: &str, protocol: Protocol) -> impl Iterator<Item = u16> {
    text.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (_, port) = fields.next()?.rsplit_once(':')?;
        let state = fields.nth(1)?;
        let is_taken = protocol == Protocol::Udp || state == TCP_LISTEN;
        let port = u16::from_str_radix(port, 16).ok()?;
        (is_taken && port != 0).then_some(port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn blocks_are_chosen_around_what_is_taken() {
        for (range, taken, block) in [
            ("10.0.0.0/8", vec![], Some("10.0.0.0/16")),
            ("10.0.0.0/8", vec!["10.0.3.0/24"], Some("10.1.0.0/16")),
            ("10.0.0.0/8", vec!["10.0.0.0/15"], Some("10.2.0.0/16")),
            ("10.0.0.0/8", vec!["10.0.0.0/8"], None),
            ("10.0.0.0/8", vec!["0.0.0.0/0"], None),
            ("172.16.0.0/12", vec!["192.168.0.0/16"], Some("172.16.0.0/20")),
            ("10.7.0.0/16", vec!["10.7.0.9/32"], Some("10.7.1.0/24")),
            ("10.7.0.0/20", vec![], Some("10.7.0.0/24")),
            ("10.7.0.64/26", vec![], Some("10.7.0.64/26")),
            ("10.7.0.64/26", vec!["10.7.0.65/32"], None),
        ] {
            let taken: Vec<_> = taken.into_iter().map(net).collect();
            assert_eq!(choose_block(net(range), &taken), block.map(net), "{range}");
        }
    }

    #[test]
    fn the_public_address_is_that_of_the_best_default_route() {
        let addresses =
            [(1, "127.0.0.1/8"), (2, "192.0.2.7/24"), (2, "198.51.100.7/24"), (3, "10.9.0.1/24")]
                .map(|(link, text)| (link, net(text)));
        let route = |link, metric, source: Option<&str>| Route {
            source: source.map(|text| text.parse().unwrap()),
            metric,
            is_ours: false,
            ..Route::to(Ipv4Net::default(), Some(link))
        };
        let of = |routes: &[Route]| choose_address(routes, &addresses).to_string();
        assert_eq!(of(&[route(2, 100, None), route(3, 50, None)]), "10.9.0.1");
        assert_eq!(of(&[route(2, 0, Some("192.0.2.9"))]), "192.0.2.9");
        let beyond = |via: &str| Route { via: via.parse().ok(), ..route(2, 0, None) };
        assert_eq!(of(&[beyond("198.51.100.1")]), "198.51.100.7");
        assert_eq!(of(&[beyond("203.0.113.1")]), "192.0.2.7");
        assert_eq!(of(&[]), "192.0.2.7");
        let next = |routes: &[Route], last: &str| {
            choose_next(routes, &addresses, Some(last.parse().unwrap())).map(|a| a.to_string())
        };
        assert_eq!(next(&[route(3, 50, None)], "192.0.2.7").as_deref(), Some("10.9.0.1"));
        assert_eq!(next(&[], "10.9.0.1").as_deref(), Some("10.9.0.1"), "no other way out");
        assert_eq!(next(&[], "192.0.2.8").as_deref(), Some("192.0.2.7"), "it is gone");
        assert_eq!(choose_next(&[], &addresses[..1], Some([192, 0, 2, 7].into())), None);
        assert_eq!(choose_address(&[], &addresses[..1]), Ipv4Addr::LOCALHOST);
    }

    #[test]
    fn listening_ports_are_read() {
        let text = "  sl  local_address rem_address   st tx_queue\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n\
            1: 0100007F:9C40 0100007F:1F90 01 00000000:00000000\n";
        let ports = |protocol| listening(text, protocol).collect::<Vec<_>>();
        assert_eq!(ports(Protocol::Tcp), [8080]);
        assert_eq!(ports(Protocol::Udp), [8080, 40000]);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listening_ports().unwrap().contains(&(Protocol::Tcp, port)));
    }
}
