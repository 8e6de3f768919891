//! Records as lines for people. Pure; the time is brought by the caller.

use super::text::{Table, format_left, one_line};
use tt_api::views::{EnvView, VmView};
use tt_model::{AtEnd, Goal, NetKind, Phase, Trouble, Vm};

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
    let name = match status.phase {
        Phase::Stopped if view.vm.goal == Goal::Suspended => "suspended",
        phase => phase.name(),
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
    facts.row(["outgoing", if env.state.deny_outgoing { "denied" } else { "allowed" }]);
    if let Some(failure) = &env.failure {
        facts.row(["failure", &format!("{}: {}", failure.vm_name, trouble(&failure.trouble))]);
    }
    let mut table = Table::with_header(&MEMBER_HEADER);
    view.vms.iter().for_each(|vm| table.row(member_cells(vm)));
    let troubles = view.vms.iter().filter_map(|vm| Some((vm, vm.trouble()?)));
    let troubles: String =
        troubles.map(|(vm, t)| format!("{}: {}\n", vm.vm.name, trouble(t))).collect();
    format!("{}\n{}{troubles}", facts.render(), table.render())
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
pub fn vm(view: &VmView) -> String {
    use tt_model::units::format_size_mb;
    let Vm { resource, state, .. } = &view.vm;
    let mut facts = Table::default();
    facts.row(["name", &view.vm.full_name()]);
    facts.row(["id", &view.vm.id.to_string()]);
    facts.row(["phase", &phase(view)]);
    facts.row(["template", &view.vm.template.name]);
    facts.row(["engine", &view.vm.engine]);
    facts.row(["cpu", &resource.cpu_num.to_string()]);
    facts.row(["memory", &format_size_mb(resource.mem_size.into())]);
    facts.row(["disk", &format_size_mb(resource.disk_size.into())]);
    facts.row(["image", &format!("{} ({})", view.vm.runtime_image, view.vm.storage.name())]);
    facts.row(["address", &resource.ip_addr.to_string()]);
    facts.row(["mac", &resource.mac_addr.to_string()]);
    facts.row(["reached at", &reached(&view.vm)]);
    facts.row(["machine-id", view.vm.machine_id.as_deref().unwrap_or_default()]);
    facts.row(["outgoing", if view.vm.deny_outgoing { "denied" } else { "allowed" }]);
    if !state.net_blacklist.is_empty() {
        let blocked: Vec<String> = state.net_blacklist.iter().map(ToString::to_string).collect();
        facts.row(["blocked", &blocked.join(", ")]);
    }
    if let Some(found) = view.trouble() {
        facts.row(["trouble", &trouble(found)]);
    }
    facts.render()
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
