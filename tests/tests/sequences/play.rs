//! One sequence, step by step. A run is the same each time; `TT_SEED` chooses another sequence, `TT_STEPS` its length, and
//! what fails says both.

use super::act::{act, is_possible, now};
use super::compare::{World, converge};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, TestRunner};
use std::time::{Duration, Instant};
use testkit::sequence::{
    Action, GUESTS, Limits, Mishap, Model, Step, Target, chance, env_spec, seed, steps,
};
use testkit::{CLIENT, Echo, Lab, Setup, number};
use tt_model::check::MEM_SIZE_MIN;
use tt_model::{EnvSpec, VmId};

/// Steps of a sequence: about a minute, where two guests boot in five seconds.
const STEPS: u64 = 32;
/// Where the outside listens.
pub const OUTSIDE: u16 = 7000;
/// How long a guest may take to shut down, in seconds: as the lab is configured.
const GRACE: u64 = 15;
/// What a number of an effect is on the fakes, in milliseconds on a real host.
const EFFECT: Duration = Duration::from_millis(25);

#[test]
fn a_sequence_on_guests_ends_as_promised() {
    let name = "a_sequence_on_guests_ends_as_promised";
    let seed = seed();
    let number = number("TT_STEPS").unwrap_or(STEPS) as usize;
    println!("TT_SEED={seed} TT_STEPS={number}");
    // Disks in layers and whole ones take turns.
    let storage = if seed.is_multiple_of(2) { "qcow2" } else { "file" };
    let setup = Setup::new(name).top(&format!("storage = {storage:?}"));
    let Some(mut lab) = setup.start() else { return };
    let outside = Echo::new(&lab.client, OUTSIDE);
    let (first, steps) = sequence(seed, number);
    let mut world = World::default();
    let host = lab.json(&["host", "show"]);
    let cpu_max = host["cpu_num"].as_u64().unwrap() as u16;
    let limits = Limits { cpu_max, mem_min: MEM_SIZE_MIN, grace: GRACE };
    // The host has the first id.
    let mut model = Model::new(now(), 2, limits);
    let begin = Instant::now();
    for step in std::iter::once(create(&first)).chain(steps) {
        play(&mut lab, &mut model, &mut world, &step, &first);
    }
    println!("everything goes, after {:?}", begin.elapsed());
    end(&mut lab, &mut model, &mut world);
    drop(outside);
    lab.finish();
}

/// An Env to begin with, and what happens then.
fn sequence(seed: u64, number: usize) -> (EnvSpec, Vec<Step>) {
    let mut runner = TestRunner::new_with_rng(Config::default(), chance(seed, 0));
    let drawn = (env_spec(&GUESTS), steps(&GUESTS, number..number + 1));
    let (first, steps) = drawn.new_tree(&mut runner).unwrap().current();
    (first, steps.into_iter().flatten().collect())
}

fn create(spec: &EnvSpec) -> Step {
    step(Action::Create(spec.clone()))
}

fn step(action: Action) -> Step {
    Step { env: 0, vm: None, image: 0, action, mishap: Mishap::None }
}

fn play(lab: &mut Lab, model: &mut Model, world: &mut World, step: &Step, otherwise: &EnvSpec) {
    model.now = now();
    let (target, action) = model.resolve(step, otherwise);
    if !is_possible(model, &target, &action) {
        return;
    }
    let begin = Instant::now();
    println!("{target:?} {action:?} {:?}", step.mishap);
    happen(lab, model, world, &target, &action, step.mishap);
    println!("    {:?}", begin.elapsed());
}

fn happen(
    lab: &mut Lab,
    model: &mut Model,
    world: &mut World,
    target: &Target,
    action: &Action,
    mishap: Mishap,
) {
    let expected = model.act(target, action);
    let accepted = act(lab, model, target, action);
    assert_eq!(accepted, expected, "accepted, and expected to be");
    if let (true, Mishap::DeathAt(effect)) = (accepted, mishap) {
        std::thread::sleep(EFFECT * effect);
        lab.restart();
    }
    converge(lab, model, world);
}

/// Everything goes, and nothing is left.
fn end(lab: &mut Lab, model: &mut Model, world: &mut World) {
    while let Some(env) = model.envs.keys().next().cloned() {
        let target = Target { env, vm: None, image: VmId(0) };
        happen(lab, model, world, &target, &Action::Destroy, Mishap::None);
    }
    // What lies on another one goes before it.
    while let Some(image) = model.images.keys().next_back().copied() {
        let target = Target { env: String::new(), vm: None, image };
        happen(lab, model, world, &target, &Action::RemoveImage, Mishap::None);
    }
}

/// The outside, as members try to reach it.
pub fn outside() -> String {
    format!("{CLIENT} {OUTSIDE}")
}
