//! Routes of Envs.

use super::create::create_env;
use super::extract::{EnvName, JsonBody, RequestKey};
use super::problem::Refusals;
use super::work::{Answer, attempt, env_row, env_view, host, no_member, vm_views};
use super::{Api, ApiConfig};
use crate::error::ApiError;
use crate::views::{EnvList, EnvView, ExtendRequest, StopRequest, VmView};
use axum::extract::State;
use axum::http::StatusCode;
use std::collections::BTreeMap;
use tt_model::plan::{plan_destroy, plan_extend, plan_start, plan_stop};
use tt_model::{Env, EnvId, EnvSpec, Refusal, Vm};
use tt_store::tables::{Change, Committed, Row};

/// All Envs, oldest first.
#[utoipa::path(
    get, path = "/v1/envs", tag = "envs", operation_id = "list_envs",
    responses((status = 200, body = EnvList), Refusals)
)]
pub(super) async fn list(State(api): State<Api>) -> Result<Answer, ApiError> {
    api.call(|config| {
        let envs = config.tables.envs()?;
        let mut members: BTreeMap<EnvId, Vec<VmView>> = BTreeMap::new();
        for view in vm_views(&config.tables)? {
            members.entry(view.vm.env_id).or_default().push(view);
        }
        let view = |row: Row<Env>| {
            let vms = members.remove(&row.value.id).unwrap_or_default();
            EnvView::new(row.value, vms)
        };
        Answer::ok(&EnvList { envs: envs.into_iter().map(view).collect() })
    })
    .await
}

/// An Env with its members.
#[utoipa::path(
    get, path = "/v1/envs/{env}", tag = "envs", operation_id = "show_env",
    params(("env" = String, Path, description = "Name of the Env")),
    responses((status = 200, body = EnvView), Refusals)
)]
pub(super) async fn show(
    State(api): State<Api>,
    EnvName(name): EnvName,
) -> Result<Answer, ApiError> {
    api.call(move |config| {
        let env = env_row(&config.tables, &name)?.value;
        Answer::ok(&env_view(&config.tables, env)?)
    })
    .await
}

/// Plans a new Env and answers at once; its events tell when it is ready.
///
/// The same request with the same key may be repeated: it answers the present Env.
#[utoipa::path(
    put, path = "/v1/envs/{env}", tag = "envs", operation_id = "create_env",
    params(
        ("env" = String, Path, description = "Name of the new Env: a DNS label"),
        ("Idempotency-Key" = String, Header,
         description = "1 to 64 letters, digits and hyphens, new for each new Env")
    ),
    request_body = EnvSpec,
    responses(
        (status = 201, description = "It is planned", body = EnvView),
        (status = 200, description = "The same request has planned it before", body = EnvView),
        Refusals
    )
)]
pub(super) async fn create(
    State(api): State<Api>,
    EnvName(name): EnvName,
    RequestKey(key): RequestKey,
    JsonBody(spec): JsonBody<EnvSpec>,
) -> Result<Answer, ApiError> {
    let _turn = api.0.creating.lock().await;
    api.call(move |config| {
        let (status, view) = create_env(config, &name, &key, &spec)?;
        Answer::new(status, &view)
    })
    .await
}

/// Sends an Env on its way out. Again while it goes changes nothing.
#[utoipa::path(
    delete, path = "/v1/envs/{env}", tag = "envs", operation_id = "destroy_env",
    params(("env" = String, Path, description = "Name of the Env")),
    responses((status = 202, description = "It is going", body = EnvView), Refusals)
)]
pub(super) async fn destroy(
    State(api): State<Api>,
    EnvName(name): EnvName,
) -> Result<Answer, ApiError> {
    api.call(move |config| {
        let view = edit(config, &name, None, |env, vms, _| {
            plan_destroy(env, vms);
            Ok(())
        })?;
        Answer::new(StatusCode::ACCEPTED, &view)
    })
    .await
}

