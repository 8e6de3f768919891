//! How handlers reach what blocks: on threads of their own, a bounded number at once; and how a
//! change is planned again when it met another one.

use super::problem::busy;
use super::{Api, ApiConfig, SESSIONS_MAX};
use crate::error::ApiError;
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tt_model::check::{PORTS_PER_ENV_MAX, quoted};
use tt_model::{Env, ErrorCode, Host, Refusal, Usage, Vm, VmId, VmStatus};
use tt_store::tables::{Row, Tables};

use crate::views::{EnvView, VmView};

/// Calls to the store and the host at once. The store has one writer and a few readers: more
/// threads would only wait there.
pub(super) const CALLS_MAX: usize = 32;
/// How long a request waits for its turn: many times what a full queue of good calls takes.
const CALL_WAIT: Duration = Duration::from_secs(5);
/// How often a change is planned anew before its client is told.
const ATTEMPTS_MAX: u32 = 16;
/// How much longer each pause between two attempts is than the one before.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(2);
/// How many users a refusal names.
const USERS_NAMED_MAX: usize = 8;

/// An answer with a body of JSON.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    body: Vec<u8>,
}

impl Answer {
    /// Writes `value`. A large one is written on the thread that made it, so that no other request
    /// waits.
    pub(super) fn new<T: Serialize>(status: StatusCode, value: &T) -> Result<Self, ApiError> {
        Ok(Self { status, body: serde_json::to_vec(value)? })
    }

    /// As [`Answer::new`], with status 200.
    pub(super) fn ok<T: Serialize>(value: &T) -> Result<Self, ApiError> {
        Self::new(StatusCode::OK, value)
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

impl Api {
    /// Runs what blocks. It goes on even if the client leaves: a change is committed or not,
    /// never half.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ApiConfig) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = Arc::clone(&self.0.calls).acquire_owned();
        let Ok(Ok(permit)) = tokio::time::timeout(CALL_WAIT, turn).await else {
            return Err(busy("request", format!("{CALLS_MAX} others are under way")).into());
        };
        let api = self.clone();
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&api.0.config)
        })
        .await?
    }

    /// A place among the sessions, for as long as it is held.
    pub(super) fn session(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.0.sessions)
            .try_acquire_owned()
            .map_err(|_| busy("stream", format!("{SESSIONS_MAX} are open")).into())
    }
}

/// Plans and commits until nobody else came between; `None` from `plan` says that somebody did.
pub(super) fn attempt<T>(
    mut plan: impl FnMut() -> Result<Option<T>, ApiError>,
) -> Result<T, ApiError> {
    for attempt in 1..=ATTEMPTS_MAX {
        if let Some(done) = plan()? {
            return Ok(done);
        }
        std::thread::sleep(ATTEMPT_PAUSE * attempt);
    }
    Err(Refusal::new(
        ErrorCode::Conflict,
        "request",
        format!("others changed the same records {ATTEMPTS_MAX} times while it was planned"),
        "try again",
    )
    .into())
}

/// The Env of that name, or the refusal.
pub(super) fn env_row(tables: &Tables, name: &str) -> Result<Row<Env>, ApiError> {
    tables.env_by_name(name)?.ok_or_else(|| {
        let what = format!("env {}", quoted(name));
        Refusal::new(ErrorCode::NotFound, what, "there is no such Env", "see `tt env ls`").into()
    })
}

/// The member of that name, or the refusal.
pub(super) fn member(tables: &Tables, env: &str, vm: &str) -> Result<Vm, ApiError> {
    let env = env_row(tables, env)?.value;
    let mut rows = tables.vms_of(&env)?.into_iter();
    rows.find(|row| row.value.name == vm)
        .map(|row| row.value)
        .ok_or_else(|| no_member(&env, vm).into())
}

/// The refusal of a name that no member has.
pub(super) fn no_member(env: &Env, vm: &str) -> Refusal {
    Refusal::new(
        ErrorCode::NotFound,
        format!("vm {}", quoted(vm)),
        format!("Env {} has no such member", env.name),
        format!("see `tt env show {}`", env.name),
    )
}

/// The host that carries what is planned here.
pub(super) fn host(config: &ApiConfig) -> Result<Host, ApiError> {
    let row = config.tables.host(config.host)?;
    row.map(|row| row.value).ok_or_else(|| {
        let what = format!("host {}", config.host);
        let problem = "its daemon has not registered it yet";
        Refusal::new(ErrorCode::Host, what, problem, "see the daemon's log").into()
    })
}

/// How much of that host is handed out, where a Vm has its share of it.
pub(super) fn usage_row(config: &ApiConfig) -> Result<Row<Usage>, ApiError> {
    let row = config.tables.usage(config.host)?;
    row.ok_or_else(|| {
        let what = format!("host {}", config.host);
        let problem = "there is no record of how much of it is handed out";
        Refusal::new(ErrorCode::Internal, what, problem, "see the daemon's log").into()
    })
}

/// The refusal to remove what others are made from.
pub(super) fn in_use(what: String, users: &[String], remedy: &str) -> Refusal {
    let more = users.len().saturating_sub(USERS_NAMED_MAX);
    let mut named = users[..users.len() - more].join(", ");
    if more > 0 {
        named = format!("{named} and {more} more");
    }
    Refusal::new(ErrorCode::InUse, what, format!("it is used by {named}"), remedy)
}

/// Whether `vms` are within the bound on the published ports of an Env.
pub(super) fn check_ports<'a>(env: &Env, vms: impl Iterator<Item = &'a Vm>) -> Result<(), Refusal> {
    let ports = vms.map(|vm| vm.resource.port_map.len() as u64).sum::<u64>();
    if ports <= PORTS_PER_ENV_MAX {
        return Ok(());
    }
    let what = format!("env {}", quoted(&env.name));
    let problem = format!("it would have {ports} published ports");
    let remedy = format!("publish at most {PORTS_PER_ENV_MAX} in an Env");
    Err(Refusal::new(ErrorCode::Invalid, what, problem, remedy))
}

/// An Env as clients see it.
pub(super) fn env_view(tables: &Tables, env: Env) -> Result<EnvView, ApiError> {
    let rows = tables.vms_of(&env)?;
    let vms = rows.into_iter().map(|row| vm_view(tables, row.value));
    Ok(EnvView::new(env, vms.collect::<Result<_, _>>()?))
}

/// A Vm as clients see it.
pub(super) fn vm_view(tables: &Tables, vm: Vm) -> Result<VmView, ApiError> {
    let status = tables.status(vm.id)?.map(|row| row.value);
    Ok(VmView::new(vm, status))
}

/// All Vms as clients see them, oldest first: two reads of whole tables, whatever their number.
pub(super) fn vm_views(tables: &Tables) -> Result<Vec<VmView>, ApiError> {
    let vms = tables.vms()?;
    let mut statuses: std::collections::HashMap<VmId, VmStatus> =
        tables.statuses()?.into_iter().collect();
    let view = |row: Row<Vm>| {
        let status = statuses.remove(&row.value.id);
        VmView::new(row.value, status)
    };
    Ok(vms.into_iter().map(view).collect())
}
