//! What all Envs of a host share of its network: that it stays as it was made, whatever somebody else
//! does to the host's rules, where the host is reached, and which other hosts the members with flat addresses reach, those that
//! the store has records of. It is looked at whenever one of these changes, and now and then.

use crate::visit::COMMIT_TRIES;
use crate::{HostError, Queue, layers};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tt_model::{Host, HostId, NetKind, Vm, VmId};
use tt_network::{Network, Peer};
use tt_store::tables::{Change, Committed, Key, Row, Table, Tables};

/// How often rules and tunnel are looked at without any event.
const SAFETY_LOOK: Duration = Duration::from_secs(30);

/// Mends the network, and tells it of other hosts.
#[derive(Debug)]
pub(crate) struct Neighbours {
    pub(crate) tables: Tables,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) host: HostId,
    pub(crate) vms: Arc<Queue<VmId>>,
}

impl Neighbours {
    /// Works until the queue is closed. Its only key is this host.
    pub(crate) fn run(&self, hosts: &Queue<HostId>) {
        while let Some(id) = hosts.take() {
            match self.mend().and_then(|()| self.follow()).and_then(|()| self.tell()) {
                Ok(()) => hosts.done(&id, Some(SAFETY_LOOK)),
                Err(error) => {
                    tracing::warn!(
                        error = layers::chain(&error),
                        "the host's network is not whole"
                    );
                    hosts.failed(&id);
                }
            }
        }
    }

    /// Each Vm brings what it has in the rules, if they had to be made again.
    fn mend(&self) -> Result<(), HostError> {
        let is_mended = self.network.mend().map_err(|source| HostError::Look {
            what: "rules of the network",
            source: Box::new(source),
        })?;
        if is_mended {
            tracing::warn!("somebody removed the host's rules for Envs; they are put back");
            for key in self.tables.keys(Table::Vms)? {
                if let Key::Vm(id) = key {
                    self.vms.push(id);
                }
            }
        }
        Ok(())
    }

    /// Lets the records say where this host is reached now: its own, and those of members that are reached through
    /// its ports.
    fn follow(&self) -> Result<(), HostError> {
        let reached = self.network.reached_at().map_err(|source| HostError::Look {
            what: "addresses of the host",
            source: Box::new(source),
        })?;
        let Some(row) = self.tables.hosts()?.into_iter().find(|row| row.value.id == self.host)
        else {
            return Ok(());
        };
        let mut host = row.value.clone();
        host.public_addr = reached.public.unwrap_or(host.public_addr);
        host.underlay_addr = reached.underlay.or(host.underlay_addr);
        if host != row.value {
            tracing::info!(addr = %host.public_addr, "this host is reached at another address");
            self.tables.commit(&Change::new().host(&host)?)?;
        }
        for row in self.tables.vms()?.into_iter().filter(|row| row.value.host == self.host) {
            self.readdress(row, host.public_addr)?;
        }
        Ok(())
    }

    fn readdress(&self, mut row: Row<Vm>, addr: Ipv4Addr) -> Result<(), HostError> {
        let (id, addr) = (row.value.id, addr.to_string());
        for _ in 0..COMMIT_TRIES {
            if row.value.net_kind != NetKind::Nat || row.value.addr == addr {
                return Ok(());
            }
            row.value.addr.clone_from(&addr);
            if let Committed::Done(_) = self.tables.commit(&Change::new().vm(&row)?)? {
                return Ok(());
            }
            let Some(newer) = self.tables.vm(id)? else { return Ok(()) };
            row = newer;
        }
        Err(HostError::Contended { what: format!("vm {id}"), tries: COMMIT_TRIES })
    }

    fn tell(&self) -> Result<(), HostError> {
        let hosts = self.tables.hosts()?.into_iter().map(|row| row.value).collect::<Vec<_>>();
        self.network
            .set_peers(&peers_of(&hosts, self.host))
            .map_err(|source| HostError::Look { what: "other hosts", source: Box::new(source) })
    }
}

