//! What TT asks of a Docker daemon (20.10 or later, or what speaks its API), over its unix socket. Calls block, each for a
//! bounded time. It decides nothing, keeps nothing but the version that was agreed on, and starts no program.

mod error;
mod http;
mod model;
mod stream;

pub use error::DockerError;
pub use model::{
    Component, Config, Container, Event, Image, Info, Labels, Limits, Listed, Server, State,
};
pub use stream::{Ender, Events};

use error::bounded;
use http::{Answer, Wire, ask, query};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where Docker listens unless somebody says otherwise.
pub const SOCKET: &str = "/var/run/docker.sock";
/// Where Podman listens by default, if it was told to (`podman.socket`), and answers as Docker does.
pub const PODMAN_SOCKET: &str = "/run/podman/podman.sock";
/// Begins the paths of Podman's own interface: the first version of it that takes new limits.
const LIBPOD: &str = "/v4.3.0/libpod";
/// The version of the API that everything here is written for, and what newer daemons still speak (Docker 25 to 29).
const API: (u32, u32) = (1, 44);
/// The oldest one that has everything that is asked for (Docker 20.10).
const API_MIN: (u32, u32) = (1, 41);

/// Time for what a daemon answers out of its memory.
const QUICK: Duration = Duration::from_secs(10);
/// Time for what starts or ends processes, on a loaded host.
const SLOW: Duration = Duration::from_secs(60);
/// Time for a commit: a diff of all that a container wrote.
const COPY: Duration = Duration::from_secs(3600);
/// Longest pause in the copy of an image.
const PAUSE: Duration = Duration::from_secs(120);
/// Longest document, in bytes: a list of thousands of containers.
const DOCUMENT_BYTES_MAX: u64 = 32 << 20;
/// Longest line of a stream of documents.
const LINE_BYTES_MAX: u64 = 1 << 20;

const JSON: &str = "application/json";

/// A Docker daemon.
#[derive(Debug)]
pub struct Docker {
    socket: PathBuf,
    known: Mutex<Known>,
}

/// What a daemon has said of itself, and says again for as long as it runs.
#[derive(Debug, Default)]
struct Known {
    agreed: Option<Agreed>,
    info: Option<Info>,
}

/// How a daemon is talked to.
#[derive(Clone, Debug)]
struct Agreed {
    /// Begins every path.
    prefix: String,
    is_podman: bool,
}

/// What is asked, and how long it may take.
struct Call<'a> {
    action: &'static str,
    method: &'a str,
    path: String,
    patience: Duration,
}

impl Docker {
    /// A daemon that listens at `socket`, or will. Nothing is asked yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), known: Mutex::default() }
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Which Docker it is; agrees on a version of the API, anew each time: it may have been upgraded meanwhile.
    ///
    /// # Errors
    /// [`DockerError::Version`], or it does not answer.
    pub fn server(&self) -> Result<Server, DockerError> {
        let call = Call {
            action: "ask for its version",
            method: "GET",
            path: "/version".into(),
            patience: QUICK,
        };
        let answer = self.send(&call, JSON, &mut io::empty(), 0)?;
        let server: Server = document(call.action, answer)?;
        *self.known() = Known { agreed: Some(agree(&server)?), info: None };
        Ok(server)
    }

    /// What it works with. It is asked once, and again after [`Docker::server`], [`Docker::events`] or when it did not answer:
    /// it counts all containers for that.
    ///
    /// # Errors
    /// It does not answer.
    pub fn info(&self) -> Result<Info, DockerError> {
        if let Some(info) = self.known().info.clone() {
            return Ok(info);
        }
        let info: Info = self.get("ask what it works with", "/info", QUICK)?;
        self.known().info = Some(info.clone());
        Ok(info)
    }

    /// All containers, whatever their state, that have every one of these labels (`NAME` or `NAME=VALUE`).
    ///
    /// # Errors
    /// It does not answer.
    pub fn containers(&self, labels: &[String]) -> Result<Vec<Listed>, DockerError> {
        let filters = json!({ "label": labels }).to_string();
        let query = query(&[("all", "1"), ("filters", &filters)]);
        self.get("list containers", &format!("/containers/json{query}"), QUICK)
    }

    /// A container, if it is there.
    ///
    /// # Errors
    /// It does not answer.
    pub fn container(&self, name: &str) -> Result<Option<Container>, DockerError> {
        found(self.get("look at a container", &format!("/containers/{name}/json"), QUICK))
    }

    /// Makes a container.
    ///
    /// # Errors
    /// [`DockerError::is_absent`]: its image is not there; [`DockerError::is_conflict`]: the name is taken.
    pub fn create(&self, name: &str, body: &Value) -> Result<(), DockerError> {
        let path = format!("/containers/create{}", query(&[("name", name)]));
        self.post("make a container", path, SLOW, Some(body)).map(drop)
    }

