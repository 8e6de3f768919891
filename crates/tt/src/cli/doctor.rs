//! `tt doctor`: what this host can do, without a daemon.

use super::error::{CliError, Exit};
use super::output::Output;
use super::text::Table;
use crate::config::{Config, ConfigArgs};
use crate::daemon::doctor::{Check, examine};
use clap::Args;
use std::path::Path;

/// Arguments of `tt doctor`: those of the daemon that is to run here.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Prints what was found; fails if something is missing.
///
/// # Errors
/// If the configuration makes no sense.
pub fn run(args: &DoctorArgs, socket: Option<&Path>, output: Output) -> Result<Exit, CliError> {
    // It tries what the daemon does.
    super::daemon::open_umask();
    let config = Config::load(&args.config, socket)?;
    let checks = examine(&config);
    output.result(&checks, || lines(&checks))?;
    let is_well = checks.iter().all(|check| check.is_ok);
    Ok(if is_well { Exit::DONE } else { Exit::FAILED })
}

fn lines(checks: &[Check]) -> String {
    let mut table = Table::with_header(&["CHECK", "STATE", "FOUND"]);
    for check in checks {
        let found = match &check.remedy {
            Some(remedy) => format!("{}; {remedy}", check.found),
            None => check.found.clone(),
        };
        table.row([check.name.as_str(), if check.is_ok { "ok" } else { "missing" }, &found]);
    }
    table.render()
}
