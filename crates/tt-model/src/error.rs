//! Stable error codes, and the refusal of a request.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $retry:literal;)*) => {
        /// Stable code of an error: in API bodies, exit messages and logs. Names and numbers are
        /// never used for something else.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        pub enum ErrorCode {
            $($(#[$doc])* #[serde(rename = $name)] $variant = $number,)*
        }

        impl ErrorCode {
            /// All codes.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name, e.g. `ERR_TT_NOT_FOUND`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whether the same request may succeed later without anything else being changed.
            pub fn is_retryable(self) -> bool {
                match self { $(Self::$variant => $retry,)* }
            }
        }
    };
}

codes! {
    /// A value in the request is not allowed.
    Invalid = 1, "ERR_TT_INVALID", false;
    /// The named thing does not exist.
    NotFound = 2, "ERR_TT_NOT_FOUND", false;
    /// The name is taken.
    Exists = 3, "ERR_TT_EXISTS", false;
    /// The thing is in use.
    InUse = 4, "ERR_TT_IN_USE", false;
    /// The thing's present state does not allow it.
    State = 5, "ERR_TT_STATE", false;
    /// Too soon after the last management call.
    TooSoon = 6, "ERR_TT_TOO_SOON", true;
    /// The host has no room for it.
    NoRoom = 7, "ERR_TT_NO_ROOM", true;
    /// The engine, template or host can not do it.
    Unsupported = 8, "ERR_TT_UNSUPPORTED", false;
    /// The lifetime asked for is above the configured limit.
    LifeTime = 9, "ERR_TT_LIFE_TIME", false;
    /// The request is not understood (path, method, body).
    Request = 10, "ERR_TT_REQUEST", false;
    /// The request or its body is too large.
    TooLarge = 11, "ERR_TT_TOO_LARGE", false;
    /// Others changed the same records at the same time, again and again.
    Conflict = 12, "ERR_TT_CONFLICT", true;
    /// Too many such requests are under way.
    Busy = 13, "ERR_TT_BUSY", true;
    /// The guest's agent is not there or does not answer.
    Agent = 14, "ERR_TT_AGENT", true;
    /// The caller may not do this.
    Denied = 15, "ERR_TT_DENIED", false;
    /// The store failed.
    Store = 20, "ERR_TT_STORE", true;
    /// The network could not be set.
    SetNet = 21, "ERR_TT_NETWORK_SET_NET", true;
    /// The network could not be unset.
    UnsetNet = 22, "ERR_TT_NETWORK_UNSET_NET", true;
    /// The runtime image could not be made.
    CreateImage = 23, "ERR_TT_STORAGE_CREATE_IMAGE", true;
    /// The runtime image could not be removed.
    DestroyImage = 24, "ERR_TT_STORAGE_DESTROY_IMAGE", true;
    /// The machine could not be started.
    StartVm = 25, "ERR_TT_ENGINE_START_VM", true;
    /// The machine could not be stopped.
    StopVm = 26, "ERR_TT_ENGINE_STOP_VM", true;
    /// The machine ended by itself.
    Exited = 27, "ERR_TT_ENGINE_EXITED", true;
    /// The guest could not be set up.
    Guest = 28, "ERR_TT_GUEST", true;
    /// The template could not be made or read.
    Template = 29, "ERR_TT_TEMPLATE", true;
    /// The snapshot could not be taken.
    SnapshotCreate = 32, "ERR_TT_SNAPSHOT_CREATE", true;
    /// The snapshot could not be removed.
    SnapshotDestroy = 33, "ERR_TT_SNAPSHOT_DESTROY", true;
    /// The snapshot could not be applied.
    SnapshotApply = 34, "ERR_TT_SNAPSHOT_APPLY", true;
    /// The machine could not be updated.
    UpdateVm = 35, "ERR_TT_UPDATE_VM", true;
    /// A meta could not be written.
    MetaCreate = 36, "ERR_TT_META_CREATE_CACHE", true;
    /// A meta could not be removed.
    MetaRemove = 37, "ERR_TT_META_REMOVE_CACHE", true;
    /// A meta could not be read, or is not what was written.
    MetaRestore = 38, "ERR_TT_META_RESTORE_CACHE", false;
    /// The host lacks something.
    Host = 30, "ERR_TT_HOST", false;
    /// A defect of TT.
    Internal = 31, "ERR_TT_INTERNAL", false;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A request that changes nothing because something about it is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {problem}; {remedy}")]
pub struct Refusal {
    /// The stable code.
    pub code: ErrorCode,
    /// What the problem is about, e.g. ``port `0` ``.
    pub what: String,
    /// What is wrong with it.
    pub problem: String,
    /// What would be right, or what to do.
    pub remedy: String,
    /// When the same request may be sent again, in milliseconds from now, where that is known.
    pub retry_after_ms: Option<u64>,
}

impl Refusal {
    /// See the fields.
    pub fn new(
        code: ErrorCode,
        what: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            code,
            what: what.into(),
            problem: problem.into(),
            remedy: remedy.into(),
            retry_after_ms: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_and_numbers_are_unique_and_json_uses_the_name() {
        let names: BTreeSet<_> = ErrorCode::ALL.iter().map(|c| c.name()).collect();
        let numbers: BTreeSet<_> = ErrorCode::ALL.iter().map(|c| *c as u32).collect();
        assert_eq!((names.len(), numbers.len()), (ErrorCode::ALL.len(), ErrorCode::ALL.len()));
        for code in ErrorCode::ALL {
            assert!(code.name().starts_with("ERR_TT_"));
            assert_eq!(serde_json::to_string(code).unwrap(), format!("{:?}", code.name()));
        }
    }
}
