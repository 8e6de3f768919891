//! Accepting connections: who may connect, how many at once, and how slow they may be.

use super::problem::busy;
use crate::error::Problem;
use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tt_model::{ErrorCode, Refusal};

/// Bounds of the listener.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections served at once.
    connections: usize,
    /// How long a connection may take to send a request's head, or stay idle.
    head_timeout: Duration,
}

const LIMITS: Limits = Limits {
    // Far more than people and tests need, and far below the usual limit of open files.
    connections: 512,
    head_timeout: Duration::from_secs(10),
};

/// Largest head of a request: no name that is allowed comes near it.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Connections that are being told why they are not served. Beyond it they are only closed.
const REFUSALS_MAX: usize = 32;
/// How long such a telling may take.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long requests under way may take to end when the daemon stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);
/// Pause after a connection could not be accepted, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` to root and to the daemon's own user, until `shutdown` is done and requests
/// under way have had two seconds to end. Machines and store are not touched by its end.
pub async fn serve(router: Router, listener: UnixListener, shutdown: impl Future<Output = ()>) {
    serve_within(router, listener, shutdown, LIMITS).await;
}

async fn serve_within(
    router: Router,
    listener: UnixListener,
    shutdown: impl Future<Output = ()>,
    limits: Limits,
) {
    let (closing, closed) = watch::channel(false);
    let door = Door {
        own_uid: rustix::process::geteuid().as_raw(),
        places: Arc::new(Semaphore::new(limits.connections)),
        refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
        limits,
    };
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    door.receive(&mut connections, &router, stream, closed.clone());
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    // It fails if there is no connection.
    let _ = closing.send(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(SHUTDOWN_GRACE, all).await.is_err() {
        tracing::debug!("requests under way were cut off");
    }
}

/// Decides about connections.
struct Door {
    own_uid: u32,
    places: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    limits: Limits,
}

impl Door {
    fn receive(
        &self,
        connections: &mut JoinSet<()>,
        router: &Router,
        stream: UnixStream,
        closed: watch::Receiver<bool>,
    ) {
        match self.admit(&stream) {
            Ok(place) => {
                let service = TowerToHyperService::new(router.clone());
                let head_timeout = self.limits.head_timeout;
                connections.spawn(async move {
                    let _place = place;
                    connection(stream, service, head_timeout, closed).await;
                });
            }
            Err(refusal) => {
                let Ok(place) = Arc::clone(&self.refusals).try_acquire_owned() else { return };
                let problem = Problem::from(refusal);
                connections.spawn(async move {
                    let _place = place;
                    let telling = tell(stream, problem, closed);
                    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, telling).await;
                });
            }
        }
    }

    fn admit(&self, stream: &UnixStream) -> Result<OwnedSemaphorePermit, Refusal> {
        check_peer(stream.peer_cred().map(|peer| peer.uid()), self.own_uid)?;
        Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| busy("connection", format!("{} are open", self.limits.connections)))
    }
}

/// Only root and the daemon's own user may connect.
fn check_peer(uid: io::Result<u32>, own_uid: u32) -> Result<(), Refusal> {
    let what = match uid {
        Ok(uid) if uid == 0 || uid == own_uid => return Ok(()),
        Ok(uid) => format!("user {uid}"),
        Err(_) => "unknown user".to_owned(),
    };
    let problem = format!("only root and user {own_uid} may ask this daemon");
    Err(Refusal::new(ErrorCode::Denied, what, problem, "ask as one of them"))
}

/// Answers the first request with a problem and closes.
async fn tell(stream: UnixStream, problem: Problem, closed: watch::Receiver<bool>) {
    let service = service_fn(move |_: hyper::Request<Incoming>| {
        let mut response = problem.clone().into_response();
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        async move { Ok::<_, Infallible>(response) }
    });
    connection(stream, service, REFUSAL_TIMEOUT, closed).await;
}

async fn connection<S>(
    stream: UnixStream,
    service: S,
    head_timeout: Duration,
    mut closed: watch::Receiver<bool>,
) where
    S: Service<hyper::Request<Incoming>, Response = axum::response::Response, Error = Infallible>
        + Send,
    S::Future: Send + 'static,
{
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new());
    builder.header_read_timeout(head_timeout).max_buf_size(HEAD_BYTES_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let end = tokio::select! {
        end = connection.as_mut() => end,
        _ = closed.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = end {
        tracing::debug!(%error, "a connection ended");
    }
}
