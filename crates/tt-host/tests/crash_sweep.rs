//! The crash sweep: the daemon dies before and after every side effect and every commit, for every pair of goals and every goal
//! after the restart. Each time the next daemon reaches the goal, leaves nothing over, and a further visit does nothing.

#[cfg(test)]
#[path = "world/sweep.rs"]
mod sweep;
#[cfg(test)]
#[path = "world/waits.rs"]
mod waits;
#[cfg(test)]
mod world;

use tt_model::plan::HIDDEN_MAX;
use tt_model::{Goal, Phase, SnapshotState, StorageKind, Vm, VmUpdate};
use world::{Death, World};

const GOALS: [Goal; 5] = [Goal::Gone, Goal::Stopped, Goal::Suspended, Goal::Paused, Goal::Running];
/// Where a Vm may be when its snapshot is taken or applied.
const RESTS: [Goal; 4] = [Goal::Stopped, Goal::Suspended, Goal::Paused, Goal::Running];
const STORAGES: [StorageKind; 2] = [StorageKind::File, StorageKind::Qcow2];

/// Members of the Env: two, so that what they share is made by one and removed by the other.
const MEMBERS: u32 = 2;

#[test]
fn death_at_every_step_of_every_change_converges() {
    let (mut runs, mut deaths) = (0, 0);
    for start in GOALS {
        for target in GOALS {
            for after in GOALS {
                for step in 1.. {
                    let world = World::new();
                    world.create("shop", MEMBERS);
                    world.converge(Death::Never);
                    world.set_goal("shop", start);
                    world.converge(Death::Never);
                    world.set_goal("shop", target);
                    let died = world.converge(Death::At(step));
                    world.set_goal("shop", after);
                    world.converge(Death::Never);
                    // What is gone, or going, stays so: no later wish brings it back.
                    let last = [start, target].contains(&Goal::Gone);
                    world.assert_settled("shop", if last { Goal::Gone } else { after });
                    runs += 1;
                    deaths += u32::from(died);
                    if !died {
                        break;
                    }
                }
            }
        }
    }
    println!("{runs} runs, {deaths} deaths");
    assert!(deaths > 500, "the sweep must really kill: {deaths}");
}

#[test]
fn death_at_every_step_of_a_create_converges() {
    for after in GOALS {
        for step in 1.. {
            let world = World::new();
            world.create("shop", MEMBERS);
            let died = world.converge(Death::At(step));
            world.set_goal("shop", after);
            world.converge(Death::Never);
            world.assert_settled("shop", after);
            if !died {
                break;
            }
        }
    }
}

#[test]
fn a_member_that_fails_for_good_undoes_the_whole_env() {
    for effect in sweep::CREATE_EFFECTS {
        let world = World::new();
        world.create("shop", MEMBERS);
        world.fail_always(effect);
        world.converge(Death::Never);
        world.assert_settled("shop", Goal::Gone);
    }
}

#[test]
fn a_failure_that_passes_is_survived() {
    for effect in sweep::CREATE_EFFECTS {
        let world = World::new();
        world.create("shop", MEMBERS);
        world.fail_times(effect, 2);
        world.converge(Death::Never);
        world.assert_settled("shop", Goal::Running);
    }
}

#[test]
fn a_machine_that_ends_is_started_again_and_one_that_powers_off_stays_off() {
    let world = World::new();
    world.create("shop", MEMBERS);
    world.converge(Death::Never);
    world.exit_all("shop", false);
    world.converge(Death::Never);
    world.assert_settled("shop", Goal::Running);
    world.exit_all("shop", true);
    world.converge(Death::Never);
    world.assert_settled("shop", Goal::Stopped);
}

#[test]
fn what_ended_while_no_daemon_looked_is_not_called_ready() {
    let world = World::new();
    ["ran", "lives", "off"].iter().for_each(|name| world.create(name, MEMBERS));
    world.set_goal("off", Goal::Stopped);
    world.converge(Death::Never);
    world.exit_all("ran", false);
    assert_eq!([world.take_back(), world.take_back()], [2, 0]);
    let told = ["ran", "lives", "off"].map(|name| world.phases(name));
    assert_eq!(told, [Phase::Machine, Phase::Ready, Phase::Stopped].map(|phase| vec![phase; 2]));
    world.converge(Death::Never);
    world.assert_settled("ran", Goal::Running);
}

#[test]
fn a_hundred_envs_share_a_host() {
    let world = World::new();
    for number in 0..100 {
        world.create(&format!("e{number}"), MEMBERS);
    }
    world.converge(Death::Never);
    for number in 0..100 {
        let goal = GOALS[number % GOALS.len()];
        world.set_goal(&format!("e{number}"), goal);
    }
    world.converge(Death::Never);
    for number in 0..100 {
        world.assert_settled(&format!("e{number}"), GOALS[number % GOALS.len()]);
    }
}

/// An Env at `rest`, with disks and memory that no other moment had.
fn at_rest(storage: StorageKind, rest: Goal) -> World {
    let world = World::with(storage);
    world.create("shop", MEMBERS);
    world.converge(Death::Never);
    world.change_all("shop");
    world.set_goal("shop", rest);
    world.converge(Death::Never);
    world
}

