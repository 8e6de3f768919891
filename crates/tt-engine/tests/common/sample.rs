//! A Vm for tests of this crate.

use std::net::Ipv4Addr;
use tt_model::{
    EnvId, Goal, HostId, MacAddr, NetKind, StorageKind, Vm, VmId, VmResource, VmState, VmTemplate,
    names, template,
};

/// The Vm of this id, alone in the Env of the same number: one processor, 32 MB, a raw disk, booted by kernel.
pub(crate) fn vm(id: u64) -> Vm {
    let ip = Ipv4Addr::from(0x0a00_0000 + id as u32 + 1);
    Vm {
        id: VmId(id),
        env_id: EnvId(id),
        env_name: "env".into(),
        name: format!("vm{id}"),
        host: HostId(1),
        engine: "qemu".into(),
        template: VmTemplate {
            name: "beat".into(),
            path: "template".into(),
            features: vec![template::FEATURE_KERNEL.into()],
            disk_size: 1,
            ..VmTemplate::default()
        },
        storage: StorageKind::File,
        epoch: 0,
        runtime_image: names::runtime_image(StorageKind::File, VmId(id), 0),
        net_kind: NetKind::Nat,
        snapshots: Default::default(),
        latest_meta: None,
        state: VmState::default(),
        resource: VmResource {
            cpu_num: 1,
            mem_size: 32,
            disk_size: 1,
            ip_addr: ip,
            mac_addr: MacAddr::of_ip(ip),
            port_map: Default::default(),
        },
        addr: String::new(),
        machine_id: None,
        deny_outgoing: false,
        goal: Goal::Running,
        kill_timestamp: 0,
        generation: 1,
    }
}
