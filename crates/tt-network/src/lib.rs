//! The network plane of a host: one network namespace per Env, L2 inside, L3 at its edge.
//!
//! It decides nothing: addresses, names and public ports come with the record. It keeps nothing
//! that a guest needs: when the daemon is gone, guests, their ports and their rules go on.
//!
//! # The tap, for engines
//! After [`Network::set_net`] the namespace at [`Layout::netns`](tt_model::Layout::netns) holds the
//! persistent tap [`names::tap`](tt_model::names::tap) of the Vm, up and in its bridge. An engine
//! opens `/dev/net/tun` on a thread that has entered the namespace, calls `TUNSETIFF` with that
//! name and exactly `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR` (other flags are refused with `EINVAL`),
//! and hands the descriptor to the machine. The tap has one queue: one descriptor at a time.
//!
//! # The plug, for containers
//! A Vm that [is a container](tt_model::Vm::is_container) has the end of a veth pair for a port, under the name of the tap.
//! Its engine gives the other end to the container with [`Network::plug`] before the guest begins.

use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use tt_model::{EnvId, Traffic, Vm, VmId};

mod addresses;
mod advert;
mod answer;
mod buckets;
mod cache;
pub mod conformance;
mod dhcp;
mod dns;
mod door;
mod driver;
mod element;
mod elements;
mod env;
mod error;
mod facts;
pub mod fake;
mod foreign;
mod gate;
mod limit;
mod link;
mod locks;
mod member;
mod named;
mod nat;
mod netns;
mod nfnetlink;
mod nft;
mod peers;
mod ports;
mod rules;
mod socket;
mod streams;
mod sysctl;
mod tap;
mod tracked;
mod watch;
mod way_out;
mod wire;

pub use driver::{NetnsNetwork, NetworkConfig, TUNNEL_ID, TUNNEL_PORT};
pub use error::NetworkError;
pub use facts::{choose_block, host_networks, listening_ports, public_address};
pub use fake::FakeNetwork;
pub use socket::tcp_socket;
pub use way_out::ways_out_six;

/// Most names that one [`EnvNames`] may hold.
pub const MEMBERS_MAX: usize = 4096;

/// Who is who inside an Env.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvNames {
    /// Name of the Env: `db` is also known as `db.<env_name>`.
    pub env_name: String,
    /// Name and inner address of every member, at most [`MEMBERS_MAX`].
    pub members: Vec<(String, Ipv4Addr)>,
    /// Those of them whose guests may have another address of IPv6 than ours, or none: nobody is told of one, for who tries
    /// it first waits in vain.
    pub without_six: BTreeSet<Ipv4Addr>,
}

/// Another host whose members with flat addresses are reached through the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The part of the range that it hands out.
    pub block: Ipv4Net,
    /// Where its end of the tunnel is reached.
    pub underlay: Ipv4Addr,
}

/// Where a host is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// By clients; none if it never had an address but its own loopback.
    pub public: Option<Ipv4Addr>,
    /// By the tunnels of other hosts; none if there is no tunnel.
    pub underlay: Option<Ipv4Addr>,
}

/// What is there, seen by looking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Envs that have a namespace, with the members that have a tap in it. A namespace without
    /// members is the rest of a broken [`Network::set_net`].
    pub envs: BTreeMap<EnvId, BTreeSet<VmId>>,
    /// Envs that have no namespace, but something else: an edge, a public port, or the file where
    /// the namespace was.
    pub leftovers: BTreeSet<EnvId>,
}

/// The network of one host.
///
/// Every verb is idempotent and finishes what a killed daemon left half done: it looks first and
/// acts on the difference, so the answer to any error that [`NetworkError::is_retryable`] is to
/// call again. Calls block. Calls for one Env wait for each other, different Envs go side by side.
pub trait Network: Send + Sync + Debug {
    /// Makes what all Envs share: the host's table of rules, forwarding, the reservation of the
    /// address block. Called once by every daemon before anything else; finds the running guests
    /// of an earlier daemon and breaks no connection of theirs, except through public ports that
    /// lead elsewhere: of a daemon that died while it removed one.
    ///
    /// # Errors
    /// [`NetworkError::Collide`] if another network of the host lies in the block; nothing is changed.
    fn init(&self) -> Result<(), NetworkError>;

    /// Looks whether what [`init`](Self::init) made is still whole, and puts back what somebody else has
    /// removed: rules, forwarding, the reservation. Where another firewall has begun to drop what is
    /// forwarded, edges are let through. Rules of others are left alone. Cheap if all is whole.
    ///
    /// True if rules were put back: their elements are gone, and [`set_net`](Self::set_net) brings each
    /// Vm's, [`set_peers`](Self::set_peers) those of other hosts. Connections that were open go on.
    fn mend(&self) -> Result<bool, NetworkError>;

