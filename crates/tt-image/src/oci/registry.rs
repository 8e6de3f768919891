//! A registry of images (OCI distribution specification 1.1), as a client sees it. What it says is believed only where a
//! digest says the same. Credentials go to the host that they are for and to the place that it names for tokens, never to
//! where it leads to; they are in no message.

mod login;

use super::blob::Digest;
use super::spec::{INDEX, MANIFEST, MANIFEST_BYTES_MAX, refuse};
use crate::http::{Http, Limits, Nothing, Response, Sent, Upload, redirected};
use crate::import::{begins_at, wait};
use crate::{ImageError, Progress};
use hyper::body::Bytes;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE,
    WWW_AUTHENTICATE,
};
use hyper::{Method, StatusCode, Uri};
use login::{Challenge, credentials, secret};
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;
use tt_model::{Reference, Remote, shown_url};

/// What a place for tokens answers; those in use have some kilobytes.
const TOKEN_BYTES_MAX: u64 = 64 << 10;
/// What is shown of a refusal.
const WORDS_BYTES_MAX: u64 = 2 << 10;
/// Tries in a row that bring nothing to speak of before it is given up for now.
pub(super) const TRIES: u32 = 5;

/// How long a registry is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// With each answer.
    pub(super) limits: Limits,
    /// Before it is asked again; each following pause is twice as long.
    pub(super) pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { limits: Limits::default(), pause: Duration::from_millis(500) }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Pull,
    /// With another repository of the same registry, from which what is there already is taken.
    Push {
        from: Option<String>,
    },
}

/// One repository of a registry, asked by one thread.
pub(super) struct Repository<'a> {
    http: Http,
    /// `http://HOST` or `https://HOST`.
    base: String,
    name: String,
    access: Access,
    /// For the registry itself, and for the place that it names for tokens.
    basic: Option<HeaderValue>,
    /// What the registry wants to see.
    authorization: Option<HeaderValue>,
    patience: Patience,
    progress: &'a dyn Progress,
}

impl<'a> Repository<'a> {
    /// Asks nobody yet.
    pub(super) fn open(
        remote: &Remote,
        reference: &Reference,
        access: Access,
        patience: Patience,
        progress: &'a dyn Progress,
    ) -> Result<Self, ImageError> {
        let is_plain = reference.is_local() || remote.plain_http;
        let scheme = if is_plain { "http" } else { "https" };
        let file = remote.credentials.as_ref();
        Ok(Self {
            http: Http::new(patience.limits)?,
            base: format!("{scheme}://{}", reference.server()),
            name: reference.name.clone(),
            access,
            basic: file.map(|file| credentials(Path::new(file), reference)).transpose()?,
            authorization: None,
            patience,
            progress,
        })
    }

    /// A manifest or index: what the registry says that it is, and its bytes, which have the digest that was asked for.
    pub(super) fn manifest(&mut self, version: &str) -> Result<(String, Vec<u8>), ImageError> {
        let url = format!("{}/v2/{}/manifests/{version}", self.base, self.name);
        let mut headers = HeaderMap::new();
        let accept = [MANIFEST, INDEX].concat().join(", ");
        headers.extend(HeaderValue::from_str(&accept).ok().map(|accept| (ACCEPT, accept)));
        let (progress, patience) = (self.progress, self.patience);
        let (media_type, said, content) = patiently(patience, progress, || {
            let answer = self.ask(&Method::GET, &url, &headers, &Nothing, &[StatusCode::OK])?;
            let header = |name: &HeaderName| answer.header(name).map(str::to_owned);
            let media_type = header(&CONTENT_TYPE).unwrap_or_default();
            let said = header(&HeaderName::from_static("docker-content-digest"));
            Ok((media_type, said, read(answer, MANIFEST_BYTES_MAX, progress)?))
        })?;
        let digest = Digest::of(&content).to_string();
        let is_wrong = |said: &str| said.starts_with("sha256:") && said != digest;
        if is_wrong(version) || said.as_deref().is_some_and(is_wrong) {
            let problem = format!("its content has the digest {digest}, which was not promised");
            return Err(refuse(&url, problem));
        }
        // Parameters are of no use here.
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        Ok((media_type, content))
    }

