//! What the set-up says of a guest's interface.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// How a guest's interface is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSetup {
    /// Finds the interface: six hexadecimal bytes with colons.
    pub mac: String,
    /// Its address; another one that it has is replaced.
    pub address: Ipv4Addr,
    /// Length of the network's prefix, 1 to 32.
    pub prefix_len: u8,
    /// Where the default route goes.
    pub gateway: Ipv4Addr,
    /// Largest packet in bytes; 0 leaves it as it is.
    #[serde(default)]
    pub mtu: u32,
    /// Its IPv6 address beside that; `None` leaves IPv6 as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub six: Option<SixSetup>,
}

/// IPv6 of a guest's interface. A guest whose kernel has none, or whose owner has switched it off, goes without.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SixSetup {
    /// Its address; others that it has in the same network go.
    pub address: Ipv6Addr,
    /// Length of the network's prefix, 1 to 128.
    pub prefix_len: u8,
    /// Where the default route goes, on the link.
    pub gateway: Ipv6Addr,
}
