//! What can go wrong with a host's network. Every error says whether a retry helps.

use ipnet::Ipv4Net;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use tt_model::{EnvId, Protocol, VmId};

/// A network that could not be made, changed, seen or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The block lies on a network that the host uses for something else. A retry does not help.
    #[error(
        "the address block {block} collides with {foreign}, which {owner} uses; choose another one"
    )]
    Collide {
        /// What was asked for.
        block: Ipv4Net,
        /// The host's network.
        foreign: Ipv4Net,
        /// The interface or route that has it.
        owner: String,
    },
    /// The configured block is no part of the range. A retry does not help.
    #[error("the block {block} is no part of the range {range}; choose one inside it")]
    PlaceBlock {
        /// The block.
        block: Ipv4Net,
        /// The range.
        range: Ipv4Net,
    },
    /// A public port belongs to another Vm. A retry helps once that one is gone.
    #[error(
        "public port {port}/{} belongs to vm {vm} of env {env}; publish another one",
        protocol.name()
    )]
    PortTaken {
        /// The public port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Env of who has it.
        env: EnvId,
        /// Who has it.
        vm: VmId,
    },
    /// A block of another host is outside the range, or overlaps another one. A retry does not help.
    #[error(
        "the block {block} of the host at {host} is outside the range or another host's; let each \
         host hand out a block of its own"
    )]
    PlacePeer {
        /// The block.
        block: Ipv4Net,
        /// Where that host is reached.
        host: Ipv4Addr,
    },
    /// No link of this host has the address that tunnels lead to. A retry helps once one has it.
    #[error("no link of this host has the address {addr}, which tunnels of other hosts lead to")]
    FindUnderlay {
        /// The address.
        addr: Ipv4Addr,
    },
    /// The names of an Env do not fit. A retry does not help.
    #[error("{count} names are too many for one env; at most {max} fit")]
    SetNames {
        /// How many were given.
        count: usize,
        /// How many fit.
        max: usize,
    },
    /// The Vm has no network to change. A retry helps after `set_net`.
    #[error("vm {vm} has no network to change; set its network first")]
    NotSet {
        /// The Vm.
        vm: VmId,
    },
    /// The network was used before `init`. A retry helps after `init`.
    #[error("the host's network is not made; call init first")]
    NotInit,
    /// A namespace could not be made, entered or removed. A retry may help.
    #[error("could not {action} the network namespace {}", path.display())]
    UseNamespace {
        /// `make`, `enter` …
        action: &'static str,
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A link, address, route or the like could not be made, changed or removed. A retry may help.
    #[error("could not {action} {name}")]
    ChangeLink {
        /// `make bridge` …
        action: &'static str,
        /// Name of the link, or the address.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// `nft` refused a table of rules. A retry helps only if the reason says so.
    #[error("nft could not {action} table {table}: {reason}")]
    LoadRules {
        /// `load` or `remove`.
        action: &'static str,
        /// The table.
        table: String,
        /// What it wrote.
        reason: String,
    },
    /// `nft` could not be run. A retry helps after it was installed.
    #[error("could not run nft; install nftables")]
    RunNft {
        /// Why.
        source: io::Error,
    },
    /// Elements of a set or map of rules could not be read or changed. A retry may help.
    #[error("could not {action} elements of {set}")]
    ChangeElements {
        /// `read` or `change`.
        action: &'static str,
        /// The set.
        set: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Open connections through a public port that is gone could not be ended. A retry may help;
    /// not on a kernel that can not list its connections (`CONFIG_NF_CT_NETLINK`).
    #[error("could not end the connections through removed ports")]
    EndConnections {
        /// Why.
        source: io::Error,
    },
    /// A file or sysctl could not be read or written. A retry may help.
    #[error("could not {action} {}", path.display())]
    UseFile {
        /// `read`, `write` …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The resolver could not be started or given a socket. A retry may help.
    #[error("could not {action} the resolver")]
    Resolve {
        /// `start` …
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Changes of rules can not be listened to. A retry may help.
    #[error("could not listen for changes of the host's rules")]
    WatchRules {
        /// Why.
        source: io::Error,
    },
    /// Too many Envs change at once, or are known by name. A retry helps once others are done.
    #[error("more than {max} envs at once are too many; try again")]
    KeepEnv {
        /// How many may.
        max: usize,
    },
    /// A fault that a test asked for. A retry may help.
    #[error("fault at {effect}, as asked for")]
    Fault {
        /// The side effect.
        effect: &'static str,
    },
    /// A test asked for the daemon's death: nothing is done any more. A retry does not help.
    #[error("the daemon died, as asked for")]
    Died,
}

impl NetworkError {
    /// Whether the same call may succeed later without anything else being changed.
    pub fn is_retryable(&self) -> bool {
        !matches!(
            self,
            Self::Collide { .. }
                | Self::PlaceBlock { .. }
                | Self::PlacePeer { .. }
                | Self::SetNames { .. }
                | Self::Died
        )
    }
}
