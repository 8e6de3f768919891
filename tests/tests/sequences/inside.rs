//! Compares what a guest sees, and what the outside sees of it, with the model.

use super::play::outside;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use testkit::sequence::{Model, same};
use testkit::{CLIENT, HOST, Lab, Space};
use tt_model::{InnerPort, Protocol, Vm};

/// Where guests serve the file that their disk is told by.
const WEB: InnerPort = InnerPort { port: 80, protocol: Protocol::Tcp };

/// Says what is not as it should be; `vms` are all that there are.
pub fn compare(lab: &Lab, model: &Model, vm: &Vm, vms: &[Vm]) -> Result<(), String> {
    let expected = model.of(vm);
    let now = &expected.now;
    let name = vm.full_name();
    let run = lab.exec(&name, &["sh", "-c", &line()]);
    if run.code != Some(0) {
        return Err(format!("{run:?}"));
    }
    let said = run.out.lines().filter_map(|line| line.split_once('='));
    let seen: BTreeMap<&str, &str> = said.collect();
    let disk = now.disk.to_string();
    let tick = now.memory.unwrap_or_default().to_string();
    let is_open = !now.denies && !now.blacklist.contains(&CLIENT.into());
    for (what, expected) in [
        ("content", disk.as_str()),
        ("tick", &tick),
        ("host", &expected.name),
        ("cpus", &now.machine.cpu_num.to_string()),
        ("machine-id", vm.machine_id.as_deref().unwrap_or_default()),
        ("disk", &now.disk_mb.to_string()),
        ("outside", if is_open { "open" } else { "shut" }),
        ("names", &names(vm, vms)),
    ] {
        same(what, seen.get(what).copied().unwrap_or_default(), expected)?;
    }
    let memory: u32 = seen.get("memory").and_then(|mb| mb.parse().ok()).unwrap_or_default();
    // The kernel keeps some for itself.
    let all = now.machine.mem_size;
    if !(all / 2..=all).contains(&memory) {
        return Err(format!("memory: found {memory} MB of {all}"));
    }
    match vm.resource.port_map.get(&WEB) {
        None => Ok(()),
        Some(public) => {
            // It answers nobody whom it can not connect to.
            let is_blocked = now.blacklist.contains(&CLIENT.into());
            let from = if is_blocked { &lab.host } else { &lab.client };
            let served = fetch(from, *public).map_err(|error| format!("port {public}: {error}"))?;
            let expected = if now.disk == 0 { String::new() } else { format!("{disk}\n") };
            same("served", served, expected)
        }
    }
}

/// What a guest is asked: a line of `NAME=VALUE` for each thing.
fn line() -> String {
    [
        "pidof httpd >/dev/null || httpd -p 80 -h /root",
        "echo content=$(cat /root/content 2>/dev/null || echo 0)",
        "echo tick=$(cat /run/tick 2>/dev/null || echo 0)",
        "echo host=$(hostname)",
        "echo cpus=$(nproc)",
        "echo machine-id=$(cat /etc/machine-id)",
        "echo disk=$(($(cat /sys/block/vda/size) / 2048))",
        "echo memory=$(($(awk '/^MemTotal/ {print $2}' /proc/meminfo) / 1024))",
        "echo names=$(awk 'NR > 2 {print $1, $2}' /etc/hosts | sort)",
        &format!("nc -w 1 {} </dev/null && echo outside=open || echo outside=shut", outside()),
    ]
    .join("; ")
}

/// The members that a guest knows, as it lists them.
fn names(vm: &Vm, vms: &[Vm]) -> String {
    let members = vms.iter().filter(|other| other.env_id == vm.env_id);
    let mut names: Vec<String> =
        members.map(|member| format!("{} {}", member.resource.ip_addr, member.name)).collect();
    names.sort();
    names.join(" ")
}

/// What the file's server answers on a public port; nothing if it has no such file.
fn fetch(from: &Space, public: u16) -> std::io::Result<String> {
    let mut stream = from.connect((HOST, public))?;
    stream.write_all(b"GET /content HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    Ok(if head.contains(" 200 ") { body.to_owned() } else { String::new() })
}
