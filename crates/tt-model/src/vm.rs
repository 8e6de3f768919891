//! The Vm: one machine of an Env, as planned. Drivers take it whole and choose nothing.

use crate::net::{MacAddr, PortMap};
use crate::snapshot::SnapshotState;
use crate::template::{FEATURE_AGENT, FEATURE_CLOUD_INIT};
use crate::{EnvId, Goal, HostId, NetRule, Snapshot, StorageKind, VmId, VmTemplate};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// One machine of an Env.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Vm {
    /// Never used twice.
    pub id: VmId,
    /// The Env it belongs to.
    pub env_id: EnvId,
    /// Name of that Env, for names inside it (`db.shop`).
    pub env_name: String,
    /// Unique in its Env; a DNS label.
    pub name: String,
    /// The host that carries it.
    pub host: HostId,
    /// Name of the engine that runs it.
    pub engine: String,
    /// What its runtime image was cloned from.
    pub template: VmTemplate,
    /// Which back end holds its runtime image.
    pub storage: StorageKind,
    /// Which of its `disks` is the runtime image.
    pub epoch: u32,
    /// Its disk: a path relative to the host's data directory, or a data set.
    pub runtime_image: String,
    /// The disks that it has or is to have, by epoch: the runtime image, those of snapshots, and
    /// what these are layered on. Every other one is removed.
    #[cfg_attr(feature = "schema", schema(value_type = BTreeMap<String, Disk>))]
    pub disks: BTreeMap<u32, Disk>,
    /// The two of its `disks` that are being merged into a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<Merge>,
    /// The next epoch; none is ever used twice. It also numbers metas and memory.
    pub next_epoch: u32,
    /// The epoch whose disk was once there as the runtime image of a settled Vm: it is not made anew if it is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_epoch: Option<u32>,
    /// A kept image that epoch 0 is a clone of, in place of the template's disk: a path as in
    /// `runtime_image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// How many layers `base` has, itself and all that it lies on but a template's disk.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub base_layers: u32,
    /// Counts the machines that took the place of another one: a machine of an earlier
    /// incarnation ends, whatever it does.
    pub incarnation: u32,
    /// Where the memory lies that the machine of this incarnation begins from once, in place of
    /// booting: a path relative to the host's data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// What the machine of this incarnation is made with; `resource` says what is wanted.
    pub machine: MachineSize,
    /// How it is reached.
    pub net_kind: NetKind,
    /// By name.
    pub snapshots: BTreeMap<String, Snapshot>,
    /// Its latest cached meta.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub latest_meta: Option<PathBuf>,
    /// Switches.
    pub state: VmState,
    /// Sizes, addresses, ports.
    pub resource: VmResource,
    /// How a client reaches it: the host's address (`Nat`) or its own (`Flatten`).
    pub addr: String,
    /// What the guest finds in `/etc/machine-id`: 32 hexadecimal digits, or nothing.
    pub machine_id: Option<String>,
    /// Public keys for logging in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// What cloud-init does at the guest's first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// The TCP port by which a guest without the agent is seen to be ready: something listens there. Without one it is as
    /// soon as its machine runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_port: Option<u16>,
    /// Whether it may not open connections to the outside.
    pub deny_outgoing: bool,
    /// How much of it should exist.
    pub goal: Goal,
    /// When a machine that is above its goal is killed, seconds since the epoch; until then the
    /// guest is asked. 0: at once.
    pub kill_timestamp: u64,
    /// Chosen by the client that added it to its Env, so that a repeated request finds its own work;
    /// none for those that came with the Env.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_key: Option<String>,
    /// Raised by every change of the record, so that a status tells which one it answers.
    pub generation: u64,
}

pub(crate) fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// One disk of a Vm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Disk {
    /// The epoch that it is a clone of or a layer over; none for the first one, which comes from
    /// the Vm's `base` or template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u32>,
    /// Whether no machine writes to it, or to what it lies on, any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_frozen: bool,
}

