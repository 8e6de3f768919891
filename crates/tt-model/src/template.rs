//! The template: what runtime images are cloned from.

use serde::{Deserialize, Serialize};

/// What runtime images are cloned from. Immutable: another content is another digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmTemplate {
    /// Globally unique, e.g. `github.com/ktmlm/alpine`; built-in ones are short (`micro`).
    pub name: String,
    /// Where it lies, relative to the host's data directory.
    pub path: String,
    /// Description for people.
    pub memo: Option<String>,
    /// Names of the engines that can use it.
    pub compatible_engines: Vec<String>,
    /// What it brings that an engine may use, e.g. `kernel` (direct kernel boot) or `agent`.
    pub features: Vec<String>,
    /// SHA-256 of its content, hexadecimal.
    pub digest: String,
    /// Size of its disk in MB (2^20 bytes): the smallest `disk_size` of a Vm made from it.
    pub disk_size: u32,
}

/// Feature of a template that brings `kernel` and `initramfs` files for direct boot.
pub const FEATURE_KERNEL: &str = "kernel";
/// Feature of a template whose guest runs TT's agent.
pub const FEATURE_AGENT: &str = "agent";

impl VmTemplate {
    /// Whether it lists `feature`.
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|f| f == feature)
    }
}
