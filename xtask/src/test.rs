//! `cargo xtask test`: every check and every test, on a machine that it first gives what it needs. One failure does not hide
//! the next: all are run. It leaves packages and build caches, and nothing else.

pub mod kernel;
mod outcome;

use crate::command::{Argv, has_program, is_root};
use crate::compile::{self, Built, cargo, target_dir};
use crate::failure::{Failure, Outcome};
use crate::footprint::Footprint;
use crate::say::{self, Steps};
use crate::sudo::{self, Ticket};
use crate::{demo, interrupt, packages, tidy};
use outcome::Tests;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The database is small; where nothing answers, a run is not held up.
const ADVISORIES_LIMIT: Duration = Duration::from_secs(60);
/// Guests are emulated: more at a time than this, and their boots run into limits.
const THREADS_WITHOUT_GROUPS: &str = "--test-threads=2";
/// What tests that run as root make below the directory of builds, and keep there for the next run.
pub const MADE_BY_ROOT: [&str; 4] =
    ["tmp/tt-image-cache", "tt-test-cache", "tt-test-helper", "tt-test-helper.rs"];

/// Runs all of it; `args` go to the test runner, to choose tests.
///
/// # Errors
/// If anything failed; all failures were printed before.
pub fn run(args: &[String]) -> Outcome {
    let _ticket = Ticket::take()?;
    interrupt::remember_interrupts();
    let start = Instant::now();
    let mut steps = Steps::default();
    let wanted: Vec<&str> = [packages::TO_RUN.as_slice(), &packages::TO_TEST].concat();
    let installed = steps.run("install what is missing", || packages::install(&wanted));
    lints(&mut steps);
    let mut tests = Tests::default();
    if let Some(built) = steps.run("build the program and the agent", compile::build) {
        test(&mut steps, &built, args, &mut tests);
    }
    say::title("what was run");
    say::line(steps.table().trim_end());
    say::line(packages::told(installed.as_deref()));
    say::title("what was skipped inside of tests");
    match tests.skipped.as_slice() {
        [] => say::line("nothing"),
        skipped => skipped.iter().for_each(say::line),
    }
    say::line(format_args!("\nin {:.0} s", start.elapsed().as_secs_f64()));
    if let Some(summary) = tests.summary() {
        say::line(summary);
    }
    if !steps.are_good() {
        return Err(Failure::new("not all is good; see above"));
    }
    Ok(())
}