    /// A blob from its byte number `from`. The answer has status 206 if it begins there, 200 if at the beginning, 416 if
    /// nothing is there.
    pub(super) fn blob(&mut self, digest: &Digest, from: u64) -> Result<Response, ImageError> {
        let url = format!("{}/v2/{}/blobs/{digest}", self.base, self.name);
        let mut headers = HeaderMap::new();
        if from > 0 {
            let range = HeaderValue::from_str(&format!("bytes={from}-"));
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let fine = [StatusCode::OK, StatusCode::PARTIAL_CONTENT, StatusCode::RANGE_NOT_SATISFIABLE];
        let answer = self.ask(&Method::GET, &url, &headers, &Nothing, &fine)?;
        if answer.status == StatusCode::PARTIAL_CONTENT && !begins_at(&answer, from) {
            return Err(refuse(&url, "it answers with another part than was asked for"));
        }
        Ok(answer)
    }

    /// Whether it has a blob.
    pub(super) fn has_blob(&mut self, digest: &Digest) -> Result<bool, ImageError> {
        let url = format!("{}/v2/{}/blobs/{digest}", self.base, self.name);
        let fine = [StatusCode::OK, StatusCode::NOT_FOUND];
        let answer = self.ask(&Method::HEAD, &url, &HeaderMap::new(), &Nothing, &fine)?;
        Ok(answer.status == StatusCode::OK)
    }

    /// Brings the file at `path`, which has that digest and length, unless the registry takes it from another repository.
    pub(super) fn put_blob(
        &mut self,
        digest: &Digest,
        path: &Path,
        bytes: u64,
    ) -> Result<(), ImageError> {
        let mut url = format!("{}/v2/{}/blobs/uploads/", self.base, self.name);
        if let Access::Push { from: Some(from) } = &self.access {
            let (mount, from) = (escaped(&digest.to_string()), escaped(from));
            url.push_str(&format!("?mount={mount}&from={from}"));
        }
        let (post, none) = (Method::POST, HeaderMap::new());
        let fine = [StatusCode::ACCEPTED, StatusCode::CREATED];
        let answer = self.ask(&post, &url, &none, &Nothing, &fine)?;
        if answer.status == StatusCode::CREATED {
            return Ok(());
        }
        let nowhere = || refuse(&url, "it does not say where to send it");
        let location = answer.headers.get(LOCATION).ok_or_else(nowhere)?;
        let to = redirected(&answer.url, location)?.to_string();
        let separator = if to.contains('?') { '&' } else { '?' };
        let to = format!("{to}{separator}digest={}", escaped(&digest.to_string()));
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        let upload = Upload::new(path, bytes);
        self.ask(&Method::PUT, &to, &headers, &upload, &[StatusCode::CREATED]).map(drop)
    }

    /// Gives a manifest its tag.
    pub(super) fn put_manifest(
        &mut self,
        tag: &str,
        media_type: &'static str,
        manifest: &[u8],
    ) -> Result<(), ImageError> {
        let url = format!("{}/v2/{}/manifests/{tag}", self.base, self.name);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        let manifest = Bytes::copy_from_slice(manifest);
        self.ask(&Method::PUT, &url, &headers, &manifest, &[StatusCode::CREATED]).map(drop)
    }

    /// Asks, once more with a new token if the registry wants one. Another status than one of the `fine` ones is an error,
    /// with what the registry says about it.
    fn ask(
        &mut self,
        method: &Method,
        url: &str,
        headers: &HeaderMap,
        sent: &dyn Sent,
        fine: &[StatusCode],
    ) -> Result<Response, ImageError> {
        let mut answer = self.send(method, url, headers, sent)?;
        // Who is led to has no say in whom our credentials go to.
        let is_ours = place(&answer.url).is_some_and(|place| place == self.base);
        if answer.status == StatusCode::UNAUTHORIZED && is_ours {
            self.authorize(&answer)?;
            answer = self.send(method, url, headers, sent)?;
        }
        if fine.contains(&answer.status) {
            return Ok(answer);
        }
        let status = answer.status;
        // It is only shown, so a part of it does.
        let words = read(answer, WORDS_BYTES_MAX, self.progress).unwrap_or_default();
        Err(unexpected(url, status, &String::from_utf8_lossy(&words)))
    }

    fn send(
        &mut self,
        method: &Method,
        url: &str,
        headers: &HeaderMap,
        sent: &dyn Sent,
    ) -> Result<Response, ImageError> {
        let mut headers = headers.clone();
        // An upload may go elsewhere, and whoever is there is not to be told.
        let is_ours = url.parse().ok().and_then(|url| place(&url)).is_some_and(|p| p == self.base);
        if let Some(authorization) = self.authorization.as_ref().filter(|_| is_ours) {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        self.http.send(method, url, &headers, sent, self.progress)
    }

    /// Gets leave in the way that the registry asks for by refusing.
    fn authorize(&mut self, answer: &Response) -> Result<(), ImageError> {
        let url = answer.url.to_string();
        let basic = self.basic.clone();
        let value = match answer.header(&WWW_AUTHENTICATE).and_then(Challenge::parse) {
            Some(Challenge::Basic) => basic.ok_or_else(|| {
                denied(&url, "it wants to know who asks: name a file with credentials")
            })?,
            Some(Challenge::Bearer { realm, service }) => {
                let token = self.token(&realm, service.as_deref())?;
                secret(&format!("Bearer {token}"))
                    .ok_or_else(|| denied(&url, "its token is none"))?
            }
            None => return Err(denied(&url, "it wants to be asked in a way that is not known")),
        };
        self.authorization = Some(value);
        Ok(())
    }

    fn token(&mut self, realm: &str, service: Option<&str>) -> Result<String, ImageError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        // A registry that is asked by https must not have a password sent in the clear.
        if self.base.starts_with("https:") && !realm.starts_with("https:") {
            return Err(denied(realm, "a token would be asked for without encryption"));
        }
        let mut scopes = Vec::new();
        match &self.access {
            Access::Pull => scopes.push(format!("repository:{}:pull", self.name)),
            Access::Push { from } => {
                scopes.push(format!("repository:{}:pull,push", self.name));
                scopes.extend(from.as_ref().map(|from| format!("repository:{from}:pull")));
            }
        }
        let mut url = realm.to_owned();
        let scopes = scopes.iter().map(|scope| ("scope", scope.as_str()));
        for (key, value) in service.map(|service| ("service", service)).into_iter().chain(scopes) {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{key}={}", escaped(value)));
        }
        let mut headers = HeaderMap::new();
        headers.extend(self.basic.clone().map(|basic| (AUTHORIZATION, basic)));
        let answer = self.http.send(&Method::GET, &url, &headers, &Nothing, self.progress)?;
        if answer.status != StatusCode::OK {
            let retry = is_passing(answer.status);
            let problem = format!("it gives no token: {}", answer.status);
            return Err(ImageError::Fetch { url: shown_url(realm), problem, retry });
        }
        let json = read(answer, TOKEN_BYTES_MAX, self.progress)?;
        // What is wrong with it may quote it, so that is not said.
        let parsed: Option<Answer> = serde_json::from_slice(&json).ok();
        let token = parsed.and_then(|answer| answer.token.or(answer.access_token));
        token.ok_or_else(|| denied(realm, "it answers without a token"))
    }
}

/// Tries again what may pass by itself.
pub(super) fn patiently<T>(
    patience: Patience,
    progress: &dyn Progress,
    mut once: impl FnMut() -> Result<T, ImageError>,
) -> Result<T, ImageError> {
    let mut tries = 0;
    loop {
        match once() {
            Err(error) if is_passing_error(&error) && tries + 1 < TRIES => {
                tracing::info!(%error, "asking a registry again after a pause");
                wait(patience.pause * 2_u32.pow(tries), progress)?;
                tries += 1;
            }
            done => return done,
        }
    }
}

/// Whether it is for a registry or the way to it to become better.
pub(super) fn is_passing_error(error: &ImageError) -> bool {
    matches!(error, ImageError::Fetch { retry: true, .. })
}

/// The whole of an answer.
fn read(
    mut answer: Response,
    bytes_max: u64,
    progress: &dyn Progress,
) -> Result<Vec<u8>, ImageError> {
    let mut content = Vec::new();
    while let Some(piece) = answer.piece(progress)? {
        if (content.len() + piece.len()) as u64 > bytes_max {
            let url = shown_url(&answer.url.to_string());
            return Err(refuse(&url, format!("it has more than {bytes_max} bytes")));
        }
        content.extend_from_slice(&piece);
    }
    Ok(content)
}

/// Scheme and host of a URL.
fn place(url: &Uri) -> Option<String> {
    Some(format!("{}://{}", url.scheme_str()?, url.authority()?))
}

/// A value as it may stand in a query.
fn escaped(value: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let escape = |b: u8| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") };
    value.bytes().map(escape).collect()
}

fn denied(url: &str, problem: &str) -> ImageError {
    ImageError::Fetch { url: shown_url(url), problem: problem.to_owned(), retry: false }
}

fn is_passing(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

fn unexpected(url: &str, status: StatusCode, words: &str) -> ImageError {
    let words: String = words.chars().filter(|c| !c.is_control()).take(300).collect();
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "; is it there, and may who asks have it? See `--credentials`"
        }
        _ => "",
    };
    let problem = format!("it answers {status} {words}").trim_end().to_owned() + hint;
    ImageError::Fetch { url: shown_url(url), problem, retry: is_passing(status) }
}
