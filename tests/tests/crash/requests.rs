//! Requests to a daemon that may die of them: sent again where no answer came, as a client would.

use serde_json::Value;
use std::time::Duration;
use testkit::{Lab, eventually};

/// How long an Env may take to be as asked.
const CONVERGES: Duration = Duration::from_secs(90);

/// What is asked of the Env `x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Of so many guests.
    Create(u32),
    Stop,
    Suspend,
    Start,
    /// Called `frozen`, with memory.
    Snapshot,
    Apply,
    /// Of `m-1`, to a disk of so many MB.
    Update(u32),
    Destroy,
}

impl Ask {
    /// Sends the request; whether it was answered. `key`: of this creation.
    #[track_caller]
    pub fn send(self, lab: &Lab, key: &str) -> bool {
        let header = format!("Idempotency-Key: {key}\r\n");
        let answer = match self {
            Self::Create(count) => {
                let ports = if count == 2 { r#"["80", "53/udp"]"# } else { "[]" };
                let vm = format!(
                    r#"{{"template": "micro", "name": "m", "count": {count}, "ports": {ports}}}"#
                );
                lab.ask("PUT", "/v1/envs/x", &header, &format!(r#"{{"vms": [{vm}]}}"#))
            }
            Self::Stop => lab.ask("POST", "/v1/envs/x/stop", "", r#"{"mode": "kill"}"#),
            Self::Suspend => lab.ask("POST", "/v1/envs/x/stop", "", r#"{"mode": "suspend"}"#),
            Self::Snapshot => lab.ask("POST", "/v1/envs/x/snapshots", "", r#"{"name": "frozen"}"#),
            Self::Apply => lab.ask("POST", "/v1/envs/x/snapshots/frozen/apply", "", ""),
            Self::Update(mb) => {
                // What it publishes and may not reach changes with its disk.
                let port = mb % 1000 + 1000;
                let body = format!(
                    r#"{{"disk_size": {mb}, "ports": ["7", "80", "{port}"], "net_blacklist": ["192.0.2.{}"]}}"#,
                    mb % 100 + 100
                );
                lab.ask("PATCH", "/v1/envs/x/vms/m-1", "", &body)
            }
            Self::Start => lab.ask("POST", "/v1/envs/x/start", "", ""),
            Self::Destroy => lab.ask("DELETE", "/v1/envs/x", "", ""),
        };
        let is_done = match self {
            Self::Destroy => answer.status == 404,
            Self::Snapshot => answer.code() == "ERR_TT_EXISTS",
            _ => false,
        };
        assert!(matches!(answer.status, 0 | 200..=202) || is_done, "{self:?}: {}", answer.text);
        answer.status != 0
    }

    /// Waits until it is as asked, and the host is what the records say.
    #[track_caller]
    pub fn converges(self, lab: &Lab) {
        match self {
            Self::Suspend => lab.reaches_phase("x", "suspended", CONVERGES),
            Self::Snapshot => eventually("the snapshot", CONVERGES, || {
                let states =
                    ["m-1", "m-2"].map(|vm| lab.vm("x", vm)["snapshots"]["frozen"].clone());
                let is_ready = |state: &Value| state["state"] == "ready";
                (!states.iter().all(is_ready)).then(|| format!("{states:?}"))
            }),
            Self::Update(mb) => eventually("the update", CONVERGES, || {
                let record = lab.vm("x", "m-1");
                let seen = lab.exec("x/m-1", &["cat", "/sys/block/vda/size"]).out;
                let is_there =
                    record["is_settled"] == true && seen.trim() == (mb * 2048).to_string();
                (!is_there).then(|| format!("{seen}{record}"))
            }),
            Self::Create(_) | Self::Start | Self::Apply => {
                lab.reaches_phase("x", "ready", CONVERGES)
            }
            Self::Stop => lab.reaches_phase("x", "stopped", CONVERGES),
            Self::Destroy => lab.reaches_phase("x", "gone", CONVERGES),
        }
        lab.assert_clean();
    }
}
