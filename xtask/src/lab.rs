//! `cargo xtask lab`: the tests that need KVM, in a guest that has it. The guest is emulated, and so is the virtualisation that it
//! has (AMD's SVM), so it runs on any machine, slowly. (`cargo xtask lab zfs` is about pools, and another guest: `lab/zfs.rs`.) It is made for one run of Debian's kernel, of programs of this machine
//! and of the tests, lives in memory, and leaves nothing but the caches of the other commands.

mod guest;
mod report;
mod zfs;

use crate::command::Argv;
use crate::compile::{self, cargo, target_dir};
use crate::failure::{Failure, Outcome};
use crate::say::{self, Steps};
use crate::test::kernel::{self, Kernel};
use crate::{interrupt, packages};
use report::Report;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Names a Firecracker; without it that half is skipped.
const FIRECRACKER: &str = "TT_FIRECRACKER";
/// How long the guest may run: ten times what an idle machine takes.
const RUN_LIMIT: Duration = Duration::from_secs(3600);
/// Memory of the guest in MB: its files lie in it, and so do its guests.
const MEM_MB: u32 = 4096;

/// One program of tests, as it runs in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suite {
    package: &'static str,
    /// Name of the test target.
    target: &'static str,
    /// What selects tests, as the test runner takes it.
    filter: &'static str,
    /// What is not to be run, and why it is left out.
    skip: &'static [&'static str],
}

/// What QEMU's driver does on KVM: `microvm` where a kernel is booted. Firmware is the same on any accelerator, and slow here;
/// the engine of others has its own program, and brings no KVM.
const QEMU: Suite =
    Suite { package: "tt-engine", target: "qemu", filter: "", skip: &["firmware::", "exec::"] };
/// What is promised of Firecracker; the rest needs no Firecracker, and runs with all other tests.
const REAL: Suite =
    Suite { package: "tt-engine", target: "firecracker", filter: "for_real", skip: &[] };
/// A whole host: a daemon, and one Env whose members both run.
const WHOLE: Suite = Suite { package: "tests", target: "engines", filter: "kvm", skip: &[] };
/// What of [`WHOLE`] runs on this machine first: it makes the small template from this machine's packages, which the guest has not.
const FIRST: &str = "the_small_template";

/// The argument that asks for figures, not for tests.
const BENCH: &str = "bench";

/// Runs all tests; `args` select those of QEMU's by parts of their names. Or, if they are [`BENCH`], measures.
///
/// # Errors
/// If something can not be built or run, or a test failed.
pub fn run(args: &[String]) -> Outcome {
    interrupt::remember_interrupts();
    if let Some(("zfs", parts)) = args.split_first().map(|(part, rest)| (part.as_str(), rest)) {
        return zfs::run(parts);
    }
    let start = Instant::now();
    let mut steps = Steps::default();
    let firecracker = std::env::var_os(FIRECRACKER).map(PathBuf::from);
    let mut report = Report::default();
    if firecracker.is_none() {
        for suite in [REAL, WHOLE] {
            report.skip(suite.target, &format!("{FIRECRACKER} names no Firecracker"));
        }
    }
    let ran = steps.run("all of it", || in_scratch(firecracker.as_deref(), args, &mut report));
    tell(ran, &report, start)
}

/// Says what was run, and how it ended.
fn tell(ran: Option<()>, report: &Report, start: Instant) -> Outcome {
    say::title("what was run in the lab");
    say::line(report.text().trim_end());
    say::line(format_args!("\nin {:.0} s", start.elapsed().as_secs_f64()));
    match (ran, report.failures()) {
        (Some(()), 0) => Ok(()),
        (Some(()), count) => Err(Failure::new(format!("{count} tests failed; see above"))),
        (None, _) => Err(Failure::new("the lab did not come to its end; see above")),
    }
}

