//! What handlers take from a request, checked before anything is looked up. Every rejection is a
//! refusal with a code.

use crate::error::ApiError;
use crate::wire::IDEMPOTENCY_KEY;
use axum::Json;
use axum::body::{Bytes, HttpBody};
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, MatchedPath, Path, Request, State};
use axum::http::Method;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tt_model::check::{check_name, check_request_key, check_template_name, quoted};
use tt_model::{ErrorCode, Refusal, VmId};

/// Largest body: an Env of 256 members with all their ports has less than 100 KiB.
pub(super) const BODY_BYTES_MAX: usize = 1 << 20;
/// How long a body may take to arrive: a local client sends it at once.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest host name that is looked up (RFC 1035: 253 characters).
const HOST_NAME_BYTES_MAX: usize = 253;
/// Longest text of a parser that is repeated in an answer.
const PARSER_TEXT_CHARS_MAX: usize = 400;

/// `{env}` in a path.
pub(super) struct EnvName(pub String);

/// `{env}` and `{vm}` in a path.
pub(super) struct VmName {
    pub env: String,
    pub vm: String,
}

/// `{env}`, `{vm}` and `{port}` in a path.
pub(super) struct VmPort(pub VmName, pub u16);

/// `{env}` and `{name}` of a snapshot in a path.
pub(super) struct EnvSnapshot {
    pub env: String,
    pub name: String,
}

/// `{env}`, `{vm}` and `{name}` of a snapshot in a path.
pub(super) struct VmSnapshot {
    pub of: VmName,
    pub name: String,
}

/// `{id}` of a kept image.
pub(super) struct ImageId(pub VmId);

/// `{name}` of a template, the rest of a path.
pub(super) struct TemplateName(pub String);

/// `{name}` of a host.
pub(super) struct HostName(pub String);

/// The key of a request that may be repeated.
pub(super) struct RequestKey(pub String);

/// The same, where a request need not have one.
pub(super) struct OptionalKey(pub Option<String>);

/// A body of JSON.
pub(super) struct JsonBody<T>(pub T);

impl<S: Send + Sync> FromRequestParts<S> for EnvName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let name: String = path(parts, state).await?;
        check_name("env", &name)?;
        Ok(Self(name))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for VmName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let (env, vm): (String, String) = path(parts, state).await?;
        check_name("env", &env)?;
        check_name("vm", &vm)?;
        Ok(Self { env, vm })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for VmPort {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let (env, vm, port): (String, String, String) = path(parts, state).await?;
        check_name("env", &env)?;
        check_name("vm", &vm)?;
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let number = port.parse().ok().filter(|number| digits && *number != 0);
        let number = number.ok_or_else(|| {
            let what = format!("port {}", quoted(&port));
            Refusal::new(ErrorCode::Invalid, what, "it is no TCP port", "write 1 to 65535")
        })?;
        Ok(Self(VmName { env, vm }, number))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for EnvSnapshot {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let (env, name): (String, String) = path(parts, state).await?;
        check_name("env", &env)?;
        check_name("snapshot", &name)?;
        Ok(Self { env, name })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for VmSnapshot {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let (env, vm, name): (String, String, String) = path(parts, state).await?;
        check_name("env", &env)?;
        check_name("vm", &vm)?;
        check_name("snapshot", &name)?;
        Ok(Self { of: VmName { env, vm }, name })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for ImageId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id: String = path(parts, state).await?;
        // `u64::from_str` takes a leading `+`; an id has digits only.
        let digits = id.bytes().all(|b| b.is_ascii_digit());
        id.parse().ok().filter(|_| digits).map(Self).ok_or_else(|| {
            let what = format!("image {}", quoted(&id));
            let remedy = "write a number, as `tt image ls` shows it";
            Refusal::new(ErrorCode::Invalid, what, "it is no id", remedy).into()
        })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for TemplateName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let name: String = path(parts, state).await?;
        check_template_name(&name)?;
        Ok(Self(name))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for HostName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let name: String = path(parts, state).await?;
        if name.len() <= HOST_NAME_BYTES_MAX {
            return Ok(Self(name));
        }
        let what = format!("host {}", quoted(&name));
        let remedy = format!("use at most {HOST_NAME_BYTES_MAX} bytes");
        Err(Refusal::new(ErrorCode::Invalid, what, "it is too long", remedy).into())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for RequestKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let key = request_key(parts)?.ok_or_else(|| not_one_key("it is missing"))?;
        Ok(Self(key))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for OptionalKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        request_key(parts).map(Self)
    }
}

fn request_key(parts: &Parts) -> Result<Option<String>, ApiError> {
    let mut values = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(not_one_key("there are several").into());
    }
    let key = String::from_utf8_lossy(value.as_bytes()).into_owned();
    check_request_key(&key)?;
    Ok(Some(key))
}

