//! `tt host`: what carries Vms.

use super::Context;
use super::error::{CliError, Exit};
use super::text::Table;
use clap::Subcommand;
use tt_api::views::{HostList, HostView};
use tt_model::units::format_size_mb;

/// `tt host ..`.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// List all hosts
    Ls,
    /// Show a host
    Show {
        /// Which host; may be left out where there is only one
        host: Option<String>,
    },
}

/// Runs `tt host ..`.
///
/// # Errors
/// What the daemon refused, or why it could not be asked.
pub async fn run(context: &Context, command: HostCommand) -> Result<Exit, CliError> {
    let Context { client, output } = context;
    match command {
        HostCommand::Ls => {
            let list = client.hosts().await?;
            output.result(&list, || host_list(&list.hosts))?;
        }
        HostCommand::Show { host } => {
            let view = match host {
                Some(name) => client.host(&name).await?,
                None => only(client.hosts().await?)?,
            };
            output.result(&view, || facts(&view))?;
        }
    }
    Ok(Exit::DONE)
}

fn only(list: HostList) -> Result<HostView, CliError> {
    let names: Vec<String> = list.hosts.iter().map(|view| view.host.name.clone()).collect();
    match <[HostView; 1]>::try_from(list.hosts) {
        Ok([host]) => Ok(host),
        Err(hosts) => Err(CliError::Use {
            problem: format!("there are {} hosts", hosts.len()),
            remedy: format!("name one of them: {}", names.join(", ")),
        }),
    }
}

fn host_list(hosts: &[HostView]) -> String {
    let mut table = Table::with_header(&["NAME", "ADDRESS", "VMS", "CPUS", "MEMORY", "ENGINES"]);
    for HostView { host, usage, .. } in hosts {
        let usable = host.engines.iter().filter(|engine| engine.unusable.is_none());
        let usable: Vec<&str> = usable.map(|engine| engine.name.as_str()).collect();
        table.row([
            host.name.clone(),
            host.public_addr.to_string(),
            usage.vm_num.to_string(),
            host.cpu_num.to_string(),
            memory(usage.mem_size, host.mem_size),
            usable.join(","),
        ]);
    }
    table.render()
}

fn memory(used_mb: u64, all_mb: u32) -> String {
    format!("{} of {}", format_size_mb(used_mb), format_size_mb(all_mb.into()))
}

fn facts(view: &HostView) -> String {
    let HostView { host, usage, engine_features } = view;
    let mut facts = Table::default();
    facts.row(["name", &host.name]);
    facts.row(["id", &host.id.to_string()]);
    facts.row(["version", &host.version]);
    facts.row(["address", &host.public_addr.to_string()]);
    facts.row(["inner addresses", &format!("{} of {}", host.block, host.range)]);
    facts.row(["public ports", &format!("{} to {}", host.port_min, host.port_max)]);
    facts.row(["vms", &usage.vm_num.to_string()]);
    facts.row(["cpus", &host.cpu_num.to_string()]);
    facts.row(["memory", &memory(usage.mem_size, host.mem_size)]);
    facts.row(["disk", &format_size_mb(host.disk_size.into())]);
    facts.row(["storage", &format!("{}: {}", host.storage.name(), host.storage_reason)]);
    let mut engines = Table::with_header(&["ENGINE", "VERSION", "FEATURES", "DETAIL"]);
    for engine in &host.engines {
        let features = engine_features.get(&engine.name).map(|names| names.join(","));
        let unusable = engine.unusable.as_ref().map(|why| format!("unusable: {why}"));
        engines.row([
            engine.name.clone(),
            engine.version.clone(),
            features.unwrap_or_default(),
            unusable.unwrap_or_else(|| engine.detail.clone()),
        ]);
    }
    format!("{}\n{}", facts.render(), engines.render())
}
