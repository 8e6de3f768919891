//! `tt verify`: whether the host is what the records say.

use super::Context;
use super::error::{CliError, Exit};
use super::text::Table;
use clap::Args;
use tt_api::views::{Finding, VerifyReport};

/// Arguments of `tt verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Make the host what the records say: clear what no record knows at once, and look after every Vm
    #[arg(long)]
    repair: bool,
}

/// Prints what does not match; fails if there is anything that was not repaired.
///
/// # Errors
/// If the daemon can not look at its host, or can not be asked.
pub async fn run(context: &Context, args: &VerifyArgs) -> Result<Exit, CliError> {
    let Context { client, output } = context;
    let report = if args.repair { client.repair().await? } else { client.verify().await? };
    output.result(&report, || lines(&report))?;
    Ok(if report.findings.is_empty() { Exit::DONE } else { Exit::FAILED })
}

fn lines(report: &VerifyReport) -> String {
    let (envs, vms) = (report.checked.envs, report.checked.vms);
    let mut text = String::new();
    if !report.repaired.is_empty() {
        text = format!("repaired:\n{}", table(&report.repaired));
    }
    match report.findings.as_slice() {
        [] => text + &format!("the host is what the records say ({envs} Envs, {vms} Vms)\n"),
        findings => text + &table(findings),
    }
}

fn table(findings: &[Finding]) -> String {
    let mut table = Table::with_header(&["KIND", "NAME", "ID", "WHAT"]);
    for finding in findings {
        let id = finding.id.map(|id| id.to_string()).unwrap_or_default();
        table.row([&finding.kind, &finding.name, &id, &finding.what]);
    }
    table.render()
}
