//! Routes of snapshots: of a whole Env, at one point in time, or of one member. Taking one is the
//! host's work: here it is only asked for.

use super::edit::{Which, committed, edit, members};
use super::extract::{EnvName, EnvSnapshot, JsonBody, VmName, VmSnapshot, shown};
use super::ground::free_ports;
use super::problem::Refusals;
use super::templates::publications;
use super::work::{
    Answer, attempt, check_ports, env_row, env_view, host, in_use, member, usage_row,
};
use super::{Api, ApiConfig};
use crate::error::ApiError;
use crate::views::{EnvView, SnapshotList, SnapshotView};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use tt_model::check::quoted;
use tt_model::plan::{ApplyWorld, plan_apply, plan_drop_snapshot, plan_snapshot};
use tt_model::template::Origin;
use tt_model::{Env, ErrorCode, Refusal, SnapshotSpec, SnapshotState, Vm};
use tt_store::tables::Change;

/// What may follow the path of a wish for a snapshot.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TrialQuery {
    dry_run: Option<bool>,
}

/// The snapshots of an Env, by name.
#[utoipa::path(
    get, path = "/v1/envs/{env}/snapshots", tag = "snapshots", operation_id = "list_env_snapshots",
    params(("env" = String, Path, description = "Name of the Env")),
    responses((status = 200, body = SnapshotList), Refusals)
)]
pub(super) async fn list(
    State(api): State<Api>,
    EnvName(name): EnvName,
) -> Result<Answer, ApiError> {
    api.call(move |config| {
        let env = env_row(&config.tables, &name)?.value;
        let (rows, _) = members(&config.tables, &env, Which::Staying)?;
        Answer::ok(&SnapshotList::of(rows.iter().map(|row| &row.value)))
    })
    .await
}

/// The snapshots of one member, by name.
#[utoipa::path(
    get, path = "/v1/envs/{env}/vms/{vm}/snapshots", tag = "snapshots",
    operation_id = "list_vm_snapshots",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm")
    ),
    responses((status = 200, body = SnapshotList), Refusals)
)]
pub(super) async fn list_one(State(api): State<Api>, name: VmName) -> Result<Answer, ApiError> {
    api.call(move |config| {
        let vm = member(&config.tables, &name.env, &name.vm)?;
        Answer::ok(&SnapshotList::of([&vm].into_iter()))
    })
    .await
}

/// Asks for a snapshot of all members at one point in time; the Env's events tell when each has
/// it, or why not.
#[utoipa::path(
    post, path = "/v1/envs/{env}/snapshots", tag = "snapshots",
    operation_id = "create_env_snapshot",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("dry_run" = Option<bool>, Query, description = "Only say what would be kept")
    ),
    request_body = SnapshotSpec,
    responses(
        (status = 200, description = "What would be kept of each member", body = SnapshotView),
        (status = 202, description = "It is being taken", body = EnvView),
        Refusals
    )
)]
pub(super) async fn create(
    State(api): State<Api>,
    EnvName(name): EnvName,
    query: Result<Query<TrialQuery>, QueryRejection>,
    JsonBody(spec): JsonBody<SnapshotSpec>,
) -> Result<Answer, ApiError> {
    let is_trial = is_trial(query)?;
    api.call(move |config| match is_trial {
        true => Answer::ok(&preview(config, &name, None, &spec)?),
        false => accepted(&want(config, &name, None, &spec)?),
    })
    .await
}

/// Asks for a snapshot of one member; the Env's events tell when it is there, or why not.
#[utoipa::path(
    post, path = "/v1/envs/{env}/vms/{vm}/snapshots", tag = "snapshots",
    operation_id = "create_vm_snapshot",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm"),
        ("dry_run" = Option<bool>, Query, description = "Only say what would be kept")
    ),
    request_body = SnapshotSpec,
    responses(
        (status = 200, description = "What would be kept of it", body = SnapshotView),
        (status = 202, description = "It is being taken", body = EnvView),
        Refusals
    )
)]
pub(super) async fn create_one(
    State(api): State<Api>,
    name: VmName,
    query: Result<Query<TrialQuery>, QueryRejection>,
    JsonBody(spec): JsonBody<SnapshotSpec>,
) -> Result<Answer, ApiError> {
    let is_trial = is_trial(query)?;
    api.call(move |config| match is_trial {
        true => Answer::ok(&preview(config, &name.env, Some(&name.vm), &spec)?),
        false => accepted(&want(config, &name.env, Some(&name.vm), &spec)?),
    })
    .await
}

