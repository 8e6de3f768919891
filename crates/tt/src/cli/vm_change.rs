//! `tt vm add`, `rm` and `update`: members come, go and change.

use super::Context;
use super::env_create::{VM_HELP, request_key};
use super::error::CliError;
use super::login::LoginArgs;
use super::patience::{patiently, through_losses};
use super::target::{VmTarget, parse_env_name, parse_vm_name};
use super::vm::settle;
use super::vm_spec::parse_vm_spec;
use super::wait::{Seen, Until, wait};
use clap::Args;
use std::net::IpAddr;
use tt_model::check::check_update;
use tt_model::units::parse_size_mb;
use tt_model::{InnerPort, NetRule, VmSpec, VmUpdate};

/// Arguments of `tt vm add`.
#[derive(Args, Debug)]
pub struct AddArgs {
    /// To which Env
    #[arg(value_parser = parse_env_name)]
    env: String,
    /// What it may say stands in [`VM_HELP`].
    #[arg(value_name = "SPEC", value_parser = parse_vm_spec, help = VM_HELP)]
    spec: VmSpec,
    #[command(flatten)]
    login: LoginArgs,
    /// Return as soon as it is planned
    #[arg(long)]
    no_wait: bool,
}

/// Arguments of `tt vm update`.
#[derive(Args, Debug)]
pub struct UpdateArgs {
    /// Which Vm
    #[arg(value_name = "ENV/VM")]
    vm: VmTarget,
    #[command(flatten)]
    wanted: Wanted,
    /// Return at once
    #[arg(long)]
    no_wait: bool,
}

/// What is to change; at least one of these.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
struct Wanted {
    /// Another name
    #[arg(long, value_parser = parse_vm_name)]
    name: Option<String>,
    /// Virtual CPUs, once it is shut down and started
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    cpu: Option<u16>,
    /// Memory, once it is shut down and started
    #[arg(long, value_name = "SIZE", value_parser = parse_size_mb)]
    mem: Option<u32>,
    /// Disk; it only grows
    #[arg(long, value_name = "SIZE", value_parser = parse_size_mb)]
    disk: Option<u32>,
    /// The ports that are published, all of them; those that stay keep their public ports
    #[arg(long = "port", value_name = "PORT[/udp]", conflicts_with = "no_ports")]
    ports: Vec<InnerPort>,
    /// Publish no port
    #[arg(long)]
    no_ports: bool,
    /// The addresses that it can not connect to, all of them
    #[arg(long = "block", value_name = "ADDRESS", conflicts_with = "no_block")]
    blocked: Vec<IpAddr>,
    /// Forbid no address
    #[arg(long)]
    no_block: bool,
    /// Where alone it can connect to outside of its Env, all of it: networks, names, names below one
    #[arg(long = "allow", value_name = "NET|NAME[:PORT[/udp]]", conflicts_with = "no_allow")]
    allowed: Vec<NetRule>,
    /// Let it connect to everywhere that is not blocked
    #[arg(long)]
    no_allow: bool,
    /// Most that it sends, in kbit a second; 0 for no bound
    #[arg(long, value_name = "KBIT")]
    up: Option<u32>,
    /// Most that it receives, in kbit a second; 0 for no bound
    #[arg(long, value_name = "KBIT")]
    down: Option<u32>,
    /// Most that its disk reads and writes together, in KiB a second; 0 for no bound
    #[arg(long, value_name = "KIB")]
    disk_kib: Option<u32>,
    /// Most reads and writes of its disk together, a second; 0 for no bound
    #[arg(long, value_name = "N")]
    disk_ops: Option<u32>,
    /// Let it open no connections to the outside
    #[arg(long, conflicts_with = "allow_outgoing")]
    deny_outgoing: bool,
    /// Let it open connections to the outside
    #[arg(long)]
    allow_outgoing: bool,
    /// Let its disk outlive it
    #[arg(long, conflicts_with = "no_keep_image")]
    keep_image: bool,
    /// Let its disk go with it
    #[arg(long)]
    no_keep_image: bool,
}

impl From<Wanted> for VmUpdate {
    fn from(wanted: Wanted) -> Self {
        let all = |is_none: bool, is_some: bool| (is_none || is_some).then_some(is_some);
        let (ports, blocked, allowed) = (wanted.ports, wanted.blocked, wanted.allowed);
        Self {
            name: wanted.name,
            cpu_num: wanted.cpu,
            mem_size: wanted.mem,
            disk_size: wanted.disk,
            ports: (wanted.no_ports || !ports.is_empty()).then_some(ports),
            net_blacklist: (wanted.no_block || !blocked.is_empty()).then_some(blocked),
            net_allowlist: (wanted.no_allow || !allowed.is_empty()).then_some(allowed),
            up_kbit: wanted.up,
            down_kbit: wanted.down,
            disk_kib: wanted.disk_kib,
            disk_ops: wanted.disk_ops,
            deny_outgoing: all(wanted.allow_outgoing, wanted.deny_outgoing),
            keep_image: all(wanted.no_keep_image, wanted.keep_image),
        }
    }
}

/// Adds members, waits until they are ready, and prints them.
///
/// # Errors
/// What the daemon refused, or the trouble of a member that does not pass by itself.
pub async fn add(context: &Context, args: AddArgs) -> Result<(), CliError> {
    let Context { client, output } = context;
    let (ssh_keys, user_data) = args.login.read()?;
    let spec = VmSpec { ssh_keys, user_data, ..args.spec };
    let key = request_key()?;
    let ask = async || client.add_vm(&args.env, &key, &spec).await;
    let added = through_losses(*output, ask).await?;
    settle(context, &args.env, added.vms, args.no_wait).await.map(drop)
}

/// Removes a member, and waits until nothing is left of it.
///
/// # Errors
/// What the daemon refused, or the trouble of the member that does not pass by itself.
pub async fn remove(context: &Context, vm: &VmTarget, no_wait: bool) -> Result<(), CliError> {
    let Context { client, output } = context;
    let ask = async || client.remove_vm(&vm.env, &vm.vm).await;
    let view = through_losses(*output, ask).await?;
    if !no_wait {
        let first = client.env(&vm.env).await?;
        // An Env that is gone has taken its members along.
        let (Seen::Settled(_) | Seen::Gone(_)) =
            wait(context, first, Until::MemberGone(view.vm.id)).await?;
    }
    let done = if no_wait { "is being removed" } else { "removed" };
    output.result(&view, || format!("{vm} {done}\n"))
}

/// Changes a member, waits until what can change at once has changed, and prints it.
///
/// # Errors
/// What the daemon refused, or the trouble of the member that does not pass by itself.
pub async fn update(context: &Context, args: UpdateArgs) -> Result<(), CliError> {
    let Context { client, output } = context;
    let UpdateArgs { vm, wanted, no_wait } = args;
    let update = VmUpdate::from(wanted);
    check_update(&update).map_err(|refusal| CliError::Use {
        problem: format!("{}: {}", refusal.what, refusal.problem),
        remedy: refusal.remedy,
    })?;
    let ask = async || client.update_vm(&vm.env, &vm.vm, &update).await;
    let view = patiently(*output, ask).await?;
    for view in settle(context, &vm.env, vec![view], no_wait).await? {
        if view.needs_restart {
            let name = view.vm.full_name();
            output
                .note(&format!("{name}: CPUs and memory change once it is shut down and started"));
        }
    }
    Ok(())
}
