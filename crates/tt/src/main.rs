//! The program `tt`: `tt daemon` serves a host, everything else asks it.

use std::process::ExitCode;

mod cli;
mod config;
mod daemon;

fn main() -> ExitCode {
    cli::main()
}
