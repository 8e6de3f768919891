//! Errors as answers: the status and the text of each. Pure, but for the log line of a failure that
//! is ours.

use crate::error::{ApiError, PROBLEM_CONTENT_TYPE, Problem};
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;
use std::error::Error;
use tt_model::{ErrorCode, Refusal};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};

/// Documents, for every route, that its errors are problems.
pub(super) struct Refusals;

impl utoipa::IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = ResponseBuilder::new()
            .description("A refusal or a failure; `code` says which, `remedy` what to do")
            .content(PROBLEM_CONTENT_TYPE, content)
            .build();
        [("default".to_owned(), response.into())].into()
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self {
            status: status_of(refusal.code).as_u16(),
            code: refusal.code,
            title: title_of(refusal.code).to_owned(),
            detail: format!("{}: {}", refusal.what, refusal.problem),
            remedy: Some(refusal.remedy).filter(|remedy| !remedy.is_empty()),
            retry: refusal.code.is_retryable(),
            retry_after_ms: refusal.retry_after_ms,
        }
    }
}

impl From<ApiError> for Problem {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Refuse(refusal) => refusal.into(),
            ApiError::RefuseAs { status, refusal } => Self { status, ..refusal.into() },
            ApiError::Tables(ref source) => {
                let retry = source.is_retryable();
                let remedy = retry.then_some("try again; if it stays, see the daemon's log");
                Self { retry, ..failure(ErrorCode::Store, &error, remedy) }
            }
            ApiError::Encode(_) | ApiError::Work(_) => {
                failure(ErrorCode::Internal, &error, Some("see the daemon's log"))
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_CONTENT_TYPE));
        if let Some(ms) = self.retry_after_ms {
            headers.insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}

/// A refusal because something is full that empties by itself.
pub(super) fn busy(what: &str, problem: impl Into<String>) -> Refusal {
    /// Long enough for a request to end, short enough for a person to wait.
    const RETRY_AFTER_MS: u64 = 1000;
    let mut refusal = Refusal::new(ErrorCode::Busy, what, problem, "try again in a moment");
    refusal.retry_after_ms = Some(RETRY_AFTER_MS);
    refusal
}

/// A failure of our own, with the whole chain of its causes, which also goes to the log.
fn failure(code: ErrorCode, error: &ApiError, remedy: Option<&str>) -> Problem {
    let mut detail = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        detail = format!("{detail}: {cause}");
        source = cause.source();
    }
    tracing::error!(%code, detail, "request failed");
    Problem {
        status: status_of(code).as_u16(),
        code,
        title: title_of(code).to_owned(),
        detail,
        remedy: remedy.map(str::to_owned),
        retry: code.is_retryable(),
        retry_after_ms: None,
    }
}

/// The HTTP status of each code.
fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::Invalid | ErrorCode::LifeTime | ErrorCode::Request => StatusCode::BAD_REQUEST,
        ErrorCode::Denied => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::Exists | ErrorCode::InUse | ErrorCode::State | ErrorCode::Conflict => {
            StatusCode::CONFLICT
        }
        ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::Unsupported => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::TooSoon => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Busy | ErrorCode::Agent => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
        ErrorCode::Store
        | ErrorCode::SetNet
        | ErrorCode::UnsetNet
        | ErrorCode::CreateImage
        | ErrorCode::DestroyImage
        | ErrorCode::StartVm
        | ErrorCode::StopVm
        | ErrorCode::Exited
        | ErrorCode::Guest
        | ErrorCode::Template
        | ErrorCode::SnapshotCreate
        | ErrorCode::SnapshotDestroy
        | ErrorCode::SnapshotApply
        | ErrorCode::UpdateVm
        | ErrorCode::MetaCreate
        | ErrorCode::MetaRemove
        | ErrorCode::MetaRestore
        | ErrorCode::Host
        | ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The short meaning of each code.
fn title_of(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Invalid => "A value in the request is not allowed",
        ErrorCode::NotFound => "There is no such thing",
        ErrorCode::Exists => "The name is taken",
        ErrorCode::InUse => "It is in use",
        ErrorCode::State => "Its present state does not allow it",
        ErrorCode::TooSoon => "Too soon after the last management call",
        ErrorCode::NoRoom => "The host has no room for it",
        ErrorCode::Unsupported => "The engine, template or host can not do it",
        ErrorCode::LifeTime => "The lifetime is not allowed",
        ErrorCode::Request => "The request is not understood",
        ErrorCode::TooLarge => "The request is too large",
        ErrorCode::Conflict => "Others changed the same records",
        ErrorCode::Busy => "Too many such requests are under way",
        ErrorCode::Agent => "The guest's agent does not answer",
        ErrorCode::Denied => "The caller may not do this",
        ErrorCode::Store => "The store failed",
        ErrorCode::SetNet => "The network could not be set",
        ErrorCode::UnsetNet => "The network could not be unset",
        ErrorCode::CreateImage => "The runtime image could not be made",
        ErrorCode::DestroyImage => "The runtime image could not be removed",
        ErrorCode::StartVm => "The machine could not be started",
        ErrorCode::StopVm => "The machine could not be stopped",
        ErrorCode::Exited => "The machine ended by itself",
        ErrorCode::Guest => "The guest could not be set up",
        ErrorCode::Template => "The template could not be made or read",
        ErrorCode::SnapshotCreate => "The snapshot could not be taken",
        ErrorCode::SnapshotDestroy => "The snapshot could not be removed",
        ErrorCode::SnapshotApply => "The snapshot could not be applied",
        ErrorCode::UpdateVm => "The machine could not be updated",
        ErrorCode::MetaCreate => "A meta could not be written",
        ErrorCode::MetaRemove => "A meta could not be removed",
        ErrorCode::MetaRestore => "A meta could not be read, or is not what was written",
        ErrorCode::Host => "The host lacks something",
        ErrorCode::Internal => "A defect of TT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_an_error_status_and_its_own_title() {
        let mut titles: Vec<_> = ErrorCode::ALL.iter().map(|code| title_of(*code)).collect();
        titles.sort_unstable();
        titles.dedup();
        assert_eq!(titles.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            let status = status_of(*code);
            assert!(status.is_client_error() || status.is_server_error(), "{code}");
        }
    }

    #[test]
    fn a_refusal_keeps_its_facts_and_says_when_to_retry() {
        let problem = Problem::from(busy("streams", "256 are open"));
        assert_eq!(problem.status, 503);
        assert_eq!(
            problem.to_string(),
            "streams: 256 are open; try again in a moment (ERR_TT_BUSY)"
        );
        let response = problem.into_response();
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_CONTENT_TYPE);
    }
}
