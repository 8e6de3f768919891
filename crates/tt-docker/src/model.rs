//! What of Docker's documents TT reads. Every field may be missing: daemons of ten years answer.

use serde::Deserialize;
use std::collections::BTreeMap;

/// Labels of a container or an image.
pub type Labels = BTreeMap<String, String>;

/// Which Docker it is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "PascalCase")]
pub struct Server {
    /// E.g. `20.10.24`.
    pub version: String,
    /// The newest version of the API that it speaks.
    pub api_version: String,
    /// The oldest one.
    #[serde(rename = "MinAPIVersion")]
    pub min_api_version: String,
}

/// What it works with.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "PascalCase")]
pub struct Info {
    /// What keeps the layers, e.g. `overlay2`.
    pub driver: String,
    /// What that says of itself: names and values.
    pub driver_status: Option<Vec<(String, String)>>,
    /// Where it keeps everything.
    pub docker_root_dir: String,
    /// E.g. `name=seccomp,profile=default`.
    pub security_options: Option<Vec<String>>,
}

impl Info {
    /// Whether a container's users are others on the host.
    #[must_use]
    pub fn remaps_users(&self) -> bool {
        let options = self.security_options.iter().flatten();
        let names = options.filter_map(|option| option.split(',').next());
        names.into_iter().any(|name| matches!(name, "name=userns" | "name=rootless"))
    }
}

/// A container in a list.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "PascalCase")]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// Its names, each with a slash before it.
    pub names: Option<Vec<String>>,
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
    pub state: String,
    /// Its labels.
    pub labels: Option<Labels>,
}

impl Listed {
    /// Whether there is a process.
    #[must_use]
    pub fn has_process(&self) -> bool {
        has_process(&self.state)
    }

    /// A label's value.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// Its name without the slash.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.names.as_ref()?.first().map(|name| name.trim_start_matches('/'))
    }
}

/// A container.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "PascalCase")]
pub struct Container {
    /// Its id.
    pub id: String,
    /// How it is.
    pub state: State,
    /// What it was made with.
    pub config: Config,
    /// The image's id.
    pub image: String,
}

/// How a container is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "PascalCase")]
pub struct State {
    /// As in [`Listed::state`].
    pub status: String,
    /// Its first process, as the host numbers it; 0 if there is none.
    pub pid: u32,
    /// How the last one ended.
    pub exit_code: i64,
    /// Whether the kernel killed it for its memory.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// Why it could not be started.
    pub error: String,
}

impl State {
    /// Whether there is a process.
    #[must_use]
    pub fn has_process(&self) -> bool {
        has_process(&self.status)
    }

    /// Whether it stands still.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.status == "paused"
    }
}

fn has_process(state: &str) -> bool {
    matches!(state, "running" | "paused" | "restarting")
}

/// What a container or an image says of its process.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "PascalCase")]
pub struct Config {
    /// The program and its first arguments.
    pub entrypoint: Option<Vec<String>>,
    /// More arguments, or the program.
    pub cmd: Option<Vec<String>>,
    /// `NAME=VALUE`.
    pub env: Option<Vec<String>>,
    /// `USER` or `USER:GROUP`.
    pub user: String,
    /// Where it starts.
    pub working_dir: String,
    /// Its labels.
    pub labels: Option<Labels>,
    /// Paths that are to be on volumes.
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
}

/// An image.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "PascalCase")]
pub struct Image {
    /// Its id.
    pub id: String,
    /// What containers of it begin with.
    pub config: Option<Config>,
    /// Its names, each with its tag.
    pub repo_tags: Option<Vec<String>>,
    /// What its layers take, in bytes.
    pub size: u64,
}

/// Something that happened to a container.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Event {
    /// What happened, e.g. `die`.
    #[serde(rename = "Action")]
    pub action: String,
    /// To whom.
    #[serde(rename = "Actor")]
    pub actor: Actor,
}

/// Whom something happened to.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "PascalCase")]
pub struct Actor {
    /// Its labels among other things.
    pub attributes: Labels,
}
