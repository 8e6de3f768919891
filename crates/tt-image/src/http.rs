//! HTTP for what templates are made from and pushed to: bounded in time, redirects and pace, and given up as soon as nobody
//! wants it. Calls block; the asynchronous machinery does not leave this folder. A server is a stranger: nothing that it says
//! is believed but by the caller's own digest, and it leads nobody to where only this host can reach.

mod connect;
mod machine;
mod place;
mod upload;

pub(crate) use upload::Upload;

use crate::{ImageError, Progress};
use connect::{connect, trusting};
use http_body_util::{BodyExt, Empty, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT,
};
use hyper::{Method, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use machine::Machine;
use place::Peer;
use rustls::ClientConfig;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tt_model::shown_url;

/// Longest URL; what servers and programs commonly take.
pub(crate) const URL_BYTES_MAX: usize = 2048;
/// How often it is looked whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);
/// Largest head of an answer; hyper's own bound on its buffer would be 400 KiB.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// What is sent along.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What a server may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// To connect, TLS included, and again until the answer's head is there.
    pub(crate) answer: Duration,
    /// In any such span of a body `pace_bytes` must come.
    pub(crate) pace: Duration,
    /// See `pace`.
    pub(crate) pace_bytes: u64,
    /// Redirects that are followed, one after the other.
    pub(crate) redirects_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            // 1 KiB a second: slower is no download but an attack, or a line that is better tried again.
            pace: Duration::from_secs(60),
            pace_bytes: 60 << 10,
            redirects_max: 5,
        }
    }
}

/// What is sent along, made anew for each try.
pub(crate) trait Sent {
    /// It, from its beginning.
    fn body(&self) -> Result<Body, ImageError>;

    /// How much of it is on its way, and of how much, if that is to be told and waited for.
    fn bytes(&self) -> Option<(u64, u64)> {
        None
    }
}

/// Nothing is sent along.
pub(crate) struct Nothing;

impl Sent for Nothing {
    fn body(&self) -> Result<Body, ImageError> {
        Ok(Empty::new().map_err(|never| match never {}).boxed_unsync())
    }
}

/// A client. It keeps no connection: each request has its own.
pub(crate) struct Http {
    runtime: Arc<Machine>,
    limits: Limits,
    tls: Option<Arc<ClientConfig>>,
    /// Where the first server that was asked is: the caller's choice, as no other is.
    home: Option<Peer>,
}

/// An answer whose body is still to come.
pub(crate) struct Response {
    runtime: Arc<Machine>,
    limits: Limits,
    /// Who answered in the end.
    pub(crate) url: Uri,
    /// Its status: whatever it is but a redirect that was followed.
    pub(crate) status: StatusCode,
    /// Its headers.
    pub(crate) headers: HeaderMap,
    body: Incoming,
    span: Instant,
    span_bytes: u64,
}

