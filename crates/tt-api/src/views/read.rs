//! How a client reads what the server shows of a Vm.

use super::VmView;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::net::Ipv6Addr;
use tt_model::{Vm, VmStatus};

impl<'de> Deserialize<'de> for VmView {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Derived with `flatten`, the keys of maps would be texts only, which epochs are not.
        #[derive(Deserialize)]
        struct Seen {
            status: Option<VmStatus>,
            is_settled: bool,
            needs_restart: bool,
            ip_addr_six: Ipv6Addr,
            seen_by: Option<String>,
        }
        let value = serde_json::Value::deserialize(deserializer)?;
        let Seen { status, is_settled, needs_restart, ip_addr_six, seen_by } =
            Seen::deserialize(&value).map_err(D::Error::custom)?;
        let vm = Vm::deserialize(value).map_err(D::Error::custom)?;
        Ok(Self { vm, status, is_settled, needs_restart, ip_addr_six, seen_by })
    }
}
