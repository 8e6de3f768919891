//! What of Docker's documents TT reads. Every field may be missing: daemons of ten years answer.

use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What Podman calls itself.
const PODMAN: &str = "Podman Engine";
/// Nanoseconds of processor time a second that are one CPU.
const CPU_NANOS: u64 = 1_000_000_000;
/// In how many microseconds a container gets its share of processor time: as Docker has it.
const PERIOD_US: u64 = 100_000;

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
    /// The programs that it is made of, where it names them.
    pub components: Option<Vec<Component>>,
}

/// A program of a [`Server`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "PascalCase")]
pub struct Component {
    /// E.g. `Podman Engine`.
    pub name: String,
    /// E.g. `4.3.1`.
    pub version: String,
}

impl Server {
    /// Whether it is Podman that answers as Docker does.
    #[must_use]
    pub fn is_podman(&self) -> bool {
        self.components.iter().flatten().any(|component| component.name == PODMAN)
    }
}

/// What a container may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory, in bytes; of swap it gets none.
    pub mem_bytes: u64,
    /// Processors.
    pub cpu_num: u16,
    /// Processes and threads.
    pub pids: u32,
}

impl Limits {
    /// As Docker spells them.
    #[must_use]
    pub fn docker(&self) -> Value {
        json!({
            "Memory": self.mem_bytes,
            // With nothing on top: no swap.
            "MemorySwap": self.mem_bytes,
            "NanoCpus": u64::from(self.cpu_num) * CPU_NANOS,
            "PidsLimit": self.pids,
        })
    }

    /// As Podman does (`LinuxResources` of the OCI's runtime specification).
    #[must_use]
    pub fn oci(&self) -> Value {
        json!({
            "memory": { "limit": self.mem_bytes, "swap": self.mem_bytes },
            "cpu": { "period": PERIOD_US, "quota": u64::from(self.cpu_num) * PERIOD_US },
            "pids": { "limit": self.pids },
        })
    }
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
    pub volumes: Option<BTreeMap<String, Value>>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_lack_what_they_like() {
        let listed: Vec<Listed> = serde_json::from_str(
            r#"[{"Id":"1","Names":["/a"],"State":"paused","Labels":{"x":"y"},"New":1},{"Names":null,"Labels":null}]"#,
        )
        .unwrap();
        assert!(listed[0].has_process() && !listed[1].has_process());
        assert_eq!((listed[0].name(), listed[0].label("x")), (Some("a"), Some("y")));
        assert_eq!((listed[1].name(), listed[1].label("x")), (None, None));
        let container: Container =
            serde_json::from_str(r#"{"State":{"Pid":7,"OOMKilled":true},"Config":{"Cmd":null}}"#)
                .unwrap();
        assert!(container.state.oom_killed && container.state.pid == 7);
    }

    #[test]
    fn podman_says_who_it_is_and_takes_limits_in_its_own_words() {
        for (text, is_podman) in [
            (
                r#"{"Components":[{"Name":"Podman Engine","Version":"4.3.1"},{"Name":"Conmon"}]}"#,
                true,
            ),
            (r#"{"Components":[{"Name":"Podman Engine","Version":"5.0.0-rc1"}]}"#, true),
            (r#"{"Components":[{"Name":"Engine","Version":"20.10.24"}]}"#, false),
            ("{}", false),
        ] {
            assert_eq!(
                serde_json::from_str::<Server>(text).unwrap().is_podman(),
                is_podman,
                "{text}"
            );
        }
        let limits = Limits { mem_bytes: 64 << 20, cpu_num: 2, pids: 10 };
        assert_eq!(limits.docker()["NanoCpus"], 2_000_000_000_u64);
        assert_eq!(limits.oci()["cpu"]["quota"], 200_000);
    }
}