    /// Starts a container; one that runs is fine.
    ///
    /// # Errors
    /// What it says.
    pub fn start(&self, name: &str) -> Result<(), DockerError> {
        self.post("start a container", format!("/containers/{name}/start"), SLOW, None).map(drop)
    }

    /// Sends a signal to its first process, which may be standing still.
    ///
    /// # Errors
    /// [`DockerError::is_conflict`]: it does not run; [`DockerError::is_absent`].
    pub fn kill(&self, name: &str, signal: &str) -> Result<(), DockerError> {
        let path = format!("/containers/{name}/kill{}", query(&[("signal", signal)]));
        self.post("signal a container", path, SLOW, None).map(drop)
    }

    /// Lets it stand still.
    ///
    /// # Errors
    /// [`DockerError::is_conflict`]: it does already, or does not run.
    pub fn pause(&self, name: &str) -> Result<(), DockerError> {
        self.post("pause a container", format!("/containers/{name}/pause"), SLOW, None).map(drop)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// [`DockerError::is_conflict`]: it does already, or does not run.
    pub fn unpause(&self, name: &str) -> Result<(), DockerError> {
        let path = format!("/containers/{name}/unpause");
        self.post("unpause a container", path, SLOW, None).map(drop)
    }

    /// Changes its limits; it has a process.
    ///
    /// # Errors
    /// What it says.
    pub fn update(&self, name: &str, limits: &Limits) -> Result<(), DockerError> {
        let action = "limit a container";
        let Agreed { prefix, is_podman } = self.agreed()?;
        // Docker's `/containers/NAME/update` came with Podman 5.
        let (prefix, body) = match is_podman {
            false => (prefix.as_str(), limits.docker()),
            true => (LIBPOD, limits.oci()),
        };
        let path = format!("{prefix}/containers/{name}/update");
        let (body, call) =
            (body.to_string(), Call { action, method: "POST", path, patience: SLOW });
        self.send(&call, JSON, &mut body.as_bytes(), body.len() as u64).map(drop)
    }

    /// Removes a container without a process, and what it has on anonymous volumes; an absent one is fine.
    ///
    /// # Errors
    /// [`DockerError::is_conflict`]: it has a process, or is being removed.
    pub fn remove(&self, name: &str) -> Result<(), DockerError> {
        let path = format!("/containers/{name}{}", query(&[("v", "1")]));
        found(self.delete("remove a container", path)).map(drop)
    }

    /// An image, by name or id, if it is there.
    ///
    /// # Errors
    /// It does not answer.
    pub fn image(&self, name: &str) -> Result<Option<Image>, DockerError> {
        found(self.get("look at an image", &format!("/images/{name}/json"), QUICK))
    }

    /// All images of the repository `repo`, whatever their tag.
    ///
    /// # Errors
    /// It does not answer.
    pub fn images(&self, repo: &str) -> Result<Vec<Image>, DockerError> {
        let filters = json!({ "reference": [repo] }).to_string();
        let path = format!("/images/json{}", query(&[("filters", &filters)]));
        self.get("list images", &path, QUICK)
    }

    /// Gives an image another name.
    ///
    /// # Errors
    /// [`DockerError::is_absent`].
    pub fn tag(&self, image: &str, repo: &str, tag: &str) -> Result<(), DockerError> {
        let path = format!("/images/{image}/tag{}", query(&[("repo", repo), ("tag", tag)]));
        self.post("name an image", path, SLOW, None).map(drop)
    }

    /// Takes a name from an image, and removes the image with its last name unless a container needs it; an absent one
    /// is fine.
    ///
    /// # Errors
    /// [`DockerError::is_conflict`]: a container was made from it.
    pub fn untag(&self, name: &str) -> Result<(), DockerError> {
        found(self.delete("remove an image", format!("/images/{name}"))).map(drop)
    }

    /// Makes an image of what a container holds now. It is not paused for it.
    ///
    /// # Errors
    /// [`DockerError::is_absent`]; no room.
    pub fn commit(&self, container: &str, repo: &str, tag: &str) -> Result<(), DockerError> {
        let pairs = [("container", container), ("repo", repo), ("tag", tag), ("pause", "0")];
        let path = format!("/commit{}", query(&pairs));
        self.post("commit a container", path, COPY, Some(&json!({}))).map(drop)
    }

    fn get<T: DeserializeOwned>(
        &self,
        action: &'static str,
        path: &str,
        patience: Duration,
    ) -> Result<T, DockerError> {
        let call = Call { action, method: "GET", path: self.path(path)?, patience };
        document(action, self.send(&call, JSON, &mut io::empty(), 0)?)
    }

    fn post(
        &self,
        action: &'static str,
        path: String,
        patience: Duration,
        body: Option<&Value>,
    ) -> Result<Answer, DockerError> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let call = Call { action, method: "POST", path: self.path(&path)?, patience };
        let answer = self.send(&call, JSON, &mut body.as_bytes(), body.len() as u64)?;
        Ok(answer)
    }

