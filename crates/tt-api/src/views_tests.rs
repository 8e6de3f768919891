//! Tests of the folding.

use super::*;
use tt_model::{EnvId, ErrorCode};

fn env() -> Env {
    serde_json::from_value(serde_json::json!({
        "id": 1, "name": "shop", "start_timestamp": 1, "end_timestamp": 2, "vm_set": [],
        "state": {"is_stopped": false, "deny_outgoing": false, "last_mgmt_timestamp": 0},
        "at_end": "destroy", "request_key": "k", "is_created": true, "is_ending": false
    }))
    .unwrap()
}

fn view(goal: Goal, phase: Phase) -> VmView {
    let vm = serde_json::from_value(serde_json::json!({
        "id": 2, "env_id": 1, "env_name": "shop", "name": "web", "host": 1, "engine": "qemu",
        "template": {"name": "micro", "path": "", "memo": null, "compatible_engines": [],
            "features": [], "digest": "", "disk_size": 1},
        "storage": "file", "epoch": 0, "runtime_image": "", "net_kind": "nat",
        "snapshots": {}, "latest_meta": null,
        "state": {"during_stop": false, "keep_image": false, "rand_uuid": true,
            "net_blacklist": []},
        "resource": {"cpu_num": 1, "mem_size": 32, "disk_size": 1, "ip_addr": "10.0.0.2",
            "mac_addr": "82:17:0d:00:00:02", "port_map": {"53/udp": 20000}},
        "addr": "192.0.2.7", "machine_id": null, "deny_outgoing": false, "goal": goal,
        "kill_timestamp": 0, "generation": 3
    }))
    .unwrap();
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
        (vec![stopped(), view(Goal::Suspended, Phase::Stopped)], EnvPhase::Stopped),
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
