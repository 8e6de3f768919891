//! Planning to publish: which moment of a Vm becomes a template, and what is over with it.

use super::{Policy, plan_snapshot};
use crate::check::quoted;
use crate::template::{FEATURE_DISK, Origin};
use crate::{
    Env, ErrorCode, Host, KeptImage, Refusal, SnapshotSpec, SnapshotState, StorageKind, Vm,
    VmTemplate,
};

/// Plans a template from `vm`, a member of `env`: from its snapshot of that name, else from a snapshot of its disk alone
/// that is taken now, for this, and goes with [`plan_published`]. So a running guest stands still for a moment only.
///
/// # Errors
/// A Vm that is neither a container nor has a disk of its own, a snapshot that is not there or not ready, and what
/// [`plan_snapshot`](super::plan_snapshot) refuses.
pub fn plan_publish(
    env: &mut Env,
    vm: &mut Vm,
    snapshot: Option<&str>,
    host: &Host,
    now: u64,
    policy: &Policy,
) -> Result<Origin, Refusal> {
    check_form(&vm.template, &vm.full_name(), vm.storage)?;
    let (name, is_temporary) = match snapshot {
        Some(name) => {
            check_ready(vm, name)?;
            (name.to_owned(), false)
        }
        None => {
            let name = free_name(vm);
            let spec = SnapshotSpec { name: name.clone(), life_time: None, with_memory: false };
            plan_snapshot(env, std::slice::from_mut(vm), &spec, host, now, policy)?;
            (name, true)
        }
    };
    let template = vm.template.name.clone();
    Ok(Origin::Snapshot { vm: vm.id, snapshot: name, is_temporary, template })
}

/// Plans a template from a kept image.
///
/// # Errors
/// An image that is no disk, or is being removed.
pub fn plan_publish_image(image: &KeptImage) -> Result<Origin, Refusal> {
    let what = format!("image {}", image.id);
    if !image.is_wanted {
        let problem = "it is being removed";
        return Err(Refusal::new(
            ErrorCode::State,
            what,
            problem,
            "see `tt image ls` for the others",
        ));
    }
    check_form(&image.template, &what, image.storage)?;
    Ok(Origin::Image { image: image.id, template: image.template.name.clone() })
}

/// Drops what [`plan_publish`] had taken for itself, once the template is made, has failed or is not wanted any more.
/// Returns whether there was any.
pub fn plan_published(vm: &mut Vm, origin: &Origin) -> bool {
    let Origin::Snapshot { snapshot, is_temporary: true, .. } = origin else { return false };
    let dropped = vm.snapshots.remove(snapshot).is_some();
    if dropped {
        vm.drop_disks();
    }
    dropped
}

fn check_form(template: &VmTemplate, what: &str, storage: StorageKind) -> Result<(), Refusal> {
    // What a container holds is taken in as an image of others is.
    if storage == StorageKind::Docker || template.has(FEATURE_DISK) {
        return Ok(());
    }
    let problem = format!("its template {} has no disk", template.name);
    let remedy = "publish a Vm that has one";
    Err(Refusal::new(ErrorCode::Unsupported, what.to_owned(), problem, remedy))
}

fn check_ready(vm: &Vm, name: &str) -> Result<(), Refusal> {
    let what = || format!("snapshot {} of {}", quoted(name), vm.full_name());
    match vm.snapshots.get(name).map(|snapshot| &snapshot.state) {
        Some(SnapshotState::Ready) => Ok(()),
        Some(SnapshotState::Wanted) => {
            Err(Refusal::new(ErrorCode::State, what(), "it is being taken", "wait until it is"))
        }
        Some(SnapshotState::Failed(trouble)) => {
            let problem = format!("it could not be taken: {}", trouble.why);
            Err(Refusal::new(ErrorCode::State, what(), problem, "choose another one"))
        }
        None => {
            Err(Refusal::new(ErrorCode::NotFound, what(), "there is none", "see `tt snapshot ls`"))
        }
    }
}

/// A name that no snapshot has; there are fewer than there are names.
fn free_name(vm: &Vm) -> String {
    let name = |number: usize| format!("publish-{number}");
    let is_free = |number: &usize| !vm.snapshots.contains_key(&name(*number));
    name((1..=vm.snapshots.len() + 1).find(is_free).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::create::tests::planned;
    use crate::plan::{plan_take, plan_taken};
    use crate::{Snapshot, sample};

    fn world() -> (Env, Vm, Host) {
        let (mut env, mut vms) = planned(1);
        env.is_created = true;
        let mut vm = vms.remove(0);
        vm.template.features = vec![FEATURE_DISK.into()];
        (env, vm, sample::host("qemu"))
    }

    const NOW: u64 = 2000;

    #[test]
    fn a_snapshot_is_taken_for_it_and_goes_with_it() {
        let (mut env, mut vm, host) = world();
        let before = vm.clone();
        let policy = Policy::default();
        let origin = plan_publish(&mut env, &mut vm, None, &host, NOW, &policy).unwrap();
        let Origin::Snapshot { snapshot, is_temporary: true, .. } = &origin else {
            panic!("{origin:?}");
        };
        assert!(!vm.snapshots[snapshot].with_memory);
        plan_take(&mut vm, snapshot);
        plan_taken(&mut vm, snapshot, None, NOW);
        assert!(plan_published(&mut vm, &origin));
        assert!(!plan_published(&mut vm, &origin));
        assert_eq!(vm.snapshots, before.snapshots);
    }

    #[test]
    fn two_at_once_have_snapshots_of_their_own() {
        let (mut env, mut vm, host) = world();
        let policy = Policy { mgmt_interval: 0, ..Policy::default() };
        let mut publish = || plan_publish(&mut env, &mut vm, None, &host, NOW, &policy).unwrap();
        assert_ne!(publish(), publish());
    }

    #[test]
    fn only_what_is_there_is_published() {
        let (mut env, mut vm, host) = world();
        let policy = Policy::default();
        let ready = Snapshot { state: SnapshotState::Ready, ..Snapshot::default() };
        vm.snapshots.extend([("a".into(), ready), ("b".into(), Snapshot::default())]);
        let before = vm.clone();
        let mut publish = |vm: &mut Vm, name| plan_publish(&mut env, vm, name, &host, NOW, &policy);
        let origin = publish(&mut vm, Some("a")).unwrap();
        assert!(!plan_published(&mut vm, &origin));
        assert_eq!(vm, before, "a snapshot of its owner's is left alone");
        assert_eq!(publish(&mut vm, Some("b")).unwrap_err().code, ErrorCode::State);
        assert_eq!(publish(&mut vm, Some("c")).unwrap_err().code, ErrorCode::NotFound);
        vm.template.features = vec!["container".into()];
        assert_eq!(publish(&mut vm, None).unwrap_err().code, ErrorCode::Unsupported);
        vm.storage = StorageKind::Docker;
        assert!(publish(&mut vm, Some("a")).is_ok());
    }
}