/// Stops every member.
#[utoipa::path(
    post, path = "/v1/envs/{env}/stop", tag = "envs", operation_id = "stop_env",
    params(("env" = String, Path, description = "Name of the Env")),
    request_body = StopRequest,
    responses((status = 200, body = EnvView), Refusals)
)]
pub(super) async fn stop(
    State(api): State<Api>,
    EnvName(name): EnvName,
    JsonBody(request): JsonBody<StopRequest>,
) -> Result<Answer, ApiError> {
    api.call(move |config| Answer::ok(&stop_members(config, &name, None, request)?)).await
}

/// Starts every member.
#[utoipa::path(
    post, path = "/v1/envs/{env}/start", tag = "envs", operation_id = "start_env",
    params(("env" = String, Path, description = "Name of the Env")),
    responses((status = 200, body = EnvView), Refusals)
)]
pub(super) async fn start(
    State(api): State<Api>,
    EnvName(name): EnvName,
) -> Result<Answer, ApiError> {
    api.call(move |config| Answer::ok(&start_members(config, &name, None)?)).await
}

/// Moves the end of an Env away.
#[utoipa::path(
    post, path = "/v1/envs/{env}/extend", tag = "envs", operation_id = "extend_env",
    params(("env" = String, Path, description = "Name of the Env")),
    request_body = ExtendRequest,
    responses((status = 200, body = EnvView), Refusals)
)]
pub(super) async fn extend(
    State(api): State<Api>,
    EnvName(name): EnvName,
    JsonBody(request): JsonBody<ExtendRequest>,
) -> Result<Answer, ApiError> {
    api.call(move |config| {
        let view = edit(config, &name, None, |env, _, _| {
            plan_extend(env, request.life_time, config.access.now_unix_secs(), &config.policy)
        })?;
        Answer::ok(&view)
    })
    .await
}

/// Stops all members, or the one named `only`.
pub(super) fn stop_members(
    config: &ApiConfig,
    name: &str,
    only: Option<&str>,
    request: StopRequest,
) -> Result<EnvView, ApiError> {
    let host = host(config)?;
    edit(config, name, only, |env, vms, whole| {
        let now = config.access.now_unix_secs();
        plan_stop(env, vms, whole, request.mode, &host, now, &config.policy)
    })
}

/// Starts all members, or the one named `only`.
pub(super) fn start_members(
    config: &ApiConfig,
    name: &str,
    only: Option<&str>,
) -> Result<EnvView, ApiError> {
    edit(config, name, only, |env, vms, _| {
        plan_start(env, vms, config.access.now_unix_secs(), &config.policy)
    })
}

/// Changes an Env and its members, or the one named `only`, as `plan` says, in one commit.
///
/// `plan` is also told whether these are all members.
fn edit(
    config: &ApiConfig,
    name: &str,
    only: Option<&str>,
    plan: impl Fn(&mut Env, &mut [Vm], bool) -> Result<(), Refusal>,
) -> Result<EnvView, ApiError> {
    let tables = &config.tables;
    let env = attempt(|| {
        let mut env = env_row(tables, name)?;
        let mut rows = tables.vms_of(&env.value)?;
        if let Some(only) = only {
            rows.retain(|row| row.value.name == only);
            if rows.is_empty() {
                return Err(no_member(&env.value, only).into());
            }
        }
        let before = env.value.clone();
        let mut vms: Vec<Vm> = rows.iter().map(|row| row.value.clone()).collect();
        let whole = vms.len() == before.vm_set.len();
        plan(&mut env.value, &mut vms, whole)?;
        let changed = changed(rows, vms);
        if changed.is_empty() && env.value == before {
            return Ok(Some(env.value));
        }
        let change = Change::new().env(&env)?.vms(&changed)?;
        match tables.commit(&change)? {
            Committed::Done(_) => Ok(Some(env.value)),
            Committed::Conflict => Ok(None),
        }
    })?;
    env_view(tables, env)
}

/// The rows whose Vm is another one now.
fn changed(rows: Vec<Row<Vm>>, vms: Vec<Vm>) -> Vec<Row<Vm>> {
    let pairs = rows.into_iter().zip(vms).filter(|(row, vm)| row.value != *vm);
    pairs.map(|(row, value)| Row { value, revision: row.revision }).collect()
}