/// Brings all members back to a snapshot that each of them has, and lets them run.
#[utoipa::path(
    post, path = "/v1/envs/{env}/snapshots/{name}/apply", tag = "snapshots",
    operation_id = "apply_env_snapshot",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("name" = String, Path, description = "Name of the snapshot")
    ),
    responses((status = 202, description = "They are going back", body = EnvView), Refusals)
)]
pub(super) async fn apply(
    State(api): State<Api>,
    snapshot: EnvSnapshot,
) -> Result<Answer, ApiError> {
    let _turn = api.0.creating.lock().await;
    api.call(move |config| accepted(&go_back(config, &snapshot.env, None, &snapshot.name)?)).await
}

/// Brings one member back to a snapshot, and lets it run.
#[utoipa::path(
    post, path = "/v1/envs/{env}/vms/{vm}/snapshots/{name}/apply", tag = "snapshots",
    operation_id = "apply_vm_snapshot",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm"),
        ("name" = String, Path, description = "Name of the snapshot")
    ),
    responses((status = 202, description = "It is going back", body = EnvView), Refusals)
)]
pub(super) async fn apply_one(
    State(api): State<Api>,
    VmSnapshot { of, name }: VmSnapshot,
) -> Result<Answer, ApiError> {
    let _turn = api.0.creating.lock().await;
    api.call(move |config| accepted(&go_back(config, &of.env, Some(&of.vm), &name)?)).await
}

/// Removes a snapshot of the members that have it.
#[utoipa::path(
    delete, path = "/v1/envs/{env}/snapshots/{name}", tag = "snapshots",
    operation_id = "remove_env_snapshot",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("name" = String, Path, description = "Name of the snapshot")
    ),
    responses((status = 202, description = "It is going", body = EnvView), Refusals)
)]
pub(super) async fn remove(
    State(api): State<Api>,
    snapshot: EnvSnapshot,
) -> Result<Answer, ApiError> {
    api.call(move |config| accepted(&drop_it(config, &snapshot.env, None, &snapshot.name)?)).await
}

/// Removes a snapshot of one member.
#[utoipa::path(
    delete, path = "/v1/envs/{env}/vms/{vm}/snapshots/{name}", tag = "snapshots",
    operation_id = "remove_vm_snapshot",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm"),
        ("name" = String, Path, description = "Name of the snapshot")
    ),
    responses((status = 202, description = "It is going", body = EnvView), Refusals)
)]
pub(super) async fn remove_one(
    State(api): State<Api>,
    VmSnapshot { of, name }: VmSnapshot,
) -> Result<Answer, ApiError> {
    api.call(move |config| accepted(&drop_it(config, &of.env, Some(&of.vm), &name)?)).await
}

fn accepted(view: &EnvView) -> Result<Answer, ApiError> {
    Answer::new(StatusCode::ACCEPTED, view)
}

/// Notes a snapshot that is to be taken.
fn want(
    config: &ApiConfig,
    env: &str,
    only: Option<&str>,
    spec: &SnapshotSpec,
) -> Result<EnvView, ApiError> {
    let host = host(config)?;
    edit(config, env, Which::of(only), |env, vms, _| {
        let now = config.access.now_unix_secs();
        plan_snapshot(env, vms, spec, &host, now, &config.policy)
    })
}

/// What a snapshot would keep; nothing is changed.
fn preview(
    config: &ApiConfig,
    env: &str,
    only: Option<&str>,
    spec: &SnapshotSpec,
) -> Result<SnapshotView, ApiError> {
    let (host, now) = (host(config)?, config.access.now_unix_secs());
    let mut env = env_row(&config.tables, env)?.value;
    let (rows, _) = members(&config.tables, &env, Which::of(only))?;
    let mut vms: Vec<Vm> = rows.into_iter().map(|row| row.value).collect();
    plan_snapshot(&mut env, &mut vms, spec, &host, now, &config.policy)?;
    let planned = SnapshotList::of(vms.iter()).snapshots;
    let planned = planned.into_iter().find(|snapshot| snapshot.name == spec.name);
    planned.ok_or_else(|| {
        let what = format!("env {}", quoted(&env.name));
        Refusal::new(ErrorCode::State, what, "it has no members", "add some first").into()
    })
}

