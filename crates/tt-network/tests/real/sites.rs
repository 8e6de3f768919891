//! Several hosts over one underlay: a bridge in a namespace of its own, with a host's namespace at
//! each port, and a plain client at another one.

use crate::lab::{self, Guest, Lab, Space};
use std::net::Ipv4Addr;
use tempfile::TempDir;
use tt_model::{EnvId, Instance, Layout, MacAddr, NetKind, Vm};
use tt_network::conformance::sample_vm;
use tt_network::{NetnsNetwork, Network, NetworkConfig, Peer, TUNNEL_PORT};

/// The client's address on the underlay.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 200);

/// One host.
pub struct Site {
    pub space: Space,
    pub net: NetnsNetwork,
    pub layout: Layout,
    /// The second byte of its block.
    pub number: u8,
    pub addr: Ipv4Addr,
    port: String,
    _dir: TempDir,
}

/// Hosts, their underlay and a client.
pub struct Sites {
    pub hosts: Vec<Site>,
    pub underlay: Space,
    pub client: Space,
    mtu: u32,
}

impl Sites {
    /// Runs `test` on that many hosts that know each other.
    pub fn run(count: u8, mtu: u32, test: impl FnOnce(&mut Sites) + Send) {
        Lab::run(|_| {
            let underlay = Space::new();
            underlay.ip("link add br0 type bridge forward_delay 0");
            underlay.ip("link set br0 up");
            let client = Space::new();
            join(&underlay, &client, "client", CLIENT, mtu);
            let mut sites = Self { hosts: Vec::new(), underlay, client, mtu };
            for number in 1..=count {
                sites.add(number, number);
            }
            sites.meet();
            test(&mut sites);
        });
    }

    /// Adds a host with that block and that last byte of its address.
    pub fn add(&mut self, number: u8, last: u8) {
        let space = Space::new();
        let addr = Ipv4Addr::new(198, 51, 100, last);
        let port = format!("host{last}");
        join(&self.underlay, &space, &port, addr, self.mtu);
        let dir = tempfile::Builder::new().prefix("tt-network-site-").tempdir().unwrap();
        let layout = Layout {
            data: dir.path().join("data"),
            run: dir.path().join("run"),
            instance: Instance(u16::from(last)),
        };
        std::fs::create_dir(&layout.run).unwrap();
        let net = network(&layout, number, addr);
        space.run(|| net.init().unwrap());
        self.hosts.push(Site { space, net, layout, number, addr, port, _dir: dir });
    }

    /// Tells every host of all others.
    pub fn meet(&self) {
        for site in &self.hosts {
            let others = self.hosts.iter().filter(|other| other.addr != site.addr);
            let peers: Vec<Peer> = others.map(Site::peer).collect();
            site.space.run(|| site.net.set_peers(&peers).unwrap());
        }
    }

    /// Cuts a host off, or heals that.
    pub fn set_cut(&self, index: usize, is_cut: bool) {
        let state = if is_cut { "down" } else { "up" };
        self.underlay.ip(&format!("link set {} {state}", self.hosts[index].port));
    }
}

impl Site {
    pub fn peer(&self) -> Peer {
        Peer { block: format!("10.{}.0.0/16", self.number).parse().unwrap(), underlay: self.addr }
    }

    /// A member of `env` on this host with its stand-in.
    pub fn guest(&self, env: u64, index: usize, net_kind: NetKind) -> Guest {
        let mut vm: Vm = sample_vm(EnvId(env), index);
        let [_, _, third, fourth] = vm.resource.ip_addr.octets();
        vm.resource.ip_addr = Ipv4Addr::new(10, self.number, third, fourth);
        vm.resource.mac_addr = MacAddr::of_ip(vm.resource.ip_addr);
        vm.net_kind = net_kind;
        if net_kind == NetKind::Flatten {
            vm.resource.port_map.clear();
        }
        let guest = Guest { vm, space: Space::new() };
        self.space.run(|| {
            self.net.set_net(&guest.vm).unwrap();
            lab::plug(&self.net, &self.layout, &guest);
        });
        guest
    }

    pub fn flat(&self, env: u64, index: usize) -> Guest {
        self.guest(env, index, NetKind::Flatten)
    }

    /// The daemon dies and the next one starts.
    pub fn restart(&mut self) {
        self.net = network(&self.layout, self.number, self.addr);
        self.space.run(|| self.net.init().unwrap());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let entries = std::fs::read_dir(self.layout.netns_dir()).into_iter().flatten();
        for entry in entries.flatten() {
            let _ = rustix::mount::unmount(entry.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn network(layout: &Layout, number: u8, addr: Ipv4Addr) -> NetnsNetwork {
    NetnsNetwork::new(NetworkConfig {
        layout: layout.clone(),
        range: "10.0.0.0/8".parse().unwrap(),
        block: format!("10.{number}.0.0/16").parse().unwrap(),
        public: None,
        underlay: Some(addr),
        is_underlay_found: true,
        tunnel_port: TUNNEL_PORT,
        upstream_dns: vec![],
    })
}

fn join(underlay: &Space, space: &Space, port: &str, addr: Ipv4Addr, mtu: u32) {
    underlay.ip(&format!(
        "link add {port} mtu {mtu} type veth peer name up0 mtu {mtu} netns {}",
        space.path()
    ));
    underlay.ip(&format!("link set {port} master br0 up"));
    space.ip(&format!("addr add {addr}/24 dev up0"));
    space.ip("link set up0 up");
}
