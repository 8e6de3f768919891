//! What a lab runs: the program, the guest's agent, a helper for guests, and the cache that templates are built from.
//! Each is found or made once for all tests of a process.

use crate::Must;
use crate::run::run;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tt_image::{Catalogue, ImageError, Packages};
use tt_model::Recipe;

/// The target of static programs.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Turns a program for [`TARGET`] into a static one at a fixed address.
const STATIC: &str = "-C target-feature=+crt-static -C relocation-model=static";
/// Programs of the host that labs and daemons need, and the package of each.
const TOOLS: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("mkfs.ext4", "e2fsprogs"),
];
/// What building `debian-12`, and logging in to it, needs beside that.
const TOOLS_OF_DEBIAN: [(&str, &str); 3] =
    [("mmdebstrap", "mmdebstrap"), ("depmod", "kmod"), ("ssh", "openssh-client")];
/// What a guest runs where BusyBox has no applet.
const HELPER: &str = include_str!("../guest/helper.rs");

/// Where all programs are.
#[derive(Debug)]
pub(crate) struct Programs {
    pub tt: PathBuf,
    pub agent: PathBuf,
    pub helper: PathBuf,
    /// Cleans up after a test that was killed; absent for other tests than those of package `tests`.
    pub guard: Option<PathBuf>,
    pub cache: PathBuf,
}

/// The programs, or why there are none.
pub(crate) fn programs() -> Result<&'static Programs, String> {
    static PROGRAMS: OnceLock<Result<Programs, String>> = OnceLock::new();
    PROGRAMS.get_or_init(prepare).as_ref().map_err(Clone::clone)
}

fn prepare() -> Result<Programs, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("it needs root".into());
    }
    if let Some((tool, package)) = TOOLS.iter().find(|(tool, _)| !is_in_path(tool)) {
        return Err(format!("there is no {tool}; install {package}"));
    }
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    // A test lies in TARGET_DIR/PROFILE/deps.
    let profile = test.ancestors().nth(2).unwrap_or(Path::new("/"));
    let target = profile.parent().unwrap_or(Path::new("/"));
    let tt = given_or("TT_BIN", &profile.join("tt"), || build_tt(target))?;
    let agent = target.join(TARGET).join("guest/tt-guest");
    let agent = given_or("TT_GUEST_AGENT", &agent, || build_agent(target))?;
    let cache = std::env::var_os("TT_TEST_CACHE").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| target.join("tt-test-cache"));
    fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    let helper = match std::env::var_os("TT_TEST_HELPER") {
        Some(_) => given_or("TT_TEST_HELPER", Path::new(""), || Ok(()))?,
        None => build_helper(target)?,
    };
    let guard = Some(profile.join("lab-guard")).filter(|guard| guard.is_file());
    fill(&cache, &agent)?;
    Ok(Programs { tt, agent, helper, guard, cache })
}

/// The example of an engine of others, or why there is none.
pub(crate) fn example_engine() -> Result<PathBuf, String> {
    let tt = &programs()?.tt;
    let path = tt.with_file_name("tt-example-engine");
    if !path.is_file() {
        let target = tt.ancestors().nth(2).unwrap_or(Path::new("/"));
        cargo(target, &["build", "--package", "tt-engine", "--bin", "tt-example-engine"], None)?;
    }
    if path.is_file() { Ok(path) } else { Err(format!("there is no {}", path.display())) }
}

fn is_in_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}

/// The file that the environment names, else the one that is there, else a new one.
fn given_or(
    variable: &str,
    usual: &Path,
    build: impl FnOnce() -> Result<(), String>,
) -> Result<PathBuf, String> {
    let given = std::env::var_os(variable).map(PathBuf::from);
    let path = given.clone().unwrap_or_else(|| usual.to_owned());
    if given.is_none() && !path.is_file() {
        build()?;
    }
    if path.is_file() { Ok(path) } else { Err(format!("there is no {}", path.display())) }
}

fn build_tt(target: &Path) -> Result<(), String> {
    cargo(target, &["build", "--package", "tt"], None)
}