/// The other hosts of the same range that have a tunnel. Of two with one block the older one counts,
/// and none that claims this host's.
fn peers_of(hosts: &[Host], own: HostId) -> Vec<Peer> {
    let Some(own) = hosts.iter().find(|host| host.id == own) else {
        return Vec::new();
    };
    let mut taken = vec![own.block];
    let mut peers = Vec::new();
    for host in hosts.iter().filter(|host| host.id != own.id && host.range == own.range) {
        let Some(underlay) = host.underlay_addr else { continue };
        let block = host.block;
        if taken.iter().any(|other| other.contains(&block) || block.contains(other)) {
            tracing::warn!(host = host.name, %block, "left out: its block is another host's, too");
            continue;
        }
        taken.push(block);
        peers.push(Peer { block, underlay });
    }
    peers
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use tt_model::fault::no_fault;
    use tt_model::plan::EnvPlan;
    use tt_model::{AtEnd, Env, EnvState, StorageKind, Usage, sample};
    use tt_network::FakeNetwork;
    use tt_store::memory::MemoryKv;

    fn host(id: u64, block: &str) -> Host {
        Host {
            id: HostId(id),
            block: block.parse().unwrap(),
            underlay_addr: Some([192, 0, 2, id as u8].into()),
            ..sample::host("fake")
        }
    }

    fn peer(id: u8) -> Peer {
        Peer { block: format!("10.{id}.0.0/16").parse().unwrap(), underlay: [192, 0, 2, id].into() }
    }

    fn neighbours(tables: &Tables, network: &Arc<FakeNetwork>) -> Neighbours {
        let vms = Arc::new(Queue::new());
        Neighbours { tables: tables.clone(), network: network.clone(), host: HostId(1), vms }
    }

    /// Writes the records of an Env of these.
    fn plant(tables: &Tables, vms: Vec<Vm>) {
        let env = Env {
            id: vms[0].env_id,
            name: "shop".into(),
            start_timestamp: 1,
            end_timestamp: 1000,
            vm_set: vms.iter().map(|vm| vm.id).collect(),
            state: EnvState::default(),
            at_end: AtEnd::Stop,
            request_key: "k".into(),
            is_created: true,
            is_ending: false,
            failure: None,
        };
        let plan = EnvPlan { env, vms, usage: Usage::default(), next_id: 10 };
        tables.commit(&Change::new().create_env(&plan, None, None).unwrap()).unwrap();
    }

    #[test]
    fn records_follow_the_host_to_another_address() {
        let tables = Tables::new(Arc::new(MemoryKv::default()));
        let network = Arc::new(FakeNetwork::new(Arc::default(), no_fault()));
        network.init().unwrap();
        let host = host(1, "10.1.0.0/16");
        tables.commit(&Change::new().host(&host).unwrap()).unwrap();
        let old = host.public_addr.to_string();
        let of_host = |id, host| {
            let mut vm = sample::vm(id, "fake", StorageKind::File);
            (vm.host, vm.addr) = (HostId(host), old.clone());
            vm.resource.ip_addr = [10, 1, 0, id as u8].into();
            vm
        };
        let flat = Vm { net_kind: NetKind::Flatten, addr: "10.1.0.9".into(), ..of_host(8, 1) };
        plant(&tables, vec![of_host(7, 1), flat, of_host(9, 2)]);
        let neighbours = neighbours(&tables, &network);
        neighbours.follow().unwrap();
        let addrs =
            || tables.vms().unwrap().into_iter().map(|row| row.value.addr).collect::<Vec<_>>();
        assert_eq!(addrs(), [&old, "10.1.0.9", &old], "the network does not know better");
        let (public, underlay) = ([198, 51, 100, 7].into(), [198, 51, 100, 8].into());
        network.move_to(public, underlay);
        neighbours.follow().unwrap();
        neighbours.follow().unwrap();
        assert_eq!(addrs(), ["198.51.100.7", "10.1.0.9", &old]);
        let host = tables.hosts().unwrap().remove(0).value;
        assert_eq!((host.public_addr, host.underlay_addr), (public, Some(underlay)));
    }

    #[test]
    fn every_vm_is_visited_once_the_rules_are_back() {
        let tables = Tables::new(Arc::new(MemoryKv::default()));
        let network = Arc::new(FakeNetwork::new(Arc::default(), no_fault()));
        network.init().unwrap();
        let mut vm = sample::vm(7, "fake", StorageKind::File);
        vm.resource.port_map.insert("80".parse().unwrap(), 20_000);
        plant(&tables, vec![vm.clone()]);
        network.set_net(&vm).unwrap();
        let (neighbours, hosts) = (neighbours(&tables, &network), Arc::new(Queue::new()));
        let told = hosts.clone();
        network.on_change(Arc::new(move || told.push(HostId(1)))).unwrap();
        neighbours.mend().unwrap();
        let before = network.world();
        network.flush();
        assert!(network.world() != before, "ports are gone");
        assert_eq!(hosts.take(), Some(HostId(1)), "it is noticed");
        neighbours.mend().unwrap();
        assert_eq!(neighbours.vms.take(), Some(vm.id));
        network.set_net(&vm).unwrap();
        assert_eq!(network.world(), before);
    }

    #[test]
    fn hosts_come_change_and_go_with_their_records() {
        let tables = Tables::new(Arc::new(MemoryKv::default()));
        let network = Arc::new(FakeNetwork::new(Arc::default(), no_fault()));
        network.init().unwrap();
        let neighbours = neighbours(&tables, &network);
        let put = |host: &Host| {
            tables.commit(&Change::new().host(host).unwrap()).unwrap();
            neighbours.tell().unwrap();
            network.world().peers
        };
        assert_eq!(put(&host(1, "10.1.0.0/16")), BTreeSet::new());
        assert_eq!(put(&host(2, "10.2.0.0/16")), BTreeSet::from([peer(2)]));
        assert_eq!(put(&host(3, "10.3.0.0/16")), BTreeSet::from([peer(2), peer(3)]));
        let moved = Host { underlay_addr: Some([192, 0, 2, 99].into()), ..host(2, "10.2.0.0/16") };
        let moved_peer = Peer { underlay: [192, 0, 2, 99].into(), ..peer(2) };
        assert_eq!(put(&moved), BTreeSet::from([moved_peer, peer(3)]));
        let hidden = Host { underlay_addr: None, ..moved };
        assert_eq!(put(&hidden), BTreeSet::from([peer(3)]));
    }

    #[test]
    fn records_that_make_no_sense_spoil_no_others() {
        let other_range =
            Host { range: "172.16.0.0/12".parse().unwrap(), ..host(4, "172.16.0.0/16") };
        let hosts = [
            host(1, "10.1.0.0/16"),
            host(2, "10.1.2.0/24"),
            host(3, "10.3.0.0/16"),
            other_range,
            host(5, "10.3.0.0/16"),
            host(6, "10.6.0.0/16"),
        ];
        assert_eq!(peers_of(&hosts, HostId(1)), [peer(3), peer(6)]);
        assert_eq!(peers_of(&hosts, HostId(9)), []);
    }
}
