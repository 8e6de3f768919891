//! What is counted of a Vm's traffic, as clients see it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What was seen of a Vm's traffic since it has its network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrafficView {
    /// Packets that it sent and that were let through.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets that reached it.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Packets of its that were dropped because it may not send them.
    pub blocked_packets: u64,
    /// Packets from and to it that were dropped because they were too many.
    pub slowed_packets: u64,
}
