//! Containers: their port is a pair of links, and ends with them.

use crate::lab::{CLIENT, Echo, GATEWAY, HOST, Lab, Space};
use tt_model::{EnvId, StorageKind, Vm, names};
use tt_network::conformance::sample_vm;
use tt_network::{Network, NetworkError};

fn container(env: EnvId, index: usize) -> Vm {
    Vm { storage: StorageKind::Docker, ..sample_vm(env, index) }
}

#[test]
fn a_container_is_a_member_like_others_whenever_it_comes_and_goes() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let neighbour = lab.guest(EnvId(1), 0);
        let vm = container(EnvId(1), 1);
        let into = Space::new();
        let early = lab.net.plug(&vm, into.fd());
        assert!(matches!(early, Err(NetworkError::NotSet { .. })), "{early:?}");
        lab.net.unplug(&vm).unwrap();
        let _outer = Echo::new(&lab.client, 7);
        for round in 0..3 {
            lab.net.set_net(&vm).unwrap();
            let container = Space::new();
            for _ in 0..2 {
                lab.net.plug(&vm, container.fd()).unwrap();
                lab.net.set_net(&vm).unwrap();
            }
            let _inner = Echo::new(&container, 80);
            let public = vm.resource.port_map[&"80".parse().unwrap()];
            assert!(neighbour.space.reaches((vm.resource.ip_addr, 80)), "round {round}");
            assert!(lab.client.reaches((HOST, public)), "round {round}");
            assert!(container.reaches((CLIENT, 7)), "round {round}");
            lab.net.deny_outgoing(&vm).unwrap();
            assert!(container.misses((CLIENT, 7)), "round {round}");
            lab.net.allow_outgoing(&vm).unwrap();
            // Another address than its own leaves its port as little as a machine's.
            container.ip("addr add 10.0.1.77/16 dev eth0");
            let forged = (std::net::Ipv4Addr::new(10, 0, 1, 77), 0);
            let socket = container.udp(forged);
            socket.send_to(b"x", (GATEWAY, 53)).unwrap();
            assert!(lab.net.traffic(&vm).unwrap().blocked_packets > 0, "round {round}");
            let found = lab.net.found().unwrap();
            drop((socket, container));
            // The engine says so as soon as the container has ended, however long the kernel takes to clear it.
            for _ in 0..2 {
                lab.net.unplug(&vm).unwrap();
            }
            assert_eq!(lab.net.found().unwrap(), found);
            lab.env(EnvId(1)).ip(&format!("link show {}", names::plug(vm.id)));
        }
        // One that ended unseen is replaced, too.
        let (first, second) = (Space::new(), Space::new());
        lab.net.plug(&vm, first.fd()).unwrap();
        lab.net.plug(&vm, second.fd()).unwrap();
        second.ip("link show eth0");
        lab.net.unset_net(&vm).unwrap();
        lab.net.unplug(&vm).unwrap();
        lab.net.unset_net(&neighbour.vm).unwrap();
    });
}
