//! Creating an Env, or members of one: reads what the plan depends on, plans, commits. It makes
//! nothing itself.

use super::ApiConfig;
use super::edit::committed;
use super::ground::Ground;
use super::work::{attempt, check_ports, env_row, env_view, vm_view};
use crate::error::ApiError;
use crate::views::{EnvView, VmList, VmView};
use axum::http::StatusCode;
use tt_model::check::{check_env, check_name, check_request_key, quoted};
use tt_model::plan::{plan_add, plan_env};
use tt_model::{EnvSpec, ErrorCode, Goal, Refusal, Vm, VmSpec};
use tt_store::tables::Change;

/// Creates the Env, or finds the one that the same request created before.
pub(super) fn create_env(
    config: &ApiConfig,
    name: &str,
    key: &str,
    spec: &EnvSpec,
) -> Result<(StatusCode, EnvView), ApiError> {
    check_name("env", name)?;
    check_request_key(key)?;
    check_env(spec)?;
    attempt(|| try_create(config, name, key, spec))
}

/// Adds members to an Env, or finds those that the same request added before.
pub(super) fn add_vms(
    config: &ApiConfig,
    name: &str,
    key: Option<&str>,
    spec: &VmSpec,
) -> Result<(StatusCode, VmList), ApiError> {
    // What bounds an Env bounds what is added to one.
    check_env(&EnvSpec { vms: vec![spec.clone()], ..EnvSpec::default() })?;
    attempt(|| try_add(config, name, key, spec))
}

fn try_create(
    config: &ApiConfig,
    name: &str,
    key: &str,
    spec: &EnvSpec,
) -> Result<Option<(StatusCode, EnvView)>, ApiError> {
    let tables = &config.tables;
    if let Some(row) = tables.env_by_name(name)? {
        if row.value.request_key == key {
            return Ok(Some((StatusCode::OK, env_view(tables, row.value)?)));
        }
        return Err(Refusal::new(
            ErrorCode::Exists,
            format!("env {}", quoted(name)),
            "there is one of this name",
            "choose another name, or destroy that one first",
        )
        .into());
    }
    let ground = Ground::read(config, &spec.vms)?;
    let plan = plan_env(name, key, spec, &ground.world(config))?;
    let (usage, next_id) = (ground.usage.as_ref(), ground.next_id.as_ref());
    let change = ground.hold(Change::new().create_env(&plan, usage, next_id)?)?;
    let vms = plan.vms.into_iter().map(|vm| VmView::new(vm, None)).collect();
    committed(tables, &change, (StatusCode::CREATED, EnvView::new(plan.env, vms)))
}

fn try_add(
    config: &ApiConfig,
    name: &str,
    key: Option<&str>,
    spec: &VmSpec,
) -> Result<Option<(StatusCode, VmList)>, ApiError> {
    let tables = &config.tables;
    let mut env = env_row(tables, name)?;
    let members: Vec<Vm> = tables.vms_of(&env.value)?.into_iter().map(|row| row.value).collect();
    let present = added_before(&members, key);
    if !present.is_empty() {
        let views = present.into_iter().map(|vm| vm_view(tables, vm.clone()));
        return Ok(Some((StatusCode::OK, VmList { vms: views.collect::<Result<_, _>>()? })));
    }
    let ground = Ground::read(config, std::slice::from_ref(spec))?;
    let plan = plan_add(&mut env.value, &members, key, spec, &ground.world(config))?;
    check_ports(&env.value, members.iter().chain(&plan.vms))?;
    let (usage, next_id) = (ground.usage.as_ref(), ground.next_id.as_ref());
    let change = ground.hold(Change::new().add_vms(&plan, &env, usage, next_id)?)?;
    let vms = plan.vms.into_iter().map(|vm| VmView::new(vm, None)).collect();
    committed(tables, &change, (StatusCode::ACCEPTED, VmList { vms }))
}

/// The members that a request with that key has added before, as long as they stay.
fn added_before<'a>(members: &'a [Vm], key: Option<&str>) -> Vec<&'a Vm> {
    let is_its = |vm: &&Vm| vm.goal != Goal::Gone && vm.request_key.as_deref() == key;
    members.iter().filter(|vm| key.is_some() && is_its(vm)).collect()
}
