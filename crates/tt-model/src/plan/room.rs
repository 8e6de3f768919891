//! What a host has: whether it is enough, and why an engine of it can not.

use crate::template::{FEATURE_DISK, FEATURE_UEFI};
use crate::{
    ENGINE_EXEC, EngineFacts, ErrorCode, Host, KeptImage, NetKind, Refusal, StorageKind, Usage, Vm,
    VmEngineFeat, VmSpec, VmTemplate, feat,
};

/// The host has no more of something that is counted.
pub(super) fn exhausted(host: &Host, what: &str) -> Refusal {
    Refusal::new(
        ErrorCode::NoRoom,
        format!("host {}", host.name),
        format!("it has not enough free {what}"),
        "destroy an Env that is not needed",
    )
}

/// Whether no size is beyond the host.
pub(super) fn check_sizes(
    host: &Host,
    cpu_num: u16,
    mem_size: u32,
    disk_size: u32,
) -> Result<(), Refusal> {
    for (what, value, max) in [
        ("cpu_num", u64::from(cpu_num), u64::from(host.cpu_num)),
        ("mem_size", u64::from(mem_size), u64::from(host.mem_size)),
        ("disk_size", u64::from(disk_size), u64::from(host.disk_size)),
    ] {
        if value > max {
            return Err(Refusal::new(
                ErrorCode::Invalid,
                format!("{what} {value}"),
                format!("host {} has {max}", host.name),
                "ask for less",
            ));
        }
    }
    Ok(())
}

/// Whether a disk holds the template that it is made from, in MB.
pub(super) fn check_disk(
    disk_size: u32,
    disk_size_min: u32,
    template: &VmTemplate,
) -> Result<(), Refusal> {
    if disk_size >= disk_size_min {
        return Ok(());
    }
    Err(Refusal::new(
        ErrorCode::Invalid,
        format!("disk_size {disk_size}"),
        format!("the disk of template {} has {disk_size_min} MB", template.name),
        "ask for at least as much",
    ))
}

/// Whether the host has that much memory left.
pub(super) fn check_memory(host: &Host, usage: &Usage, mem_size: u32) -> Result<(), Refusal> {
    let free = u64::from(host.mem_size).saturating_sub(usage.mem_size);
    if u64::from(mem_size) <= free {
        return Ok(());
    }
    Err(Refusal::new(
        ErrorCode::NoRoom,
        format!("mem_size {mem_size}"),
        format!("host {} has {free} of {} MB left", host.name, host.mem_size),
        "ask for less, or destroy an Env that is not needed",
    ))
}

/// Which back end holds a new disk for that engine.
pub(super) fn storage_for(host: &Host, engine: &str) -> StorageKind {
    if StorageKind::Docker.is_for(engine) { StorageKind::Docker } else { host.storage }
}

/// What an engine must be able to do for a Vm of that template: bits of [`feat`].
pub(super) fn wanted(spec: &VmSpec, template: &VmTemplate) -> VmEngineFeat {
    let net = match spec.net_kind {
        NetKind::Nat => feat::NAT,
        NetKind::Flatten => feat::FLAT,
    };
    let has_limit = spec.disk_kib.or(spec.disk_ops).is_some();
    let disk = if has_limit { feat::DISK_LIMIT } else { 0 };
    net | disk | if template.has(FEATURE_UEFI) { feat::UEFI } else { 0 }
}

/// Whether the engine of `vm` has a feature.
pub(super) fn can(vm: &Vm, host: &Host, feature: VmEngineFeat) -> bool {
    host.engine(&vm.engine).is_some_and(|engine| engine.features & feature != 0)
}

/// Why `engine` can not run `template`, or what was kept of it in `base`, with the features `wanted`, if it can not.
pub(super) fn unable(
    engine: &EngineFacts,
    template: &VmTemplate,
    base: Option<&KeptImage>,
    wanted: VmEngineFeat,
) -> Option<String> {
    if let Some(reason) = &engine.unusable {
        return Some(reason.clone());
    }
    if let Some(image) = base.filter(|image| !image.storage.is_for(&engine.name)) {
        return Some(format!("a kept image of storage {} is not for it", image.storage.name()));
    }
    if !takes(engine, template) {
        let fit = template.compatible_engines.join(", ");
        return Some(format!("template {} is for: {fit}", template.name));
    }
    let missing = wanted & !engine.features;
    if missing == feat::UEFI {
        return Some(format!(
            "template {} is booted by UEFI, for which this host has no firmware: install it (Debian, \
             Ubuntu: `ovmf`) and restart the daemon",
            template.name
        ));
    }
    (missing != 0).then(|| format!("it can not do: {}", feat::names(missing).join(", ")))
}

/// Whether the template has a form that the engine runs. What a program of others can begin with is seen when it does.
fn takes(engine: &EngineFacts, template: &VmTemplate) -> bool {
    template.compatible_engines.contains(&engine.name)
        || engine.name == ENGINE_EXEC && template.has(FEATURE_DISK)
}
