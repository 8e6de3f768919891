//! `cargo xtask bench`: ratios, measured in one run. Absolute times belong to one machine; a ratio carries over.

use crate::failure::{Failure, Outcome};

/// Runs the benches of these names, or all.
///
/// # Errors
/// If a name is unknown, or a ratio is above its bound.
pub fn run(names: &[String]) -> Outcome {
    Err(Failure::new(format!("no bench {names:?}")))
}
