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

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream as BlockingStream;
    use std::path::{Path, PathBuf};
    use tokio::sync::oneshot;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: tt\r\nConnection: close\r\n\r\n";

    struct Served {
        dir: tempfile::TempDir,
        task: tokio::task::JoinHandle<()>,
        stop: Option<oneshot::Sender<()>>,
    }

    impl Served {
        fn new(limits: Limits) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(dir.path().join("s")).unwrap();
            let (stop, stopped) = oneshot::channel();
            let slow = || async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                "slow"
            };
            let router = Router::new().route("/", get(|| async { "hello" })).route("/s", get(slow));
            let shutdown = async { drop(stopped.await) };
            let task = tokio::spawn(serve_within(router, listener, shutdown, limits));
            Self { dir, task, stop: Some(stop) }
        }

        fn socket(&self) -> PathBuf {
            self.dir.path().join("s")
        }
    }

    impl Drop for Served {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    fn ask(socket: &Path, request: &[u8]) -> String {
        let mut stream = BlockingStream::connect(socket).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    async fn asked(socket: PathBuf, request: &'static [u8]) -> String {
        tokio::task::spawn_blocking(move || ask(&socket, request)).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_connection_too_many_is_told_so() {
        let served = Served::new(Limits { connections: 2, ..LIMITS });
        let idle: Vec<_> =
            (0..2).map(|_| BlockingStream::connect(served.socket()).unwrap()).collect();
        let answer = asked(served.socket(), REQUEST).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("ERR_TT_BUSY") && answer.contains("retry-after: 1"), "{answer}");
        drop(idle);
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while !asked(served.socket(), REQUEST).await.ends_with("hello") {
            assert!(std::time::Instant::now() < end, "the places were not given back");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_idle_connection_is_closed() {
        let head_timeout = Duration::from_millis(100);
        let served = Served::new(Limits { head_timeout, ..LIMITS });
        let answer = asked(served.socket(), b"GET / HT").await;
        assert!(!answer.contains("hello"), "{answer}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_under_way_ends_before_the_server_does() {
        let mut served = Served::new(LIMITS);
        let slow = tokio::spawn(asked(served.socket(), b"GET /s HTTP/1.1\r\nHost: tt\r\n\r\n"));
        tokio::time::sleep(Duration::from_millis(100)).await;
        served.stop.take().unwrap().send(()).unwrap();
        (&mut served.task).await.unwrap();
        assert!(slow.await.unwrap().ends_with("slow"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stranger_is_denied() {
        const NOBODY: u32 = 65534;
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED a_stranger_is_denied: only root can become somebody else");
            return;
        }
        let served = Served::new(LIMITS);
        let open = |path: &Path| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
        };
        open(served.dir.path());
        open(&served.socket());
        let socket = served.socket();
        // Of its thread alone, which ends with it.
        let stranger = std::thread::spawn(move || {
            let uid = rustix::process::Uid::from_raw(NOBODY);
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            ask(&socket, REQUEST)
        });
        let answer = tokio::task::spawn_blocking(|| stranger.join().unwrap()).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(answer.contains("ERR_TT_DENIED") && answer.contains("user 65534"), "{answer}");
        assert!(asked(served.socket(), REQUEST).await.ends_with("hello"));
    }

    #[test]
    fn root_and_the_own_user_may_connect() {
        assert!(check_peer(Ok(0), 7).is_ok() && check_peer(Ok(7), 7).is_ok());
        assert!(check_peer(Ok(8), 7).is_err());
        assert!(check_peer(Err(io::ErrorKind::Other.into()), 7).is_err());
    }
}