fn in_scratch(firecracker: Option<&Path>, args: &[String], report: &mut Report) -> Outcome {
    packages::install(&[packages::TO_RUN.as_slice(), &packages::TO_TEST].concat())?;
    let kernel = kernel::fetch(&target_dir().join("tt-test-cache"))?;
    let scratch = Scratch::new()?;
    let measures = args == [BENCH];
    if measures && firecracker.is_none() {
        return Err(Failure::new(format!(
            "nothing is measured: {FIRECRACKER} names no Firecracker"
        )));
    }
    let mut suites = Vec::new();
    let mut brought = guest::Brought { firecracker, whole: None };
    if !measures {
        suites.push((QEMU, build(QEMU)?));
    }
    if firecracker.is_some() {
        let program = build(WHOLE)?;
        brought.whole = Some(whole(&scratch.0, &program, measures)?);
        if !measures {
            suites.extend([(REAL, build(REAL)?), (WHOLE, program)]);
        }
    }
    let archive = guest::make(&scratch.0, &kernel, &suites, &brought, args)?;
    let argv = machine(&kernel, &archive).limit(RUN_LIMIT);
    say::title("the guest");
    argv.watch(|line| report.line(line))?;
    match report.came_to_its_end() {
        true => Ok(()),
        false => Err(Failure::new("the guest ended before its tests did")),
    }
}

/// Builds what a whole host is made of, for tests or as it is installed, and lets the tests in `program` fill the guest's cache.
fn whole(scratch: &Path, program: &Path, measures: bool) -> Outcome<guest::Whole> {
    let (built, bench) = match measures {
        true => {
            cargo(["build", "--package", "bench", "--release", "--locked"])?.run()?;
            (compile::build_release()?, Some(target_dir().join("release/bench")))
        }
        false => (compile::build()?, None),
    };
    let helper = compile::build_helper()?;
    let cache = guest::root(scratch).join(guest::CACHE);
    fs::create_dir_all(&cache).map_err(Failure::to("make", cache.display()))?;
    let downloads = target_dir().join("tt-test-cache/downloads");
    if downloads.exists() {
        Argv::new("cp").arg("--archive").arg(downloads).arg(&cache).run()?;
    }
    let fill = Argv::new(program).arg(FIRST).limit(RUN_LIMIT);
    let fill = fill.env("TT_BIN", &built.tt).env("TT_GUEST_AGENT", &built.agent);
    fill.env("TT_TEST_HELPER", &helper).env("TT_TEST_CACHE", &cache).run()?;
    Ok(guest::Whole { built, helper, bench })
}

/// Builds the tests of a suite; answers their program.
fn build(suite: Suite) -> Outcome<PathBuf> {
    build_of(suite.package, suite.target)
}

fn build_of(package: &str, target: &str) -> Outcome<PathBuf> {
    let words = ["test", "--locked", "--package", package, "--no-run", "--test", target];
    let said = cargo(words)?.look()?;
    let failed = || Failure::new(format!("the tests `{target}` were not built:\n{}", said.text));
    // `Executable tests/qemu/main.rs (/builds/debug/deps/qemu-0123456789abcdef)`
    let path = said.text.lines().rev().find_map(|line| {
        let (_, path) = line.trim().strip_prefix("Executable ")?.rsplit_once('(')?;
        path.strip_suffix(')')
    });
    path.filter(|_| said.status.success()).map(PathBuf::from).ok_or_else(failed)
}

/// The emulator that carries the guest. What QEMU calls `-no-reboot` ends it when the guest panics, too.
fn machine(kernel: &Kernel, archive: &Path) -> Argv {
    let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
    Argv::new("qemu-system-x86_64")
        .args(words("-nodefaults -no-user-config -display none -no-reboot"))
        .args(words("-machine q35 -accel tcg,thread=multi -cpu EPYC,+svm,+npt -smp 2"))
        .args(["-m".to_owned(), format!("{MEM_MB}M")])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(archive)
        .args(["-append", "console=ttyS0 quiet panic=-1 cryptomgr.notests no_timer_check"])
        .args(words("-serial stdio"))
}

/// Where the guest is put together. Removed when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Outcome<Self> {
        let path = target_dir().join(format!("tt-lab-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(Failure::to("make", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            say::line(format_args!("while cleaning up: {}: {error}", self.0.display()));
        }
    }
}

/// Opens a file that a program writes to.
fn create(path: &Path) -> Outcome<File> {
    File::create(path).map_err(Failure::to("make", path.display()))
}
