//! A host and a Vm as suites and tests describe them: complete, plain, and alike everywhere.

use crate::names::{latest_meta, runtime_image};
use crate::vm::{Disk, MachineSize};
use crate::{
    EngineFacts, EnvId, Goal, Host, HostId, MacAddr, NetKind, StorageKind, Vm, VmId, VmResource,
    VmState, VmTemplate, feat,
};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// A host with one engine of that name, which can do everything.
pub fn host(engine: &str) -> Host {
    Host {
        id: HostId(1),
        name: "h".into(),
        version: "0".into(),
        start_timestamp: 0,
        public_addr: Ipv4Addr::new(192, 0, 2, 7),
        underlay_addr: None,
        range: ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
        block: ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16),
        port_min: 20000,
        port_max: 29999,
        cpu_num: 4,
        mem_size: 1 << 20,
        disk_size: 1 << 20,
        storage: StorageKind::File,
        storage_reason: String::new(),
        engines: vec![EngineFacts {
            name: engine.into(),
            version: "1".into(),
            detail: String::new(),
            features: feat::NAMES.iter().fold(0, |all, (bit, _)| all | bit),
            unusable: None,
        }],
    }
}

/// A template of 64 MB for one engine.
pub fn template(engine: &str) -> VmTemplate {
    VmTemplate {
        name: "micro".into(),
        path: "templates/x".into(),
        compatible_engines: vec![engine.into()],
        disk_size: 64,
        ..VmTemplate::default()
    }
}

/// A running member of Env 1 with 1 CPU, 32 MB of memory, a disk of 64 MB and no ports.
pub fn vm(id: u64, engine: &str, storage: StorageKind) -> Vm {
    let ip_addr = Ipv4Addr::from(0x0a00_0000 | (id as u32 & 0xff_ffff));
    Vm {
        id: VmId(id),
        env_id: EnvId(1),
        env_name: "shop".into(),
        name: format!("vm-{id}"),
        host: HostId(1),
        engine: engine.into(),
        template: template(engine),
        storage,
        epoch: 0,
        runtime_image: runtime_image(storage, VmId(id), 0),
        disks: BTreeMap::from([(0, Disk::default())]),
        merge: None,
        made_epoch: None,
        base_layers: 0,
        next_epoch: 1,
        base: None,
        incarnation: 0,
        memory: None,
        machine: MachineSize { cpu_num: 1, mem_size: 32 },
        net_kind: NetKind::Nat,
        snapshots: BTreeMap::new(),
        latest_meta: Some(latest_meta(VmId(id))),
        state: VmState { rand_uuid: true, ..VmState::default() },
        resource: VmResource {
            cpu_num: 1,
            mem_size: 32,
            disk_size: 64,
            ip_addr,
            mac_addr: MacAddr::of_ip(ip_addr),
            port_map: BTreeMap::new(),
            up_kbit: None,
            down_kbit: None,
            disk_kib: None,
            disk_ops: None,
        },
        addr: "192.0.2.7".into(),
        machine_id: None,
        ssh_keys: Vec::new(),
        user_data: None,
        ready_port: None,
        deny_outgoing: false,
        goal: Goal::Running,
        kill_timestamp: 0,
        request_key: None,
        generation: 1,
    }
}
