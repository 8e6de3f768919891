//! How a container comes to life. Its first process is the agent, which connects to the one socket that it finds and waits.
//! Once the network is there, its engine hands over what it is to run, and the sockets that the host listens on for it:
//! so nothing in a container is ever written to or connected to by the host. Pure.

use crate::entry::Entry;
use serde::{Deserialize, Serialize};

/// The directory, read-only, in which a container finds [`START_SOCKET`]; nothing else is in it.
pub const DOOR: &str = "/.tt/door";
/// Name of the socket in that directory.
pub const START_SOCKET: &str = "start.sock";
/// The agent, read-only.
pub const AGENT: &str = "/.tt/agent";
/// How the agent is started as a container's first process.
pub const ARGUMENT: &str = "--container";
/// The agent's exit code when its container is to begin anew: it was told to restart, or to end by somebody else.
pub const AGAIN_CODE: u8 = 75;

/// What an engine hands over, as JSON up to the end of the stream. Its first byte, which is none of it, brings two
/// descriptors: the agent's socket and the console's, both listening.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The image's process, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<Entry>,
}
