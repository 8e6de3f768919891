//! `tt recover`: rebuilds a lost store, without a daemon.

use super::error::{CliError, Exit};
use super::output::Output;
use super::text::{Table, one_line};
use crate::config::{Config, ConfigArgs};
use crate::daemon::recover::{self, Report};
use clap::Args;
use std::path::Path;

/// Arguments of `tt recover`: those of the daemon whose store was lost.
#[derive(Args, Debug)]
pub struct RecoverArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Rebuild the rest where some of it is damaged; the disks of what is left out are removed by the next daemon
    #[arg(long)]
    skip_damaged: bool,
}

/// Rebuilds the store, and prints what it holds then.
///
/// # Errors
/// If the configuration makes no sense, a daemon runs, or what was written down can not be read.
pub fn run(args: &RecoverArgs, socket: Option<&Path>, output: Output) -> Result<Exit, CliError> {
    let config = Config::load(&args.config, socket)?;
    let report = recover::run(&config, args.skip_damaged)?;
    let Report { recovered, moved_to } = &report;
    let value = serde_json::json!({
        "envs": recovered.envs.iter().map(|(name, vm_num)| {
            serde_json::json!({ "name": name, "vm_num": vm_num })
        }).collect::<Vec<_>>(),
        "image_num": recovered.image_num,
        "template_num": recovered.template_num,
        "refused": recovered.refused,
        "moved_to": moved_to,
    });
    output.result(&value, || lines(&report))?;
    Ok(Exit::DONE)
}

fn lines(Report { recovered, moved_to }: &Report) -> String {
    let mut facts = Table::default();
    for (name, vm_num) in &recovered.envs {
        facts.row(["env", name, &format!("{vm_num} Vms")]);
    }
    facts.row(["images", &recovered.image_num.to_string()]);
    facts.row(["templates", &recovered.template_num.to_string()]);
    if let Some(dir) = moved_to {
        facts.row(["damaged store", &dir.display().to_string()]);
    }
    let refused = recovered.refused.iter().map(|why| format!("left out: {}\n", one_line(why)));
    facts.render() + &refused.collect::<String>()
}
