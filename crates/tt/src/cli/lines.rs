//! Records as lines for people. Pure; the time is brought by the caller.

use super::text::{Table, format_ago, format_left, one_line};
use std::collections::BTreeMap;
use tt_api::views::{EnvView, SnapshotList, VmView};
use tt_model::units::format_size_mb;
use tt_model::{AtEnd, Goal, NetKind, Phase, Traffic, Trouble, Vm};

/// Names of the columns of [`member_cells`].
pub const MEMBER_HEADER: [&str; 6] =
    ["NAME", "TEMPLATE", "ENGINE", "ADDRESS", "PHASE", "REACHED AT"];

/// The cells of a member: name, template, engine, inner address, phase, where it is reached.
pub fn member_cells(view: &VmView) -> [String; 6] {
    let vm = &view.vm;
    [
        vm.name.clone(),
        vm.template.name.clone(),
        vm.engine.clone(),
        vm.resource.ip_addr.to_string(),
        phase(view),
        reached(vm),
    ]
}

/// Where a Vm stands, with the time that it took to become ready: `ready 0.4s`.
pub fn phase(view: &VmView) -> String {
    let Some(status) = &view.status else { return Phase::Planned.name().into() };
    let name = match (status.phase, view.vm.goal) {
        (Phase::Stopped, Goal::Suspended) => "suspended",
        (Phase::Stopping, Goal::Suspended) => "suspending",
        // One that was there before has its image and its network: they are only looked at.
        (Phase::Image | Phase::Net, Goal::Running) if view.vm.generation > 1 => "starting",
        (phase, _) => phase.name(),
    };
    let ready_ms = status.ready_ms.filter(|_| status.phase == Phase::Ready);
    match (view.trouble(), ready_ms) {
        (Some(trouble), _) => format!("{name} ({})", trouble.code),
        (None, Some(ms)) => format!("{name} {}", super::text::format_tenths(ms)),
        (None, None) => name.into(),
    }
}

/// Where a Vm is reached: its published ports, or its own address.
pub fn reached(vm: &Vm) -> String {
    match vm.net_kind {
        NetKind::Flatten => vm.addr.clone(),
        NetKind::Nat => {
            let ports = vm.resource.port_map.iter();
            let ports = ports.map(|(inner, public)| format!("{}:{public} -> {inner}", vm.addr));
            ports.collect::<Vec<_>>().join(", ")
        }
    }
}

/// A line for each member.
pub fn members(env: &EnvView) -> String {
    let mut table = Table::default();
    env.vms.iter().for_each(|vm| table.row(member_cells(vm)));
    table.render()
}

/// A line for each Env.
pub fn env_list(envs: &[EnvView], now: u64) -> String {
    let mut table = Table::with_header(&["NAME", "PHASE", "VMS", "AT END", "LEFT"]);
    for view in envs {
        table.row([
            view.env.name.as_str(),
            view.phase.name(),
            &view.vms.len().to_string(),
            at_end(view.env.at_end),
            &format_left(view.env.end_timestamp, now),
        ]);
    }
    table.render()
}

/// All of an Env that people ask for.
pub fn env(view: &EnvView, now: u64) -> String {
    let env = &view.env;
    let mut facts = Table::default();
    facts.row(["name", &env.name]);
    facts.row(["id", &env.id.to_string()]);
    facts.row(["phase", view.phase.name()]);
    facts.row(["lifetime", &format_left(env.end_timestamp, now)]);
    facts.row(["at end", at_end(env.at_end)]);
    policies(view).into_iter().for_each(|row| facts.row(row));
    if let Some(failure) = &env.failure {
        facts.row(["failure", &format!("{}: {}", failure.vm_name, trouble(&failure.trouble))]);
    }
    let mut table = Table::with_header(&MEMBER_HEADER);
    view.vms.iter().for_each(|vm| table.row(member_cells(vm)));
    let troubles = view.vms.iter().filter_map(|vm| Some((vm, dated_trouble(vm, now)?)));
    let troubles: String = troubles.map(|(vm, told)| format!("{}: {told}\n", vm.vm.name)).collect();
    let list = SnapshotList::of(view.vms.iter().map(|view| &view.vm)).snapshots;
    let snapshots = match list.as_slice() {
        [] => String::new(),
        list => format!("\n{}", super::snapshot::table(list, now)),
    };
    format!("{}\n{}{troubles}{snapshots}", facts.render(), table.render())
}

