//! `tt snapshot`: frozen Vms, of a whole Env at one point in time or of one member.

use super::error::{CliError, Exit};
use super::patience::patiently;
use super::target::{Target, parse_snapshot_name};
use super::text::{Table, format_ago, format_left, format_tenths, one_line, parse_life_time};
use super::wait::{Seen, Until, wait};
use super::{Context, lines, now_unix_secs};
use clap::Subcommand;
use std::time::Instant;
use tt_api::views::{EnvView, SnapshotList, SnapshotMember, SnapshotPhase, SnapshotView, VmList};
use tt_model::{Goal, SnapshotSpec, VmId};

/// `tt snapshot ..`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Freeze all members of an Env at one point in time, or one member, and wait until it is done
    Create {
        /// What of
        #[arg(value_name = "ENV[/VM]")]
        target: Target,
        /// How it is called
        #[arg(value_parser = parse_snapshot_name)]
        name: String,
        /// How long it lives, e.g. 1d [default: as long as its Vm]
        #[arg(long, value_name = "DURATION", value_parser = parse_life_time)]
        ttl: Option<u64>,
        /// Keep the disks only
        #[arg(long)]
        no_memory: bool,
        /// Only say what would be kept of each member: memory and disk, or the disk, with which it boots anew
        #[arg(long)]
        dry_run: bool,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// List the snapshots of an Env or of one member
    Ls {
        /// What of
        #[arg(value_name = "ENV[/VM]")]
        target: Target,
    },
    /// Go back to a snapshot, and wait until all is ready; other snapshots stay
    Apply {
        /// What of
        #[arg(value_name = "ENV[/VM]")]
        target: Target,
        /// Which snapshot
        #[arg(value_parser = parse_snapshot_name)]
        name: String,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Remove a snapshot
    Rm {
        /// What of
        #[arg(value_name = "ENV[/VM]")]
        target: Target,
        /// Which snapshot
        #[arg(value_parser = parse_snapshot_name)]
        name: String,
    },
}

/// Runs `tt snapshot ..`.
///
/// # Errors
/// What the daemon refused, or why it could not be asked.
pub async fn run(context: &Context, command: SnapshotCommand) -> Result<Exit, CliError> {
    let Context { client, output } = context;
    match command {
        SnapshotCommand::Create { target, name, ttl, no_memory, dry_run, no_wait } => {
            let spec = SnapshotSpec { name, life_time: ttl, with_memory: !no_memory };
            match dry_run {
                true => preview(context, &target, &spec).await?,
                false => create(context, &target, &spec, no_wait).await?,
            }
        }
        SnapshotCommand::Ls { target } => {
            let list = client.snapshots(&target.env, target.vm.as_deref()).await?;
            output.result(&list, || table(&list.snapshots, now_unix_secs()))?;
        }
        SnapshotCommand::Apply { target, name, no_wait } => {
            apply(context, &target, &name, no_wait).await?;
        }
        SnapshotCommand::Rm { target, name } => {
            let view = client.remove_snapshot(&target.env, target.vm.as_deref(), &name).await?;
            output.result(&view, || format!("snapshot {name} of {target} removed\n"))?;
        }
    }
    Ok(Exit::DONE)
}

async fn preview(context: &Context, target: &Target, spec: &SnapshotSpec) -> Result<(), CliError> {
    let Context { client, output } = context;
    let only = target.vm.as_deref();
    let ask = async || client.preview_snapshot(&target.env, only, spec).await;
    let planned = patiently(*output, ask).await?;
    output.result(&planned, || {
        let mut table = Table::default();
        planned.members.iter().for_each(|member| table.row([member.vm.as_str(), kept(member)]));
        table.render()
    })
}

async fn create(
    context: &Context,
    target: &Target,
    spec: &SnapshotSpec,
    no_wait: bool,
) -> Result<(), CliError> {
    let Context { client, output } = context;
    let (name, only) = (&spec.name, target.vm.as_deref());
    let ask = async || client.create_snapshot(&target.env, only, spec).await;
    let mut view = patiently(*output, ask).await?;
    let begin = Instant::now();
    let ids: Vec<VmId> = view.vms.iter().filter(is_meant(target)).map(|view| view.vm.id).collect();
    if !no_wait {
        view = match wait(context, view, Until::Taken(&ids, name)).await? {
            Seen::Settled(view) => *view,
            Seen::Gone(_) => {
                return Err(CliError::Follow { what: format!("env {}", target.env) });
            }
        };
    }
    let vms = view.vms.iter().filter(|view| ids.contains(&view.vm.id)).map(|view| &view.vm);
    let mut list = SnapshotList::of(vms).snapshots;
    list.retain(|snapshot| snapshot.name == *name);
    // It may have been removed, or its life may be over.
    let taken = list.pop().filter(|taken| taken.members.len() == ids.len());
    let taken = taken.ok_or_else(|| CliError::Follow { what: format!("snapshot {name}") })?;
    if let Some(error) = failure(target, &taken) {
        // Of a snapshot that is not whole nothing is to be left; why it is not is the better error.
        if let Err(left) = client.remove_snapshot(&target.env, only, name).await {
            output.note(&format!("what there is of snapshot {name} could not be removed: {left}"));
        }
        return Err(error);
    }
    let took_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    output.result(&taken, || {
        let mut table = Table::default();
        for member in &taken.members {
            let took = if no_wait { "taking".into() } else { format_tenths(took_ms) };
            table.row([member.vm.as_str(), kept(member), &took]);
        }
        table.render()
    })
}

/// Because of which member a snapshot could not be taken.
fn failure(target: &Target, taken: &SnapshotView) -> Option<CliError> {
    taken.members.iter().find_map(|member| {
        let vm = format!("{}/{}", target.env, member.vm);
        let trouble = member.trouble.clone()?;
        Some(CliError::Snapshot { name: taken.name.clone(), vm, trouble })
    })
}

async fn apply(
    context: &Context,
    target: &Target,
    name: &str,
    no_wait: bool,
) -> Result<(), CliError> {
    let Context { client, output } = context;
    let ask = async || client.apply_snapshot(&target.env, target.vm.as_deref(), name).await;
    let mut view = patiently(*output, ask).await?;
    let ids: Vec<VmId> = view.vms.iter().filter(is_meant(target)).map(|view| view.vm.id).collect();
    if !no_wait {
        view = match wait(context, view, Until::Members(&ids)).await? {
            Seen::Settled(view) => *view,
            Seen::Gone(_) => {
                return Err(CliError::Follow { what: format!("env {}", target.env) });
            }
        };
    }
    print_members(context, target, view, &ids)
}

/// As the verbs of Envs print an Env, and those of Vms a Vm.
fn print_members(
    context: &Context,
    target: &Target,
    view: EnvView,
    ids: &[VmId],
) -> Result<(), CliError> {
    if target.vm.is_none() {
        return context.output.result(&view, || lines::members(&view));
    }
    let mut list = VmList { vms: view.vms };
    list.vms.retain(|view| ids.contains(&view.vm.id));
    let text = || lines::vm_list(list.vms.iter());
    match list.vms.as_slice() {
        [only] => context.output.result(only, text),
        _ => context.output.result(&list, text),
    }
}

/// Whether a member is one that the target means and that stays.
fn is_meant(target: &Target) -> impl Fn(&&tt_api::views::VmView) -> bool {
    |view| target.means(&view.vm.name) && view.vm.goal != Goal::Gone
}

/// What a member's snapshot keeps.
pub fn kept(member: &SnapshotMember) -> &'static str {
    match (member.phase, member.with_memory) {
        (SnapshotPhase::Failed, _) => "nothing",
        (_, true) => "memory and disk",
        (_, false) => "disk",
    }
}

