//! Whether a request makes sense by itself, before anything is looked up.

use crate::login::{check_ssh_keys, check_user_data};
use crate::{EnvSpec, ErrorCode, InnerPort, Refusal, VmSpec, VmUpdate};
use std::collections::BTreeSet;

/// Longest name of an Env or a Vm: a DNS label has at most 63 bytes (RFC 1035), and `-NNN` must
/// still fit behind a counted Vm's name.
pub const NAME_BYTES_MAX: usize = 58;
/// Longest name of a template.
pub const TEMPLATE_NAME_BYTES_MAX: usize = 120;
/// Most members of an Env.
pub const VMS_PER_ENV_MAX: usize = 256;
/// Most published ports of a Vm.
pub const PORTS_PER_VM_MAX: usize = 256;
/// Most published ports of an Env: with its members they are committed in one transaction.
pub const PORTS_PER_ENV_MAX: u64 = 1000;
/// Most addresses in a blacklist.
pub const BLACKLIST_MAX: usize = 1024;
/// Most destinations in an allow list.
pub const ALLOWLIST_MAX: usize = 256;
/// Least bound of a Vm's traffic in kbit a second: below it, a connection hardly comes about.
pub const RATE_KBIT_MIN: u32 = 64;
/// Most bound of a Vm's traffic in kbit a second: the kernel counts no faster ones (100 Gbit).
pub const RATE_KBIT_MAX: u32 = 100_000_000;
/// Least and most KiB, or operations, that a disk can be limited to in a second.
pub const DISK_LIMIT_MIN: u32 = 16;
/// 64 GiB.
pub const DISK_LIMIT_MAX: u32 = 1 << 26;
/// Least memory of a Vm in MB.
pub const MEM_SIZE_MIN: u32 = 32;
/// Most snapshots of a Vm.
pub const SNAPSHOTS_PER_VM_MAX: usize = 128;
/// Longest key of an idempotent request.
pub const REQUEST_KEY_BYTES_MAX: usize = 64;

/// Names that mean something else inside an Env.
const RESERVED_NAMES: [&str; 2] = ["localhost", "gateway"];

/// Checks the name of an Env or a Vm: a DNS label in lower case.
pub fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let problem = if name.is_empty() {
        "it is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "it is too long"
    } else if !name.bytes().all(allowed) {
        "it has characters that are not allowed"
    } else if name.starts_with('-') || name.ends_with('-') {
        "it begins or ends with a hyphen"
    } else if name.bytes().all(|b| b.is_ascii_digit()) {
        "it is a number"
    } else if RESERVED_NAMES.contains(&name) {
        "it is reserved"
    } else {
        return Ok(());
    };
    Err(invalid(
        format!("{what} {}", quoted(name)),
        problem,
        format!(
            "use 1 to {NAME_BYTES_MAX} lower-case letters, digits and hyphens, with a letter \
             among them and no hyphen at either end"
        ),
    ))
}

/// Checks the name of a template, such as `micro` or `github.com/ktmlm/alpine`.
pub fn check_template_name(name: &str) -> Result<(), Refusal> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    let good = |part: &str| {
        part.bytes().all(allowed) && part.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
    };
    if name.len() <= TEMPLATE_NAME_BYTES_MAX && name.split('/').all(good) {
        return Ok(());
    }
    Err(invalid(
        format!("template {}", quoted(name)),
        "it is no template name",
        format!(
            "use parts of lower-case letters, digits, `.`, `_` and `-`, each beginning with a \
             letter or digit, joined by `/`, at most {TEMPLATE_NAME_BYTES_MAX} bytes in all"
        ),
    ))
}

/// Checks the key by which a client repeats a request.
pub fn check_request_key(key: &str) -> Result<(), Refusal> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if (1..=REQUEST_KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(allowed) {
        return Ok(());
    }
    Err(invalid(
        format!("request key {}", quoted(key)),
        "it is no key",
        format!("use 1 to {REQUEST_KEY_BYTES_MAX} letters, digits and hyphens"),
    ))
}

