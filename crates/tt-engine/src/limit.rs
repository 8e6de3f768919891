//! What a machine's disk may do in a second, and whether the machine was told. How it is told, its driver knows.

use crate::EngineError;
use crate::remains::{Remains, note};
use std::fs;
use tt_model::{Vm, VmResource};

/// Below a machine's directory: the limits that it was told; a new machine has none.
const TOLD: &str = "disk_limit";

/// The limits of a disk; as much as it can where one is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskLimit {
    /// KiB that it reads and writes together in a second.
    pub kib: Option<u32>,
    /// Reads and writes together in a second.
    pub ops: Option<u32>,
}

impl DiskLimit {
    /// What the record says.
    pub fn of(vm: &Vm) -> Self {
        let VmResource { disk_kib: kib, disk_ops: ops, .. } = vm.resource;
        Self { kib, ops }
    }

    /// Bytes in a second; 0 for as many as it can.
    pub fn bytes(self) -> u64 {
        u64::from(self.kib.unwrap_or_default()) << 10
    }

    /// Operations in a second; 0 for as many as it can.
    pub fn operations(self) -> u64 {
        self.ops.unwrap_or_default().into()
    }

    /// Whether the machine has these.
    pub fn is_told(self, remains: &Remains<'_>) -> bool {
        let told =
            fs::read_to_string(remains.file(TOLD)).unwrap_or_else(|_| Self::default().text());
        told == self.text()
    }

    /// Notes that it has.
    pub fn note_told(self, remains: &Remains<'_>) -> Result<(), EngineError> {
        note(remains, TOLD, &self.text())
    }

    /// Lets `tell` tell the machine. Who dies before it is noted leaves a machine that will be told once more, whatever the record
    /// says then.
    pub fn give(
        self,
        remains: &Remains<'_>,
        tell: impl FnOnce() -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        note(remains, TOLD, "")?;
        tell()?;
        self.note_told(remains)
    }

    fn text(self) -> String {
        format!("{} {}", self.bytes(), self.operations())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Cgroups;
    use tt_model::{Instance, Layout, VmId};

    #[test]
    fn what_was_not_told_to_its_end_is_told_again() {
        let dir = tempfile::tempdir().unwrap();
        let (data, run) = (dir.path().join("data"), dir.path().join("run"));
        let layout = Layout { data, run, instance: Instance(1) };
        let (groups, id) = (Cgroups::none(), VmId(7));
        fs::create_dir_all(layout.vm_dir(id)).unwrap();
        let remains = Remains { layout: &layout, groups: &groups, id };
        let (none, some) = (DiskLimit::default(), DiskLimit { kib: Some(1024), ops: None });
        assert!(none.is_told(&remains) && !some.is_told(&remains), "a new machine has none");
        // The machine heard it, and the daemon died.
        some.give(&remains, || Err(EngineError::Order { call: "limit" })).unwrap_err();
        assert!(!none.is_told(&remains) && !some.is_told(&remains), "nobody knows what it has");
        some.give(&remains, || Ok(())).unwrap();
        assert!(!none.is_told(&remains) && some.is_told(&remains));
        none.give(&remains, || Ok(())).unwrap();
        assert!(none.is_told(&remains) && !some.is_told(&remains));
    }
}
