//! How a registry answers: as it should, and as it must not.

mod tricks;

use super::super::digest;
use super::Door;
use super::store::{Asked, Store};
use crate::Must;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, Response, header};
use serde_json::json;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot::Receiver;
use tricks::{played, status, with};

/// Largest body of a request.
const BODY_BYTES_MAX: usize = 1 << 30;
/// The token that is given to who may come in.
const TOKEN: &str = "tkn-4711";

/// What of its answers is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Documents.
    Manifests,
    /// Contents.
    Blobs,
    /// The place for tokens.
    Tokens,
    /// The beginning of an upload.
    Uploads,
    /// The end of an upload.
    Ends,
}

/// In which way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trick {
    /// One bit is another one.
    Other,
    /// It ends in the middle, although more was promised.
    Cut,
    /// It goes on for ever.
    Endless,
    /// A byte comes now and then.
    Slow,
    /// Nothing comes at all.
    Silent,
    /// So many bytes come.
    Huge(usize),
    /// Another status, with one header.
    Status(u16, &'static str, String),
    /// The right answer, with one header set.
    Header(&'static str, String),
    /// Another body.
    Body(String),
    /// It leads to that place.
    Redirect(String),
    /// It leads to itself.
    Loop,
    /// Another part than was asked for.
    OtherRange,
    /// It does not know of parts.
    NoRange,
}

type Shared = Arc<Mutex<Store>>;

/// Serves until the other end of `ended` is gone.
pub(super) fn serve(listener: TcpListener, store: &Shared, ended: Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let router = Router::new().fallback(take).with_state(store.clone());
    runtime.must("make a runtime").block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).must("listen");
        tokio::select! {
            served = axum::serve(listener, router) => served.must("serve"),
            _ = ended => {}
        }
    });
}

async fn take(State(store): State<Shared>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    // Who sends is one of the things that are tested, and may be gone.
    let body = to_bytes(body, BODY_BYTES_MAX).await.unwrap_or_default();
    let text = |name: HeaderName| Some(parts.headers.get(name)?.to_str().ok()?.to_owned());
    let asked = Asked {
        method: parts.method.to_string(),
        path: parts.uri.to_string(),
        authorization: text(header::AUTHORIZATION),
        range: text(header::RANGE),
        bytes: body.len(),
    };
    let response = {
        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
        store.asked.push(asked.clone());
        answer(&mut store, &parts.method, parts.uri.path(), &asked, &parts.headers, body)
    };
    if response.extensions().get::<Never>().is_some() {
        std::future::pending::<()>().await;
    }
    response
}

/// Marks an answer that is not to be given.
#[derive(Clone)]
struct Never;

fn answer(
    store: &mut Store,
    method: &Method,
    path: &str,
    asked: &Asked,
    headers: &HeaderMap,
    body: Bytes,
) -> Response<Body> {
    if path == "/token" {
        return token(store, asked);
    }
    if let Some(refused) = refusal(store, asked) {
        return refused;
    }
    let Some((name, rest)) = split(path) else { return status(404) };
    match (method, rest) {
        (&Method::GET, Place::Manifest(version)) => {
            let Some((media_type, json)) = store.manifest(name, version) else {
                return status(404);
            };
            let trick = store.trick(Part::Manifests);
            played(trick, asked, &media_type, json)
        }
        (&Method::PUT, Place::Manifest(tag)) => {
            let media_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
            store.put_manifest(name, tag, media_type.unwrap_or_default(), body.to_vec());
            status(201)
        }
        (&Method::HEAD, Place::Blob(digest)) => {
            status(if store.blob(name, digest).is_some() { 200 } else { 404 })
        }
        (&Method::GET, Place::Blob(digest)) => {
            let Some(blob) = store.blob(name, digest) else { return status(404) };
            let trick = store.trick(Part::Blobs);
            played(trick, asked, "application/octet-stream", blob)
        }
        (&Method::POST, Place::Uploads) => begin_upload(store, name, asked),
        (&Method::PUT, Place::Upload) => end_upload(store, name, asked, body),
        _ => status(404),
    }
}

fn begin_upload(store: &mut Store, name: &str, asked: &Asked) -> Response<Body> {
    if let trick @ Some(_) = store.trick(Part::Uploads) {
        return played(trick, asked, "text/plain", Vec::new());
    }
    if let (Some(wanted), Some(from)) = (query(asked, "mount"), query(asked, "from"))
        && store.mount(name, &from, &wanted)
    {
        return status(201);
    }
    let place = format!("/v2/{name}/blobs/uploads/{}?state=s", store.upload());
    with(202, header::LOCATION.as_str(), &place)
}

fn end_upload(store: &mut Store, name: &str, asked: &Asked, body: Bytes) -> Response<Body> {
    if let trick @ Some(_) = store.trick(Part::Ends) {
        return played(trick, asked, "text/plain", Vec::new());
    }
    let is_right = query(asked, "digest") == Some(digest(&body));
    if is_right {
        store.put_blob(name, body.to_vec());
    }
    status(if is_right { 201 } else { 400 })
}

fn token(store: &mut Store, asked: &Asked) -> Response<Body> {
    let basic = |credentials: &String| Some(format!("Basic {credentials}")) == asked.authorization;
    match &store.door {
        Door::Token(Some(credentials)) if !basic(credentials) => status(401),
        _ => {
            let json = json!({ "token": TOKEN, "expires_in": 300 }).to_string().into_bytes();
            let trick = store.trick(Part::Tokens);
            played(trick, asked, "application/json", json)
        }
    }
}

/// Whoever may not come in is told how he might.
fn refusal(store: &Store, asked: &Asked) -> Option<Response<Body>> {
    let given = asked.authorization.as_deref().unwrap_or_default();
    let (wanted, challenge) = match &store.door {
        Door::Open => return None,
        Door::Basic(credentials) => {
            (format!("Basic {credentials}"), "Basic realm=\"test\"".to_owned())
        }
        Door::Token(_) => {
            let realm = format!("http://{}/token", store.address);
            (format!("Bearer {TOKEN}"), format!("Bearer realm=\"{realm}\",service=\"test\""))
        }
    };
    (given != wanted).then(|| with(401, header::WWW_AUTHENTICATE.as_str(), &challenge))
}

/// What a path means.
enum Place<'a> {
    Manifest(&'a str),
    Blob(&'a str),
    Uploads,
    Upload,
}

/// The repository of a path, and what of it.
fn split(path: &str) -> Option<(&str, Place<'_>)> {
    let rest = path.strip_prefix("/v2/")?;
    if let Some((name, version)) = rest.rsplit_once("/manifests/") {
        return Some((name, Place::Manifest(version)));
    }
    if let Some((name, id)) = rest.rsplit_once("/blobs/uploads/") {
        return Some((name, if id.is_empty() { Place::Uploads } else { Place::Upload }));
    }
    rest.rsplit_once("/blobs/").map(|(name, digest)| (name, Place::Blob(digest)))
}

fn query(asked: &Asked, key: &str) -> Option<String> {
    let (_, query) = asked.path.split_once('?')?;
    let (_, value) =
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key)?;
    Some(value.replace("%3A", ":").replace("%2F", "/"))
}
