//! Creating an Env, or members of one: reads what the plan depends on, plans, commits. It makes
//! nothing itself.

use super::ApiConfig;
use super::edit::committed;
use super::ground::Ground;
use super::work::{attempt, check_ports, env_row, env_view, vm_view};
use crate::error::ApiError;
use crate::views::{EnvView, VmList, VmView};
use axum::http::StatusCode;
use std::collections::BTreeSet;
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
    spec: &VmSpec,
) -> Result<(StatusCode, VmList), ApiError> {
    // What bounds an Env bounds what is added to one.
    check_env(&EnvSpec { vms: vec![spec.clone()], ..EnvSpec::default() })?;
    attempt(|| try_add(config, name, spec))
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
    spec: &VmSpec,
) -> Result<Option<(StatusCode, VmList)>, ApiError> {
    let tables = &config.tables;
    let mut env = env_row(tables, name)?;
    let members: Vec<Vm> = tables.vms_of(&env.value)?.into_iter().map(|row| row.value).collect();
    if let Some(present) = added_before(&members, spec) {
        let views = present.into_iter().map(|vm| vm_view(tables, vm.clone()));
        return Ok(Some((StatusCode::OK, VmList { vms: views.collect::<Result<_, _>>()? })));
    }
    let ground = Ground::read(config, std::slice::from_ref(spec))?;
    let plan = plan_add(&mut env.value, &members, spec, &ground.world(config))?;
    check_ports(&env.value, members.iter().chain(&plan.vms))?;
    let (usage, next_id) = (ground.usage.as_ref(), ground.next_id.as_ref());
    let change = ground.hold(Change::new().add_vms(&plan, &env, usage, next_id)?)?;
    let vms = plan.vms.into_iter().map(|vm| VmView::new(vm, None)).collect();
    committed(tables, &change, (StatusCode::ACCEPTED, VmList { vms }))
}

/// The members that have all the names which `spec` gives, if each is as it asks: such a request is
/// a repeated one. Without a name there are none.
fn added_before<'a>(members: &'a [Vm], spec: &VmSpec) -> Option<Vec<&'a Vm>> {
    let stem = spec.name.as_ref()?;
    let names: Vec<String> = match spec.count.unwrap_or(1) {
        1 => vec![stem.clone()],
        count => (1..=count).map(|index| format!("{stem}-{index}")).collect(),
    };
    let member = |name: &String| members.iter().find(|vm| vm.name == *name && is_as(vm, spec));
    names.iter().map(member).collect()
}

/// Whether `vm` is what `spec` asks for.
fn is_as(vm: &Vm, spec: &VmSpec) -> bool {
    let Vm { resource, state, .. } = vm;
    let ports: BTreeSet<_> = spec.ports.iter().collect();
    let image = spec.image.map(|id| format!("images/{id}/"));
    let is_of_image = match (&vm.base, &image) {
        (None, None) => true,
        (Some(base), Some(image)) => base.starts_with(image),
        _ => false,
    };
    vm.goal != Goal::Gone
        && vm.template.name == spec.template
        && is_of_image
        && spec.engine.as_ref().is_none_or(|engine| *engine == vm.engine)
        && spec.cpu_num.is_none_or(|cpu_num| cpu_num == resource.cpu_num)
        && spec.mem_size.is_none_or(|mem_size| mem_size == resource.mem_size)
        && spec.disk_size.is_none_or(|disk_size| disk_size == resource.disk_size)
        && ports.into_iter().eq(resource.port_map.keys())
        && spec.net_kind == vm.net_kind
        && spec.rand_uuid == state.rand_uuid
        && spec.keep_image == state.keep_image
        && spec.net_blacklist.iter().all(|address| state.net_blacklist.contains(address))
}
