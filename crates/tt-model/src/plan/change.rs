//! Planning changes of an Env that exists: stop, start, extend, destroy, expiry.

use super::{Policy, check_life_time};
use crate::check::quoted;
use crate::env::Failure;
use crate::{AtEnd, Env, ErrorCode, Goal, Host, Refusal, StopMode, Vm, feat};

/// Stops members of an Env: all of it, or those in `vms`. Without a mode they are suspended where
/// their engine can, else shut down.
///
/// `vms` are the members that the request means; `whole` says that they are all of the Env.
pub fn plan_stop(
    env: &mut Env,
    vms: &mut [Vm],
    whole: bool,
    mode: Option<StopMode>,
    host: &Host,
    now: u64,
    policy: &Policy,
) -> Result<(), Refusal> {
    check_manageable(env, now, policy)?;
    for vm in vms.iter() {
        let features = host.engine(&vm.engine).map_or(0, |engine| engine.features);
        let wanted = mode.map_or(0, StopMode::feature);
        if wanted & !features != 0 {
            return Err(Refusal::new(
                ErrorCode::Unsupported,
                format!("stop of {}", vm.full_name()),
                format!("engine {} can not {}", vm.engine, feat::names(wanted).join(", ")),
                "choose another mode",
            ));
        }
        if mode == Some(StopMode::Pause) && vm.goal.height() < Goal::Paused.height() {
            return Err(Refusal::new(
                ErrorCode::State,
                format!("pause of {}", vm.full_name()),
                "it is stopped",
                "start it first",
            ));
        }
    }
    vms.iter_mut().for_each(|vm| stop(vm, mode, host, now, policy));
    env.state.last_mgmt_timestamp = now;
    if whole {
        env.state.is_stopped = true;
    }
    Ok(())
}

/// Gives a Vm the goal of a mode, or of the best one that its engine has.
fn stop(vm: &mut Vm, mode: Option<StopMode>, host: &Host, now: u64, policy: &Policy) {
    let features = host.engine(&vm.engine).map_or(0, |engine| engine.features);
    let mode = match mode {
        Some(mode) => mode,
        // It is at rest already, and nothing of it is lost.
        None if vm.goal.height() <= Goal::Stopped.height() => return,
        None if features & feat::SUSPEND != 0 => StopMode::Suspend,
        None => StopMode::Shutdown,
    };
    if mode == StopMode::Suspend && vm.goal == Goal::Stopped {
        return;
    }
    let kill_timestamp = if mode == StopMode::Shutdown { now + policy.shutdown_grace } else { 0 };
    vm.set_goal(mode.goal(), kill_timestamp);
}

/// Starts members of an Env: all of it, or those in `vms`.
pub fn plan_start(env: &mut Env, vms: &mut [Vm], now: u64, policy: &Policy) -> Result<(), Refusal> {
    check_manageable(env, now, policy)?;
    if env.is_expired(now) {
        return Err(Refusal::new(
            ErrorCode::State,
            format!("env {}", quoted(&env.name)),
            "its lifetime is over",
            "extend it first",
        ));
    }
    for vm in vms.iter_mut().filter(|vm| vm.goal != Goal::Running) {
        if vm.goal == Goal::Stopped && vm.machine != vm.resource.machine() {
            // A machine that is still on its way down has the old sizes, so it must not go on.
            vm.machine = vm.resource.machine();
            vm.incarnation += 1;
        }
        // The time of an order to shut down is kept: a guest that still obeys it is started again.
        vm.set_goal(Goal::Running, vm.kill_timestamp);
    }
    env.state.last_mgmt_timestamp = now;
    env.state.is_stopped = false;
    Ok(())
}

/// Moves the end of an Env `more` seconds away from its present end, or from now if that has
/// passed.
pub fn plan_extend(env: &mut Env, more: u64, now: u64, policy: &Policy) -> Result<(), Refusal> {
    check_living(env)?;
    let from = env.end_timestamp.max(now);
    let end = from.saturating_add(more);
    check_life_time(more, policy)?;
    check_life_time(end - now, policy)?;
    env.end_timestamp = end;
    Ok(())
}

/// Sends an Env on its way out. Doing it again changes nothing.
pub fn plan_destroy(env: &mut Env, vms: &mut [Vm]) {
    env.is_ending = true;
    for vm in vms.iter_mut().filter(|vm| vm.goal != Goal::Gone) {
        vm.set_goal(Goal::Gone, 0);
    }
}

/// Gives an Env whose lifetime is over its chosen end. Returns whether anything changed.
pub fn plan_end(env: &mut Env, vms: &mut [Vm], host: &Host, now: u64, policy: &Policy) -> bool {
    if !env.is_expired(now) || env.is_ending {
        return false;
    }
    match env.at_end {
        AtEnd::Destroy => plan_destroy(env, vms),
        AtEnd::Stop if vms.iter().all(|vm| vm.goal.height() <= Goal::Stopped.height()) => {
            return false;
        }
        AtEnd::Stop => {
            for vm in vms.iter_mut().filter(|vm| vm.goal.height() > Goal::Stopped.height()) {
                stop(vm, None, host, now, policy);
            }
            env.state.is_stopped = true;
        }
    }
    true
}

/// Undoes an Env of which a member failed before all had been ready once.
pub fn plan_undo(env: &mut Env, vms: &mut [Vm], failure: Failure) {
    env.failure.get_or_insert(failure);
    plan_destroy(env, vms);
}

pub(super) fn check_living(env: &Env) -> Result<(), Refusal> {
    if !env.is_ending {
        return Ok(());
    }
    Err(Refusal::new(
        ErrorCode::State,
        format!("env {}", quoted(&env.name)),
        "it is being destroyed",
        "create another one",
    ))
}

pub(super) fn check_manageable(env: &Env, now: u64, policy: &Policy) -> Result<(), Refusal> {
    check_living(env)?;
    let last = env.state.last_mgmt_timestamp;
    let next = last.saturating_add(policy.mgmt_interval);
    // A clock that was set back must not lock an Env: a last call in the future counts as none.
    if last > now || now >= next {
        return Ok(());
    }
    let mut refusal = Refusal::new(
        ErrorCode::TooSoon,
        format!("env {}", quoted(&env.name)),
        format!("its last management call was less than {} s ago", policy.mgmt_interval),
        format!("try again in {} s", next - now),
    );
    refusal.retry_after_ms = Some((next - now) * 1000);
    Err(refusal)
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
