//! What all Envs of a host share of its network: that it stays as it was made, whatever somebody else
//! does to the host's rules, and which other hosts the members with flat addresses reach, those that
//! the store has records of. It is looked at whenever one of these changes, and now and then.

use crate::{HostError, Queue, layers};
use std::sync::Arc;
use std::time::Duration;
use tt_model::{Host, HostId, VmId};
use tt_network::{Network, Peer};
use tt_store::tables::{Key, Table, Tables};

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
            match self.mend().and_then(|()| self.tell()) {
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
    use tt_store::tables::Change;

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

    #[test]
    fn every_vm_is_visited_once_the_rules_are_back() {
        let tables = Tables::new(Arc::new(MemoryKv::default()));
        let network = Arc::new(FakeNetwork::new(Arc::default(), no_fault()));
        network.init().unwrap();
        let mut vm = sample::vm(7, "fake", StorageKind::File);
        vm.resource.port_map.insert("80".parse().unwrap(), 20_000);
        let env = Env {
            id: vm.env_id,
            name: "shop".into(),
            start_timestamp: 1,
            end_timestamp: 1000,
            vm_set: [vm.id].into(),
            state: EnvState::default(),
            at_end: AtEnd::Stop,
            request_key: "k".into(),
            is_created: true,
            is_ending: false,
            failure: None,
        };
        let plan = EnvPlan { env, vms: vec![vm.clone()], usage: Usage::default(), next_id: 8 };
        tables.commit(&Change::new().create_env(&plan, None, None).unwrap()).unwrap();
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
