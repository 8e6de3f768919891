//! `tt verify`: whether the host is what the records say.

use super::Context;
use super::error::{CliError, Exit};
use super::text::Table;
use tt_api::views::VerifyReport;

/// Prints what does not match; fails if there is anything.
///
/// # Errors
/// If the daemon can not look at its host, or can not be asked.
pub async fn run(context: &Context) -> Result<Exit, CliError> {
    let report = context.client.verify().await?;
    context.output.result(&report, || lines(&report))?;
    Ok(if report.findings.is_empty() { Exit::DONE } else { Exit::FAILED })
}

fn lines(report: &VerifyReport) -> String {
    let (envs, vms) = (report.checked.envs, report.checked.vms);
    if report.findings.is_empty() {
        return format!("the host is what the records say ({envs} Envs, {vms} Vms)\n");
    }
    let mut table = Table::with_header(&["KIND", "NAME", "ID", "WHAT"]);
    for finding in &report.findings {
        let id = finding.id.map(|id| id.to_string()).unwrap_or_default();
        table.row([&finding.kind, &finding.name, &id, &finding.what]);
    }
    table.render()
}
