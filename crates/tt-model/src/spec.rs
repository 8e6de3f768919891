//! What a client asks for. Missing values get their defaults in [`plan`](crate::plan).

use crate::{AtEnd, InnerPort, NetKind, NetRule, VmId};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// An Env as asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct EnvSpec {
    /// Its members; at least one.
    pub vms: Vec<VmSpec>,
    /// Its lifetime in seconds; the daemon's default if missing.
    #[serde(default)]
    pub life_time: Option<u64>,
    /// What happens at its end.
    #[serde(default)]
    pub at_end: AtEnd,
    /// Whether its members may not open connections to the outside.
    #[serde(default)]
    pub deny_outgoing: bool,
    /// Addresses that no member can connect to.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub net_blacklist: Vec<IpAddr>,
    /// Public keys for logging in, in the form of OpenSSH's `.pub` files: for all members whose guest can be given any,
    /// and there must be one.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// What cloud-init does in each member that has it and no user data of its own; there must be one that has it.
    #[serde(default)]
    pub user_data: Option<String>,
}

/// A Vm as asked for, or several alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Its name; made from the template's if missing. With `count` above 1, `-1`, `-2` … follow.
    #[serde(default)]
    pub name: Option<String>,
    /// Name of the template.
    pub template: String,
    /// Name of the engine; chosen by the template and the host if missing.
    #[serde(default)]
    pub engine: Option<String>,
    /// Virtual CPUs.
    #[serde(default)]
    pub cpu_num: Option<u16>,
    /// Memory in MB (2^20 bytes).
    #[serde(default)]
    pub mem_size: Option<u32>,
    /// Disk in MB (2^20 bytes); the template's size if missing.
    #[serde(default)]
    pub disk_size: Option<u32>,
    /// Inner ports to publish on the host.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub ports: Vec<InnerPort>,
    /// How it is reached.
    #[serde(default)]
    pub net_kind: NetKind,
    /// How many alike; 1 if missing.
    #[serde(default)]
    pub count: Option<u32>,
    /// Whether it gets a random machine-id.
    #[serde(default = "yes")]
    pub rand_uuid: bool,
    /// Whether its disk outlives it.
    #[serde(default)]
    pub keep_image: bool,
    /// Id of a kept image that its disk is cloned from, in place of the template's.
    #[serde(default)]
    pub image: Option<VmId>,
    /// Addresses that it can not connect to, beside the Env's.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub net_blacklist: Vec<IpAddr>,
    /// Public keys for logging in, beside the Env's; root's where the guest has the agent.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// What cloud-init does at the guest's first boot: `#cloud-config`, a script, or a MIME archive.
    #[serde(default)]
    pub user_data: Option<String>,
    /// The TCP port by which a guest without the agent is seen to be ready; 0 for none: it is as soon as its machine
    /// runs. If missing, 22 where cloud-init is, else none.
    #[serde(default)]
    pub ready_port: Option<u16>,
    /// Where alone it can connect to outside of its Env, e.g. `192.0.2.0/24:443` or `*.example.org`; everywhere if empty.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub net_allowlist: Vec<NetRule>,
    /// Most that it sends, in kbit (1000 bits) a second.
    #[serde(default)]
    pub up_kbit: Option<u32>,
    /// Most that it receives, in kbit (1000 bits) a second.
    #[serde(default)]
    pub down_kbit: Option<u32>,
    /// Most that its disk reads and writes together, in KiB (2^10 bytes) a second. Not every engine can.
    #[serde(default)]
    pub disk_kib: Option<u32>,
    /// Most reads and writes of its disk together, a second. Not every engine can.
    #[serde(default)]
    pub disk_ops: Option<u32>,
}

fn yes() -> bool {
    true
}

impl VmSpec {
    /// One Vm of `template`, all else by default.
    pub fn new(template: impl Into<String>) -> Self {
        Self {
            name: None,
            template: template.into(),
            engine: None,
            cpu_num: None,
            mem_size: None,
            disk_size: None,
            ports: Vec::new(),
            net_kind: NetKind::default(),
            count: None,
            rand_uuid: true,
            keep_image: false,
            image: None,
            net_blacklist: Vec::new(),
            ssh_keys: Vec::new(),
            user_data: None,
            ready_port: None,
            net_allowlist: Vec::new(),
            up_kbit: None,
            down_kbit: None,
            disk_kib: None,
            disk_ops: None,
        }
    }
}

/// A snapshot as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SnapshotSpec {
    /// Unique among the snapshots of each Vm that it is of.
    pub name: String,
    /// Seconds after which it is removed; kept as long as its Vm if missing.
    #[serde(default)]
    pub life_time: Option<u64>,
    /// Whether memory is kept, too, of members whose engine can.
    #[serde(default = "yes")]
    pub with_memory: bool,
}

/// What is to change of a Vm; what is missing stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VmUpdate {
    /// Another name.
    #[serde(default)]
    pub name: Option<String>,
    /// Virtual CPUs, from the next start on.
    #[serde(default)]
    pub cpu_num: Option<u16>,
    /// Memory in MB (2^20 bytes), from the next start on.
    #[serde(default)]
    pub mem_size: Option<u32>,
    /// Disk in MB (2^20 bytes); it only grows.
    #[serde(default)]
    pub disk_size: Option<u32>,
    /// The inner ports to publish, all of them.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Vec<String>>))]
    pub ports: Option<Vec<InnerPort>>,
    /// The addresses that it can not connect to, all of them.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Vec<String>>))]
    pub net_blacklist: Option<Vec<IpAddr>>,
    /// Where alone it can connect to outside of its Env, all of it, as in [`VmSpec::net_allowlist`]; everywhere if empty.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Vec<String>>))]
    pub net_allowlist: Option<Vec<NetRule>>,
    /// Most that it sends, in kbit (1000 bits) a second; 0 for no bound.
    #[serde(default)]
    pub up_kbit: Option<u32>,
    /// Most that it receives, in kbit (1000 bits) a second; 0 for no bound.
    #[serde(default)]
    pub down_kbit: Option<u32>,
    /// Most that its disk reads and writes together, in KiB (2^10 bytes) a second; 0 for no bound.
    #[serde(default)]
    pub disk_kib: Option<u32>,
    /// Most reads and writes of its disk together, a second; 0 for no bound.
    #[serde(default)]
    pub disk_ops: Option<u32>,
    /// Whether it may not open connections to the outside.
    #[serde(default)]
    pub deny_outgoing: Option<bool>,
    /// Whether its disk outlives it.
    #[serde(default)]
    pub keep_image: Option<bool>,
}
