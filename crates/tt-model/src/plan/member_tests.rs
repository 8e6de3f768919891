//! Tests of planning changes of single members.

use super::*;
use crate::plan::create::tests::{host, planned};

const NOW: u64 = 2000;

fn policy() -> Policy {
    Policy { mgmt_interval: 0, ..Policy::default() }
}

fn update(vms: &mut [Vm], update: &VmUpdate, usage: &mut Usage) -> Result<(), Refusal> {
    let (mut env, _) = planned(2);
    let host = host();
    let free_ports: Vec<u16> = (25000..25100).collect();
    let world = UpdateWorld { now: NOW, policy: &policy(), host: &host, free_ports: &free_ports };
    plan_update(&mut env, vms, 0, update, usage, &world)
}

#[test]
fn what_a_machine_is_made_with_waits_for_its_next_start() {
    let (mut env, mut vms) = planned(2);
    let mut usage = Usage { mem_size: 256, ..Usage::default() };
    let more = VmUpdate { cpu_num: Some(2), mem_size: Some(256), ..VmUpdate::default() };
    update(&mut vms, &more, &mut usage).unwrap();
    assert_eq!((usage.mem_size, vms[0].generation), (384, 2));
    assert!(vms[0].needs_restart() && vms[0].machine.mem_size == 128);
    vms[0].set_goal(Goal::Stopped, 0);
    super::super::plan_start(&mut env, &mut vms[..1], NOW, &policy()).unwrap();
    assert!(!vms[0].needs_restart());
    assert_eq!((vms[0].machine.mem_size, vms[0].incarnation), (256, 1));
}

#[test]
fn what_is_wrong_in_itself_is_said_though_it_is_too_soon() {
    let (mut env, mut vms) = planned(2);
    env.state.last_mgmt_timestamp = NOW;
    let (host, policy) = (host(), Policy::default());
    let world = UpdateWorld { now: NOW, policy: &policy, host: &host, free_ports: &[] };
    for (cpu_num, code) in [(0, ErrorCode::Invalid), (1, ErrorCode::TooSoon)] {
        let update = VmUpdate { cpu_num: Some(cpu_num), ..VmUpdate::default() };
        let planned = plan_update(&mut env, &mut vms, 0, &update, &mut Usage::default(), &world);
        assert_eq!(planned.unwrap_err().code, code, "{cpu_num}");
    }
}

#[test]
fn ports_that_stay_keep_their_public_one() {
    let (_, mut vms) = planned(1);
    let ports = |list: &[&str]| VmUpdate {
        ports: Some(list.iter().map(|p| p.parse().unwrap()).collect()),
        ..VmUpdate::default()
    };
    let mut usage = Usage::default();
    update(&mut vms, &ports(&["80", "53/udp"]), &mut usage).unwrap();
    let first = vms[0].resource.port_map.clone();
    update(&mut vms, &ports(&["80", "22"]), &mut usage).unwrap();
    let second = &vms[0].resource.port_map;
    let port = "80".parse().unwrap();
    assert_eq!((second.len(), second[&port]), (2, first[&port]));
}

#[test]
fn destinations_and_rates_change_and_are_taken_back() {
    let (_, mut vms) = planned(1);
    let none = VmUpdate::default();
    let rules = |list: &[&str]| list.iter().map(|rule| rule.parse().unwrap()).collect::<Vec<_>>();
    let wanted = rules(&["192.0.2.7:443", "192.0.2.0/24", "192.0.2.7:443"]);
    let bound = VmUpdate { net_allowlist: Some(wanted), up_kbit: Some(1000), ..none.clone() };
    let mut usage = Usage::default();
    update(&mut vms, &bound, &mut usage).unwrap();
    assert_eq!(vms[0].state.net_allowlist, rules(&["192.0.2.0/24", "192.0.2.7:443"]));
    assert_eq!((vms[0].resource.up_kbit, vms[0].resource.down_kbit), (Some(1000), None));
    let generation = vms[0].generation;
    update(&mut vms, &VmUpdate { down_kbit: Some(64), ..none.clone() }, &mut usage).unwrap();
    assert_eq!((vms[0].resource.up_kbit, vms[0].resource.down_kbit), (Some(1000), Some(64)));
    assert!(vms[0].generation > generation);
    let disk = VmUpdate { disk_kib: Some(1024), disk_ops: Some(16), ..none.clone() };
    update(&mut vms, &disk, &mut usage).unwrap();
    assert_eq!((vms[0].resource.disk_kib, vms[0].resource.disk_ops), (Some(1024), Some(16)));
    let open = VmUpdate {
        net_allowlist: Some(vec![]),
        up_kbit: Some(0),
        disk_kib: Some(0),
        disk_ops: Some(0),
        ..none
    };
    update(&mut vms, &open, &mut usage).unwrap();
    assert!(vms[0].state.net_allowlist.is_empty() && vms[0].resource.up_kbit.is_none());
    assert_eq!((vms[0].resource.disk_kib, vms[0].resource.disk_ops), (None, None));
}

#[test]
fn wrong_updates_change_nothing() {
    let (_, mut vms) = planned(2);
    let before = vms.clone();
    let mut usage = Usage::default();
    let port = "80".parse().unwrap();
    let none = VmUpdate::default();
    for wrong in [
        none.clone(),
        VmUpdate { disk_size: Some(63), ..none.clone() },
        VmUpdate { disk_size: Some(u32::MAX), ..none.clone() },
        VmUpdate { cpu_num: Some(5), ..none.clone() },
        VmUpdate { cpu_num: Some(0), ..none.clone() },
        VmUpdate { up_kbit: Some(63), ..none.clone() },
        VmUpdate { down_kbit: Some(u32::MAX), ..none.clone() },
        VmUpdate { disk_kib: Some(15), ..none.clone() },
        VmUpdate { disk_ops: Some(u32::MAX), ..none.clone() },
        VmUpdate { mem_size: Some(1), ..none.clone() },
        VmUpdate { mem_size: Some(8193), ..none.clone() },
        VmUpdate { name: Some(before[1].name.clone()), ..none.clone() },
        VmUpdate { name: Some("A".into()), ..none.clone() },
        VmUpdate { ports: Some(vec![port, port]), ..none },
    ] {
        assert!(update(&mut vms, &wrong, &mut usage).is_err(), "{wrong:?}");
        assert_eq!((&vms, &usage), (&before, &Usage::default()));
    }
}

#[test]
fn the_last_member_can_not_be_removed() {
    let (env, mut vms) = planned(2);
    let names: Vec<String> = vms.iter().map(|vm| vm.name.clone()).collect();
    plan_rm(&env, &mut vms, &names[0]).unwrap();
    plan_rm(&env, &mut vms, &names[0]).unwrap();
    assert_eq!(plan_rm(&env, &mut vms, &names[1]).unwrap_err().code, ErrorCode::State);
    assert_eq!((vms[0].goal, vms[1].goal), (Goal::Gone, Goal::Running));
}

#[test]
fn denying_reaches_all_members_and_later_ones() {
    let (mut env, mut vms) = planned(2);
    plan_outgoing(&mut env, &mut vms, true, true).unwrap();
    assert!(env.state.deny_outgoing && vms.iter().all(|vm| vm.deny_outgoing));
    assert!(vms.iter().all(|vm| vm.generation == 2));
    plan_outgoing(&mut env, &mut vms[..1], false, false).unwrap();
    assert!(env.state.deny_outgoing && !vms[0].deny_outgoing && vms[1].deny_outgoing);
}