fn build_agent(target: &Path) -> Result<(), String> {
    let args = ["build", "--package", "tt-guest", "--bin", "tt-guest", "--profile", "guest"];
    cargo(target, &[&args[..], &["--target", TARGET]].concat(), Some(STATIC))
}

fn cargo(target: &Path, args: &[&str], flags: Option<&str>) -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let mut command = Command::new(cargo);
    command.args(args).env("CARGO_TARGET_DIR", target).current_dir(env!("CARGO_MANIFEST_DIR"));
    flags.map(|flags| command.env("RUSTFLAGS", flags));
    // A build may take longer than a test may.
    let output = command.output().map_err(|error| format!("cargo: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(text) }
}

/// Builds the helper beside its place and moves it there, so that processes side by side do not disturb each other.
fn build_helper(target: &Path) -> Result<PathBuf, String> {
    let failed = |error: std::io::Error| format!("the guests' helper: {error}");
    let scratch = tempfile::tempdir_in(target).map_err(failed)?;
    let (source, built) = (scratch.path().join("helper.rs"), scratch.path().join("helper"));
    let (helper, kept) = (target.join("tt-test-helper"), target.join("tt-test-helper.rs"));
    if helper.is_file() && fs::read_to_string(&kept).is_ok_and(|text| text == HELPER) {
        return Ok(helper);
    }
    fs::write(&source, HELPER).map_err(failed)?;
    let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--target", TARGET, "-C", "opt-level=s"]);
    command.args(["-C", "strip=symbols"]).args(STATIC.split(' '));
    let built_by = run(command.arg(&source).arg("-o").arg(&built), b"");
    if built_by.code != Some(0) {
        return Err(format!("the guests' helper: {}", built_by.err));
    }
    fs::rename(&built, &helper).map_err(failed)?;
    fs::rename(&source, &kept).map_err(failed)?;
    Ok(helper)
}

/// Lets the cache hold all that `micro` is built from. This process can reach a package mirror if anybody can; daemons in
/// labs can not.
fn fill(cache: &Path, agent: &Path) -> Result<(), String> {
    build(cache, agent, "micro", |catalogue| {
        catalogue.build(tt_image::MICRO, Packages::Kept, &tt_image::Quiet).map(drop)
    })
}

/// The same for `debian-12`, which takes two minutes once. Tells what the machine lacks; a build that fails, fails the test.
pub(crate) fn fill_debian(programs: &Programs) -> Result<(), String> {
    if let Some((tool, package)) = TOOLS_OF_DEBIAN.iter().find(|(tool, _)| !is_in_path(tool)) {
        return Err(format!("there is no {tool}; install {package}"));
    }
    let built = build(&programs.cache, &programs.agent, "debian-12", |catalogue| {
        catalogue.build(tt_image::DEBIAN, Packages::Kept, &tt_image::Quiet).map(drop)
    });
    built.must("build it");
    Ok(())
}

/// The same for the recipe in a file; its packages are fetched once.
pub(crate) fn fill_recipe(programs: &Programs, file: &Path) -> Result<(), String> {
    let recipe = Recipe::parse(&fs::read_to_string(file).must("read the recipe"));
    let (recipe, dir) = (recipe.must("read the recipe"), file.parent().unwrap_or(Path::new("/")));
    build(&programs.cache, &programs.agent, "of the recipe", |catalogue| {
        catalogue.build_recipe(&recipe, dir, Packages::Kept, &tt_image::Quiet).map(drop)
    })
}

fn build(
    cache: &Path,
    agent: &Path,
    name: &str,
    make: impl FnOnce(&Catalogue) -> Result<(), ImageError>,
) -> Result<(), String> {
    // Beside the cache, so that files need not be copied.
    let scratch = tempfile::tempdir_in(cache).map_err(|error| error.to_string())?;
    let catalogue = Catalogue::new(scratch.path(), cache, agent);
    let chain = |error: &dyn std::error::Error| {
        let causes = std::iter::successors(error.source(), |error| error.source());
        causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
    };
    make(&catalogue).map_err(|error| format!("the template `{name}`: {}", chain(&error)))
}
