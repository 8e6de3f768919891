//! Following an Env. One watch of the store serves all followers; what they hear is only which ids
//! were touched, and each reads again what it needs. No state queues for a slow client.

use super::extract::EnvName;
use super::problem::Refusals;
use super::work::{env_row, env_view};
use super::{Api, ApiConfig};
use crate::error::ApiError;
use crate::views::{EnvView, GoneView};
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedSemaphorePermit, broadcast};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tt_model::{EnvId, VmId};
use tt_store::tables::{Key, Tables};
use tt_store::{Batch, Watch};

/// Commits that a follower may lag behind before it is told to read everything again.
const TOUCHED_QUEUE: usize = 256;
/// Least time between two events of a follower: 20 a second are more than a person can read.
const EVENT_INTERVAL: Duration = Duration::from_millis(50);
/// How often a silent connection is shown to be alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Pause before a store that failed is asked again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What a commit touched.
#[derive(Clone, Debug)]
enum Touched {
    /// These Envs and Vms.
    Ids(Arc<Ids>),
    /// Perhaps everything: the watch was opened anew.
    All,
}

#[derive(Debug, Default)]
struct Ids {
    envs: BTreeSet<EnvId>,
    vms: BTreeSet<VmId>,
}

/// Hands what the one watch brings to all followers.
pub(super) struct Hub {
    touched: broadcast::Sender<Touched>,
    /// Runs the watch; started with the first follower.
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Hub {
    pub(super) fn new() -> Self {
        Self { touched: broadcast::Sender::new(TOUCHED_QUEUE), task: Mutex::new(None) }
    }

    /// What is touched from now on: whoever reads after this misses nothing.
    async fn follow(&self, api: &Api) -> Result<broadcast::Receiver<Touched>, ApiError> {
        let mut task = self.task.lock().await;
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            let tables = api.0.config.tables.clone();
            let watch = api.call(|config| open_watch(&config.tables)).await?;
            *task = Some(tokio::spawn(run(tables, watch, self.touched.clone())));
        }
        Ok(self.touched.subscribe())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut() {
            task.abort();
        }
    }
}

/// Follows an Env: event `env` with its state, at once and after every change of it, a member or
/// a status; event `gone` with its name when its record is gone, and the end. States between two
/// events may be passed over.
#[utoipa::path(
    get, path = "/v1/envs/{env}/events", tag = "envs", operation_id = "follow_env",
    params(("env" = String, Path, description = "Name of the Env")),
    responses(
        (status = 200, description = "Server-sent events; the data of `env`",
         body = EnvView, content_type = "text/event-stream"),
        Refusals
    )
)]
pub(super) async fn follow(
    State(api): State<Api>,
    EnvName(name): EnvName,
) -> Result<Response, ApiError> {
    let session = api.session()?;
    let touched = api.0.hub.follow(&api).await?;
    let env = {
        let name = name.clone();
        api.call(move |config| Ok(env_row(&config.tables, &name)?.value)).await?
    };
    let follower = Follower {
        api,
        env: env.id,
        name,
        members: BTreeSet::new(),
        touched,
        told: None,
        told_at: Instant::now(),
        is_gone: false,
        _session: session,
    };
    let events = stream::unfold(follower, |mut follower| async {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// One client that follows one Env.
struct Follower {
    api: Api,
    env: EnvId,
    name: String,
    members: BTreeSet<VmId>,
    touched: broadcast::Receiver<Touched>,
    /// The state that the client was last told, as JSON.
    told: Option<String>,
    told_at: Instant,
    is_gone: bool,
    _session: OwnedSemaphorePermit,
}

/// An Env's state as it is told.
struct Look {
    json: String,
    members: BTreeSet<VmId>,
}

impl Follower {
    /// The next event; nothing after `gone`, or when the daemon ends.
    async fn next(&mut self) -> Option<Event> {
        if self.is_gone {
            return None;
        }
        // Nothing was told yet: the first look needs no reason.
        let mut is_touched = self.told.is_none();
        loop {
            if !is_touched {
                self.wait().await?;
            }
            let id = self.env;
            match self.api.call(move |config| look(config, id)).await {
                Ok(None) => {
                    self.is_gone = true;
                    let gone = serde_json::to_string(&GoneView { name: self.name.clone() });
                    return Some(Event::default().event("gone").data(gone.unwrap_or_default()));
                }
                Ok(Some(look)) => {
                    is_touched = false;
                    self.members = look.members;
                    if self.told.as_ref() != Some(&look.json) {
                        let event = Event::default().event("env").data(&look.json);
                        self.told = Some(look.json);
                        self.told_at = Instant::now();
                        return Some(event);
                    }
                }
                Err(error) => {
                    tracing::warn!(env = self.name, %error, "an Env can not be followed now");
                    is_touched = true;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Until the Env may have changed and the client may be told again. Nothing if no more comes.
    async fn wait(&mut self) -> Option<()> {
        loop {
            match self.touched.recv().await {
                Ok(touched) if !self.concerns(&touched) => {}
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => break,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
        tokio::time::sleep_until(self.told_at + EVENT_INTERVAL).await;
        // What was touched until here is read by the look that follows.
        self.touched = self.touched.resubscribe();
        Some(())
    }

    fn concerns(&self, touched: &Touched) -> bool {
        match touched {
            Touched::All => true,
            Touched::Ids(ids) => {
                ids.envs.contains(&self.env) || !ids.vms.is_disjoint(&self.members)
            }
        }
    }
}

fn look(config: &ApiConfig, id: EnvId) -> Result<Option<Look>, ApiError> {
    let Some(row) = config.tables.env(id)? else { return Ok(None) };
    let members = row.value.vm_set.clone();
    let json = serde_json::to_string(&env_view(&config.tables, row.value)?)?;
    Ok(Some(Look { json, members }))
}

/// A watch of everything from now on.
fn open_watch(tables: &Tables) -> Result<Watch, ApiError> {
    Ok(tables.watch(tables.revision()?)?)
}

/// Hands on what `watch` brings. One that has ended is opened anew.
async fn run(tables: Tables, mut watch: Watch, touched: broadcast::Sender<Touched>) {
    loop {
        while let Some(batch) = watch.next().await {
            // It fails if there is no follower.
            let _ = touched.send(Touched::Ids(Arc::new(ids(&batch))));
        }
        tracing::debug!("the watch for events has ended; opening another one");
        watch = reopened(&tables).await;
        let _ = touched.send(Touched::All);
    }
}

async fn reopened(tables: &Tables) -> Watch {
    loop {
        let tables = tables.clone();
        match tokio::task::spawn_blocking(move || open_watch(&tables)).await {
            Ok(Ok(watch)) => return watch,
            Ok(Err(error)) => tracing::warn!(%error, "the store can not be watched"),
            Err(error) => tracing::warn!(%error, "the store can not be watched"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

fn ids(batch: &Batch) -> Ids {
    let mut ids = Ids::default();
    for change in &batch.changes {
        match Key::parse(&change.key) {
            Some(Key::Env(id)) => {
                ids.envs.insert(id);
            }
            Some(Key::Vm(id) | Key::Status(id)) => {
                ids.vms.insert(id);
            }
            _ => {}
        }
    }
    ids
}
