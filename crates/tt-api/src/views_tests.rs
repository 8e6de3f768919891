//! Tests of the folding.

use super::*;
use tt_model::{EnvId, ErrorCode, StorageKind, VmResource, sample};

fn env() -> Env {
    serde_json::from_value(serde_json::json!({
        "id": 1, "name": "shop", "start_timestamp": 1, "end_timestamp": 2, "vm_set": [],
        "state": {"is_stopped": false, "deny_outgoing": false, "last_mgmt_timestamp": 0},
        "at_end": "destroy", "request_key": "k", "is_created": true, "is_ending": false
    }))
    .unwrap()
}

fn view(goal: Goal, phase: Phase) -> VmView {
    let port_map = [("53/udp".parse().unwrap(), 20000)].into();
    let sample = sample::vm(2, "qemu", StorageKind::File);
    let resource = VmResource { port_map, ..sample.resource.clone() };
    let vm = Vm { goal, generation: 3, resource, ..sample };
    let status = VmStatus { phase, generation: 3, since_ms: 0, ready_ms: None, trouble: None };
    VmView::new(vm, Some(status))
}

#[test]
fn an_env_stands_where_its_members_do() {
    let ready = || view(Goal::Running, Phase::Ready);
    let stopped = || view(Goal::Stopped, Phase::Stopped);
    let paused = || view(Goal::Paused, Phase::Paused);
    for (vms, phase) in [
        (vec![ready(), ready()], EnvPhase::Ready),
        (vec![ready(), stopped()], EnvPhase::Ready),
        (vec![stopped(), stopped()], EnvPhase::Stopped),
        (vec![stopped(), view(Goal::Suspended, Phase::Stopped)], EnvPhase::Suspended),
        (vec![stopped(), paused()], EnvPhase::Paused),
        (vec![ready(), view(Goal::Running, Phase::Guest)], EnvPhase::Starting),
        (vec![ready(), view(Goal::Stopped, Phase::Stopping)], EnvPhase::Stopping),
    ] {
        assert_eq!(EnvView::new(env(), vms).phase, phase);
    }
    let young = Env { is_created: false, ..env() };
    assert_eq!(EnvView::new(young, vec![ready()]).phase, EnvPhase::Creating);
    let old = Env { is_ending: true, ..env() };
    assert_eq!(EnvView::new(old, vec![ready()]).phase, EnvPhase::Ending);
}

#[test]
fn a_changed_size_waits_for_a_restart() {
    let mut vm = view(Goal::Running, Phase::Ready).vm;
    assert!(!VmView::new(vm.clone(), None).needs_restart);
    vm.resource.mem_size += 1;
    assert!(VmView::new(vm, None).needs_restart);
}

#[test]
fn only_the_present_generation_counts() {
    let mut vm = view(Goal::Running, Phase::Ready);
    let trouble = Trouble { code: ErrorCode::Exited, why: "died".into(), retry: true };
    let mut status = vm.status.clone().unwrap();
    status.trouble = Some(trouble);
    vm = VmView::new(vm.vm, Some(status));
    assert!(!vm.is_settled && vm.trouble().is_some());
    vm.vm.generation += 1;
    vm = VmView::new(vm.vm, vm.status);
    assert!(!vm.is_settled && vm.trouble().is_none());
    assert!(!VmView::new(vm.vm, None).is_settled);
}

#[test]
fn a_view_is_its_record_with_more_fields() {
    let view = EnvView::new(env(), vec![view(Goal::Running, Phase::Ready)]);
    let json = serde_json::to_string(&view).unwrap();
    assert_eq!(serde_json::from_str::<EnvView>(&json).unwrap(), view);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&value["name"], &value["phase"]), (&"shop".into(), &"ready".into()));
    assert_eq!(value["vms"][0]["resource"]["port_map"]["53/udp"], 20000);
    assert_eq!(serde_json::from_value::<Env>(value).unwrap().id, EnvId(1));
}