fn lints(steps: &mut Steps) {
    steps.run("tidy", tidy::run);
    for (name, component, words) in [
        ("format", "cargo-fmt", ["fmt", "--all", "--check"].as_slice()),
        (
            "clippy",
            "cargo-clippy",
            &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
        ),
        (
            "licences, bans, sources",
            "cargo-deny",
            &["deny", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"],
        ),
    ] {
        match interrupt::came() || has_program(component) {
            _ if interrupt::came() => steps.skip(name, "interrupted"),
            true => drop(steps.run(name, || cargo(words.iter().copied())?.run())),
            false => steps.skip(name, &format!("{component} is not installed")),
        }
    }
    advisories(steps);
    unused(steps);
    steps.run("documents", || {
        cargo(["doc", "--workspace", "--no-deps", "--locked"])?
            .env("RUSTDOCFLAGS", "-D warnings")
            .run()
    });
}

/// Started by itself: below `cargo run` it does not see that Cargo started it, and takes its own name for a path.
fn unused(steps: &mut Steps) {
    let (name, program) = ("unused dependencies", "cargo-machete");
    match has_program(program) {
        true => drop(steps.run(name, || Argv::new(program).dir(compile::root()?).run())),
        false => steps.skip(name, "cargo-machete is not installed"),
    }
}

/// The database of advisories lies on the network, which not every machine reaches.
fn advisories(steps: &mut Steps) {
    let name = "advisories";
    let deny = |words: &[&str]| {
        let argv = cargo(["deny"])?.args(words);
        Ok(argv.limit(ADVISORIES_LIMIT))
    };
    let fetch = || Ok::<bool, Failure>(deny(&["fetch", "db"])?.look()?.status.success());
    if !has_program("cargo-deny") {
        steps.skip(name, "cargo-deny is not installed");
    } else if !fetch().unwrap_or(false) {
        steps.skip(name, "their database can not be fetched here");
    } else {
        steps.run(name, || deny(&["check", "--hide-inclusion-graph", "advisories"])?.run());
    }
}

fn test(steps: &mut Steps, built: &Built, args: &[String], tests: &mut Tests) {
    let cache = target_dir().join("tt-test-cache");
    let kernel = steps.run("fetch a guest's kernel", || kernel::fetch(&cache));
    let compiled = steps.run("build the tests", || build_tests(args));
    if compiled.is_none() {
        return;
    }
    // SAFETY: umask takes a number, and can not fail. Daemons under test are passed by machines' users, whatever people want.
    unsafe { libc::umask(0o022) };
    let before = steps.run("look at the machine", Footprint::take);
    let scratch = steps.run("make a scratch directory", Scratch::new);
    let helper = steps.run("build the tests' program for guests", compile::build_helper);
    let (Some(before), Some(scratch), Some(helper)) = (before, scratch, helper) else { return };
    let mut environment = vec![
        ("TT_BIN", built.tt.clone()),
        ("TT_GUEST_AGENT", built.agent.clone()),
        ("TT_TEST_HELPER", helper),
        ("TT_TEST_CACHE", cache),
        ("TMPDIR", scratch.0.clone()),
    ];
    if let Some(kernel) = kernel {
        environment.push(("TT_BOOT_AGENT", built.agent.clone()));
        environment.push(("TT_BOOT_KERNEL", kernel.image));
        environment.push(("TT_BOOT_MODULES", kernel.modules));
    }
    steps.run("tests", || run_tests(&environment, args, tests));
    if args.is_empty() {
        // What newcomers see first has no other test.
        let _ = demo::walk_on_a_host_of_its_own(steps, built);
        steps.run("examples in documents", || {
            as_root(cargo(["test", "--workspace", "--doc", "--quiet", "--locked"])?, &environment)
                .run()
        });
    }
    steps.run("nothing was left in the scratch directory", || scratch.expect_empty());
    drop(scratch);
    steps.run("the machine is as it was", || before.expect_again());
    if !is_root() {
        steps.run("give the caches back", || sudo::give_back(&target_dir(), &MADE_BY_ROOT));
    }
}

fn build_tests(args: &[String]) -> Outcome {
    let argv = match has_nextest() {
        true => cargo(["nextest", "run", "--locked", "--no-run"])?.args(scope(args)).args(args),
        false => cargo(["test", "--locked", "--no-run", "--lib", "--bins", "--tests"])?
            .args(scope(args))
            .args(args),
    };
    argv.run()
}

fn run_tests(environment: &[(&str, PathBuf)], args: &[String], tests: &mut Tests) -> Outcome {
    if !has_nextest() {
        say::line(
            "cargo-nextest is not installed: `cargo test` runs instead, without limits on time",
        );
        let words = ["test", "--locked", "--no-fail-fast", "--lib", "--bins", "--tests"];
        let argv = cargo(words)?.args(scope(args)).args(args).args([
            "--",
            THREADS_WITHOUT_GROUPS,
            "--show-output",
        ]);
        return as_root(argv, environment).watch(|line| tests.line_of_cargo_test(line));
    }
    let argv =
        cargo(["nextest", "run", "--locked", "--no-fail-fast"])?.args(scope(args)).args(args);
    // Nextest writes its report below the clone's own `target`, wherever builds go.
    let report = compile::root()?.join("target/nextest/default/junit.xml");
    // An older run's report would tell of other tests; usually there is none.
    let _ = fs::remove_file(&report);
    let ran = as_root(argv, environment).watch(|line| tests.line_of_nextest(line));
    let text = fs::read_to_string(&report).map_err(Failure::to("read", report.display()))?;
    tests.read_report(&text);
    ran
}

/// All packages, unless some are named.
fn scope(args: &[String]) -> Option<&'static str> {
    let names_some = args.iter().any(|arg| arg == "-p" || arg.starts_with("--package"));
    (!names_some).then_some("--workspace")
}

fn has_nextest() -> bool {
    has_program("cargo-nextest")
}

/// With the variables that tests read, and so that what Cargo runs is run as root, through `sudo` where this is not root.
pub fn as_root(argv: Argv, environment: &[(&str, PathBuf)]) -> Argv {
    let argv = environment.iter().fold(argv, |argv, (name, value)| argv.env(*name, value));
    if is_root() {
        return argv;
    }
    let triple = compile::triple().to_uppercase().replace('-', "_");
    let is_temporary = |(name, _): &&(&str, PathBuf)| *name == "TMPDIR";
    // `sudo` itself loses this one: the C library drops it for programs that change their user.
    let kept = environment.iter().find(is_temporary).map(|(_, dir)| dir.display().to_string());
    let runner = format!("sudo -n -E env TMPDIR={}", kept.unwrap_or_else(|| "/tmp".into()));
    argv.env(format!("CARGO_TARGET_{triple}_RUNNER"), runner)
}

/// Where tests put their files, so that what they leave is seen.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Outcome<Self> {
        // A short path: sockets lie below it, and their paths have 107 bytes.
        let path = Path::new("/var").join("tmp").join(format!("tt-t{}", std::process::id()));
        fs::create_dir(&path).map_err(Failure::to("make", path.display()))?;
        let scratch = Self(path);
        // Machines' own users pass through it.
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o1777))
            .map_err(Failure::to("open", scratch.0.display()))?;
        Ok(scratch)
    }

    fn expect_empty(&self) -> Outcome {
        let entries = fs::read_dir(&self.0).map_err(Failure::to("list", self.0.display()))?;
        let names: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        match names.is_empty() {
            true => Ok(()),
            false => Err(Failure::new(format!("tests left {}", names.join(", ")))),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let removed = Argv::new("rm").args(["-r", "--one-file-system"]).arg(&self.0).root().run();
        if let Err(failure) = removed {
            say::line(format_args!("while cleaning up: {failure}"));
        }
    }
}