/// Checks all that can be said of an Env without knowing the host.
pub fn check_env(spec: &EnvSpec) -> Result<(), Refusal> {
    if spec.life_time == Some(0) {
        return Err(invalid("life_time 0", "an Env must live", "give at least one second"));
    }
    check_blacklist(spec.net_blacklist.len())?;
    check_ssh_keys(&spec.ssh_keys)?;
    spec.user_data.as_deref().map_or(Ok(()), check_user_data)?;
    if spec.vms.is_empty() {
        return Err(invalid("vms", "an Env has at least one Vm", "name a template for one"));
    }
    let number: u64 = spec.vms.iter().map(|vm| u64::from(vm.count.unwrap_or(1))).sum();
    if number > VMS_PER_ENV_MAX as u64 {
        return Err(invalid(
            format!("{number} Vms"),
            "they are too many for one Env",
            format!("use at most {VMS_PER_ENV_MAX}"),
        ));
    }
    let ports = |vm: &VmSpec| u64::from(vm.count.unwrap_or(1)) * vm.ports.len() as u64;
    let ports: u64 = spec.vms.iter().map(ports).sum();
    if ports > PORTS_PER_ENV_MAX {
        return Err(invalid(
            format!("{ports} ports"),
            "they are too many for one Env",
            format!("publish at most {PORTS_PER_ENV_MAX}"),
        ));
    }
    spec.vms.iter().try_for_each(check_vm)
}

/// Checks all that can be said of a Vm without knowing the host.
pub fn check_vm(spec: &VmSpec) -> Result<(), Refusal> {
    check_template_name(&spec.template)?;
    if let Some(name) = &spec.name {
        check_name("vm", name)?;
    }
    for (what, value) in [
        ("count", spec.count.map(u64::from)),
        ("cpu_num", spec.cpu_num.map(u64::from)),
        ("disk_size", spec.disk_size.map(u64::from)),
    ] {
        if value == Some(0) {
            return Err(invalid(format!("{what} 0"), "there must be some", "give at least 1"));
        }
    }
    check_memory_size(spec.mem_size)?;
    check_blacklist(spec.net_blacklist.len())?;
    check_ssh_keys(&spec.ssh_keys)?;
    spec.user_data.as_deref().map_or(Ok(()), check_user_data)?;
    check_allowlist(spec.net_allowlist.len())?;
    check_rate("up_kbit", spec.up_kbit)?;
    check_rate("down_kbit", spec.down_kbit)?;
    check_disk_limit("disk_kib", "KiB", spec.disk_kib)?;
    check_disk_limit("disk_ops", "operations", spec.disk_ops)?;
    check_ports(&spec.ports)
}

/// Checks all that can be said of an update without knowing the Vm.
pub fn check_update(update: &VmUpdate) -> Result<(), Refusal> {
    if *update == VmUpdate::default() {
        return Err(invalid("update", "it changes nothing", "name what is to change"));
    }
    if let Some(name) = &update.name {
        check_name("vm", name)?;
    }
    if update.cpu_num == Some(0) {
        return Err(invalid("cpu_num 0", "there must be some", "give at least 1"));
    }
    check_memory_size(update.mem_size)?;
    check_blacklist(update.net_blacklist.as_ref().map_or(0, Vec::len))?;
    check_allowlist(update.net_allowlist.as_ref().map_or(0, Vec::len))?;
    check_rate("up_kbit", update.up_kbit.filter(|rate| *rate != 0))?;
    check_rate("down_kbit", update.down_kbit.filter(|rate| *rate != 0))?;
    check_disk_limit("disk_kib", "KiB", update.disk_kib.filter(|limit| *limit != 0))?;
    check_disk_limit("disk_ops", "operations", update.disk_ops.filter(|limit| *limit != 0))?;
    check_ports(update.ports.as_deref().unwrap_or_default())
}

fn check_memory_size(mem_size: Option<u32>) -> Result<(), Refusal> {
    match mem_size {
        Some(mem) if mem < MEM_SIZE_MIN => Err(invalid(
            format!("mem_size {mem}"),
            "no guest boots in so little memory",
            format!("give at least {MEM_SIZE_MIN} (MB)"),
        )),
        _ => Ok(()),
    }
}

fn check_ports(ports: &[InnerPort]) -> Result<(), Refusal> {
    if ports.len() > PORTS_PER_VM_MAX {
        return Err(invalid(
            format!("{} ports", ports.len()),
            "they are too many for one Vm",
            format!("publish at most {PORTS_PER_VM_MAX}"),
        ));
    }
    let mut seen = BTreeSet::new();
    for port in ports {
        if !seen.insert(port) {
            return Err(invalid(format!("port {port}"), "it is given twice", "give it once"));
        }
    }
    Ok(())
}

fn check_blacklist(length: usize) -> Result<(), Refusal> {
    if length <= BLACKLIST_MAX {
        return Ok(());
    }
    Err(invalid(
        format!("net_blacklist of {length} addresses"),
        "it is too long",
        format!("give at most {BLACKLIST_MAX}"),
    ))
}