/// Reads a URL that may be fetched.
///
/// # Errors
/// [`ImageError::Fetch`]: another scheme than `http` and `https`, no host, a password, or too long.
pub(crate) fn parse_url(url: &str) -> Result<Uri, ImageError> {
    let refused = |problem: &str| fetch(url, problem, false);
    if url.len() > URL_BYTES_MAX {
        return Err(refused("it is longer than 2048 bytes"));
    }
    let uri: Uri = url.parse().map_err(|_| refused("it is no URL"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(refused("write http:// or https://"));
    }
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    if authority.contains('@') {
        return Err(refused("a URL with a password would be kept and shown; leave it out"));
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(refused("it has no host"));
    }
    Ok(uri)
}

impl Http {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`ImageError::Run`] if the system gives it no event queue.
    pub(crate) fn new(limits: Limits) -> Result<Self, ImageError> {
        let runtime = Machine::new()
            .map_err(|source| ImageError::Run { program: "fetching".into(), source })?;
        Ok(Self { runtime: Arc::new(runtime), limits, tls: None, home: None })
    }

    /// Sends a request and waits for the head of the answer. Redirects of `GET` and `HEAD` are followed, `Authorization`
    /// stays with the first host, nobody leads from `https` to `http`, and nobody but a server that is there itself leads to
    /// an address that is not of the open network.
    ///
    /// # Errors
    /// [`ImageError::Fetch`], [`ImageError::Unwanted`]. A status that says no is no error.
    pub(crate) fn send(
        &mut self,
        method: &Method,
        url: &str,
        headers: &HeaderMap,
        sent: &dyn Sent,
        progress: &dyn Progress,
    ) -> Result<Response, ImageError> {
        let mut uri = parse_url(url)?;
        let mut headers = headers.clone();
        for _ in 0..=self.limits.redirects_max {
            if uri.scheme_str() == Some("https") && self.tls.is_none() {
                self.tls = Some(trusting()?);
            }
            let (peer, answer) = self.exchange(method, &uri, &headers, sent, progress)?;
            self.home.get_or_insert(peer);
            let is_followed = matches!(*method, Method::GET | Method::HEAD);
            let location = answer.headers().get(LOCATION).filter(|_| is_followed);
            if let (true, Some(location)) = (answer.status().is_redirection(), location) {
                let next = redirected(&uri, location)?;
                if next.authority() != uri.authority() {
                    headers.remove(AUTHORIZATION);
                }
                uri = next;
                continue;
            }
            let (parts, body) = answer.into_parts();
            return Ok(Response {
                runtime: self.runtime.clone(),
                limits: self.limits,
                url: uri,
                status: parts.status,
                headers: parts.headers,
                body,
                span: Instant::now(),
                span_bytes: 0,
            });
        }
        let problem = format!("it redirects more than {} times", self.limits.redirects_max);
        Err(fetch(url, &problem, false))
    }

    fn exchange(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        sent: &dyn Sent,
        progress: &dyn Progress,
    ) -> Result<(Peer, hyper::Response<Incoming>), ImageError> {
        let failed = |error: &dyn std::error::Error| fetch_error(uri, error);
        let connect = connect(uri, self.home, self.tls.clone(), self.limits.answer);
        let (peer, stream) = self.wait(uri, &Nothing, progress, connect)??;
        let mut builder = hyper::client::conn::http1::Builder::new();
        builder.max_buf_size(HEAD_BYTES_MAX);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let host = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let mut request = hyper::Request::builder().method(method).uri(path).header(HOST, host);
        request = request.header(USER_AGENT, concat!("tt/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(sent.body()?).map_err(|error| failed(&error))?;
        let exchange = async move {
            let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
            // It ends with the body, or when that is dropped.
            tokio::spawn(connection);
            sender.send_request(request).await
        };
        let answer = self.wait(uri, sent, progress, exchange)?;
        Ok((peer, answer.map_err(|error| failed(&error))?))
    }

    /// Waits for at most the time that an answer may take, counted from when enough was sent along last, and as long as it is
    /// wanted.
    fn wait<T>(
        &self,
        uri: &Uri,
        sent: &dyn Sent,
        progress: &dyn Progress,
        future: impl Future<Output = T>,
    ) -> Result<T, ImageError> {
        let mut future = pin!(future);
        let (mut begin, mut mark) = (Instant::now(), 0);
        while begin.elapsed() < self.limits.answer {
            progress.check()?;
            if let Some((done, total)) = sent.bytes() {
                progress.bytes(done, Some(total));
                if done >= mark + self.limits.pace_bytes {
                    (begin, mark) = (Instant::now(), done);
                }
            }
            let look = async { tokio::time::timeout(LOOK, future.as_mut()).await };
            if let Ok(done) = self.runtime.block_on(look)? {
                return Ok(done);
            }
        }
        let problem = format!("no answer within {} s", self.limits.answer.as_secs());
        Err(fetch(&uri.to_string(), &problem, true))
    }
}

impl Response {
    /// The next piece of the body; none at its end.
    ///
    /// # Errors
    /// [`ImageError::Fetch`]: cut off, or slower than it may be; [`ImageError::Unwanted`].
    pub(crate) fn piece(&mut self, progress: &dyn Progress) -> Result<Option<Bytes>, ImageError> {
        let Limits { pace, pace_bytes, .. } = self.limits;
        loop {
            progress.check()?;
            if self.span.elapsed() > pace {
                if self.span_bytes < pace_bytes {
                    let problem = format!(
                        "it sent {} bytes in {} s, which is too slow",
                        self.span_bytes,
                        pace.as_secs()
                    );
                    return Err(fetch(&self.url.to_string(), &problem, true));
                }
                (self.span, self.span_bytes) = (Instant::now(), 0);
            }
            let frame = self.body.frame();
            let look = async { tokio::time::timeout(LOOK, frame).await };
            match self.runtime.block_on(look)? {
                Err(_) => {}
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(fetch_error(&self.url, &error)),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.span_bytes += data.len() as u64;
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// A header as text.
    pub(crate) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Where an answer leads (RFC 9110, 10.2.2).
pub(crate) fn redirected(from: &Uri, location: &HeaderValue) -> Result<Uri, ImageError> {
    let refused = |problem: &str| fetch(&from.to_string(), problem, false);
    let to = location.to_str().map_err(|_| refused("it redirects to what is no URL"))?;
    let scheme = from.scheme_str().unwrap_or_default();
    let authority = from.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let has_scheme = to.split_once(':').is_some_and(|(scheme, _)| {
        !scheme.is_empty()
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    });
    let url = if has_scheme {
        to.to_owned()
    } else if to.starts_with("//") {
        format!("{scheme}:{to}")
    } else if to.starts_with('/') {
        format!("{scheme}://{authority}{to}")
    } else {
        let dir = from.path().rsplit_once('/').map_or("", |(dir, _)| dir);
        format!("{scheme}://{authority}{dir}/{to}")
    };
    let uri = parse_url(&url)
        .map_err(|error| refused(&format!("it redirects to what is not allowed: {error}")))?;
    if scheme == "https" && uri.scheme_str() != Some("https") {
        return Err(refused("it redirects from https to http"));
    }
    Ok(uri)
}

fn fetch(url: &str, problem: &str, retry: bool) -> ImageError {
    ImageError::Fetch { url: shown_url(url), problem: problem.to_owned(), retry }
}

/// With the causes, which name what hyper itself does not.
fn fetch_error(uri: &Uri, error: &dyn std::error::Error) -> ImageError {
    let causes = std::iter::successors(error.source(), |error| error.source());
    let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
    fetch(&uri.to_string(), &text, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_urls_are_fetched() {
        for url in ["http://a", "https://a.org:8443/x?y=z", "http://[::1]:80/", "http://10.0.0.1/x"]
        {
            parse_url(url).unwrap();
        }
        let long = format!("http://a/{}", "x".repeat(URL_BYTES_MAX));
        for url in [
            "",
            "a",
            "/etc/passwd",
            "file:///etc/passwd",
            "ftp://a/x",
            "http://",
            "http:///x",
            "http://user:secret@a/x",
            "http://a b/",
            "HTTP",
            "gopher://a",
            &long,
        ] {
            let error = parse_url(url).unwrap_err();
            assert!(!error.is_retryable(), "{url:?}: {error}");
        }
    }

    #[test]
    fn redirects_lead_where_the_standard_says_and_never_down() {
        let lead = |from: &str, to: &str| {
            redirected(&from.parse().unwrap(), &HeaderValue::from_str(to).unwrap())
                .map(|uri| uri.to_string())
                .map_err(|error| error.to_string())
        };
        for (from, to, wanted) in [
            ("http://a/x/y", "http://b/z", "http://b/z"),
            ("http://a:8/x/y", "/z?q", "http://a:8/z?q"),
            ("http://a/x/y", "z", "http://a/x/z"),
            ("https://a/x", "//b/z", "https://b/z"),
            ("http://a/x", "https://a/x", "https://a/x"),
        ] {
            assert_eq!(lead(from, to).unwrap(), wanted);
        }
        for (from, to) in [
            ("http://a/x", "file:///etc/passwd"),
            ("https://a/x", "http://a/x"),
            ("http://a/x", "http://u:p@b/"),
            ("http://a/x", "javascript:alert(1)"),
        ] {
            let error = lead(from, to).unwrap_err();
            assert!(error.contains("it redirects"), "{error}");
        }
    }
}
