//! Where each record lies. Ids are written with leading zeros, so that keys sort as ids do.

use std::fmt;
use std::net::Ipv4Addr;
use tt_model::{EnvId, HostId, VmId};

/// A table whose records can be listed without being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Envs.
    Envs,
    /// Vms.
    Vms,
    /// Templates.
    Templates,
    /// Kept images.
    Images,
}

impl Table {
    /// How the keys of its records begin.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Envs => "env/",
            Self::Vms => "vm/",
            Self::Templates => "template/",
            Self::Images => "image/",
        }
    }
}

/// The place of a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// An Env.
    Env(EnvId),
    /// The id of the living Env of this name.
    EnvName(String),
    /// A Vm as it should be.
    Vm(VmId),
    /// A Vm as its host last saw it.
    Status(VmId),
    /// A host.
    Host(HostId),
    /// How much of a host is handed out.
    Usage(HostId),
    /// The Vm that has this address of a host's block.
    Address(HostId, Ipv4Addr),
    /// The Vm that has this public port of a host.
    Port(HostId, u16),
    /// The next unused id.
    NextId,
    /// A template.
    Template(String),
    /// The kept image that was the runtime image of this Vm.
    Image(VmId),
}

impl Key {
    /// The key in the store.
    pub fn path(&self) -> String {
        self.to_string()
    }

    /// What lies at `path`, for the kinds that are followed by a watch.
    pub fn parse(path: &str) -> Option<Self> {
        let (table, rest) = path.split_once('/')?;
        let id = || u64::from_str_radix(rest, 16).ok();
        match table {
            "env" => id().map(|id| Self::Env(EnvId(id))),
            "vm" => id().map(|id| Self::Vm(VmId(id))),
            "status" => id().map(|id| Self::Status(VmId(id))),
            "host" => id().map(|id| Self::Host(HostId(id))),
            "template" => Some(Self::Template(rest.to_owned())),
            "image" => id().map(|id| Self::Image(VmId(id))),
            _ => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(id) => write!(f, "env/{:016x}", id.0),
            Self::EnvName(name) => write!(f, "env-name/{name}"),
            Self::Vm(id) => write!(f, "vm/{:016x}", id.0),
            Self::Status(id) => write!(f, "status/{:016x}", id.0),
            Self::Host(id) => write!(f, "host/{:016x}", id.0),
            Self::Usage(id) => write!(f, "usage/{:016x}", id.0),
            Self::Address(host, ip) => write!(f, "addr/{host}/{:08x}", u32::from(*ip)),
            Self::Port(host, port) => write!(f, "port/{host}/{port:08x}"),
            Self::NextId => f.write_str("next-id"),
            Self::Template(name) => write!(f, "template/{name}"),
            Self::Image(id) => write!(f, "image/{:016x}", id.0),
        }
    }
}
