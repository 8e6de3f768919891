//! Routes of hosts, and of the daemon itself.

use super::extract::HostName;
use super::problem::Refusals;
use super::work::Answer;
use super::{Api, openapi};
use crate::error::ApiError;
use crate::views::{HostList, HostView, VerifyReport, VersionView};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use tt_model::check::quoted;
use tt_model::{ErrorCode, Host, Refusal};
use tt_store::tables::Tables;

/// Version of the API.
const API_VERSION: &str = "v1";

/// What answers.
#[utoipa::path(
    get, path = "/v1/version", tag = "hosts", operation_id = "show_version",
    responses((status = 200, body = VersionView), Refusals)
)]
pub(super) async fn version() -> Result<Answer, ApiError> {
    Answer::ok(&VersionView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: API_VERSION.to_owned(),
    })
}

/// This document.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "hosts", operation_id = "show_document",
    responses((status = 200, description = "OpenAPI 3.1", body = Object), Refusals)
)]
pub(super) async fn document() -> Result<Response, ApiError> {
    Ok(([(CONTENT_TYPE, "application/json")], openapi()?).into_response())
}

/// All hosts.
#[utoipa::path(
    get, path = "/v1/hosts", tag = "hosts", operation_id = "list_hosts",
    responses((status = 200, body = HostList), Refusals)
)]
pub(super) async fn list(State(api): State<Api>) -> Result<Answer, ApiError> {
    api.call(|config| {
        let rows = config.tables.hosts()?.into_iter();
        let hosts = rows.map(|row| view(&config.tables, row.value));
        Answer::ok(&HostList { hosts: hosts.collect::<Result<_, _>>()? })
    })
    .await
}

/// A host by its name.
#[utoipa::path(
    get, path = "/v1/hosts/{name}", tag = "hosts", operation_id = "show_host",
    params(("name" = String, Path, description = "Its host name")),
    responses((status = 200, body = HostView), Refusals)
)]
pub(super) async fn show(
    State(api): State<Api>,
    HostName(name): HostName,
) -> Result<Answer, ApiError> {
    api.call(move |config| {
        let mut rows = config.tables.hosts()?.into_iter();
        let row = rows.find(|row| row.value.name == name).ok_or_else(|| {
            let what = format!("host {}", quoted(&name));
            Refusal::new(ErrorCode::NotFound, what, "there is no such host", "see `tt host ls`")
        })?;
        Answer::ok(&view(&config.tables, row.value)?)
    })
    .await
}

/// Compares this daemon's host with the records. Repairs nothing.
#[utoipa::path(
    get, path = "/v1/verify", tag = "hosts", operation_id = "verify",
    responses((status = 200, body = VerifyReport), Refusals)
)]
pub(super) async fn verify(State(api): State<Api>) -> Result<Answer, ApiError> {
    api.call(|config| Answer::ok(&config.access.verify(false)?)).await
}

/// Makes this daemon's host what the records say, as far as that can be done at once, and says what
/// is left.
#[utoipa::path(
    post, path = "/v1/verify", tag = "hosts", operation_id = "repair",
    responses((status = 200, body = VerifyReport), Refusals)
)]
pub(super) async fn repair(State(api): State<Api>) -> Result<Answer, ApiError> {
    api.call(|config| Answer::ok(&config.access.verify(true)?)).await
}

fn view(tables: &Tables, host: Host) -> Result<HostView, ApiError> {
    let usage = tables.usage(host.id)?.map(|row| row.value).unwrap_or_default();
    Ok(HostView::new(host, usage))
}