/// What holds for an Env, and for which members something else does.
fn policies(view: &EnvView) -> Vec<[String; 2]> {
    let env = &view.env;
    let members = |is: &dyn Fn(&VmView) -> bool| {
        let names = view.vms.iter().filter(|view| is(view)).map(|view| view.vm.name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
    let deny = env.state.deny_outgoing;
    let (all, others) = if deny { ("denied", "allowed to") } else { ("allowed", "denied to") };
    match members(&|view| view.vm.deny_outgoing != deny).as_str() {
        "" => row("outgoing", all.to_owned()),
        names => row("outgoing", format!("{all}, {others} {names}")),
    }
    let mut blocked: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for VmView { vm, .. } in &view.vms {
        blocked.entry(addresses(vm)).or_default().push(&vm.name);
    }
    for (list, names) in blocked.iter().filter(|(list, _)| !list.is_empty()) {
        match names.len() == view.vms.len() {
            true => row("blocked", list.clone()),
            false => row("blocked", format!("{list} for {}", names.join(", "))),
        }
    }
    for (name, names) in [
        ("keep image", members(&|view| view.vm.state.keep_image)),
        ("needs restart", members(&|view| view.needs_restart)),
    ] {
        if !names.is_empty() {
            row(name, names);
        }
    }
    rows
}

/// The addresses that a Vm can not connect to.
fn addresses(vm: &Vm) -> String {
    joined(&vm.state.net_blacklist)
}

fn joined<T: ToString>(list: &[T]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A line for each Vm, under its full name.
pub fn vm_list<'a>(vms: impl Iterator<Item = &'a VmView>) -> String {
    let mut table = Table::with_header(&MEMBER_HEADER);
    for view in vms {
        let mut cells = member_cells(view);
        cells[0] = view.vm.full_name();
        table.row(cells);
    }
    table.render()
}

/// All of a Vm that people ask for.
pub fn vm(view: &VmView, traffic: Option<Traffic>, now: u64) -> String {
    let vm = &view.vm;
    let Vm { resource, .. } = vm;
    let mut facts = Table::default();
    facts.row(["name", &vm.full_name()]);
    facts.row(["id", &vm.id.to_string()]);
    facts.row(["phase", &phase(view)]);
    facts.row(["template", &vm.template.name]);
    facts.row(["engine", &vm.engine]);
    facts.row(["cpu", &pending(vm.machine.cpu_num, resource.cpu_num, view, |n| n.to_string())]);
    let size = |mb: u32| format_size_mb(mb.into());
    facts.row(["memory", &pending(vm.machine.mem_size, resource.mem_size, view, size)]);
    facts.row(["disk", &size(resource.disk_size)]);
    facts.row(["image", &format!("{} ({})", vm.runtime_image, vm.storage.name())]);
    if let Some(base) = &vm.base {
        facts.row(["cloned from", base]);
    }
    facts.row(["keep image", if vm.state.keep_image { "yes" } else { "no" }]);
    facts.row(["address", &format!("{}, {}", resource.ip_addr, view.ip_addr_six)]);
    facts.row(["mac", &resource.mac_addr.to_string()]);
    facts.row(["reached at", &reached(vm)]);
    facts.row(["machine-id", vm.machine_id.as_deref().unwrap_or_default()]);
    if let Some(seen_by) = &view.seen_by {
        facts.row(["ready when", seen_by]);
    }
    if !vm.ssh_keys.is_empty() {
        facts.row(["ssh keys", &vm.ssh_keys.len().to_string()]);
    }
    if let Some(user_data) = &vm.user_data {
        facts.row(["user data", &format!("{} bytes", user_data.len())]);
    }
    facts.row(["outgoing", if vm.deny_outgoing { "denied" } else { "allowed" }]);
    facts.row(["blocked", &addresses(vm)]);
    if !vm.state.net_allowlist.is_empty() {
        facts.row(["allowed only", &joined(&vm.state.net_allowlist)]);
    }
    for (name, rate) in [("sends at most", resource.up_kbit), ("gets at most", resource.down_kbit)]
    {
        if let Some(kbit) = rate {
            facts.row([name, &format!("{kbit} kbit/s")]);
        }
    }
    if let Some(kib) = resource.disk_kib {
        facts.row(["disk moves at most", &format!("{kib} KiB/s")]);
    }
    if let Some(ops) = resource.disk_ops {
        facts.row(["disk does at most", &format!("{ops} operations/s")]);
    }
    if let Some(seen) = traffic {
        let amount = |packets: u64, bytes: u64| format!("{packets} packets, {bytes} bytes");
        facts.row(["sent", &amount(seen.sent_packets, seen.sent_bytes)]);
        facts.row(["received", &amount(seen.received_packets, seen.received_bytes)]);
        let Traffic { blocked_packets, slowed_packets, .. } = seen;
        facts.row(["dropped", &format!("{blocked_packets} forbidden, {slowed_packets} too many")]);
    }
    if let Some(told) = dated_trouble(view, now) {
        facts.row(["trouble", &told]);
    }
    match SnapshotList::of([vm].into_iter()).snapshots.as_slice() {
        [] => facts.render(),
        list => format!("{}\n{}", facts.render(), super::snapshot::table(list, now)),
    }
}

/// What a machine has, and what it gets with its next start if that is something else.
fn pending<T: Copy + PartialEq>(
    has: T,
    wanted: T,
    view: &VmView,
    shown: impl Fn(T) -> String,
) -> String {
    if view.needs_restart && has != wanted {
        format!("{}, {} once it is shut down and started", shown(has), shown(wanted))
    } else {
        shown(wanted)
    }
}

/// What is wrong with a member, and since when.
fn dated_trouble(view: &VmView, now: u64) -> Option<String> {
    let since = view.status.as_ref().map_or(now, |status| status.since_ms / 1000);
    Some(format!("{}; since {}", trouble(view.trouble()?), format_ago(since, now)))
}

/// A trouble with its code, on one line.
pub fn trouble(trouble: &Trouble) -> String {
    let again = if trouble.retry { "; trying again" } else { "" };
    format!("{} [{}]{again}", one_line(&trouble.why), trouble.code)
}

fn at_end(at_end: AtEnd) -> &'static str {
    match at_end {
        AtEnd::Destroy => "destroy",
        AtEnd::Stop => "stop",
    }
}
