//! Adding and removing one public port beside none, a thousand and sixty thousand others.

use crate::table::{Row, median, millis};
use std::time::{Duration, Instant};
use testkit::{Must, Space};
use tt_model::{EnvId, InnerPort, Instance, Layout, MacAddr, Protocol, Vm, VmId};
use tt_network::conformance::sample_vm;
use tt_network::{NetnsNetwork, Network, NetworkConfig};

const ROUNDS: usize = 101;
/// Other ports that are there.
const OTHERS: [u16; 3] = [0, 1_000, 60_000];

/// The time of `set_net` for a member that gains or loses a port, over the same without others.
pub fn one_among_many() -> Vec<Row> {
    let space = Space::new().must("a network namespace");
    space.run(|| {
        let mut rows = Vec::new();
        let mut alone = None;
        for others in OTHERS {
            let (change, look) = measure(others);
            let base = *alone.get_or_insert(change);
            let what = format!("add or remove one port beside {others}, over beside 0");
            rows.push(Row::ratio(what, change, base, None));
            let port_alone = millis(change.saturating_sub(look));
            rows.push(Row::figure("  of it, more than a look that changes nothing", port_alone));
        }
        rows
    })
}

/// As many as a request may ask for.
const PORTS_PER_VM: usize = tt_model::check::PORTS_PER_VM_MAX;

/// Medians of a change of one port, and of a pass that finds nothing to change.
fn measure(others: u16) -> (Duration, Duration) {
    let dir = tempfile::tempdir().must("a directory");
    let layout = Layout {
        data: dir.path().join("d"),
        run: dir.path().join("r"),
        instance: Instance(others),
    };
    std::fs::create_dir_all(&layout.run).must("a run directory");
    let network = NetnsNetwork::new(NetworkConfig {
        layout,
        range: ipnet::Ipv4Net::new_assert([10, 0, 0, 0].into(), 8),
        block: ipnet::Ipv4Net::new_assert([10, 0, 0, 0].into(), 16),
        underlay: None,
        tunnel_port: tt_network::TUNNEL_PORT,
        upstream_dns: Vec::new(),
    });
    network.init().must("init");
    let ports: Vec<u16> = (1..=others).collect();
    for (crowd, ports) in (2..).zip(ports.chunks(PORTS_PER_VM)) {
        network.set_net(&member(crowd, ports)).must("set one of the crowd");
    }
    let with = member(1000, &[60_001]);
    let without = member(1000, &[]);
    network.set_net(&without).must("set the member");
    let timed = |vm: &Vm| {
        let begin = Instant::now();
        network.set_net(vm).must("set");
        begin.elapsed()
    };
    let (mut changes, mut looks) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for vm in [&with, &without] {
            changes.push(timed(vm));
            looks.push(timed(vm));
        }
    }
    for (crowd, ports) in (2..).zip(ports.chunks(PORTS_PER_VM)) {
        network.unset_net(&member(crowd, ports)).must("unset one of the crowd");
    }
    network.unset_net(&without).must("unset the member");
    network.close().must("close");
    (median(changes), median(looks))
}

fn member(number: u16, public: &[u16]) -> Vm {
    let mut vm = sample_vm(EnvId(1), 0);
    let [high, low] = number.to_be_bytes();
    vm.id = VmId(u64::from(number));
    // Each in an Env of its own: a look at an Env reads its links, and is not what is measured.
    vm.env_id = EnvId(u64::from(number));
    vm.resource.ip_addr = [10, 0, high, low].into();
    vm.resource.mac_addr = MacAddr::of_ip(vm.resource.ip_addr);
    let inner = |port| InnerPort { port, protocol: Protocol::Tcp };
    vm.resource.port_map = public.iter().map(|port| (inner(*port), *port)).collect();
    vm
}
