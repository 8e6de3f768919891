//! What is counted of a Vm's traffic.

use serde::{Deserialize, Serialize};

/// What was seen of a Vm's traffic since it has its network, or its rules were put back; what it sent, since its policies last
/// changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Traffic {
    /// Packets that it sent and that were let through, those that look for neighbours included.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets that reached it.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Packets of its that were dropped because it may not send them: forged, or to where it must not.
    pub blocked_packets: u64,
    /// Packets from and to it that were dropped because they were too many.
    pub slowed_packets: u64,
}
