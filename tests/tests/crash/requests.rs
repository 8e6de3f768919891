//! Requests to a daemon that may die of them: sent again where no answer came, as a client would.

use std::time::Duration;
use testkit::Lab;

/// How long an Env may take to be as asked.
const CONVERGES: Duration = Duration::from_secs(90);

/// What is asked of the Env `x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Of so many guests.
    Create(u32),
    Stop,
    Start,
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
            Self::Start => lab.ask("POST", "/v1/envs/x/start", "", ""),
            Self::Destroy => lab.ask("DELETE", "/v1/envs/x", "", ""),
        };
        let is_gone = self == Self::Destroy && answer.status == 404;
        assert!(matches!(answer.status, 0 | 200..=202) || is_gone, "{self:?}: {}", answer.text);
        answer.status != 0
    }

    /// Waits until it is as asked, and the host is what the records say.
    #[track_caller]
    pub fn converges(self, lab: &Lab) {
        match self {
            Self::Create(_) | Self::Start => lab.reaches_phase("x", "ready", CONVERGES),
            Self::Stop => lab.reaches_phase("x", "stopped", CONVERGES),
            Self::Destroy => lab.reaches_phase("x", "gone", CONVERGES),
        }
        lab.assert_clean();
    }
}
