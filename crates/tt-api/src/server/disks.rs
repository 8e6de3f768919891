//! The route by which a template's disk leaves: streamed as it is read, so that any client gets it, and none can make the
//! daemon hold much of it.

use super::extract::{TemplateName, shown};
use super::problem::{Refusals, busy};
use super::templates::row;
use super::{Api, ApiConfig};
use crate::access::{Disk, DiskForm};
use crate::error::ApiError;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::Response;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use futures_util::stream;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tt_model::check::quoted;
use tt_model::template::FEATURE_DISK;
use tt_model::{ErrorCode, Refusal};
use utoipa::IntoParams;

/// Bytes in one piece of the stream, and pieces that wait for a slow client.
const PIECE_BYTES: usize = 256 << 10;
const PIECES: usize = 4;
/// Disks that are sent at once: each keeps a thread and a reader of the host's disk busy.
const SENDS_MAX: usize = 16;
/// How long a client may take for one piece: it keeps the template from being removed meanwhile.
const PIECE_WAIT: Duration = Duration::from_secs(60);

/// Which templates are being read. It is no record: who reads has the file open, and reads it to its end whatever becomes
/// of the template; that it stays is for those who are about to remove it.
#[derive(Clone, Default)]
pub(super) struct Readers(Arc<Mutex<BTreeMap<String, usize>>>);

/// A place among them, for as long as it is held.
struct Reading {
    readers: Readers,
    name: String,
}

impl Readers {
    /// Does what takes a template away, unless somebody reads it; nobody begins to meanwhile.
    pub(super) fn unless_read<T>(
        &self,
        name: &str,
        act: impl FnOnce() -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let readers = self.lock();
        let Some(number) = readers.get(name) else { return act() };
        let what = format!("template {}", quoted(name));
        let problem = format!("it is being exported ({number} at once)");
        Err(Refusal::new(ErrorCode::InUse, what, problem, "try again when that is done").into())
    }

    fn begin(&self, name: &str) -> Result<Reading, Refusal> {
        let mut readers = self.lock();
        if readers.values().sum::<usize>() >= SENDS_MAX {
            return Err(busy("export", format!("{SENDS_MAX} others are under way")));
        }
        *readers.entry(name.to_owned()).or_default() += 1;
        Ok(Reading { readers: self.clone(), name: name.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut readers = self.readers.lock();
        if let Some(number) = readers.get_mut(&self.name) {
            *number -= 1;
            if *number == 0 {
                readers.remove(&self.name);
            }
        }
    }
}

/// How a disk is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskQuery {
    /// Its form; `raw` without one.
    #[serde(default)]
    format: DiskForm,
}

/// The disk of a template.
#[utoipa::path(
    get, path = "/v1/disks/{*name}", tag = "templates", operation_id = "export_template",
    params(
        ("name" = String, Path, description = "Name of the template, with its slashes as they are"),
        ("format" = Option<DiskForm>, Query, description = "Its form; `raw` without one")
    ),
    responses(
        (status = 200, description = "The disk; cut off if it can not be read to its end", content_type = "application/octet-stream"),
        Refusals
    )
)]
pub(super) async fn send(
    State(api): State<Api>,
    TemplateName(name): TemplateName,
    query: Result<Query<DiskQuery>, QueryRejection>,
) -> Result<Response<Body>, ApiError> {
    let Query(DiskQuery { format }) = query.map_err(|rejection| {
        let remedy = "write format=raw, format=qcow2 or format=sparse";
        Refusal::new(ErrorCode::Invalid, "query", shown(&rejection.body_text()), remedy)
    })?;
    let session = api.session()?;
    let readers = api.0.readers.clone();
    let (disk, reading) = api.call(move |config| open(config, &readers, &name, format)).await?;
    let bytes = disk.bytes;
    let (to, mut from) = mpsc::channel(PIECES);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        // As long as it is sent.
        let _held = (session, reading);
        send_all(disk, &to, &runtime);
    });
    let body = Body::from_stream(stream::poll_fn(move |context| from.poll_recv(context)));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Some(bytes) = bytes {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    }
    Ok(response)
}

fn open(
    config: &ApiConfig,
    readers: &Readers,
    name: &str,
    form: DiskForm,
) -> Result<(Disk, Reading), ApiError> {
    let reading = readers.begin(&row(&config.tables, name)?.value.name)?;
    // Read again: from here on nobody removes it.
    let record = row(&config.tables, &reading.name)?.value;
    let Some(template) = record.template.filter(|_| record.is_wanted) else {
        let what = format!("template {}", quoted(&record.name));
        let remedy = format!("see `tt template show {}`", record.name);
        return Err(Refusal::new(ErrorCode::State, what, "it is not ready", remedy).into());
    };
    if !template.has(FEATURE_DISK) {
        let what = format!("template {}", quoted(&template.name));
        let problem = format!("it has no disk, only {}", template.features.join(", "));
        let remedy = "export one that has the feature `disk`: see `tt template show`";
        return Err(Refusal::new(ErrorCode::Unsupported, what, problem, remedy).into());
    }
    Ok((config.access.disk(&template, form)?, reading))
}

/// Sends until the end, an error, or the client is gone or takes nothing any more.
fn send_all(mut disk: Disk, to: &mpsc::Sender<io::Result<Bytes>>, runtime: &Handle) {
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let read = match disk.content.read(&mut piece) {
            Ok(0) => return,
            Ok(len) => {
                piece.truncate(len);
                Ok(Bytes::from(piece))
            }
            Err(error) => {
                tracing::warn!(%error, "a disk can not be read to its end");
                Err(error)
            }
        };
        let is_over = read.is_err();
        match runtime.block_on(tokio::time::timeout(PIECE_WAIT, to.send(read))) {
            Ok(Ok(())) if !is_over => {}
            Ok(_) => return,
            Err(_) => {
                tracing::warn!("a disk is not sent on: its client takes nothing");
                return;
            }
        }
    }
}
