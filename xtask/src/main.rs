//! `cargo xtask`: what a newcomer runs (`demo`, `test`), and what keeps the project in shape (`tidy`, `bench`, `lab`). It is no
//! part of the product.

use failure::{Failure, Outcome};
use std::process::ExitCode;

mod bench;
mod command;
mod compile;
mod demo;
mod failure;
mod footprint;
mod interrupt;
mod lab;
mod packages;
mod say;
mod sudo;
mod test;
mod tidy;

const USAGE: &str = "\
usage: cargo xtask COMMAND
  demo              install what is missing, build, and show an Env of two guests from create to destroy
  test [ARGS]       install what is missing, build, run every check and every test; ARGS go to the test runner
  tidy [--shrink]   check rows, lengths, links and texts; --shrink lowers the ratchet to what is there
  bench [NAME..]    measure ratios in one run
  lab [PART..]      run the tests that need KVM in an emulated guest that has it; TT_FIRECRACKER names a Firecracker for its
                    half; PARTs of names choose among QEMU's tests
  lab zfs [PART..]  run the tests of storage that need a pool, in an emulated guest with OpenZFS, which is put together once
  footprint         print what TT could leave on a machine, for a comparison";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.split_first().map(|(command, rest)| (command.as_str(), rest)) {
        Some(("demo", [])) => demo::run(),
        Some(("test", rest)) => test::run(rest),
        Some(("tidy", [])) => tidy::run(),
        Some(("tidy", [flag])) if flag == "--shrink" => tidy::shrink(),
        Some(("bench", rest)) => bench::run(rest),
        Some(("lab", rest)) => lab::run(rest),
        Some(("footprint", [])) => footprint(),
        Some(("help" | "--help" | "-h", _)) => {
            say::line(USAGE);
            return ExitCode::SUCCESS;
        }
        _ => {
            say::line(USAGE);
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say::line(format_args!("error: {failure}"));
            ExitCode::FAILURE
        }
    }
}

fn footprint() -> Outcome {
    if !command::is_root() {
        return Err(Failure::new("only root sees all of a machine: run it with sudo"));
    }
    let footprint = footprint::Footprint::take()?;
    say::line(footprint.text().trim_end());
    Ok(())
}
