//! Tests of planning changes.

use super::*;
use crate::plan::create::tests::{host, planned};
use crate::{Trouble, VmStatus};

const NOW: u64 = 2000;

fn shop() -> (Env, Vec<Vm>) {
    planned(2)
}

#[test]
fn stop_and_start_change_goal_state_and_generation() {
    let (mut env, mut vms) = shop();
    let policy = Policy::default();
    plan_stop(&mut env, &mut vms, true, Some(StopMode::Shutdown), &host(), NOW, &policy).unwrap();
    assert!(env.state.is_stopped);
    assert_eq!(env.state.last_mgmt_timestamp, NOW);
    for vm in &vms {
        assert_eq!((vm.goal, vm.kill_timestamp), (Goal::Stopped, NOW + policy.shutdown_grace));
        assert_eq!((vm.state.during_stop, vm.generation), (true, 2));
    }
    let refusal = plan_start(&mut env, &mut vms, NOW, &policy).unwrap_err();
    assert_eq!((refusal.code, refusal.retry_after_ms), (ErrorCode::TooSoon, Some(1000)));
    plan_start(&mut env, &mut vms, NOW + 1, &policy).unwrap();
    assert!(!env.state.is_stopped && vms.iter().all(|vm| vm.goal == Goal::Running));
}

#[test]
fn a_clock_that_was_set_back_locks_nobody_out() {
    let (mut env, mut vms) = shop();
    env.state.last_mgmt_timestamp = NOW + 1_000_000;
    plan_start(&mut env, &mut vms, NOW, &Policy::default()).unwrap();
}

#[test]
fn what_an_engine_can_not_do_is_refused_and_changes_nothing() {
    let (mut env, mut vms) = shop();
    let before = (env.clone(), vms.clone());
    let policy = Policy::default();
    let refusal =
        plan_stop(&mut env, &mut vms, true, Some(StopMode::Suspend), &host(), NOW, &policy)
            .unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Unsupported);
    assert_eq!((env.clone(), vms.clone()), before);
    plan_stop(&mut env, &mut vms, true, Some(StopMode::Kill), &host(), NOW, &policy).unwrap();
    let refusal =
        plan_stop(&mut env, &mut vms, true, Some(StopMode::Pause), &host(), NOW + 9, &policy)
            .unwrap_err();
    assert_eq!(refusal.code, ErrorCode::State);
}

#[test]
fn lifetime_is_extended_within_the_limit() {
    let (mut env, _) = shop();
    let policy = Policy::default();
    let end = env.end_timestamp;
    plan_extend(&mut env, 60, NOW, &policy).unwrap();
    assert_eq!(env.end_timestamp, end + 60);
    for more in [0, policy.life_time_max, u64::MAX] {
        let refusal = plan_extend(&mut env, more, NOW, &policy).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::LifeTime);
    }
    assert_eq!(env.end_timestamp, end + 60);
}

#[test]
fn the_end_comes_once_and_as_chosen() {
    let policy = Policy::default();
    let (mut env, mut vms) = shop();
    let end = env.end_timestamp;
    assert!(!plan_end(&mut env, &mut vms, &host(), end - 1, &policy));
    assert!(plan_end(&mut env, &mut vms, &host(), end, &policy));
    assert!(env.is_ending && vms.iter().all(|vm| vm.goal == Goal::Gone));
    assert!(!plan_end(&mut env, &mut vms, &host(), end, &policy));

    let (mut env, mut vms) = shop();
    env.at_end = AtEnd::Stop;
    assert!(plan_end(&mut env, &mut vms, &host(), end, &policy));
    assert!(!env.is_ending && vms.iter().all(|vm| vm.goal == Goal::Stopped));
    assert!(!plan_end(&mut env, &mut vms, &host(), end + 1, &policy));
    let refusal = plan_start(&mut env, &mut vms, end + 9, &policy).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::State);
    plan_extend(&mut env, 60, end + 9, &policy).unwrap();
    plan_start(&mut env, &mut vms, end + 10, &policy).unwrap();
}

#[test]
fn an_undone_env_remembers_the_first_failure() {
    let (mut env, mut vms) = shop();
    let failure = |name: &str| Failure {
        vm_name: name.into(),
        trouble: Trouble { code: ErrorCode::StartVm, why: "w".into(), retry: false },
    };
    plan_undo(&mut env, &mut vms, failure("a"));
    plan_undo(&mut env, &mut vms, failure("b"));
    assert_eq!(env.failure.as_ref().unwrap().vm_name, "a");
    assert!(env.is_ending && vms.iter().all(|vm| vm.generation == 2));
    let refusal = plan_extend(&mut env, 60, NOW, &Policy::default()).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::State);
    // A status with trouble survives a round trip through its record.
    let status = VmStatus {
        phase: crate::Phase::Machine,
        generation: 2,
        since_ms: 5,
        ready_ms: None,
        trouble: Some(failure("a").trouble),
    };
    let json = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<VmStatus>(&json).unwrap(), status);
}
