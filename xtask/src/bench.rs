//! `cargo xtask bench`: prepares the machine, builds as for an installation, and runs the package `bench`, which measures.

use crate::command::is_root;
use crate::compile::{self, cargo, target_dir};
use crate::failure::Outcome;
use crate::footprint::Footprint;
use crate::sudo::{self, Ticket};
use crate::test::{MADE_BY_ROOT, as_root};
use crate::{interrupt, packages, say};

/// Runs the benches of these names, or all.
///
/// # Errors
/// If something can not be built or measured, a ratio is above its bound, or the machine is not as it was.
pub fn run(names: &[String]) -> Outcome {
    interrupt::remember_interrupts();
    let _ticket = Ticket::take()?;
    packages::install(&[packages::TO_RUN.as_slice(), &packages::TO_BENCH].concat())?;
    let built = compile::build_release()?;
    let run = |command: &str| cargo([command, "--package", "bench", "--release", "--locked"]);
    run("build")?.run()?;
    let before = Footprint::take()?;
    let environment = [
        ("TT_BIN", built.tt),
        ("TT_GUEST_AGENT", built.agent),
        ("TT_TEST_HELPER", compile::build_helper()?),
        ("TT_TEST_CACHE", target_dir().join("tt-test-cache")),
    ];
    let argv = run("run")?.arg("--quiet").arg("--").args(names);
    if !is_root() {
        say::line("measuring as root, through sudo");
    }
    let measured = as_root(argv, &environment).watch(|_| ());
    let given = sudo::give_back(&target_dir(), &MADE_BY_ROOT);
    measured.and(given).and(before.expect_again())
}
