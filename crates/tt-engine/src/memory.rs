//! Which memory on disk a Vm names. It looks at nothing: what is there is known by `files`.

pub(crate) mod files;

use tt_model::{Goal, Vm, names};

/// The paths, relative to the data directory, of the memory that `vm` names; everything else of it is needless.
pub(crate) fn named(vm: &Vm) -> Vec<String> {
    if vm.goal == Goal::Gone {
        return Vec::new();
    }
    let mut named: Vec<String> = vm.snapshots.values().filter_map(|s| s.memory.clone()).collect();
    named.extend(vm.memory.clone());
    named.push(names::firmware(vm.id));
    if vm.goal != Goal::Stopped {
        named.push(names::suspended(vm.id, vm.incarnation));
    }
    named
}

/// Whether the mark that the machine of that incarnation has begun from `vm.memory` still says something.
pub(crate) fn needs_mark(vm: &Vm, incarnation: u32) -> bool {
    vm.memory.is_some() && vm.goal != Goal::Gone && incarnation == vm.incarnation
}