#[test]
fn death_at_every_step_of_a_snapshot_leaves_it_whole_or_not_at_all() {
    let mut deaths = 0;
    for (storage, rest) in STORAGES.into_iter().flat_map(|s| RESTS.map(|rest| (s, rest))) {
        for step in 1.. {
            let world = at_rest(storage, rest);
            let before = world.contents("shop");
            world.want_snapshot("shop", "a").unwrap();
            let died = world.converge(Death::At(step));
            world.converge(Death::Never);
            world.assert_settled("shop", rest);
            assert_eq!(world.contents("shop"), before, "the guests went on undisturbed");
            for vm in world.members("shop") {
                let snapshot = &vm.snapshots["a"];
                assert_eq!(snapshot.state, SnapshotState::Ready);
                assert_eq!(snapshot.memory.is_some(), rest != Goal::Stopped, "{rest:?}");
            }
            deaths += u32::from(died);
            if !died {
                break;
            }
        }
    }
    assert!(deaths > 100, "the sweep must really kill: {deaths}");
}

#[test]
fn no_power_loss_leaves_a_ready_snapshot_without_its_content() {
    let (mut losses, mut whole) = (0, 0);
    for (storage, rest) in STORAGES.into_iter().flat_map(|s| RESTS.map(|rest| (s, rest))) {
        for step in 1.. {
            let world = at_rest(storage, rest);
            let disk = |vm: &Vm, epoch: u32| world.disk.content(vm.id, epoch);
            let moment: Vec<_> =
                world.members("shop").iter().map(|vm| disk(vm, vm.epoch)).collect();
            world.want_snapshot("shop", "a").unwrap();
            let died = world.converge(Death::At(step));
            world.lose_power();
            for (vm, moment) in world.members("shop").iter().zip(&moment) {
                let snapshot = &vm.snapshots["a"];
                if snapshot.state == SnapshotState::Ready {
                    assert_eq!(disk(vm, snapshot.epoch.unwrap()), *moment, "{rest:?} at {step}");
                    whole += 1;
                }
            }
            world.converge(Death::Never);
            world.assert_settled("shop", rest);
            for vm in world.members("shop") {
                let snapshot = &vm.snapshots["a"];
                assert_eq!(snapshot.state, SnapshotState::Ready);
                let frozen = disk(&vm, snapshot.epoch.unwrap());
                assert_eq!(frozen, disk(&vm, vm.epoch), "{storage:?} {rest:?} at {step}");
            }
            losses += u32::from(died);
            if !died {
                break;
            }
        }
    }
    assert!(losses > 100 && whole > 20, "{losses} losses, {whole} snapshots before them");
}

/// An Env at `rest` whose snapshots came and went, but one: with the next one, layers are to be merged.
fn with_layers(rest: Goal) -> World {
    let world = at_rest(StorageKind::Qcow2, Goal::Running);
    let take = |name: &str| {
        assert!(world.want_snapshot("shop", name).is_ok());
        world.converge(Death::Never);
        world.change_all("shop");
    };
    take("kept");
    for _ in 0..HIDDEN_MAX + 2 {
        take("passing");
        assert!(world.drop_snapshot("shop", "passing").is_ok());
    }
    world.set_goal("shop", rest);
    world.converge(Death::Never);
    world
}

#[test]
fn death_at_every_step_of_a_merge_changes_nothing_that_anybody_sees() {
    let (mut deaths, mut merging) = (0, 0);
    for rest in RESTS {
        for step in 1.. {
            let world = with_layers(rest);
            let (before, disks) = (world.contents("shop"), world.members("shop")[0].disks.len());
            let frozen = world.frozen("shop");
            world.want_snapshot("shop", "last").unwrap();
            let died = world.converge(Death::At(step));
            merging += world.members("shop").iter().filter(|vm| vm.merge.is_some()).count();
            // What a guest has not synced goes with the power, what is frozen does not.
            let has_power = step % 2 == 0;
            if !has_power {
                world.lose_power();
            }
            world.converge(Death::Never);
            world.assert_settled("shop", rest);
            if has_power {
                assert_eq!(world.contents("shop"), before, "{rest:?} at {step}");
            }
            let left = world.frozen("shop");
            assert!(frozen.iter().all(|(of, content)| left[of] == *content), "{rest:?} at {step}");
            let vm = &world.members("shop")[0];
            // A layer more, and one for two.
            assert!(vm.merge.is_none() && vm.disks.len() == disks, "{:?}", vm.disks);
            world.apply("shop", "kept").unwrap();
            world.converge(Death::Never);
            world.assert_settled("shop", Goal::Running);
            deaths += u32::from(died);
            if !died {
                break;
            }
        }
    }
    assert!(deaths > 100 && merging > 20, "{deaths} deaths, {merging} of them in a merge");
}

