//! Which other hosts the members with flat addresses reach: those that the store has records of. The
//! network is told whenever one of these records changes, and now and then, in case that somebody
//! else touched the tunnel.

use crate::{HostError, Queue, layers};
use std::sync::Arc;
use std::time::Duration;
use tt_model::{Host, HostId};
use tt_network::{Network, Peer};
use tt_store::tables::Tables;

/// How often the tunnel is looked at without any event.
const SAFETY_LOOK: Duration = Duration::from_secs(30);

/// Tells the network of other hosts.
#[derive(Debug)]
pub(crate) struct Neighbours {
    pub(crate) tables: Tables,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) host: HostId,
}

impl Neighbours {
    /// Works until the queue is closed. Its only key is this host.
    pub(crate) fn run(&self, hosts: &Queue<HostId>) {
        while let Some(id) = hosts.take() {
            match self.tell() {
                Ok(()) => hosts.done(&id, Some(SAFETY_LOOK)),
                Err(error) => {
                    tracing::warn!(error = layers::chain(&error), "other hosts are not reached");
                    hosts.failed(&id);
                }
            }
        }
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
    use tt_model::sample;
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

    #[test]
    fn hosts_come_change_and_go_with_their_records() {
        let tables = Tables::new(Arc::new(MemoryKv::default()));
        let network = Arc::new(FakeNetwork::new(Arc::default(), no_fault()));
        network.init().unwrap();
        let neighbours =
            Neighbours { tables: tables.clone(), network: network.clone(), host: HostId(1) };
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