/// A merge of two layers, which stay as they are until it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Merge {
    /// The epoch of the disk that is made: it holds what `top` holds, and lies on what `bottom` lies on.
    pub epoch: u32,
    /// The upper one, whose place it is to take.
    pub top: u32,
    /// What that one lies on.
    pub bottom: u32,
}

/// What only a new machine can change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MachineSize {
    /// Virtual CPUs.
    pub cpu_num: u16,
    /// Memory in MB (2^20 bytes).
    pub mem_size: u32,
}

/// Switches of a Vm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmState {
    /// Whether it was stopped: true while its goal is below `Running`.
    pub during_stop: bool,
    /// Whether its runtime image outlives it.
    pub keep_image: bool,
    /// Whether it gets a random machine-id; otherwise the guest's is empty.
    pub rand_uuid: bool,
    /// Addresses that it can not connect to. One of a member's stands for the member.
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub net_blacklist: Vec<IpAddr>,
    /// Where alone it can connect to outside of its Env, networks and names; everywhere if empty. What is in the
    /// blacklist stays out of reach. With a name in it, its resolver knows members and these names alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub net_allowlist: Vec<NetRule>,
}

/// Sizes, addresses and ports of a Vm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmResource {
    /// Virtual CPUs.
    pub cpu_num: u16,
    /// Memory in MB (2^20 bytes).
    pub mem_size: u32,
    /// Disk in MB (2^20 bytes).
    pub disk_size: u32,
    /// Address inside the Env: the range with the last three bytes of `mac_addr`.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub ip_addr: Ipv4Addr,
    /// `82:17:0d` and the last three bytes of `ip_addr`.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub mac_addr: MacAddr,
    /// Inner port to public port of the host. Empty for `Flatten`.
    #[cfg_attr(feature = "schema", schema(value_type = BTreeMap<String, u16>))]
    pub port_map: PortMap,
    /// Most that it sends, in kbit (1000 bits) a second; as much as it can if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_kbit: Option<u32>,
    /// Most that it receives, in kbit (1000 bits) a second; as much as comes if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_kbit: Option<u32>,
    /// Most that its disk reads and writes together, in KiB (2^10 bytes) a second; as much as it can if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_kib: Option<u32>,
    /// Most reads and writes of its disk together, a second; as many as it can if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_ops: Option<u32>,
}

/// How a Vm is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum NetKind {
    /// At its own address, from every host.
    Flatten,
    /// Through ports of its host.
    #[default]
    Nat,
}

/// Name of the engine whose machines are containers: their disks are its own.
pub const ENGINE_OF_CONTAINERS: &str = "docker";

/// A bit of [`feat`]: one thing that an engine can do.
pub type VmEngineFeat = u32;

/// The engine features, one bit each. Numbers are part of the API and never change.
pub mod feat {
    use super::VmEngineFeat;

    /// A machine can stand still and go on.
    pub const PAUSE: VmEngineFeat = 1 << 0;
    /// Memory can go to disk and come back.
    pub const SUSPEND: VmEngineFeat = 1 << 1;
    /// The guest can be asked to shut down.
    pub const SHUTDOWN: VmEngineFeat = 1 << 2;
    /// A disk snapshot.
    pub const SNAPSHOT: VmEngineFeat = 1 << 3;
    /// A snapshot with memory.
    pub const MEMORY_SNAPSHOT: VmEngineFeat = 1 << 4;
    /// `update_vm` on a running machine.
    pub const LIVE_UPDATE: VmEngineFeat = 1 << 5;
    /// [`NetKind::Nat`](crate::NetKind::Nat).
    pub const NAT: VmEngineFeat = 1 << 6;
    /// [`NetKind::Flatten`](crate::NetKind::Flatten).
    pub const FLAT: VmEngineFeat = 1 << 7;
    /// A serial console.
    pub const CONSOLE: VmEngineFeat = 1 << 8;
    /// Commands and copies through the guest's agent.
    pub const EXEC: VmEngineFeat = 1 << 9;
    /// Disks that are booted by UEFI.
    pub const UEFI: VmEngineFeat = 1 << 10;
    /// What a disk reads and writes is limited, also while its machine lives.
    pub const DISK_LIMIT: VmEngineFeat = 1 << 11;

