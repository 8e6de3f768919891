//! The tunnel to other hosts: one device, and for each of them one route, one neighbour and one
//! forwarding entry, whatever the number of their Vms. It exists as long as there are others.

use crate::elements::{Change, Element, Elements, Set};
use crate::link::{Link, Links, Route, Tunnel};
use crate::nft::PEERS;
use crate::{NetworkConfig, NetworkError, Peer, TUNNEL_ID, facts, sysctl};
use ipnet::Ipv4Net;
use netlink_packet_netfilter::NetfilterProtoFamily;
use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use tt_model::MacAddr;
use tt_model::host::tunnel_addr;

/// What a datagram adds to a packet: Ethernet, VXLAN, UDP and IPv4 headers (RFC 7348 5).
const OVERHEAD_BYTES: u32 = 50;
/// Least MTU of IPv4 (RFC 791): below it, an underlay carries no tunnel.
const MTU_MIN: u32 = 576;

/// Checks what is said of other hosts.
///
/// # Errors
/// A block outside the range, or one that overlaps this host's or another one's.
pub(crate) fn check(config: &NetworkConfig, peers: &[Peer]) -> Result<(), NetworkError> {
    for (index, peer) in peers.iter().enumerate() {
        let mut others = peers[..index].iter().map(|other| other.block).chain([config.block]);
        if !config.range.contains(&peer.block) || others.any(|b| facts::overlap(b, peer.block)) {
            return Err(NetworkError::PlacePeer { block: peer.block, host: peer.underlay });
        }
    }
    Ok(())
}

/// Makes the tunnel lead to `peers` and nowhere else.
pub(crate) fn set(
    config: &NetworkConfig,
    peers: &[Peer],
    links: &mut Links,
) -> Result<(), NetworkError> {
    let name = config.layout.tunnel();
    let peers = match config.underlay {
        Some(_) => peers,
        None => &[],
    };
    if peers.is_empty() {
        set_elements(config, peers)?;
        return links.remove(&name);
    }
    let tunnel = ensure_tunnel(config, links)?;
    let metric = super::nat::metric(&config.layout);
    let wanted: BTreeSet<Ipv4Net> = peers.iter().map(|peer| peer.block.trunc()).collect();
    for route in links.routes()? {
        if route.is_ours && route.link == Some(tunnel.index) && !wanted.contains(&route.to) {
            // The route goes last: it is what tells of the rest.
            let far = tunnel_addr(route.to);
            links.remove_far_end(tunnel.index, MacAddr::of_tunnel(far))?;
            links.remove_neighbour(tunnel.index, far.into())?;
            links.remove_route(&route)?;
        }
    }
    set_elements(config, peers)?;
    for peer in peers {
        let far = tunnel_addr(peer.block);
        let mac = MacAddr::of_tunnel(far);
        let route = Route { metric, ..Route::to(peer.block.trunc(), Some(tunnel.index)) };
        links.set_route(&route, Some(far))?;
        links.set_neighbour(tunnel.index, far.into(), mac)?;
        links.set_far_end(tunnel.index, mac, peer.underlay)?;
    }
    Ok(())
}

fn ensure_tunnel(config: &NetworkConfig, links: &mut Links) -> Result<Link, NetworkError> {
    let name = config.layout.tunnel();
    let local = config.underlay.ok_or(NetworkError::NotInit)?;
    let addr = tunnel_addr(config.block);
    let mtu = underlay_mtu(links, local)?.saturating_sub(OVERHEAD_BYTES).max(MTU_MIN);
    let wanted = Tunnel {
        id: TUNNEL_ID,
        port: config.tunnel_port,
        local,
        mac: MacAddr::of_tunnel(addr),
        mtu,
    };
    if links.find(&name)?.is_some() && links.tunnel(&name)? != Some((wanted.id, wanted.port, local))
    {
        // This host has another address now, or was told of another port.
        links.remove(&name)?;
    }
    if links.find(&name)?.is_none() {
        links.make_tunnel(&name, &wanted)?;
    }
    let tunnel = links.find(&name)?.ok_or(NetworkError::NotInit)?;
    if tunnel.mtu != mtu {
        links.set_mtu(&tunnel, mtu)?;
    }
    if !tunnel.is_up {
        set_sysctls(&name)?;
        links.add_address(tunnel.index, addr.into())?;
        links.set_up(tunnel.index, &name)?;
    }
    Ok(tunnel)
}

/// Of the link that has the address, in bytes.
fn underlay_mtu(links: &mut Links, local: Ipv4Addr) -> Result<u32, NetworkError> {
    let addresses = links.addresses()?;
    let has = addresses.iter().find(|(_, net)| net.addr() == local);
    let link = has.map(|(index, _)| *index);
    let all = links.all()?;
    let link = link.and_then(|index| all.into_iter().find(|link| link.index == index));
    link.map(|link| link.mtu).ok_or(NetworkError::FindUnderlay { addr: local })
}

/// Whose datagrams are taken for the tunnel's.
fn set_elements(config: &NetworkConfig, peers: &[Peer]) -> Result<(), NetworkError> {
    let fail = |action| {
        move |source: io::Error| NetworkError::ChangeElements { action, set: PEERS, source }
    };
    let table = config.layout.nft_table();
    let set = Set { family: NetfilterProtoFamily::Inet, table: &table, name: PEERS };
    let mut elements = Elements::open().map_err(fail("open netlink for"))?;
    let now: BTreeSet<Element> = elements.read(set).map_err(fail("read"))?.into_iter().collect();
    let wanted = peers.iter().map(|peer| Element::of_key(peer.underlay.octets().to_vec()));
    let wanted: BTreeSet<Element> = wanted.collect();
    let change = Change {
        set,
        remove: now.difference(&wanted).cloned().collect(),
        add: wanted.difference(&now).cloned().collect(),
    };
    elements.change(vec![change]).map_err(fail("change"))
}

fn set_sysctls(tunnel: &str) -> Result<(), NetworkError> {
    sysctl::set_if_there(&format!("ipv6/conf/{tunnel}/disable_ipv6"), "1")?;
    let switches = [
        // Clients of another host come through it, too: their way back is another one.
        ("rp_filter", "2"),
        ("forwarding", "1"),
        ("accept_redirects", "0"),
        ("send_redirects", "0"),
    ];
    sysctl::Folder::open(&format!("ipv4/conf/{tunnel}"))?.set(&switches)
}
