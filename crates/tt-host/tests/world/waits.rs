//! Snapshots that wait for a member.

use crate::world::{Death, World};
use tt_host::Next;
use tt_model::{Goal, SnapshotState};

#[test]
fn a_snapshot_waits_for_a_member_without_bothering_the_others() {
    let world = World::new();
    world.create("shop", 2);
    world.converge(Death::Never);
    world.set_goal("shop", Goal::Paused);
    world.want_snapshot("shop", "s").unwrap();
    let daemon = world.daemon(world.drivers());
    let [one, other] = [0, 1].map(|at| world.members("shop")[at].clone());
    daemon.visitor.visit(one.id, 0);
    let steps = || world.script.lock().unwrap().steps;
    let before = steps();
    // The other one is on its way.
    for _ in 0..3 {
        assert!(matches!(daemon.taker.visit(one.env_id, 0), Next::Wait(pause) if !pause.is_zero()));
    }
    assert_eq!(steps(), before, "nobody is asked meanwhile");
    daemon.visitor.visit(other.id, 0);
    daemon.taker.visit(one.env_id, 0);
    assert!(world.members("shop").iter().all(|vm| vm.snapshots["s"].state == SnapshotState::Ready));
}
