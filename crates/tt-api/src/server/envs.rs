//! Routes of Envs.

use super::Api;
use super::create::create_env;
use super::edit::{Which, edit, start_members, stop_members};
use super::extract::{EnvName, JsonBody, RequestKey};
use super::problem::Refusals;
use super::work::{Answer, env_row, env_view, vm_views};
use crate::error::ApiError;
use crate::views::{EnvList, EnvView, ExtendRequest, StopRequest, VmView};
use axum::extract::State;
use axum::http::StatusCode;
use std::collections::BTreeMap;
use tt_model::plan::{plan_destroy, plan_extend};
use tt_model::{Env, EnvId, EnvSpec};
use tt_store::tables::Row;

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
        let view = edit(config, &name, Which::All, |env, vms, _| {
            plan_destroy(env, vms);
            Ok::<_, tt_model::Refusal>(())
        })?;
        Answer::new(StatusCode::ACCEPTED, &view)
    })
    .await
}

/// Stops every member: in the mode asked for, or else as each engine does it best.
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
        let view = edit(config, &name, Which::All, |env, _, _| {
            plan_extend(env, request.life_time, config.access.now_unix_secs(), &config.policy)
        })?;
        Answer::ok(&view)
    })
    .await
}