    /// From now on `wake` is called, from another thread, when somebody may have changed what
    /// [`mend`](Self::mend) or [`reached_at`](Self::reached_at) looks at. It must return at once. Whoever is called second takes the place of the first.
    ///
    /// # Errors
    /// [`NetworkError::WatchRules`]; nothing is told then.
    fn on_change(&self, wake: Arc<dyn Fn() + Send + Sync>) -> Result<(), NetworkError>;

    /// Says who is who inside an Env. Replaces what was said before; no members forget the Env.
    /// May be called before the first [`set_net`](Self::set_net). Kept in the daemon's memory
    /// only: to be said again after a restart.
    fn set_names(&self, env: EnvId, names: &EnvNames) -> Result<(), NetworkError>;

    /// Makes everything that the record says: namespace, bridge, edge, tap, route, ports,
    /// `deny_outgoing`, `net_blacklist`, `net_allowlist`, bounds of its traffic, whether it is reached at its own address, and that no other
    /// address leaves the tap. Also the way to
    /// apply a changed record to a live guest; what stays the same is not touched.
    ///
    /// Open connections through a public port that is gone, or leads elsewhere now, end: their next
    /// packet meets the host, or who has the port now, as a new one. All others go on.
    ///
    /// The ports change at one moment and the rest at another one, each all or nothing up to 1,024
    /// elements (twice what a record can say of ports). More of them change in parts, in which each
    /// element that stays is there all the time.
    ///
    /// # Errors
    /// [`NetworkError::PortTaken`] if another Vm has one of the ports, and nothing is published.
    fn set_net(&self, vm: &Vm) -> Result<(), NetworkError>;

    /// Lets members with flat addresses reach those of `peers`, all other hosts, and be reached from
    /// there. What stays the same is not touched, so that hosts come and go without disturbing others.
    /// Without peers there is no tunnel; it ends with [`close`](Self::close), too, but not with the
    /// daemon.
    ///
    /// # Errors
    /// [`NetworkError::PlacePeer`] if a block lies outside the range or overlaps another one, and
    /// nothing is changed.
    fn set_peers(&self, peers: &[Peer]) -> Result<(), NetworkError>;

    /// Where this host is reached now: where an administrator said, else by the source address of its default
    /// route. While it has no address, the last one that it had. What is published needs no change when this
    /// does: ports are open at every address of the host. [`set_peers`](Self::set_peers) lets the tunnel follow.
    fn reached_at(&self) -> Result<Reached, NetworkError>;

    /// Lets a container have its network: moves the other end of its port into `into`, its network namespace, as `eth0`,
    /// with its address and the route to the gateway, everything up, loopback included. What is there is left alone. To be
    /// called before anything of the guest's runs there: it may not set its network itself.
    ///
    /// # Errors
    /// [`NetworkError::NotSet`] if the Vm has no network, or is no container.
    fn plug(&self, vm: &Vm, into: BorrowedFd<'_>) -> Result<(), NetworkError>;

    /// Makes a container's port whole again after the container ended: the other end ended with it. One that has no
    /// network is fine.
    fn unplug(&self, vm: &Vm) -> Result<(), NetworkError>;

    /// Removes everything of a Vm; with the last member the Env's namespace goes. The machine must
    /// have ended.
    fn unset_net(&self, vm: &Vm) -> Result<(), NetworkError>;

    /// From now on the guest opens no connection to the outside, and those that it has opened
    /// stand still. Replies to inbound connections, the gateway and other members stay reachable.
    ///
    /// # Errors
    /// [`NetworkError::NotSet`] if the Vm has no network.
    fn deny_outgoing(&self, vm: &Vm) -> Result<(), NetworkError>;

    /// Takes [`deny_outgoing`](Self::deny_outgoing) back, with the same errors.
    fn allow_outgoing(&self, vm: &Vm) -> Result<(), NetworkError>;

    /// From now on the guest sends nothing to the addresses in `vm.state.net_blacklist` (members
    /// of its own Env included), and opens no connections to the outside but to
    /// `vm.state.net_allowlist` if there is one; also on open connections. It reaches again what is no
    /// longer listed.
    ///
    /// # Errors
    /// [`NetworkError::NotSet`] if the Vm has no network.
    fn set_blacklist(&self, vm: &Vm) -> Result<(), NetworkError>;

    /// What was seen of its traffic.
    ///
    /// # Errors
    /// [`NetworkError::NotSet`] if the Vm has no network.
    fn traffic(&self, vm: &Vm) -> Result<Traffic, NetworkError>;

    /// What is there.
    fn found(&self) -> Result<Found, NetworkError>;

    /// Removes everything of an Env that no record knows, its public ports included.
    fn remove_stray(&self, env: EnvId) -> Result<(), NetworkError>;

    /// Removes what [`init`](Self::init) made and restores the sysctls that it changed, if no Env
    /// is left; else does nothing. The network is not used afterwards, except by another `init`.
    fn close(&self) -> Result<(), NetworkError>;
}
