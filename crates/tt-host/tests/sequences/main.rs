//! Random sequences of everything that can happen to a host, against a model that says what should
//! be: after each step the daemon, on fakes, has made the world as the model, with nothing left over.
//!
//! The sequences of a run are the same each time. `TT_SEED=7` chooses other ones; a sequence that
//! fails is shrunk and printed with its seed. Only the order of effects of a snapshot of several
//! members varies: they are made by threads.

#[cfg(test)]
mod api;
#[cfg(test)]
mod compare;
#[cfg(test)]
mod life;
#[cfg(test)]
#[path = "../world/mod.rs"]
mod world;

use compare::{Facts, compare};
use life::Life;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use testkit::sequence::{
    Action, FAKES, Limits, Mishap, Model, Step, Target, chance, env_spec, seed, steps,
};
use tt_host::Clock;
use tt_model::{EnvSpec, StorageKind, VmId};
use world::World;

/// Sequences of each test: ten thousand in all.
const CASES: u32 = 625;
/// Steps of a sequence beside the first, which makes an Env.
const STEPS: std::ops::Range<usize> = 11..20;

/// What the world's host allows.
const LIMITS: Limits = Limits { cpu_max: 4, mem_min: 32, grace: 20 };

macro_rules! sequences {
    ($($name:ident: $storage:ident, $number:literal;)*) => {$(
        #[test]
        fn $name() {
            run(StorageKind::$storage, $number);
        }
    )*};
}

sequences! {
    sequences_on_files_end_as_promised_1: File, 1;
    sequences_on_files_end_as_promised_2: File, 2;
    sequences_on_files_end_as_promised_3: File, 3;
    sequences_on_files_end_as_promised_4: File, 4;
    sequences_on_files_end_as_promised_5: File, 5;
    sequences_on_files_end_as_promised_6: File, 6;
    sequences_on_files_end_as_promised_7: File, 7;
    sequences_on_files_end_as_promised_8: File, 8;
    sequences_on_layers_end_as_promised_1: Qcow2, 9;
    sequences_on_layers_end_as_promised_2: Qcow2, 10;
    sequences_on_layers_end_as_promised_3: Qcow2, 11;
    sequences_on_layers_end_as_promised_4: Qcow2, 12;
    sequences_on_layers_end_as_promised_5: Qcow2, 13;
    sequences_on_layers_end_as_promised_6: Qcow2, 14;
    sequences_on_layers_end_as_promised_7: Qcow2, 15;
    sequences_on_layers_end_as_promised_8: Qcow2, 16;
}

fn run(storage: StorageKind, number: u64) {
    let seed = seed();
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..Config::default()
    };
    let rng = chance(seed, number);
    let sequence = (env_spec(&FAKES), steps(&FAKES, STEPS));
    let result = TestRunner::new_with_rng(config, rng).run(&sequence, |(spec, steps)| {
        let mut log = Vec::new();
        let steps = steps.into_iter().flatten();
        play(storage, &spec, steps, &mut log)
            .map_err(|problem| TestCaseError::fail(format!("{problem}\n{}", log.join("\n"))))
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, _)) => panic!("TT_SEED={seed}: {why}"),
        Err(abort) => panic!("TT_SEED={seed}: {abort}"),
    }
}

/// Lets all of it happen; says what is not as it should be, and after what.
fn play(
    storage: StorageKind,
    first: &EnvSpec,
    steps: impl Iterator<Item = Step>,
    log: &mut Vec<String>,
) -> Result<(), String> {
    let mut world = World::with(storage);
    let mut model = Model::new(world.clock.now(), 1, LIMITS);
    let (mut facts, mut life) = (Facts::default(), Life::begin(&world));
    let begin = step(Action::Create(first.clone()));
    for step in std::iter::once(begin).chain(steps) {
        let (target, action) = model.resolve(&step, first);
        log.push(format!("{target:?} {action:?} {:?}", step.mishap));
        happen(&mut world, &mut model, &mut life, &target, &action, step.mishap)?;
        compare(&world, &model, &mut facts)?;
    }
    log.push("everything goes".to_owned());
    end(&mut world, &mut model, &mut life)
}

fn happen(
    world: &mut World,
    model: &mut Model,
    life: &mut Life,
    target: &Target,
    action: &Action,
    mishap: Mishap,
) -> Result<(), String> {
    let done = world.act(target, action);
    let expected = model.act(target, action);
    if done.is_ok() != expected {
        return Err(format!("it was answered {done:?}, expected {expected}"));
    }
    life.follow(world, action, mishap)
}

/// Everything goes, and nothing is left.
fn end(world: &mut World, model: &mut Model, life: &mut Life) -> Result<(), String> {
    while let Some(env) = model.envs.keys().next().cloned() {
        let target = Target { env, vm: None, image: VmId(0) };
        happen(world, model, life, &target, &Action::Destroy, Mishap::None)?;
    }
    // What lies on another one goes before it.
    while let Some(image) = model.images.keys().next_back().copied() {
        let target = Target { env: String::new(), vm: None, image };
        happen(world, model, life, &target, &Action::RemoveImage, Mishap::None)?;
    }
    compare(world, model, &mut Facts::default())?;
    match (world.machines.is_empty(), world.disk.is_empty()) {
        (true, true) => Ok(()),
        _ => Err(format!("left over: {:?} {:?}", world.machines, world.disk)),
    }
}

fn step(action: Action) -> Step {
    Step { env: 0, vm: None, image: 0, action, mishap: Mishap::None }
}