fn is_trial(query: Result<Query<TrialQuery>, QueryRejection>) -> Result<bool, Refusal> {
    match query {
        Ok(Query(query)) => Ok(query.dry_run.unwrap_or(false)),
        Err(rejection) => {
            let problem = shown(&rejection.body_text());
            Err(Refusal::new(ErrorCode::Invalid, "query", problem, "use dry_run=true or none"))
        }
    }
}

fn drop_it(
    config: &ApiConfig,
    env: &str,
    only: Option<&str>,
    name: &str,
) -> Result<EnvView, ApiError> {
    edit::<ApiError>(config, env, Which::of(only), |env, vms, _| {
        let is_meant = |origin: &Origin| match origin {
            Origin::Snapshot { vm, snapshot, .. } => {
                snapshot == name && vms.iter().any(|v| v.id == *vm)
            }
            Origin::Image { .. } => false,
        };
        let users = publications(&config.tables, is_meant)?;
        if !users.is_empty() {
            let what = format!("snapshot {}", quoted(name));
            return Err(in_use(
                what,
                &users,
                "wait until it is published, or remove that template",
            )
            .into());
        }
        Ok(plan_drop_snapshot(env, vms, name)?)
    })
}

/// Notes that members go back to a snapshot.
fn go_back(
    config: &ApiConfig,
    env: &str,
    only: Option<&str>,
    name: &str,
) -> Result<EnvView, ApiError> {
    let env = attempt(|| try_apply(config, env, only, name))?;
    env_view(&config.tables, env)
}

fn try_apply(
    config: &ApiConfig,
    env: &str,
    only: Option<&str>,
    name: &str,
) -> Result<Option<Env>, ApiError> {
    let tables = &config.tables;
    let mut env = env_row(tables, env)?;
    let (rows, _) = members(tables, &env.value, Which::of(only))?;
    let mut vms: Vec<Vm> = rows.iter().map(|row| row.value.clone()).collect();
    let frozen = frozen(config, &vms, name)?;
    let ports = frozen.iter().map(|vm| vm.resource.port_map.len()).sum();
    let host = host(config)?;
    let mut usage = usage_row(config)?;
    let free_ports = free_ports(config, &host, usage.value.port_cursor, ports)?;
    let world = ApplyWorld {
        now: config.access.now_unix_secs(),
        policy: &config.policy,
        host: &host,
        free_ports: &free_ports,
    };
    plan_apply(&mut env.value, &mut vms, &frozen, name, &mut usage.value, &world)?;
    let (all, _) = members(tables, &env.value, Which::Staying)?;
    let others = all.iter().map(|row| &row.value).filter(|vm| vms.iter().all(|v| v.id != vm.id));
    check_ports(&env.value, vms.iter().chain(others))?;
    let change = Change::new().env(&env)?.usage(host.id, &usage)?;
    let mut pairs = rows.iter().zip(&vms);
    let change = pairs.try_fold(change, |change, (row, vm)| change.replace_vm(row, vm))?;
    committed(tables, &change, env.value)
}

/// The Vms of the snapshots' metas, in the order of `vms`. None at all if a snapshot can not be
/// applied, for which the plan has the better reason.
fn frozen(config: &ApiConfig, vms: &[Vm], name: &str) -> Result<Vec<Vm>, Refusal> {
    let ready = |vm: &Vm| {
        vm.snapshots.get(name).filter(|snapshot| snapshot.state == SnapshotState::Ready).cloned()
    };
    let Some(snapshots) = vms.iter().map(ready).collect::<Option<Vec<_>>>() else {
        return Ok(Vec::new());
    };
    vms.iter().zip(&snapshots).map(|(vm, snapshot)| config.access.frozen(vm, snapshot)).collect()
}
