//! Snapshots as clients see them: one for each name, folded from the members that have it. Pure.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tt_model::{Snapshot, SnapshotState, Trouble, Vm};
use utoipa::ToSchema;

/// The snapshots of an Env or of one member, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// See the type.
    pub snapshots: Vec<SnapshotView>,
}

/// The snapshots of one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotView {
    /// The name.
    pub name: String,
    /// Folded from its members.
    pub phase: SnapshotPhase,
    /// The members that have it, oldest first.
    pub members: Vec<SnapshotMember>,
    /// Names of the members that were asked about and do not have it: an apply to all of them is
    /// refused because of these.
    pub missing: Vec<String>,
}

/// How far a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotPhase {
    /// It is being taken.
    Taking,
    /// It can be applied.
    Ready,
    /// It could not be taken.
    Failed,
}

impl SnapshotPhase {
    /// The word for people, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Taking => "taking",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }
}

/// One member's snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotMember {
    /// Name of the member.
    pub vm: String,
    /// How far it is.
    pub phase: SnapshotPhase,
    /// Whether memory is kept in it, or is to be while it is being taken.
    pub with_memory: bool,
    /// When it was taken, or asked for if it is not taken yet; seconds since the epoch.
    pub start_timestamp: u64,
    /// Seconds that it lives; as long as its member if missing.
    pub life_time: Option<u64>,
    /// When its life ends, seconds since the epoch.
    pub end_timestamp: Option<u64>,
    /// Why it could not be taken, if it could not.
    pub trouble: Option<Trouble>,
}

impl SnapshotMember {
    /// The snapshot as one of the member `vm`.
    pub fn new(vm: &str, snapshot: &Snapshot) -> Self {
        let (phase, trouble) = match &snapshot.state {
            SnapshotState::Wanted => (SnapshotPhase::Taking, None),
            SnapshotState::Ready => (SnapshotPhase::Ready, None),
            SnapshotState::Failed(trouble) => (SnapshotPhase::Failed, Some(trouble.clone())),
        };
        let with_memory = match phase {
            SnapshotPhase::Taking => snapshot.with_memory,
            SnapshotPhase::Ready | SnapshotPhase::Failed => snapshot.memory.is_some(),
        };
        Self {
            vm: vm.to_owned(),
            phase,
            with_memory,
            start_timestamp: snapshot.start_timestamp,
            life_time: snapshot.life_time,
            end_timestamp: snapshot
                .life_time
                .map(|life| snapshot.start_timestamp.saturating_add(life)),
            trouble,
        }
    }
}

impl SnapshotList {
    /// The snapshots of `vms`.
    pub fn of<'a>(vms: impl Iterator<Item = &'a Vm>) -> Self {
        let mut names = Vec::new();
        let mut members: BTreeMap<&str, Vec<SnapshotMember>> = BTreeMap::new();
        for vm in vms {
            names.push(vm.name.as_str());
            for (name, snapshot) in &vm.snapshots {
                members.entry(name).or_default().push(SnapshotMember::new(&vm.name, snapshot));
            }
        }
        let view = |(name, members): (&str, Vec<SnapshotMember>)| {
            let lacks = |vm: &&&str| !members.iter().any(|member| member.vm == **vm);
            let missing = names.iter().filter(lacks).map(|vm| (*vm).to_owned()).collect();
            SnapshotView { name: name.to_owned(), phase: fold(&members), members, missing }
        };
        Self { snapshots: members.into_iter().map(view).collect() }
    }
}

fn fold(members: &[SnapshotMember]) -> SnapshotPhase {
    let any = |phase| members.iter().any(|member| member.phase == phase);
    if any(SnapshotPhase::Taking) {
        SnapshotPhase::Taking
    } else if any(SnapshotPhase::Failed) {
        SnapshotPhase::Failed
    } else {
        SnapshotPhase::Ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tt_model::{ErrorCode, StorageKind, sample};

    fn snapshot(state: SnapshotState, memory: bool) -> Snapshot {
        Snapshot {
            state,
            memory: memory.then(|| "memory/1/1".into()),
            with_memory: true,
            start_timestamp: 10,
            life_time: Some(5),
            ..Snapshot::new("s".into(), "meta/1/1.json".into())
        }
    }

    fn vm(id: u64, snapshots: &[(&str, Snapshot)]) -> Vm {
        let snapshots = snapshots.iter().map(|(name, snapshot)| ((*name).into(), snapshot.clone()));
        Vm { snapshots: snapshots.collect(), ..sample::vm(id, "qemu", StorageKind::Qcow2) }
    }

    #[test]
    fn a_name_is_one_snapshot_of_those_that_have_it() {
        let trouble = Trouble { code: ErrorCode::SnapshotCreate, why: "no".into(), retry: false };
        let ready = || snapshot(SnapshotState::Ready, true);
        let failed = || snapshot(SnapshotState::Failed(trouble.clone()), false);
        let vms = [
            vm(1, &[("a", ready()), ("b", ready()), ("c", ready())]),
            vm(2, &[("a", snapshot(SnapshotState::Ready, false)), ("b", failed())]),
            vm(3, &[("a", ready()), ("b", snapshot(SnapshotState::Wanted, false))]),
        ];
        let list = SnapshotList::of(vms.iter()).snapshots;
        let names: Vec<_> = list.iter().map(|view| (view.name.as_str(), view.phase)).collect();
        let (ready, taking) = (SnapshotPhase::Ready, SnapshotPhase::Taking);
        assert_eq!(names, [("a", ready), ("b", taking), ("c", ready)]);
        assert!(list[0].missing.is_empty());
        assert_eq!(list[2].missing, ["vm-2", "vm-3"]);
        let memory: Vec<_> = list[0].members.iter().map(|member| member.with_memory).collect();
        assert_eq!(memory, [true, false, true]);
        assert_eq!(list[0].members[0].end_timestamp, Some(15));
        assert_eq!(list[1].members[1].trouble.as_ref(), Some(&trouble));
        let two = SnapshotList::of(vms[..2].iter()).snapshots;
        assert_eq!(two[1].phase, SnapshotPhase::Failed);
    }
}
