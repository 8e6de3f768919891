//! `tt vm`: single members of Envs.

use super::env::Mode;
use super::error::{CliError, Exit};
use super::output::print;
use super::patience::patiently;
use super::target::{VmTarget, parse_env_name};
use super::text::parse_bytes;
use super::vm_change::{AddArgs, UpdateArgs};
use super::wait::{Seen, Until, wait};
use super::{Context, lines, now_unix_secs, vm_change};
use clap::Subcommand;
use serde::Serialize;
use tt_api::views::{VmList, VmView};
use tt_model::{StopMode, Traffic, VmId};

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
    /// Add a member, or several alike, to an Env and wait until they are ready
    Add(Box<AddArgs>),
    /// Remove a member of an Env with all that belongs to it
    Rm {
        /// Which Vm
        #[arg(value_name = "ENV/VM")]
        vm: VmTarget,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Change a Vm
    ///
    /// Its name, ports, addresses it can not connect to and the growth of its disk reach a running guest. CPUs and
    /// memory change once it is shut down and started: one that was suspended or paused goes on with those that it had.
    Update(Box<UpdateArgs>),
    /// Bring a Vm to rest; its disk, address and ports are kept
    Stop {
        /// Which Vm
        #[arg(value_name = "ENV/VM")]
        vm: VmTarget,
        /// How [default: suspend where the engine can, else shutdown]
        #[arg(long, value_enum)]
        mode: Option<Mode>,
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

/// A Vm as `tt vm show` gives it as JSON.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    view: &'a VmView,
    traffic: Option<Traffic>,
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
            // A Vm that has no network, as long as it is stopped, has no traffic either.
            let traffic = client.traffic(&vm.env, &vm.vm).await.ok();
            let shown = Shown { view: &view, traffic };
            output.result(&shown, || lines::vm(&view, traffic, now_unix_secs()))?;
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
            let mode = mode.map(StopMode::from);
            let stop = async || client.stop_vm(&vm.env, &vm.vm, mode).await;
            let view = patiently(*output, stop).await?;
            settle(context, &vm.env, vec![view], no_wait).await?;
        }
        VmCommand::Start { vm, no_wait } => {
            let start = async || client.start_vm(&vm.env, &vm.vm).await;
            let view = patiently(*output, start).await?;
            settle(context, &vm.env, vec![view], no_wait).await?;
        }
        VmCommand::Add(args) => vm_change::add(context, *args).await?,
        VmCommand::Rm { vm, no_wait } => vm_change::remove(context, &vm, no_wait).await?,
        VmCommand::Update(args) => vm_change::update(context, *args).await?,
    }
    Ok(Exit::DONE)
}

/// Waits until Vms of an Env are where they should be, prints them, and answers how they stand.
///
/// # Errors
/// Why the wait ended before.
pub async fn settle(
    context: &Context,
    env: &str,
    mut views: Vec<VmView>,
    no_wait: bool,
) -> Result<Vec<VmView>, CliError> {
    let ids: Vec<VmId> = views.iter().map(|view| view.vm.id).collect();
    if !no_wait {
        let first = context.client.env(env).await?;
        let Seen::Settled(seen) = wait(context, first, Until::Members(&ids)).await? else {
            return Err(CliError::Follow { what: format!("env {env}") });
        };
        views = seen.vms;
        views.retain(|view| ids.contains(&view.vm.id));
    }
    let list = VmList { vms: views };
    let text = || lines::vm_list(list.vms.iter());
    match list.vms.as_slice() {
        [only] => context.output.result(only, text)?,
        _ => context.output.result(&list, text)?,
    }
    Ok(list.vms)
}
