//! IPv6 on the host's side: edges, the way to each member, and forwarding, where the host itself has a way out. Where it
//! has none its kernel says so to guests, and nothing of the host is changed.

use crate::NetworkError;
use crate::link::Links;
use crate::sysctl::{self, Folder};
use ipnet::Ipv6Net;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use tt_model::six;

/// Where a member's packets go to from the host; see `env/six.rs`.
const NEXT_HOP: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const FORWARD: &str = "ipv6/conf/all/forwarding";

/// The links by which the calling thread's namespace is left by IPv6, best first; none if there is no way out. None at all
/// if the kernel has no IPv6.
///
/// # Errors
/// The kernel could not be asked.
pub fn ways_out_six() -> Result<Option<Vec<String>>, NetworkError> {
    if !sysctl::has_six() {
        return Ok(None);
    }
    let mut links = Links::open()?;
    let (ways, all) = (links.ways_out_six()?, links.all()?);
    let named = |index: &u32| all.iter().find(|link| link.index == *index);
    Ok(Some(ways.iter().filter_map(named).map(|link| link.name.clone()).collect()))
}

/// Switches IPv6 on at the outer end of an edge. `conf`: switches of the host's links; none if the kernel has no IPv6.
pub(crate) fn open_edge(
    links: &mut Links,
    conf: Option<&Folder>,
    (edge, name): (u32, &str),
) -> Result<(), NetworkError> {
    let Some(conf) = conf else { return Ok(()) };
    // It has the address that guests are answered from, and no other one.
    conf.below(name)?.set(&[("addr_gen_mode", "1"), ("disable_ipv6", "0")])?;
    links.add_address_six(edge, six::HOST_END.into())
}

/// Leads the address that follows from `member` to an edge.
pub(crate) fn lead_to(
    links: &mut Links,
    conf: Option<&Folder>,
    (edge, name): (u32, &str),
    member: Ipv4Addr,
) -> Result<(), NetworkError> {
    if conf.is_none() {
        return Ok(());
    }
    let to = Ipv6Net::from(six::address(member));
    if links.set_route_six(to, edge, Some(NEXT_HOP)).is_ok() {
        return Ok(());
    }
    // The edge of an earlier version has no IPv6.
    open_edge(links, conf, (edge, name))?;
    links.set_route_six(to, edge, Some(NEXT_HOP))
}

/// Takes [`lead_to`] back.
pub(crate) fn lead_no_more_to(
    links: &mut Links,
    edge: u32,
    member: Ipv4Addr,
) -> Result<(), NetworkError> {
    match sysctl::has_six() {
        true => links.remove_route_six(six::address(member).into(), edge),
        false => Ok(()),
    }
}

/// Lets the host forward IPv6 if it has a way out, and notes at `record` what that changed. A host that forwards does not
/// listen to routers any more, unless it is told to (`accept_ra` of ip-sysctl in the kernel's documentation): its
/// own addresses and its own way out would end after a while.
pub(crate) fn forward(record: &Path, links: &mut Links) -> Result<(), NetworkError> {
    if !sysctl::has_six() || links.ways_out_six()?.is_empty() {
        return Ok(());
    }
    let is_ours = sysctl::is_noted(record, FORWARD)?;
    if sysctl::get(FORWARD)? != "0" && !is_ours {
        return Ok(());
    }
    for link in sysctl::names("ipv6/conf")?.iter().filter(|name| *name != "all") {
        let switch = format!("ipv6/conf/{link}/accept_ra");
        // A link may have gone meanwhile.
        if sysctl::get(&switch).is_ok_and(|now| now == "1") {
            sysctl::change(record, &switch, "2")?;
        }
    }
    sysctl::change(record, FORWARD, "1")
}
