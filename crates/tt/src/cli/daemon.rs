//! `tt daemon`: reads the configuration, starts the log, and hands over to the composition root.

use super::error::{CliError, Exit};
use super::output::Output;
use crate::config::{Config, ConfigArgs};
use clap::Args;
use std::io::IsTerminal;
use std::path::Path;
use tracing_subscriber::EnvFilter;

/// Arguments of `tt daemon`; `--socket` says where the API is served.
#[derive(Args, Debug)]
pub struct DaemonArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Serves this host until the process is told to end.
///
/// # Errors
/// If the configuration makes no sense, or the daemon can not serve.
pub async fn run(
    args: DaemonArgs,
    socket: Option<&Path>,
    output: Output,
) -> Result<Exit, CliError> {
    open_umask();
    let mut args = args.config;
    let level = [(output.verbose, "debug"), (output.quiet, "warn")];
    let level = level.into_iter().find_map(|(is_asked, level)| is_asked.then(|| level.to_owned()));
    args.log = args.log.or(level);
    let config = Config::load(&args, socket)?;
    // The configuration has been checked: the filter can be read.
    let filter = EnvFilter::new(&config.log);
    let is_terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_terminal);
    log.with_writer(std::io::stderr).init();
    crate::daemon::run(config).await?;
    Ok(Exit::DONE)
}

/// Machines run as users of their own and pass directories of the host's; a stricter umask, as some administrators have,
/// would close all that is made from now on. What is secret gets its own mode where it is made.
pub fn open_umask() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
}
