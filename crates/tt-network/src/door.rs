//! Where the members of one Env ask: the sockets in its namespace, what each of them may ask, and what is
//! opened to it by the answers. It never decides about a packet: the rules do.

use crate::advert::Routers;
use crate::buckets::{Buckets, Rate};
use crate::cache::{self, Cache};
use crate::elements::{Change, Element, Elements, Set};
use crate::member::{Known, set};
use crate::named::{self, Bounds, LIFE_MAX_SECONDS, Opened, Place, Step};
use crate::nft::{NAMED, NAMED_PORTS, NAMED_PORTS_SIX, NAMED_SIX};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Instant;

/// Questions for names that a member may ask in a second, and at once; those by UDP are held back before
/// (`rules/env.rs`).
const NAMES_RATE: Rate = Rate { per_second: 500.0, burst: 1000.0 };
/// Questions for its address, and for its router: a member asks a few times when it boots and once an hour.
const LEASES_RATE: Rate = Rate { per_second: 5.0, burst: 20.0 };

/// An Env's sockets on its gateway.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) names: UdpSocket,
    pub(crate) listener: TcpListener,
    pub(crate) leases: UdpSocket,
    /// None where the kernel has no IPv6.
    pub(crate) routers: Option<Routers>,
    /// For what answers open.
    pub(crate) elements: Elements,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) sockets: Sockets,
    bounds: BTreeMap<Ipv4Addr, Bounds>,
    opened: Opened,
    pub(crate) cache: Cache,
    pub(crate) names: Buckets,
    pub(crate) leases: Buckets,
    pub(crate) routers: Buckets,
}

impl Door {
    /// `known`: what the namespace says already.
    pub(crate) fn new(sockets: Sockets, known: Known) -> Self {
        let mut opened = Opened::default();
        opened.take(known.opened, Instant::now());
        Self {
            sockets,
            bounds: known.bounds,
            opened,
            cache: Cache::default(),
            names: Buckets::new(NAMES_RATE),
            leases: Buckets::new(LEASES_RATE),
            routers: Buckets::new(LEASES_RATE),
        }
    }

    /// What a member may ask.
    pub(crate) fn bounds(&self, member: Ipv4Addr) -> Bounds {
        self.bounds.get(&member).cloned().unwrap_or_default()
    }

    /// Changes that; what was open under names that are not among its rules any more is closed.
    pub(crate) fn set_bounds(&mut self, member: Ipv4Addr, bounds: Bounds) -> io::Result<()> {
        let steps = self.opened.bound(member, &bounds, Instant::now());
        match bounds == Bounds::default() {
            true => drop(self.bounds.remove(&member)),
            false => drop(self.bounds.insert(member, bounds)),
        }
        self.carry_out(steps)
    }

    /// Opens what an answer from outside says to the member that is to get it.
    pub(crate) fn open(
        &mut self,
        member: Ipv4Addr,
        answer: &mut [u8],
        range: Ipv4Net,
    ) -> io::Result<()> {
        let Some(bounds) = self.bounds.get(&member).filter(|bounds| !bounds.names.is_empty())
        else {
            return Ok(());
        };
        cache::cap_ages(answer, LIFE_MAX_SECONDS);
        let steps = self.opened.open(member, bounds, answer, range, Instant::now());
        self.carry_out(steps)
    }

    /// Opens again what was open: the rules were put back, and nothing was with them.
    pub(crate) fn open_again(&mut self) -> io::Result<()> {
        let steps = self.opened.again(Instant::now());
        self.carry_out(steps)
    }

    /// All of it at once; one at a time if the kernel has not what it is thought to have.
    fn carry_out(&mut self, steps: Vec<Step>) -> io::Result<()> {
        if steps.is_empty() {
            return Ok(());
        }
        let elements = &mut self.sockets.elements;
        if elements.change(changes(&steps)).is_ok() {
            return Ok(());
        }
        steps.into_iter().try_for_each(|step| match step {
            Step::Write(entry, _) => elements.replace(map_of(entry.place), &entry.element()),
            Step::Remove(member, place) => {
                elements.discard(map_of(place), &named::key(member, place))
            }
        })
    }
}

fn changes(steps: &[Step]) -> Vec<Change<'static>> {
    let of_map = |name: &'static str| {
        let mut change = Change { set: set(name), remove: Vec::new(), add: Vec::new() };
        for step in steps {
            let (place, gone, new) = match step {
                Step::Write(entry, is_there) => {
                    let key = named::key(entry.member, entry.place);
                    (entry.place, is_there.then_some(key), Some(entry.element()))
                }
                Step::Remove(member, place) => (*place, Some(named::key(*member, *place)), None),
            };
            if map_of(place).name == name {
                change.remove.extend(gone.map(Element::of_key));
                change.add.extend(new);
            }
        }
        change
    };
    [NAMED, NAMED_PORTS, NAMED_SIX, NAMED_PORTS_SIX].map(of_map).into()
}

fn map_of((addr, port): Place) -> Set<'static> {
    set(match (addr.is_ipv4(), port.is_some()) {
        (true, false) => NAMED,
        (true, true) => NAMED_PORTS,
        (false, false) => NAMED_SIX,
        (false, true) => NAMED_PORTS_SIX,
    })
}