    /// All features with their names.
    pub const NAMES: [(VmEngineFeat, &str); 12] = [
        (PAUSE, "pause"),
        (SUSPEND, "suspend"),
        (SHUTDOWN, "shutdown"),
        (SNAPSHOT, "snapshot"),
        (MEMORY_SNAPSHOT, "memory_snapshot"),
        (LIVE_UPDATE, "live_update"),
        (NAT, "nat"),
        (FLAT, "flat"),
        (CONSOLE, "console"),
        (EXEC, "exec"),
        (UEFI, "uefi"),
        (DISK_LIMIT, "disk_limit"),
    ];

    /// The names of the bits in `features`, in the order of the bits.
    pub fn names(features: VmEngineFeat) -> Vec<&'static str> {
        NAMES.iter().filter(|(bit, _)| features & bit != 0).map(|(_, name)| *name).collect()
    }
}

impl VmResource {
    /// What a machine is made with.
    pub fn machine(&self) -> MachineSize {
        MachineSize { cpu_num: self.cpu_num, mem_size: self.mem_size }
    }
}

impl Vm {
    /// Gives it another goal. `kill_timestamp`: see the field.
    pub fn set_goal(&mut self, goal: Goal, kill_timestamp: u64) {
        if matches!(goal, Goal::Gone | Goal::Stopped) {
            // What was not suspended begins by booting.
            self.memory = None;
        }
        self.goal = goal;
        self.kill_timestamp = kill_timestamp;
        self.state.during_stop = goal != Goal::Running;
        self.generation += 1;
    }

    /// Whether a wanted size waits for the next start.
    pub fn needs_restart(&self) -> bool {
        let has_machine = !matches!(self.goal, Goal::Gone | Goal::Stopped);
        has_machine && self.machine != self.resource.machine()
    }

    /// The snapshots that are still to be taken, by name.
    pub fn wanted_snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.values().filter(|s| s.state == SnapshotState::Wanted)
    }

    /// By what its guest is seen to be ready, for people; nothing where its agent says so.
    pub fn seen_by(&self) -> Option<String> {
        match (self.has_agent(), self.ready_port) {
            (true, _) => None,
            (false, Some(port)) => Some(format!("something listens on port {port}")),
            (false, None) => Some("its machine runs; nothing is seen of the guest".to_owned()),
        }
    }

    /// Whether it has a seed disk for cloud-init: it tells a guest without the agent who it is, and any guest its user
    /// data. Where the agent does the rest and there is no user data, cloud-init has nothing to do and is not woken.
    pub fn has_seed(&self) -> bool {
        let needs_seed = !self.has_agent() || self.user_data.is_some();
        self.template.has(FEATURE_CLOUD_INIT) && needs_seed
    }

    /// Whether TT's agent runs in its guest.
    pub fn has_agent(&self) -> bool {
        self.template.has(FEATURE_AGENT) || self.is_container()
    }

    /// Whether its machine is a container: its processes run on the host's kernel, its network port is the end of a veth
    /// pair, and it always has TT's agent.
    pub fn is_container(&self) -> bool {
        self.storage == StorageKind::Docker
    }

    /// `ENV/VM`, as people write it.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.env_name, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_has_one_bit_and_one_name() {
        let all = feat::NAMES.iter().fold(0, |all, (bit, _)| {
            assert_eq!((bit.count_ones(), all & bit), (1, 0));
            all | bit
        });
        assert_eq!(feat::names(all).len(), feat::NAMES.len());
    }
}
