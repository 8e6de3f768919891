//! The crash sweep: the daemon dies before and after every side effect and every commit, for every
//! pair of goals and every goal after the restart. Each time the next daemon reaches the goal,
//! leaves nothing over, and a further visit does nothing.

#[cfg(test)]
mod world;

use tt_model::Goal;
use world::{Death, World};

const GOALS: [Goal; 4] = [Goal::Gone, Goal::Stopped, Goal::Paused, Goal::Running];

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
    for effect in world::CREATE_EFFECTS {
        let world = World::new();
        world.create("shop", MEMBERS);
        world.fail_always(effect);
        world.converge(Death::Never);
        world.assert_settled("shop", Goal::Gone);
    }
}

#[test]
fn a_failure_that_passes_is_survived() {
    for effect in world::CREATE_EFFECTS {
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
