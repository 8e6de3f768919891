//! Random sequences of what can happen to a host, and the model that says what must be true after each step. Shared by the
//! sequences on fakes (`tt-host/tests/sequences`) and those on real guests (`tests/tests/sequences`). It touches no host.

mod action;
mod members;
mod model;
mod records;

pub use action::{
    Action, FAKES, GUESTS, Mishap, Scope, Step, Target, env_spec, has_machine, steps,
};
pub use model::{Content, Env, Frozen, Image, Limits, Model, Moment, Vm};
pub use records::{Chosen, compare_records, same};

use crate::number;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// The seed that `TT_SEED` names, else 0: a run of tests is the same each time.
///
/// # Panics
/// If the variable holds no number.
pub fn seed() -> u64 {
    number("TT_SEED").unwrap_or(0)
}

/// Chance that is the same for the same seed and stream.
pub fn chance(seed: u64, stream: u64) -> TestRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&stream.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}
