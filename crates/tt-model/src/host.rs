//! The host: what carries Vms, and how much of it is taken.

use crate::{HostId, StorageKind, VmEngineFeat};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// What a host says of itself, written by its daemon at start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Host {
    /// Never used twice.
    pub id: HostId,
    /// Its host name.
    pub name: String,
    /// Version of its daemon.
    pub version: String,
    /// When its daemon started, seconds since the epoch.
    pub start_timestamp: u64,
    /// Where its published ports are reached.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub public_addr: Ipv4Addr,
    /// Where other hosts' tunnels reach it; none if it keeps its flat addresses to itself.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay_addr: Option<Ipv4Addr>,
    /// The range that all inner addresses come from.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub range: Ipv4Net,
    /// The part of the range that this host hands out.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub block: Ipv4Net,
    /// First public port that it hands out.
    pub port_min: u16,
    /// Last public port that it hands out.
    pub port_max: u16,
    /// CPUs.
    pub cpu_num: u16,
    /// Memory for Vms, in MB (2^20 bytes).
    pub mem_size: u32,
    /// Size of the data directory's file system, in MB (2^20 bytes).
    pub disk_size: u32,
    /// The back end for new runtime images.
    pub storage: StorageKind,
    /// Why that one.
    pub storage_reason: String,
    /// Its engines, in the order in which they are preferred.
    pub engines: Vec<EngineFacts>,
}

/// The name of the engine that runs a program of others.
pub const ENGINE_EXEC: &str = "exec";

/// What an engine can do on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct EngineFacts {
    /// E.g. `qemu`.
    pub name: String,
    /// Version of the program behind it; empty if it is not usable.
    pub version: String,
    /// How it executes, e.g. `tcg` or `kvm`, and why.
    pub detail: String,
    /// Bits of [`feat`](crate::feat).
    #[cfg_attr(feature = "schema", schema(value_type = u32))]
    pub features: VmEngineFeat,
    /// Why it can not be used here and what to install, if it can not.
    pub unusable: Option<String>,
}

/// How much of a host is handed out. Changed in the same commit as the records that use it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Usage {
    /// Vms on the host.
    pub vm_num: u32,
    /// Sum of their memory, in MB (2^20 bytes).
    pub mem_size: u64,
    /// Where the search for the next free address begins, so that a freed one rests a while.
    pub addr_cursor: u32,
    /// Where the search for the next free public port begins.
    pub port_cursor: u16,
}

/// The address of the host itself that hands out `block`, on the tunnel between hosts: the last one
/// of the block, which no Vm gets.
pub fn tunnel_addr(block: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(block.broadcast()) - 1)
}

/// The gateway's address in every Env of that range: the first one.
pub fn gateway(range: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(range.network()) + 1)
}

impl Host {
    /// The gateway's address in every Env.
    pub fn gateway(&self) -> Ipv4Addr {
        gateway(self.range)
    }

    /// First and last address that Vms of this host can have.
    pub fn addresses(&self) -> (Ipv4Addr, Ipv4Addr) {
        // The range's network and gateway addresses lie in the first block, its broadcast address
        // in the last one; leaving the same room in each block keeps the rule simple.
        let first = u32::from(self.block.network()) + 2;
        let last = u32::from(tunnel_addr(self.block)) - 1;
        (first.into(), last.into())
    }

    /// The engine of that name, usable or not.
    pub fn engine(&self, name: &str) -> Option<&EngineFacts> {
        self.engines.iter().find(|e| e.name == name)
    }
}
