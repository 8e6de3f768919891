//! Conformance, restarts of the daemon, strays, and the end.

use crate::lab::{Echo, HOST, Lab, echoes, ip, run};
use std::collections::BTreeSet;
use std::path::Path;
use tt_model::{EnvId, Vm};
use tt_network::conformance::{self, sample_vm};
use tt_network::{Found, Network, NetworkError, host_networks, public_address};

fn forwards() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim() == "1"
}

/// Links, routes and tables of the host's namespace.
fn host_state() -> [String; 3] {
    ["-o -br link", "-o route"]
        .map(|what| run("ip", what))
        .into_iter()
        .chain([run("nft", "list tables")])
        .collect::<Vec<_>>()
        .try_into()
        .unwrap()
}

#[test]
fn the_real_driver_keeps_the_contract_and_leaves_nothing() {
    Lab::run(|lab| {
        let before = host_state();
        conformance::run(&lab.net, &sample_vm);
        assert_eq!(host_state(), before);
        assert!(!forwards(), "what was changed is restored");
        let left: Vec<_> = std::fs::read_dir(&lab.layout.run).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(lab.run_dir().exists());
    });
}

/// `cargo xtask bench many` does it with 300.
#[test]
fn many_envs_at_once_come_and_go_without_a_trace() {
    Lab::run(|lab| {
        let before = host_state();
        lab.net.init().unwrap();
        let net = &lab.net;
        let envs: Vec<_> = (1..=24).map(|env| [0, 1].map(|at| sample_vm(EnvId(env), at))).collect();
        let at_once = |act: &(dyn Fn(&Vm) -> Result<(), NetworkError> + Sync)| {
            std::thread::scope(|scope| {
                for part in envs.chunks(6) {
                    scope.spawn(|| part.iter().flatten().for_each(|vm| act(vm).unwrap()));
                }
            });
        };
        at_once(&|vm| net.set_net(vm));
        let found = net.found().unwrap();
        assert_eq!(found.envs.values().map(BTreeSet::len).sum::<usize>(), 48, "{found:?}");
        at_once(&|vm| net.unset_net(vm));
        assert_eq!(net.found().unwrap(), Found::default());
        net.close().unwrap();
        assert_eq!(host_state(), before);
    });
}

#[test]
fn a_restart_breaks_no_connection() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        assert!(forwards());
        let guest = lab.guest(EnvId(1), 0);
        let _inner = Echo::new(&guest.space, 80);
        let _outer = Echo::new(&lab.client, 7);
        let mut inbound = lab.client.open((HOST, guest.tcp()));
        let mut outbound = guest.space.open((crate::lab::CLIENT, 7));
        assert!(echoes(&mut inbound) && echoes(&mut outbound));
        let found = lab.net.found().unwrap();
        lab.restart();
        assert_eq!(lab.net.found().unwrap(), found);
        assert!(echoes(&mut inbound) && echoes(&mut outbound));
        lab.net.set_net(&guest.vm).unwrap();
        assert!(echoes(&mut inbound) && echoes(&mut outbound));
        assert!(lab.client.reaches((HOST, guest.tcp())));
        lab.net.unset_net(&guest.vm).unwrap();
        lab.net.close().unwrap();
        assert!(!forwards(), "what the first daemon changed is restored by the second");
    });
}

#[test]
fn what_a_killed_daemon_left_is_found_and_removed() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (a, b, c) = (sample_vm(EnvId(1), 0), sample_vm(EnvId(2), 0), sample_vm(EnvId(3), 0));
        for vm in [&a, &b, &c] {
            lab.net.set_net(vm).unwrap();
        }
        // The namespace went and ports stayed; the edge went and all else stayed; a file without
        // a namespace.
        rustix::mount::unmount(lab.layout.netns(EnvId(1)), rustix::mount::UnmountFlags::DETACH)
            .unwrap();
        ip(&format!("link del {}", lab.layout.edge(EnvId(2))));
        std::fs::write(lab.layout.netns(EnvId(4)), "").unwrap();
        lab.restart();
        let found = lab.net.found().unwrap();
        assert_eq!(found.leftovers, BTreeSet::from([EnvId(1), EnvId(4)]));
        assert_eq!(found.envs.keys().collect::<Vec<_>>(), [&EnvId(2), &EnvId(3)]);
        lab.net.set_net(&b).unwrap();
        let edge = run("ip", &format!("-br link show {}", lab.layout.edge(EnvId(2))));
        assert!(edge.contains("LOWER_UP"), "{edge}");
        for env in [1, 2, 4] {
            lab.net.remove_stray(EnvId(env)).unwrap();
        }
        let found = lab.net.found().unwrap();
        assert!(found.leftovers.is_empty());
        assert_eq!(found.envs.keys().collect::<Vec<_>>(), [&EnvId(3)]);
        lab.net.set_net(&a).unwrap();
        lab.net.unset_net(&a).unwrap();
        lab.net.unset_net(&c).unwrap();
        lab.net.close().unwrap();
    });
}

#[test]
fn a_block_in_use_is_refused_by_name() {
    Lab::run(|lab| {
        ip("link add lan0 type veth peer name lan1");
        ip("addr add 10.0.3.1/24 dev lan0");
        let before = host_state();
        match lab.net.init() {
            Err(NetworkError::Collide { foreign, owner, .. }) => {
                assert_eq!((foreign.to_string(), owner), ("10.0.3.0/24".into(), "lan0".into()));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(host_state(), before);
        assert!(!forwards());
        let networks = host_networks().unwrap();
        assert!(networks.contains(&"10.0.3.0/24".parse().unwrap()), "{networks:?}");
        assert_eq!(public_address(), HOST);
        ip("link del lan0");
        lab.net.init().unwrap();
        assert!(host_networks().unwrap().contains(&"10.0.0.0/16".parse().unwrap()));
    });
}

#[test]
fn an_engine_can_open_the_tap() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let vm = sample_vm(EnvId(1), 0);
        lab.net.set_net(&vm).unwrap();
        assert!(Path::new(&lab.layout.netns(EnvId(1))).exists());
        let tap = tt_model::names::tap(vm.id);
        let inside = lab.env(EnvId(1));
        let tun = inside.run(|| open_tap(&tap));
        let link = inside.run(|| run("ip", &format!("-br link show {tap}")));
        assert!(link.contains("LOWER_UP"), "{link}");
        drop(tun);
        lab.net.set_net(&vm).unwrap();
        drop(inside.run(|| open_tap(&tap)));
    });
}

/// As the crate's documentation tells engines.
fn open_tap(name: &str) -> std::fs::File {
    use std::os::fd::AsRawFd;
    let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: zero is a valid `ifreq`, and the ioctl reads and writes one that outlives it.
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    tun
}
