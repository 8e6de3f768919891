//! Routes of Vms.

use super::Api;
use super::edit::{start_members, stop_members};
use super::extract::{JsonBody, VmName, shown};
use super::problem::Refusals;
use super::work::{Answer, member, vm_view, vm_views};
use crate::error::ApiError;
use crate::views::{EnvView, StopRequest, VmList, VmView};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tt_model::check::quoted;
use tt_model::{ErrorCode, Refusal, Traffic};

/// How much of a log is answered without `tail`.
const TAIL_BYTES_DEFAULT: u64 = 16 << 10;
/// Most of a log that is answered at once.
const TAIL_BYTES_MAX: u64 = 1 << 20;

/// All Vms, oldest first.
#[utoipa::path(
    get, path = "/v1/vms", tag = "vms", operation_id = "list_vms",
    responses((status = 200, body = VmList), Refusals)
)]
pub(super) async fn list(State(api): State<Api>) -> Result<Answer, ApiError> {
    api.call(|config| Answer::ok(&VmList { vms: vm_views(&config.tables)? })).await
}

/// A Vm with what its host last saw of it.
#[utoipa::path(
    get, path = "/v1/envs/{env}/vms/{vm}", tag = "vms", operation_id = "show_vm",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm")
    ),
    responses((status = 200, body = VmView), Refusals)
)]
pub(super) async fn show(State(api): State<Api>, name: VmName) -> Result<Answer, ApiError> {
    api.call(move |config| {
        let vm = member(&config.tables, &name.env, &name.vm)?;
        Answer::ok(&vm_view(&config.tables, vm)?)
    })
    .await
}

/// Stops one member of an Env: in the mode asked for, or else as its engine does it best.
#[utoipa::path(
    post, path = "/v1/envs/{env}/vms/{vm}/stop", tag = "vms", operation_id = "stop_vm",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm")
    ),
    request_body = StopRequest,
    responses((status = 200, body = VmView), Refusals)
)]
pub(super) async fn stop(
    State(api): State<Api>,
    name: VmName,
    JsonBody(request): JsonBody<StopRequest>,
) -> Result<Answer, ApiError> {
    api.call(move |config| {
        let env = stop_members(config, &name.env, Some(&name.vm), request)?;
        Answer::ok(&of(env, &name)?)
    })
    .await
}

/// Starts one member of an Env.
#[utoipa::path(
    post, path = "/v1/envs/{env}/vms/{vm}/start", tag = "vms", operation_id = "start_vm",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm")
    ),
    responses((status = 200, body = VmView), Refusals)
)]
pub(super) async fn start(State(api): State<Api>, name: VmName) -> Result<Answer, ApiError> {
    api.call(move |config| {
        let env = start_members(config, &name.env, Some(&name.vm))?;
        Answer::ok(&of(env, &name)?)
    })
    .await
}

/// What may follow the path of a log.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogQuery {
    tail: Option<u64>,
}

/// The end of a Vm's console log.
#[utoipa::path(
    get, path = "/v1/envs/{env}/vms/{vm}/log", tag = "vms", operation_id = "show_log",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm"),
        ("tail" = Option<u64>, Query,
         description = "How many bytes, at most 1048576; 16384 if missing")
    ),
    responses((status = 200, body = String, content_type = "text/plain"), Refusals)
)]
pub(super) async fn log(
    State(api): State<Api>,
    name: VmName,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let tail = tail(query)?;
    let log = api
        .call(move |config| {
            let vm = member(&config.tables, &name.env, &name.vm)?;
            Ok(config.access.console_log(vm.id, tail)?)
        })
        .await?;
    Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], log).into_response())
}

/// What was seen of a Vm's traffic.
#[utoipa::path(
    get, path = "/v1/envs/{env}/vms/{vm}/traffic", tag = "vms", operation_id = "show_traffic",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm")
    ),
    responses((status = 200, body = Traffic), Refusals)
)]
pub(super) async fn traffic(State(api): State<Api>, name: VmName) -> Result<Answer, ApiError> {
    api.call(move |config| {
        let vm = member(&config.tables, &name.env, &name.vm)?;
        Answer::ok(&config.access.traffic(&vm)?)
    })
    .await
}

fn tail(query: Result<Query<LogQuery>, QueryRejection>) -> Result<u64, Refusal> {
    let remedy = format!("use tail=BYTES with at most {TAIL_BYTES_MAX}");
    match query {
        Ok(Query(LogQuery { tail: Some(tail) })) if tail > TAIL_BYTES_MAX => {
            Err(Refusal::new(ErrorCode::Invalid, format!("tail {tail}"), "it is too much", remedy))
        }
        Ok(Query(query)) => Ok(query.tail.unwrap_or(TAIL_BYTES_DEFAULT)),
        Err(rejection) => {
            let problem = shown(&rejection.body_text());
            Err(Refusal::new(ErrorCode::Invalid, "query", problem, remedy))
        }
    }
}

/// The member that was changed; it may have left meanwhile.
pub(super) fn of(env: EnvView, name: &VmName) -> Result<VmView, Refusal> {
    env.vms.into_iter().find(|view| view.vm.name == name.vm).ok_or_else(|| {
        let what = format!("vm {}", quoted(&name.vm));
        Refusal::new(ErrorCode::NotFound, what, "it is gone", "see `tt env ls`")
    })
}
