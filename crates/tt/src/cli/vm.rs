//! `tt vm`: single members of Envs.

use super::env::Mode;
use super::error::{CliError, Exit};
use super::output::print;
use super::patience::patiently;
use super::target::{VmTarget, parse_env_name};
use super::text::parse_bytes;
use super::wait::{Seen, Until, wait};
use super::{Context, lines};
use clap::Subcommand;
use tt_api::views::{VmList, VmView};

/// `tt vm ..`.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// List the Vms of an Env, or all
    Ls {
        /// Which Env
        #[arg(value_parser = parse_env_name)]
        env: Option<String>,
    },
    /// Show a Vm
    Show {
        /// Which Vm
        #[arg(value_name = "ENV/VM")]
        vm: VmTarget,
    },
    /// Print what a Vm wrote to its serial console
    Log {
        /// Which Vm
        #[arg(value_name = "ENV/VM")]
        vm: VmTarget,
        /// How many bytes of its end, e.g. 64K
        #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
        tail: Option<u64>,
    },
    /// Bring a Vm to rest; its disk, address and ports are kept
    Stop {
        /// Which Vm
        #[arg(value_name = "ENV/VM")]
        vm: VmTarget,
        /// How
        #[arg(long, value_enum, default_value_t)]
        mode: Mode,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Let a Vm run, and wait until it is ready
    Start {
        /// Which Vm
        #[arg(value_name = "ENV/VM")]
        vm: VmTarget,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
}

/// Runs `tt vm ..`.
///
/// # Errors
/// What the daemon refused, or why it could not be asked.
pub async fn run(context: &Context, command: VmCommand) -> Result<Exit, CliError> {
    let Context { client, output } = context;
    match command {
        VmCommand::Ls { env } => {
            let list = match env {
                Some(env) => VmList { vms: client.env(&env).await?.vms },
                None => client.vms().await?,
            };
            output.result(&list, || lines::vm_list(list.vms.iter()))?;
        }
        VmCommand::Show { vm } => {
            let view = client.vm(&vm.env, &vm.vm).await?;
            output.result(&view, || lines::vm(&view))?;
        }
        VmCommand::Log { vm, tail } => {
            let log = client.log(&vm.env, &vm.vm, tail).await?;
            let text = serde_json::json!({ "log": String::from_utf8_lossy(&log) });
            match output.json {
                true => output.result(&text, String::new)?,
                false => print(&log)?,
            }
        }
        VmCommand::Stop { vm, mode, no_wait } => {
            let stop = async || client.stop_vm(&vm.env, &vm.vm, mode.into()).await;
            let view = patiently(*output, stop).await?;
            settle(context, &vm, view, no_wait).await?;
        }
        VmCommand::Start { vm, no_wait } => {
            let start = async || client.start_vm(&vm.env, &vm.vm).await;
            let view = patiently(*output, start).await?;
            settle(context, &vm, view, no_wait).await?;
        }
    }
    Ok(Exit::DONE)
}

/// Waits until a Vm is where it should be, and prints it.
async fn settle(
    context: &Context,
    target: &VmTarget,
    view: VmView,
    no_wait: bool,
) -> Result<(), CliError> {
    let went = || CliError::Follow { what: format!("vm {target}") };
    let id = view.vm.id;
    let view = if no_wait {
        view
    } else {
        let env = context.client.env(&target.env).await?;
        let Seen::Settled(env) = wait(context, env, Until::MemberSettled(id)).await? else {
            return Err(went());
        };
        env.vms.into_iter().find(|view| view.vm.id == id).ok_or_else(went)?
    };
    context.output.result(&view, || lines::vm_list([&view].into_iter()))
}