fn not_one_key(problem: &str) -> Refusal {
    let remedy = "send one that is new, and the same one when the request is repeated";
    Refusal::new(ErrorCode::Request, "header Idempotency-Key", problem, remedy)
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        let body = read_body(request).await?;
        match Json::from_bytes(&body) {
            // Serde takes a list of values for a struct too; whoever sends one has made a mistake.
            Ok(_) if !body.trim_ascii_start().starts_with(b"{") => {
                let remedy = "see /v1/openapi.json for what it takes";
                let problem = "it is no JSON object";
                Err(Refusal::new(ErrorCode::Invalid, "body", problem, remedy).into())
            }
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(malformed(&rejection).into()),
        }
    }
}

/// Refuses a body that says it is too large before anything of it is read, on every route.
pub(super) async fn refuse_large(request: Request, next: Next) -> Response {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    match length.and_then(|length| length.parse::<u64>().ok()) {
        Some(length) if length > BODY_BYTES_MAX as u64 => {
            too_large(&format!("body of {length} bytes")).into_response()
        }
        _ => next.run(request).await,
    }
}

/// Methods and paths, as routes write them, of the requests that have no body.
pub(super) type Bodiless = Arc<BTreeSet<(Method, String)>>;

/// Refuses a body where nothing would read it: whoever sends one expects it to matter.
pub(super) async fn refuse_unread(
    State(bodiless): State<Bodiless>,
    request: Request,
    next: Next,
) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let Some(route) = route.filter(|_| !request.body().is_end_stream()) else {
        return next.run(request).await;
    };
    if !bodiless.contains(&(request.method().clone(), route)) {
        return next.run(request).await;
    }
    let what = format!("body of {} {}", request.method(), quoted(request.uri().path()));
    let remedy = "send it without a body; options stand in the path, see /v1/openapi.json";
    let refusal = Refusal::new(ErrorCode::Request, what, "this request has none", remedy);
    ApiError::from(refusal).into_response()
}

/// A text from outside or from a parser that repeats one, as it may be shown.
pub(super) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(PARSER_TEXT_CHARS_MAX).collect();
    cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

async fn path<T: DeserializeOwned + Send, S: Send + Sync>(
    parts: &mut Parts,
    state: &S,
) -> Result<T, ApiError> {
    match Path::<T>::from_request_parts(parts, state).await {
        Ok(Path(value)) => Ok(value),
        Err(rejection) => Err(Refusal::new(
            ErrorCode::Request,
            format!("path {}", quoted(parts.uri.path())),
            shown(&rejection.body_text()),
            "write names in UTF-8, percent-encoded",
        )
        .into()),
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    const UNSUPPORTED_MEDIA_TYPE: u16 = 415;
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let essence = value.to_str().ok().and_then(|value| value.split(';').next());
    if essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    let refusal = Refusal::new(
        ErrorCode::Request,
        format!("content type {}", quoted(&String::from_utf8_lossy(value.as_bytes()))),
        "a body is JSON here",
        "send application/json",
    );
    Err(ApiError::RefuseAs { status: UNSUPPORTED_MEDIA_TYPE, refusal })
}

async fn read_body(request: Request) -> Result<Bytes, ApiError> {
    const REQUEST_TIMEOUT: u16 = 408;
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large("body")),
        Ok(Err(error)) => Err(Refusal::new(
            ErrorCode::Request,
            "body",
            format!("it can not be read: {}", shown(&error.to_string())),
            "send the request again",
        )
        .into()),
        Err(_) => {
            let problem = format!("it did not arrive within {} s", BODY_TIMEOUT.as_secs());
            let refusal =
                Refusal::new(ErrorCode::Request, "body", problem, "send it without a pause");
            Err(ApiError::RefuseAs { status: REQUEST_TIMEOUT, refusal })
        }
    }
}

fn too_large(what: &str) -> ApiError {
    let remedy = format!("send at most {BODY_BYTES_MAX} bytes");
    Refusal::new(ErrorCode::TooLarge, what, "it is too large", remedy).into()
}

/// Axum's text for a value that does not fit names the field.
fn malformed(rejection: &JsonRejection) -> Refusal {
    let (code, remedy) = match rejection {
        JsonRejection::JsonDataError(_) => {
            (ErrorCode::Invalid, "see /v1/openapi.json for what it takes")
        }
        _ => (ErrorCode::Request, "send one JSON value"),
    };
    Refusal::new(code, "body", shown(&rejection.body_text()), remedy)
}
