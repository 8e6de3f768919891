//! `tt env create`: from the command line to a ready Env, or to none.

use super::error::CliError;
use super::login::LoginArgs;
use super::patience::through_losses;
use super::target::parse_env_name;
use super::text::parse_life_time;
use super::vm_spec::parse_vm_spec;
use super::wait::{Seen, Until, wait};
use super::{Context, lines};
use clap::{Args, ValueEnum};
use std::net::IpAddr;
use tt_api::views::EnvView;
use tt_model::{AtEnd, EnvSpec, VmSpec};

/// Random bytes in the key of a request: no two requests share one.
const KEY_BYTES: usize = 16;

/// Help of what describes members: its grammar is what rustdoc would take for links.
pub const VM_HELP: &str = "A member, or several alike:\n\
    [NAME=]TEMPLATE[,engine=NAME][,cpu=N][,mem=SIZE][,disk=SIZE]\n\
    [,port=PORT[/udp]]..[,net=nat|flat][,count=N][,image=ID]\n\
    [,allow=NET|NAME[:PORT[/udp]]]..[,up=KBIT][,down=KBIT]\n\
    [,disk-kib=KIB][,disk-ops=N][,ready=PORT|running][,keep-image][,no-rand-uuid]";

/// Arguments of `tt env create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// Its name: lower-case letters, digits and hyphens
    #[arg(value_parser = parse_env_name)]
    name: String,
    /// A member, or several alike; what it may say stands in [`VM_HELP`].
    #[arg(long = "vm", required = true, value_name = "SPEC", value_parser = parse_vm_spec, help = VM_HELP)]
    vms: Vec<VmSpec>,
    /// Its lifetime, e.g. 4h [default: the daemon's]
    #[arg(long, value_name = "DURATION", value_parser = parse_life_time)]
    ttl: Option<u64>,
    /// What happens when its lifetime is over
    #[arg(long, value_enum, default_value_t)]
    at_end: End,
    /// Let no member open connections to the outside
    #[arg(long)]
    deny_outgoing: bool,
    /// Let no member connect to this address
    #[arg(long = "block", value_name = "ADDRESS")]
    blocked: Vec<IpAddr>,
    #[command(flatten)]
    login: LoginArgs,
    /// Return as soon as it is planned
    #[arg(long)]
    no_wait: bool,
}

/// What happens when a lifetime is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum End {
    /// It is destroyed
    #[default]
    Destroy,
    /// It is stopped as by `tt env stop`; disks, addresses and ports are kept
    Stop,
}

/// Creates an Env, waits until every member is ready, and prints them.
///
/// # Errors
/// [`CliError::Create`] if a member failed: nothing is left of the Env then.
pub async fn run(context: &Context, args: CreateArgs) -> Result<(), CliError> {
    let Context { client, output } = context;
    let (ssh_keys, user_data) = args.login.read()?;
    let spec = EnvSpec {
        vms: args.vms,
        life_time: args.ttl,
        at_end: match args.at_end {
            End::Destroy => AtEnd::Destroy,
            End::Stop => AtEnd::Stop,
        },
        deny_outgoing: args.deny_outgoing,
        net_blacklist: args.blocked,
        ssh_keys,
        user_data,
    };
    let key = request_key()?;
    let planned = async || client.create_env(&args.name, &key, &spec).await;
    let planned = through_losses(*output, planned).await?;
    let view = match args.no_wait {
        true => Box::new(planned),
        false => match wait(context, planned, Until::Settled).await? {
            Seen::Settled(view) => view,
            Seen::Gone(last) => return Err(undone(&last)),
        },
    };
    output.result(&view, || lines::members(&view))
}

/// A key that nobody has used.
///
/// # Errors
/// If the system has no random bytes.
pub(super) fn request_key() -> Result<String, CliError> {
    let mut bytes = [0; KEY_BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| CliError::System { action: "draw random bytes", source: error.into() })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Why an Env is gone that was to be created.
fn undone(last: &EnvView) -> CliError {
    let env = &last.env;
    // The failure may have come and gone between two states that were seen; a member's trouble tells as much.
    let seen = last.vms.iter().find_map(|vm| Some((vm.vm.name.clone(), vm.trouble()?.clone())));
    let failure =
        env.failure.as_ref().map(|failure| (failure.vm_name.clone(), failure.trouble.clone()));
    match failure.or(seen) {
        Some((vm, trouble)) => CliError::Create { env: env.name.clone(), vm, trouble },
        None => CliError::Follow { what: format!("env {}", env.name) },
    }
}
