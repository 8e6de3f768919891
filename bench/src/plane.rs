//! A network plane on a host of its own: namespaces for the host and for a client outside, and members without machines,
//! whose stand-in is a namespace behind a veth.

use std::net::Ipv4Addr;
use tempfile::TempDir;
use testkit::{Must, Space};
use tt_model::{EnvId, InnerPort, Instance, Layout, MacAddr, PortMap, Protocol, Vm, VmId, names};
use tt_network::conformance::sample_vm;
use tt_network::{Found, NetnsNetwork, Network, NetworkConfig};

/// The gateway of every Env.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// A host's network, which ends with its namespace; namespaces of Envs do when they are unset.
pub struct Plane {
    /// Where it works: all calls come from inside.
    pub host: Space,
    network: NetnsNetwork,
    layout: Layout,
    _dir: TempDir,
}

impl Plane {
    /// In `host`, prepared.
    pub fn new(host: &Space, instance: u16) -> Self {
        let dir = tempfile::tempdir().must("a directory");
        let layout = Layout {
            data: dir.path().join("d"),
            run: dir.path().join("r"),
            instance: Instance(instance),
        };
        std::fs::create_dir_all(&layout.run).must("a run directory");
        let network = NetnsNetwork::new(NetworkConfig {
            layout: layout.clone(),
            range: ipnet::Ipv4Net::new_assert([10, 0, 0, 0].into(), 8),
            block: ipnet::Ipv4Net::new_assert([10, 0, 0, 0].into(), 16),
            public: None,
            underlay: None,
            is_underlay_found: false,
            tunnel_port: tt_network::TUNNEL_PORT,
            upstream_dns: Vec::new(),
        });
        host.run(|| network.init().must("init"));
        Self { host: host.clone(), network, layout, _dir: dir }
    }

    /// The driver, for threads that are inside already.
    pub fn network(&self) -> &NetnsNetwork {
        &self.network
    }

    /// Sets the network of members.
    pub fn set(&self, vms: &[Vm]) {
        self.host.run(|| vms.iter().for_each(|vm| self.network.set_net(vm).must("set")));
    }

    /// Takes it away.
    pub fn unset(&self, vms: &[Vm]) {
        self.host.run(|| vms.iter().for_each(|vm| self.network.unset_net(vm).must("unset")));
    }

    /// Puts a namespace in the place of a member's machine.
    pub fn stand_in(&self, vm: &Vm) -> Space {
        let (tap, space) = (names::tap(vm.id), Space::new().must("a namespace"));
        let inside = Space::at(&self.layout.netns(vm.env_id)).must("an Env");
        inside.ip(&format!("link del {tap}"));
        inside.ip(&format!("link add {tap} type veth peer name eth0 netns {}", space.path()));
        self.set(std::slice::from_ref(vm));
        space.ip(&format!("link set eth0 address {}", vm.resource.mac_addr));
        space.ip(&format!("addr add {}/8 dev eth0", vm.resource.ip_addr));
        space.ip("link set eth0 up");
        space.ip(&format!("route add default via {GATEWAY}"));
        space
    }

    /// Ends it; nothing of it may be left.
    pub fn close(self) {
        self.host.run(|| {
            let found = self.network.found().must("look for what is left");
            assert_eq!(found, Found::default(), "left over");
            self.network.close().must("close");
        });
        let links = self.host.ip("-o link show");
        let names = links.lines().filter_map(|line| line.split([':', '@']).nth(1));
        let own = self.layout.link_prefix();
        let left: Vec<_> = names.filter(|name| name.trim().starts_with(&own)).collect();
        assert_eq!(left, Vec::<&str>::new(), "links that are left");
    }
}

/// A member of an Env; both numbers are unique up to 8 members of 8,000 Envs.
pub fn member(env: u16, index: u16, public: &[u16]) -> Vm {
    let number = env * 8 + index;
    let [high, low] = (number + 8).to_be_bytes();
    let mut vm = sample_vm(EnvId(1), 0);
    vm.id = VmId(u64::from(number) + 1);
    vm.env_id = EnvId(u64::from(env) + 1);
    vm.resource.ip_addr = [10, 0, high, low].into();
    vm.resource.mac_addr = MacAddr::of_ip(vm.resource.ip_addr);
    vm.resource.port_map = ports(public);
    vm
}

/// Each published port leads to the same one of the member.
fn ports(public: &[u16]) -> PortMap {
    let inner = |port| InnerPort { port, protocol: Protocol::Tcp };
    public.iter().map(|port| (inner(*port), *port)).collect()
}
