//! What a guest with a raw socket may try, as values: frames that must arrive nowhere, each with what stops it, and floods.
//! Who sends them, a stand-in or a real guest, is the test's; `docs/hostile-guests.md` lists them.

mod cases;
mod floods;
pub mod frame;
mod frames;
mod six;

pub use cases::cases;
pub use floods::{FLOOD_FRAMES, Flood, floods};
pub use frames::{Frames, holds};

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use tt_model::MacAddr;
use tt_model::six::address;

/// Where clouds keep what guests must not have.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The host's end of every edge.
pub const EDGE_END: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
/// UDP port of the tunnel between hosts.
pub const TUNNEL_PORT: u16 = 4789;

/// Both addresses of somebody on the Env's link.
#[derive(Clone, Copy, Debug)]
pub struct Station {
    /// The hardware address.
    pub mac: MacAddr,
    /// The IPv4 address.
    pub addr: Ipv4Addr,
}

impl Station {
    /// A member, or the gateway: the hardware address follows from the other one.
    pub fn at(addr: Ipv4Addr) -> Self {
        Self { mac: MacAddr::of_ip(addr), addr }
    }
}

/// Who attacks whom.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    /// The guest that attacks.
    pub me: Station,
    /// Another member of its Env.
    pub victim: Station,
    /// The gateway of every Env.
    pub gateway: Station,
    /// A member of another Env, and its public ports.
    pub other: Ipv4Addr,
    /// By TCP.
    pub other_tcp: u16,
    /// By UDP.
    pub other_udp: u16,
    /// The host, on its link to the outside.
    pub host: Ipv4Addr,
    /// More addresses of the host.
    pub second: Ipv4Addr,
    /// Its end of the tunnel, where there is one.
    pub tunnel_end: Option<Ipv4Addr>,
    /// Somebody outside, whom guests may reach.
    pub outside: Ipv4Addr,
    /// Where a service of the host listens, at all of its addresses.
    pub service: u16,
    /// The host, on its link to the outside, by IPv6.
    pub host_six: Ipv6Addr,
    /// Somebody outside, whom guests may reach by IPv6.
    pub outside_six: Ipv6Addr,
}

impl Scene {
    /// From the guest to its neighbour.
    fn macs(self) -> (MacAddr, MacAddr) {
        (self.me.mac, self.victim.mac)
    }

    fn to_gateway(self) -> (MacAddr, MacAddr) {
        (self.me.mac, self.gateway.mac)
    }

    /// A datagram to the neighbour, which arrives.
    pub fn honest(&self, mark: &str) -> Vec<u8> {
        frame::udp(self.macs(), (self.me.addr, 9), (self.victim.addr, 9), mark.as_bytes())
    }

    /// As [`honest`](Self::honest), by IPv6.
    pub fn honest_six(&self, mark: &str) -> Vec<u8> {
        let (me, victim) = (address(self.me.addr), address(self.victim.addr));
        frame::six::udp(self.macs(), (me, 9), (victim, 9), mark.as_bytes())
    }

    /// A datagram to somebody outside by IPv6, which arrives.
    pub fn honest_beyond_six(&self, mark: &str) -> Vec<u8> {
        let me = address(self.me.addr);
        frame::six::udp(self.to_gateway(), (me, 9), (self.outside_six, 9), mark.as_bytes())
    }

    /// A datagram to somewhere beyond the gateway, from the guest's own address.
    pub fn beyond(&self, to: Ipv4Addr, port: u16, mark: &str) -> Vec<u8> {
        frame::udp(self.to_gateway(), (self.me.addr, 9), (to, port), mark.as_bytes())
    }
}

/// What stops a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// The kernel, before any rule is asked: nothing counts it.
    Kernel,
    /// The rules of the guest's port of its bridge.
    Port,
    /// What that port lets through in a second.
    Limit,
    /// The rules at the edge of the Env's namespace.
    Edge,
    /// The host's rules.
    Host,
}

impl Stop {
    /// Whether `tt vm show` counts it.
    pub fn is_counted(self) -> bool {
        self != Self::Kernel
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "the kernel, before any rule (not counted)",
            Self::Port => "the rules of the guest's port of the bridge",
            Self::Limit => "the limits of the guest's port of the bridge",
            Self::Edge => "the rules at the edge of the Env's namespace",
            Self::Host => "the host's rules",
        })
    }
}

/// Frames that must arrive nowhere.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is about.
    pub kind: &'static str,
    /// What the guest does.
    pub what: &'static str,
    /// What it sends; the last frame holds the mark.
    pub frames: Vec<Vec<u8>>,
    /// What stops it.
    pub stop: Stop,
}

impl Case {
    /// What is in a frame of it and in nothing else.
    pub fn mark(&self) -> String {
        mark(self.kind, self.what)
    }
}

fn mark(kind: &str, what: &str) -> String {
    format!("<hostile {kind}: {what}>")
}
