//! Times, printed. Run alone: `cargo test -p tt-network --test real -- --ignored --nocapture`.

use crate::lab::Lab;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tt_model::{EnvId, MacAddr, Vm, VmId};
use tt_network::Network;
use tt_network::conformance::sample_vm;

const ROUNDS: usize = 40;

fn timed(action: impl FnOnce()) -> Duration {
    let start = Instant::now();
    action();
    start.elapsed()
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!("{what}: p50 {:?}, p90 {:?}, max {:?}", at(50), at(90), at(100));
}

fn member(env: u64, index: u8) -> Vm {
    let mut vm = sample_vm(EnvId(1), 0);
    let [high, low] = (env as u16).to_be_bytes();
    vm.env_id = EnvId(env);
    vm.id = VmId(env * 8 + u64::from(index));
    vm.resource.ip_addr = Ipv4Addr::new(10, 0, high.wrapping_mul(8) + index, low);
    vm.resource.mac_addr = MacAddr::of_ip(vm.resource.ip_addr);
    let first = 20_000 + 10 * env as u16 + 2 * u16::from(index);
    for (public, port) in vm.resource.port_map.values_mut().zip(first..) {
        *public = port;
    }
    vm
}

#[test]
#[ignore = "measures"]
fn an_env_with_three_members() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (mut first, mut rest, mut all, mut again) = (vec![], vec![], vec![], vec![]);
        let (mut unset, mut last) = (vec![], vec![]);
        let envs = (1..=ROUNDS as u64).map(|env| [0, 1, 2].map(|index| member(env, index)));
        let envs: Vec<_> = envs.collect();
        for vms in &envs {
            let times = [0, 1, 2].map(|at| timed(|| lab.net.set_net(&vms[at]).unwrap()));
            first.push(times[0]);
            rest.extend(&times[1..]);
            all.push(times.iter().sum());
            again.push(timed(|| lab.net.set_net(&vms[0]).unwrap()));
        }
        // Apart from setting up: the kernel takes a namespace down in the background, under the
        // lock that every new link waits for.
        for vms in &envs {
            unset.extend([0, 1].map(|at| timed(|| lab.net.unset_net(&vms[at]).unwrap())));
            last.push(timed(|| lab.net.unset_net(&vms[2]).unwrap()));
        }
        report("first member, with the env", first);
        report("each further member", rest);
        report("env with 3 members", all);
        report("set again, no difference", again);
        report("unset of a member", unset);
        report("unset of the last member", last);
    });
}

/// A member of one large Env.
fn one_of_many(index: u16) -> Vm {
    let mut vm = sample_vm(EnvId(1), 0);
    let [high, low] = (index + 2).to_be_bytes();
    vm.id = VmId(1000 + u64::from(index));
    vm.resource.ip_addr = Ipv4Addr::new(10, 0, high, low);
    vm.resource.mac_addr = MacAddr::of_ip(vm.resource.ip_addr);
    for (public, port) in vm.resource.port_map.values_mut().zip(20_000 + 2 * index..) {
        *public = port;
    }
    vm.state.net_blacklist = (0..20).map(|last| Ipv4Addr::new(192, 0, 2, last)).collect();
    vm
}

#[test]
#[ignore = "measures"]
fn one_member_among_many() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let mut count = 0;
        for members in [1, 100, 235] {
            for index in count..members {
                lab.net.set_net(&one_of_many(index)).unwrap();
            }
            count = members;
            let mut vm = one_of_many(0);
            let again = (0..ROUNDS).map(|_| timed(|| lab.net.set_net(&vm).unwrap()));
            report(&format!("{members} members: set again"), again.collect());
            let change = (0..ROUNDS).map(|round| {
                vm.deny_outgoing = round % 2 == 0;
                timed(|| lab.net.set_net(&vm).unwrap())
            });
            report(&format!("{members} members: set changed"), change.collect());
            let found = (0..ROUNDS).map(|_| timed(|| drop(lab.net.found().unwrap())));
            report(&format!("{members} members: found"), found.collect());
        }
    });
}