    fn delete(&self, action: &'static str, path: String) -> Result<(), DockerError> {
        let call = Call { action, method: "DELETE", path: self.path(&path)?, patience: SLOW };
        self.send(&call, JSON, &mut io::empty(), 0).map(drop)
    }

    /// The path in the version that was agreed on.
    fn path(&self, path: &str) -> Result<String, DockerError> {
        Ok(format!("{}{path}", self.agreed()?.prefix))
    }

    fn agreed(&self) -> Result<Agreed, DockerError> {
        let known = self.known().agreed.clone();
        known.map_or_else(|| agree(&self.server()?), Ok)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(
        &self,
        call: &Call<'_>,
        kind: &str,
        body: &mut dyn Read,
        bytes: u64,
    ) -> Result<Answer, DockerError> {
        let answer = Wire::open(&self.socket, call.patience, true)
            .and_then(|wire| ask(wire, call.method, &call.path, kind, body, bytes));
        checked(call.action, answer.map_err(|e| self.away(call.action, e))?)
    }

    fn away(&self, action: &'static str, source: io::Error) -> DockerError {
        if source.kind() == io::ErrorKind::InvalidData {
            return DockerError::Answer { action, problem: source.to_string() };
        }
        // Another one may be there when it is back.
        *self.known() = Known::default();
        DockerError::Reach { action, socket: self.socket.clone(), source }
    }
}

/// The error in an answer, if it is one. That nothing was to do is none.
fn checked(action: &'static str, answer: Answer) -> Result<Answer, DockerError> {
    let status = answer.status;
    if matches!(status, 200..=299 | 304) {
        return Ok(answer);
    }
    #[derive(Deserialize)]
    struct Message {
        message: String,
    }
    let text = answer.whole(LINE_BYTES_MAX).unwrap_or_default();
    let said = serde_json::from_slice::<Message>(&text).map(|said| said.message);
    let problem = said.unwrap_or_else(|_| String::from_utf8_lossy(&text).into_owned());
    Err(DockerError::Refuse { action, status, problem: bounded(&problem) })
}

fn document<T: DeserializeOwned>(action: &'static str, answer: Answer) -> Result<T, DockerError> {
    let odd = |problem: String| DockerError::Answer { action, problem };
    let text = answer.whole(DOCUMENT_BYTES_MAX).map_err(|e| odd(e.to_string()))?;
    serde_json::from_slice(&text).map_err(|e| odd(e.to_string()))
}

/// None for what is not there.
fn found<T>(result: Result<T, DockerError>) -> Result<Option<T>, DockerError> {
    match result {
        Err(error) if error.is_absent() => Ok(None),
        result => result.map(Some),
    }
}

/// On the newest version that both sides speak.
fn agree(server: &Server) -> Result<Agreed, DockerError> {
    let read = |text: &str| {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let max: Option<(u32, u32)> = read(&server.api_version);
    let min: (u32, u32) = read(&server.min_api_version).unwrap_or(API_MIN);
    match max.map(|max| max.min(API)) {
        Some(agreed) if agreed >= API_MIN && agreed >= min => {
            let prefix = format!("/v{}.{}", agreed.0, agreed.1);
            Ok(Agreed { prefix, is_podman: server.is_podman() })
        }
        _ => Err(DockerError::Version {
            min: bounded(&server.min_api_version),
            max: bounded(&server.api_version),
            wanted_min: format!("{}.{}", API_MIN.0, API_MIN.1),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_agreed_on_that_both_speak() {
        for (min, max, agreed) in [
            ("1.12", "1.41", Some("/v1.41")),
            ("1.24", "1.47", Some("/v1.44")),
            ("1.44", "1.53", Some("/v1.44")),
            ("", "1.43", Some("/v1.43")),
            ("1.12", "1.40", None),
            ("1.50", "1.60", None),
            ("1.12", "", None),
            ("1.12", "2", None),
        ] {
            let server = Server {
                api_version: max.into(),
                min_api_version: min.into(),
                ..Server::default()
            };
            let prefix = agree(&server).ok().map(|agreed| agreed.prefix);
            assert_eq!(prefix.as_deref(), agreed, "{min} to {max}");
        }
    }
}
