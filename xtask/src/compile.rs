//! Builds of the program and of the guest's static agent, outside of the clone. It installs nothing.

use crate::command::Argv;
use crate::failure::{Failure, Outcome};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Separates the flags in `CARGO_ENCODED_RUSTFLAGS`, so that paths may hold spaces.
const FLAG_END: &str = "\u{1f}";

/// What was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// The program `tt`.
    pub tt: PathBuf,
    /// The guest's agent: one static file.
    pub agent: PathBuf,
}

/// The root of the clone that this program was built from.
pub fn root() -> Outcome<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.parent().filter(|root| root.join("Cargo.lock").is_file());
    let moved = || Failure::new("the clone was moved: run `cargo clean --package xtask`");
    root.map(Path::to_owned).ok_or_else(moved)
}

/// Where builds go: `CARGO_TARGET_DIR`, else `tt-build` in the user's cache, else one below the temporary directory that
/// outlives reboots.
pub fn target_dir() -> PathBuf {
    let named =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
    named("CARGO_TARGET_DIR").unwrap_or_else(|| match cache() {
        Some(cache) => cache.join("tt-build"),
        None => Path::new("/var").join("tmp").join("tt-build"),
    })
}

/// Cargo with arguments, in the clone, building outside of it.
pub fn cargo<A: Into<OsString>>(args: impl IntoIterator<Item = A>) -> Outcome<Argv> {
    let argv = Argv::new("cargo").args(args).dir(root()?);
    Ok(argv.env("CARGO_TARGET_DIR", target_dir()))
}

/// The name of this machine's kind, as Cargo says it.
pub fn triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// Builds both, for tests and people.
///
/// # Errors
/// If a build fails, or the agent came out other than it must be.
pub fn build() -> Outcome<Built> {
    cargo(["build", "--package", "tt", "--locked"])?.run()?;
    Ok(Built { tt: target_dir().join("debug/tt"), agent: build_agent()? })
}

/// Builds both as they are installed, for measuring: without failpoints.
///
/// # Errors
/// As [`build`].
pub fn build_release() -> Outcome<Built> {
    cargo(["build", "--package", "tt", "--release", "--locked"])?.run()?;
    Ok(Built { tt: target_dir().join("release/tt"), agent: build_agent()? })
}

/// Builds the program that tests put into guests. Tests run as root, for whom `sudo` need not find a compiler.
///
/// # Errors
/// If the build fails.
pub fn build_helper() -> Outcome<PathBuf> {
    let helper = target_dir().join(triple()).join("guest/tt-test-helper");
    Argv::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .dir(root()?)
        .args(["--edition", "2024", "--target", &triple(), "-Copt-level=s", "-Cstrip=symbols"])
        .args(["-Ctarget-feature=+crt-static", "-Crelocation-model=static"])
        .arg("testkit/guest/helper.rs")
        .arg("-o")
        .arg(&helper)
        .run()?;
    Ok(helper)
}

fn build_agent() -> Outcome<PathBuf> {
    let triple = triple();
    let root = root()?;
    // No path of the machine that built it goes into every guest.
    let mut flags =
        vec!["-Ctarget-feature=+crt-static".to_owned(), "-Crelocation-model=static".into()];
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| Ok::<_, std::env::VarError>(std::env::var("HOME")? + "/.cargo"));
    flags.push(format!("--remap-path-prefix={}=/tt", root.display()));
    flags.extend(home.map(|home| format!("--remap-path-prefix={home}=/cargo")));
    cargo(["build", "--package", "tt-guest", "--bin", "tt-guest", "--profile", "guest"])?
        .args(["--locked", "--target", &triple])
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(FLAG_END))
        .run()?;
    let agent = target_dir().join(triple).join("guest/tt-guest");
    check_agent(&agent, &root)?;
    Ok(agent)
}

/// A guest has no libraries, and is nobody's to learn of this machine.
fn check_agent(agent: &Path, root: &Path) -> Outcome {
    let bytes = fs::read(agent).map_err(Failure::to("read", agent.display()))?;
    if needs_interpreter(&bytes) {
        return Err(Failure::new("the agent came out with a dynamic linker: it is not static"));
    }
    let root = root.as_os_str().as_encoded_bytes();
    if bytes.windows(root.len()).any(|part| part == root) {
        return Err(Failure::new("the agent came out with this clone's path in it"));
    }
    Ok(())
}

/// Whether an ELF file of 64 bits and little endian (elf(5)) has a `PT_INTERP` header.
fn needs_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, size: usize| {
        let bytes = elf.get(at..at + size)?;
        bytes.iter().rev().try_fold(0usize, |sum, byte| Some(sum << 8 | usize::from(*byte)))
    };
    let header = || Some((number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?));
    let Some((start, size, count)) = header() else { return true };
    (0..count).any(|index| number(start + index * size, 4) == Some(PT_INTERP as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told() {
        let this = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(needs_interpreter(&this));
        assert!(needs_interpreter(b"short"));
        let mut none = this;
        none[0x38] = 0;
        none[0x39] = 0;
        assert!(!needs_interpreter(&none));
    }
}