/// A line for each snapshot.
pub fn table(snapshots: &[SnapshotView], now: u64) -> String {
    let mut table = Table::with_header(&["SNAPSHOT", "PHASE", "OF", "KEEPS", "TAKEN", "LEFT"]);
    for snapshot in snapshots {
        let members = &snapshot.members;
        let first = members.iter().map(|member| member.start_timestamp).min().unwrap_or(now);
        let end = members.iter().filter_map(|member| member.end_timestamp).min();
        table.row([
            snapshot.name.clone(),
            snapshot.phase.name().to_owned(),
            of(snapshot),
            kept_by_all(members),
            format_ago(first, now),
            end.map(|end| format_left(end, now)).unwrap_or_default(),
        ]);
    }
    let why = |snapshot: &SnapshotView| {
        let lines = snapshot.members.iter().filter_map(|member| {
            let trouble = member.trouble.as_ref()?;
            let why = one_line(&trouble.why);
            Some(format!("{} of {}: {why} [{}]\n", snapshot.name, member.vm, trouble.code))
        });
        lines.collect::<String>()
    };
    table.render() + &snapshots.iter().map(why).collect::<String>()
}

fn of(snapshot: &SnapshotView) -> String {
    let names: Vec<&str> = snapshot.members.iter().map(|member| member.vm.as_str()).collect();
    match snapshot.missing.len() {
        0 if names.len() > 1 => format!("all {}", names.len()),
        0 => names.join(", "),
        missing => format!("{} of {}: {}", names.len(), names.len() + missing, names.join(", ")),
    }
}

fn kept_by_all(members: &[SnapshotMember]) -> String {
    let what: std::collections::BTreeSet<&str> = members.iter().map(kept).collect();
    match what.len() {
        1 => what.into_iter().collect(),
        _ => {
            let each = members.iter().map(|member| format!("{}: {}", member.vm, kept(member)));
            each.collect::<Vec<_>>().join(", ")
        }
    }
}