#[test]
fn a_merge_waits_for_room_and_gives_way_to_a_destroy() {
    let world = with_layers(Goal::Running);
    let before = world.contents("shop");
    world.fail_always("image.copy");
    world.want_snapshot("shop", "last").unwrap();
    world.converge(Death::Never);
    world.assert_settled("shop", Goal::Running);
    assert_eq!(world.contents("shop"), before, "nothing is lost meanwhile");
    assert_eq!(world.members("shop")[0].merge, None, "one that fails is planned anew");
    world.set_goal("shop", Goal::Gone);
    world.converge(Death::Never);
    world.assert_settled("shop", Goal::Gone);
}

#[test]
fn death_at_every_step_of_an_apply_brings_back_the_moment() {
    let mut deaths = 0;
    for (storage, rest) in STORAGES.into_iter().flat_map(|s| RESTS.map(|rest| (s, rest))) {
        for step in 1.. {
            let world = at_rest(storage, Goal::Running);
            let moment = world.contents("shop");
            world.want_snapshot("shop", "a").unwrap();
            world.converge(Death::Never);
            world.change_all("shop");
            world.want_snapshot("shop", "b").unwrap();
            world.converge(Death::Never);
            let later = world.contents("shop");
            world.change_all("shop");
            world.set_goal("shop", rest);
            world.converge(Death::Never);
            world.apply("shop", "a").unwrap();
            let died = world.converge(Death::At(step));
            world.converge(Death::Never);
            world.assert_settled("shop", Goal::Running);
            assert_eq!(world.contents("shop"), moment, "{storage:?} from {rest:?} at {step}");
            world.change_all("shop");
            world.apply("shop", "b").unwrap();
            world.converge(Death::Never);
            assert_eq!(world.contents("shop"), later, "the other one was not touched");
            deaths += u32::from(died);
            if !died {
                break;
            }
        }
    }
    assert!(deaths > 100, "the sweep must really kill: {deaths}");
}

#[test]
fn death_at_every_step_of_a_suspend_and_of_the_start_after_it_loses_nothing() {
    let mut deaths = 0;
    for storage in STORAGES {
        for step in 1.. {
            let world = at_rest(storage, Goal::Running);
            let before = world.contents("shop");
            world.set_goal("shop", Goal::Suspended);
            let died = world.converge(Death::At(step));
            world.converge(Death::Never);
            world.assert_settled("shop", Goal::Suspended);
            world.set_goal("shop", Goal::Running);
            world.converge(Death::Never);
            assert_eq!(world.contents("shop"), before, "suspend, death at {step}");
            world.set_goal("shop", Goal::Suspended);
            world.converge(Death::Never);
            world.set_goal("shop", Goal::Running);
            let died_again = world.converge(Death::At(step));
            world.converge(Death::Never);
            assert_eq!(world.contents("shop"), before, "start, death at {step}");
            deaths += u32::from(died) + u32::from(died_again);
            if !died && !died_again {
                break;
            }
        }
    }
    assert!(deaths > 20, "the sweep must really kill: {deaths}");
}

#[test]
fn death_at_every_step_of_an_update_ends_as_asked() {
    let update = VmUpdate {
        mem_size: Some(256),
        disk_size: Some(96),
        disk_kib: Some(1024),
        ports: Some(vec!["80".parse().unwrap(), "53/udp".parse().unwrap()]),
        net_blacklist: Some(vec![[192, 0, 2, 9].into()]),
        deny_outgoing: Some(true),
        ..VmUpdate::default()
    };
    let mut deaths = 0;
    for (storage, rest) in STORAGES.into_iter().flat_map(|s| RESTS.map(|rest| (s, rest))) {
        for step in 1.. {
            let world = at_rest(storage, rest);
            let before = world.contents("shop");
            world.update_all("shop", &update);
            let died = world.converge(Death::At(step));
            world.converge(Death::Never);
            world.assert_settled("shop", rest);
            assert_eq!(world.contents("shop"), before, "the guests went on undisturbed");
            world.assert_updated("shop", rest);
            deaths += u32::from(died);
            if !died {
                break;
            }
        }
    }
    assert!(deaths > 50, "the sweep must really kill: {deaths}");
}

#[test]
fn a_snapshot_that_fails_is_told_and_leaves_the_guests_alone() {
    for storage in STORAGES {
        for effect in ["machine.copy", "machine.hold", "machine.release", "machine.capture"] {
            let world = at_rest(storage, Goal::Running);
            let before = world.contents("shop");
            world.want_snapshot("shop", "a").unwrap();
            world.fail_always(effect);
            world.converge(Death::Never);
            world.fail_times(effect, 0);
            world.converge(Death::Never);
            world.assert_settled("shop", Goal::Running);
            assert_eq!(world.contents("shop"), before, "{effect}");
            for vm in world.members("shop") {
                let state = &vm.snapshots["a"].state;
                assert!(matches!(state, SnapshotState::Failed(_)), "{effect}: {state:?}");
            }
            world.want_snapshot("shop", "a").unwrap();
            world.converge(Death::Never);
            assert!(world.members("shop")[0].snapshots["a"].state == SnapshotState::Ready);
        }
    }
}
