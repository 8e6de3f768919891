//! What clauses ask of an engine before they are about it.

use super::{Outcome, Suite};
use tt_model::{Vm, VmEngineFeat, feat};

pub(super) const ALWAYS: Needs = Needs::Features(0);
/// Memory on disk, of machines that stand still or go on.
pub(super) const MEMORY: VmEngineFeat = feat::SUSPEND | feat::MEMORY_SNAPSHOT | feat::PAUSE;

/// What an engine must have for a clause to be about it.
#[derive(Clone, Copy)]
pub(super) enum Needs {
    /// All of these features, or none where it is 0.
    Features(VmEngineFeat),
    /// That it lacks a feature.
    Lack(VmEngineFeat),
    /// [`MEMORY`], and disks with layers.
    Layers,
    /// That disks grow under living machines.
    Growth,
    /// That a living machine's memory is limited anew.
    Limits,
}

impl Suite<'_> {
    /// Whether a clause is about this engine, or why not.
    pub(super) fn meets(&self, needs: Needs) -> Outcome {
        let features = |wanted: VmEngineFeat| {
            let lacks = |name: &&str| {
                !feat::NAMES.iter().any(|(bit, known)| known == name && self.has(*bit))
            };
            let lack: Vec<&str> = feat::names(wanted).into_iter().filter(lacks).collect();
            if lack.is_empty() { Ok(()) } else { Err(format!("cannot: {}", lack.join(", "))) }
        };
        let given = |is_given: bool, lack: &str| {
            if is_given { Ok(()) } else { Err(format!("cannot: {lack}")) }
        };
        let fixture = self.fixture;
        match needs {
            Needs::Features(wanted) => features(wanted),
            Needs::Lack(feature) if self.has(feature) => Err("it can".to_owned()),
            Needs::Lack(_) => Ok(()),
            Needs::Layers => features(MEMORY)
                .and_then(|()| given(fixture.layered_vm().is_some(), "disks have no layers")),
            Needs::Growth => features(feat::LIVE_UPDATE).and_then(|()| {
                given(self.sees(|vm| fixture.disk_mb(vm)), "its disk does not grow")
            }),
            Needs::Limits => features(feat::LIVE_UPDATE).and_then(|()| {
                given(self.sees(|vm| fixture.mem_mb(vm)), "sizes change at a start")
            }),
        }
    }

    /// Whether there is something to be seen of a machine that runs.
    fn sees(&self, what: impl Fn(&Vm) -> Option<u32>) -> bool {
        let vm = self.running();
        let is_seen = what(&vm).is_some();
        self.remove(&vm);
        is_seen
    }
}