fn check_allowlist(length: usize) -> Result<(), Refusal> {
    if length <= ALLOWLIST_MAX {
        return Ok(());
    }
    Err(invalid(
        format!("net_allowlist of {length} destinations"),
        "it is too long",
        format!("give at most {ALLOWLIST_MAX}"),
    ))
}

fn check_rate(what: &str, rate: Option<u32>) -> Result<(), Refusal> {
    match rate {
        Some(kbit) if !(RATE_KBIT_MIN..=RATE_KBIT_MAX).contains(&kbit) => Err(invalid(
            format!("{what} {kbit}"),
            "no connection lives with it",
            format!("give {RATE_KBIT_MIN} to {RATE_KBIT_MAX} (kbit a second)"),
        )),
        _ => Ok(()),
    }
}

fn check_disk_limit(what: &str, unit: &str, limit: Option<u32>) -> Result<(), Refusal> {
    match limit {
        Some(limit) if !(DISK_LIMIT_MIN..=DISK_LIMIT_MAX).contains(&limit) => Err(invalid(
            format!("{what} {limit}"),
            "no guest gets on with it, or no disk comes near it",
            format!("give {DISK_LIMIT_MIN} to {DISK_LIMIT_MAX} ({unit} a second)"),
        )),
        _ => Ok(()),
    }
}

fn invalid(
    what: impl Into<String>,
    problem: impl Into<String>,
    remedy: impl Into<String>,
) -> Refusal {
    Refusal::new(ErrorCode::Invalid, what, problem, remedy)
}

/// A value from outside as it may be shown: escaped, and cut where it is long.
pub fn quoted(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 80;
    let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let cut = if shown.len() < text.len() { "…" } else { "" };
    format!("`{}{cut}`", shown.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for name in ["a", "web", "db-1", "1a", &"a".repeat(NAME_BYTES_MAX)] {
            check_name("vm", name).unwrap();
        }
        let long = "a".repeat(10_000);
        for name in [
            "",
            "-",
            "-a",
            "a-",
            "A",
            "a_b",
            "a b",
            "a/b",
            "..",
            ".",
            "a.b",
            "ä",
            "а",
            "a\n",
            "\0",
            "7",
            "localhost",
            &long,
        ] {
            let refusal = check_name("vm", name).unwrap_err();
            assert_eq!(refusal.code, ErrorCode::Invalid, "{name:?}");
            assert!(refusal.to_string().len() < 500);
            assert!(!refusal.to_string().contains(['\n', '\0']));
        }
    }

    #[test]
    fn template_names_are_paths_of_plain_parts() {
        for name in ["micro", "debian-12", "github.com/ktmlm/alpine"] {
            check_template_name(name).unwrap();
        }
        let long = "a/".repeat(10_000);
        for name in ["", "/", "a/", "/a", "..", "a/../b", "a//b", ".a", "A", "a b", "a:b", &long] {
            assert!(check_template_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn sizes_counts_and_ports_are_bounded() {
        let good = VmSpec::new("micro");
        check_vm(&good).unwrap();
        let port = "80".parse().unwrap();
        for bad in [
            VmSpec { cpu_num: Some(0), ..good.clone() },
            VmSpec { mem_size: Some(0), ..good.clone() },
            VmSpec { mem_size: Some(MEM_SIZE_MIN - 1), ..good.clone() },
            VmSpec { disk_size: Some(0), ..good.clone() },
            VmSpec { count: Some(0), ..good.clone() },
            VmSpec { ports: vec![port, port], ..good.clone() },
            VmSpec { up_kbit: Some(0), ..good.clone() },
            VmSpec { down_kbit: Some(RATE_KBIT_MIN - 1), ..good.clone() },
            VmSpec { down_kbit: Some(u32::MAX), ..good.clone() },
            VmSpec { disk_kib: Some(0), ..good.clone() },
            VmSpec { disk_ops: Some(DISK_LIMIT_MIN - 1), ..good.clone() },
            VmSpec { disk_kib: Some(DISK_LIMIT_MAX + 1), ..good.clone() },
            VmSpec {
                net_allowlist: vec!["192.0.2.0/24".parse().unwrap(); ALLOWLIST_MAX + 1],
                ..good.clone()
            },
        ] {
            assert!(check_vm(&bad).is_err(), "{bad:?}");
        }
        let many = VmSpec { count: Some(u32::MAX), ..good.clone() };
        let env = |vms| EnvSpec { vms, ..EnvSpec::default() };
        assert!(check_env(&env(vec![many.clone(), many])).is_err());
        assert!(check_env(&env(vec![])).is_err());
        assert!(check_env(&EnvSpec { life_time: Some(0), ..env(vec![good.clone()]) }).is_err());
        check_env(&env(vec![good])).unwrap();
    }
}
