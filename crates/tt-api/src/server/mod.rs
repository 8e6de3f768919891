//! The server: check, plan, one commit. Handlers hold nothing between requests; what they answer
//! is committed state.

mod create;
mod disks;
mod edit;
mod envs;
mod events;
mod extract;
mod ground;
mod hosts;
mod images;
mod members;
mod problem;
mod pushes;
mod serve;
mod snapshots;
mod streams;
mod templates;
mod vms;
mod work;

pub use serve::serve;

use crate::access::{DiskForm, HostAccess};
use crate::error::{ApiError, Problem};
use crate::views::{GoneView, StreamEnd, StreamOpened};
use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use events::Hub;
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Mutex, Semaphore};
use tt_model::check::quoted;
use tt_model::plan::Policy;
use tt_model::{ErrorCode, HostId, Refusal};
use tt_store::tables::Tables;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Most event streams, streams and consoles at once: each holds a connection for as long as its
/// client likes.
pub const SESSIONS_MAX: usize = 256;

/// What an [`Api`] is made from.
#[derive(Clone)]
pub struct ApiConfig {
    /// The records.
    pub tables: Tables,
    /// The host beside the records.
    pub access: Arc<dyn HostAccess>,
    /// The administrator's choices.
    pub policy: Policy,
    /// The host that carries what is planned here.
    pub host: HostId,
}

/// What all handlers share.
#[derive(Clone)]
pub struct Api(Arc<Shared>);

struct Shared {
    config: ApiConfig,
    /// Calls to the store and the host that block a thread.
    calls: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
    /// Changes of what the host hands out take their turn: all of them change the same counters, so side by side they would
    /// only make each other plan again.
    creating: Mutex<()>,
    hub: Hub,
    readers: disks::Readers,
}

impl Api {
    /// Starts nothing and reads nothing yet.
    pub fn new(config: ApiConfig) -> Self {
        Self(Arc::new(Shared {
            config,
            calls: Arc::new(Semaphore::new(work::CALLS_MAX)),
            sessions: Arc::new(Semaphore::new(SESSIONS_MAX)),
            creating: Mutex::new(()),
            hub: Hub::new(),
            readers: disks::Readers::default(),
        }))
    }
}

/// All routes. What no route takes is answered with a problem too.
pub fn router(api: Api) -> Router {
    let (router, document) = documented().split_for_parts();
    let bodiless: extract::Bodiless = Arc::new(bodiless(&document));
    router
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(bodiless, extract::refuse_unread))
        .layer(from_fn(extract::refuse_large))
        .with_state(api)
}

/// The requests that have no body, as the document says.
fn bodiless(document: &utoipa::openapi::OpenApi) -> BTreeSet<(Method, String)> {
    let mut found = BTreeSet::new();
    for (path, item) in &document.paths.paths {
        for (method, operation) in [
            (Method::GET, &item.get),
            (Method::PUT, &item.put),
            (Method::POST, &item.post),
            (Method::PATCH, &item.patch),
            (Method::DELETE, &item.delete),
        ] {
            if operation.as_ref().is_some_and(|operation| operation.request_body.is_none()) {
                found.insert((method, path.clone()));
            }
        }
    }
    found
}

/// The OpenAPI document of all routes, as it is served.
///
/// # Errors
/// If it can not be written as JSON.
pub fn openapi() -> Result<String, serde_json::Error> {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    if let Some(document) = DOCUMENT.get() {
        return Ok(document.clone());
    }
    let mut document = documented().into_openapi();
    // In axum's routes a star marks the rest of a path; OpenAPI does not know it.
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths =
        paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    let text = document.to_pretty_json()? + "\n";
    Ok(DOCUMENT.get_or_init(|| text).clone())
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "TT",
        version = "v1",
        description = "Envs: sets of virtual machines that live, stop and end together.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    components(schemas(DiskForm, Problem, GoneView, StreamOpened, StreamEnd))
)]
struct Document;

fn documented() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(hosts::version))
        .routes(routes!(hosts::document))
        .routes(routes!(hosts::list))
        .routes(routes!(hosts::show))
        .routes(routes!(hosts::verify, hosts::repair))
        .routes(routes!(envs::list))
        .routes(routes!(envs::show, envs::create, envs::destroy))
        .routes(routes!(envs::stop))
        .routes(routes!(envs::start))
        .routes(routes!(envs::extend))
        .routes(routes!(events::follow))
        .routes(routes!(members::deny_all))
        .routes(routes!(members::allow_all))
        .routes(routes!(members::add))
        .routes(routes!(vms::list))
        .routes(routes!(vms::show, members::update, members::remove))
        .routes(routes!(vms::stop))
        .routes(routes!(vms::start))
        .routes(routes!(vms::log))
        .routes(routes!(vms::traffic))
        .routes(routes!(members::deny_one))
        .routes(routes!(members::allow_one))
        .routes(routes!(streams::open))
        .routes(routes!(streams::console))
        .routes(routes!(streams::connect))
        .routes(routes!(snapshots::list, snapshots::create))
        .routes(routes!(snapshots::remove))
        .routes(routes!(snapshots::apply))
        .routes(routes!(snapshots::list_one, snapshots::create_one))
        .routes(routes!(snapshots::remove_one))
        .routes(routes!(snapshots::apply_one))
        .routes(routes!(images::list))
        .routes(routes!(images::remove))
        .routes(routes!(templates::list, templates::make))
        .routes(routes!(templates::show, templates::remove))
        .routes(routes!(disks::send))
        .routes(routes!(pushes::begin))
        .routes(routes!(pushes::stop))
}

async fn no_path(uri: Uri) -> ApiError {
    const NOT_FOUND: u16 = 404;
    let what = format!("path {}", quoted(uri.path()));
    let remedy = "see /v1/openapi.json for those there are";
    let refusal = Refusal::new(ErrorCode::Request, what, "there is no such path", remedy);
    ApiError::RefuseAs { status: NOT_FOUND, refusal }
}

async fn no_method(method: Method, uri: Uri) -> ApiError {
    const METHOD_NOT_ALLOWED: u16 = 405;
    let what = format!("{} {}", quoted(method.as_str()), quoted(uri.path()));
    let remedy = "use one of those in the header Allow";
    let refusal = Refusal::new(ErrorCode::Request, what, "the path has no such method", remedy);
    ApiError::RefuseAs { status: METHOD_NOT_ALLOWED, refusal }
}
