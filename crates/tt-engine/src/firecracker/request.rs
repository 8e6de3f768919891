//! What Firecracker is asked for, as values. Pure: it opens nothing, sends nothing and decides nothing but spelling.
//!
//! Paths, fields and their meaning: `src/firecracker/swagger/firecracker.yaml` in Firecracker's source.

use super::machine::STATE;
use super::view::{INITRAMFS, KERNEL, RAM, inside};
use crate::limit::DiskLimit;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use tt_model::MacAddr;

/// The disk, in the program's working directory: a machine that begins from memory opens what it had under the same name.
pub(super) const DISK: &str = "disk";
/// What cloud-init in the guest reads, likewise.
pub(super) const SEED: &str = "seed";
/// The socket that is made for the guest's vsock, likewise. [`Layout::agent_vsock`](tt_model::Layout::agent_vsock) knows it.
pub(super) const VSOCK: &str = "vsock";
/// The guest's address on its vsock: the first that is nobody's (vsock(7)). Each machine has a vsock of its own.
const GUEST_CID: u32 = 3;
/// How long an answer may take that needs no work, on a busy host.
pub(super) const SOON: Duration = Duration::from_secs(20);
/// How long one may take that reads or writes a machine's memory: this much, and ...
const MEMORY: Duration = Duration::from_secs(30);
/// ... a second for so much memory in MB.
const MEMORY_MB_PER_S: u32 = 32;

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    /// `GET`, `PUT` or `PATCH`.
    pub method: &'static str,
    pub path: &'static str,
    pub body: Option<Value>,
    /// How long the answer may take.
    pub within: Duration,
}

/// A machine that boots, as Firecracker is told of it.
#[derive(Clone, Debug)]
pub(super) struct MachineSpec {
    pub cpu_num: u16,
    pub mem_mb: u32,
    /// For systemd, which needs it before the agent can be asked: 32 hexadecimal digits.
    pub machine_id: Option<String>,
    pub has_seed: bool,
    /// What its disk may do in a second.
    pub limit: DiskLimit,
    pub mac: MacAddr,
    /// Name of the tap in the program's network namespace.
    pub tap: String,
}

/// The kernel's command line: as for QEMU (see there), and that a restart is how the guest ends (`reboot=k`, by the
/// keyboard's controller, which has nothing else to offer: `i8042.*`), and where the agent finds the host.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=1 cryptomgr.notests no_timer_check reboot=k i8042.noaux i8042.nomux \
                            i8042.dumbkbd pci=off tt.agent=vsock";

/// The requests that make a machine and let it boot, in their order.
pub(super) fn boot(spec: &MachineSpec) -> Vec<Request> {
    let machine_id = spec.machine_id.iter().map(|id| format!(" systemd.machine_id={id}"));
    let mut requests = vec![
        put(
            "/boot-source",
            json!({
                "kernel_image_path": inside(KERNEL),
                "initrd_path": inside(INITRAMFS),
                "boot_args": COMMAND_LINE.to_owned() + &machine_id.collect::<String>(),
            }),
        ),
        put(
            "/machine-config",
            json!({"vcpu_count": spec.cpu_num, "mem_size_mib": spec.mem_mb, "smt": false}),
        ),
        // What the guest has synced lies on the host's disk.
        put("/drives/disk", limited(drive(DISK, false), spec.limit)),
    ];
    if spec.has_seed {
        // After the other one, so that this has the name that guests know it by.
        requests.push(put("/drives/seed", drive(SEED, true)));
    }
    requests.extend([
        put(
            "/network-interfaces/net",
            json!({"iface_id": "net", "host_dev_name": spec.tap, "guest_mac": spec.mac}),
        ),
        put("/vsock", json!({"guest_cid": GUEST_CID, "uds_path": VSOCK})),
        put("/entropy", json!({})),
        put("/actions", json!({"action_type": "InstanceStart"})),
    ]);
    requests
}

fn drive(name: &str, is_read_only: bool) -> Value {
    json!({
        "drive_id": name,
        "path_on_host": name,
        "is_root_device": false,
        "is_read_only": is_read_only,
        "cache_type": "Writeback",
        "io_engine": "Sync",
    })
}

/// The drive, with its limits if it has any.
fn limited(mut drive: Value, limit: DiskLimit) -> Value {
    if limit != DiskLimit::default() {
        drive["rate_limiter"] = rate_limiter(limit);
    }
    drive
}

/// Two buckets of tokens. Each holds what the disk may do in a second, which so may come at once; one of no size limits
/// nothing.
fn rate_limiter(limit: DiskLimit) -> Value {
    let bucket = |size: u64| {
        let refill_ms = if size == 0 { 0 } else { 1000 };
        json!({"size": size, "refill_time": refill_ms})
    };
    json!({"bandwidth": bucket(limit.bytes()), "ops": bucket(limit.operations())})
}

/// A machine that stands still and has the memory that it is shown. What it changes is its own: the file is mapped privately.
pub(super) fn load(tap: &str, mem_mb: u32) -> Request {
    let body = json!({
        "snapshot_path": inside(STATE),
        "mem_backend": {"backend_type": "File", "backend_path": inside(RAM)},
        "network_overrides": [{"iface_id": "net", "host_dev_name": tap}],
        "resume_vm": false,
    });
    Request { within: memory(mem_mb), ..put("/snapshot/load", body) }
}

/// The memory of a machine that stands still goes to `ram`, the rest of it to `state`. `is_sparse`: only what the machine
/// has in memory, which is all where it has booted itself and the host has no swap.
pub(super) fn save(state: &Path, ram: &Path, is_sparse: bool, mem_mb: u32) -> Request {
    let body = json!({
        "snapshot_type": if is_sparse { "Diff" } else { "Full" },
        "snapshot_path": state,
        "mem_file_path": ram,
    });
    Request { within: memory(mem_mb), ..put("/snapshot/create", body) }
}

/// The machine stands still.
pub(super) fn pause() -> Request {
    patch("/vm", json!({"state": "Paused"}))
}

/// The machine goes on.
pub(super) fn resume() -> Request {
    patch("/vm", json!({"state": "Resumed"}))
}

/// The guest is asked to shut down, by the only keys that the machine has.
pub(super) fn ask_to_end() -> Request {
    put("/actions", json!({"action_type": "SendCtrlAltDel"}))
}

/// The size of the disk's file is looked at again, and told to the guest.
pub(super) fn grow() -> Request {
    patch("/drives/disk", json!({"drive_id": DISK, "path_on_host": DISK}))
}

/// What the disk of a machine that lives may do in a second.
pub(super) fn limit(limit: DiskLimit) -> Request {
    patch("/drives/disk", json!({"drive_id": DISK, "rate_limiter": rate_limiter(limit)}))
}

/// What the machine does.
pub(super) fn describe() -> Request {
    Request { method: "GET", path: "/", body: None, within: SOON }
}

fn put(path: &'static str, body: Value) -> Request {
    Request { method: "PUT", path, body: Some(body), within: SOON }
}

fn patch(path: &'static str, body: Value) -> Request {
    Request { method: "PATCH", ..put(path, body) }
}

fn memory(mem_mb: u32) -> Duration {
    MEMORY + Duration::from_secs(1) * (mem_mb / MEMORY_MB_PER_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> MachineSpec {
        MachineSpec {
            cpu_num: 2,
            mem_mb: 256,
            machine_id: None,
            has_seed: false,
            limit: DiskLimit::default(),
            mac: "82:17:0d:00:00:02".parse().unwrap(),
            tap: "tap7".into(),
        }
    }

    fn lines(requests: &[Request]) -> String {
        let line = |r: &Request| {
            let body = r.body.as_ref().map(Value::to_string).unwrap_or_default();
            format!("{} {} {body}\n", r.method, r.path)
        };
        requests.iter().map(line).collect()
    }

    #[test]
    fn a_machine_that_boots() {
        insta::assert_snapshot!(lines(&boot(&spec())));
    }

    #[test]
    fn a_cloud_image_with_its_seed() {
        let machine_id = Some("0123456789abcdef0123456789abcdef".into());
        insta::assert_snapshot!(lines(&boot(&MachineSpec {
            has_seed: true,
            machine_id,
            ..spec()
        })));
    }

    #[test]
    fn a_machine_whose_disk_is_limited() {
        let limit = DiskLimit { kib: Some(2048), ops: Some(100) };
        insta::assert_snapshot!(lines(&boot(&MachineSpec { limit, ..spec() })));
    }

    #[test]
    fn a_life_after_the_boot() {
        insta::assert_snapshot!(lines(&[
            describe(),
            pause(),
            save(Path::new("state"), Path::new("/saved"), true, 256),
            save(Path::new("state"), Path::new("/saved"), false, 256),
            resume(),
            load("tap7", 256),
            grow(),
            limit(DiskLimit { kib: Some(1024), ops: None }),
            limit(DiskLimit::default()),
            ask_to_end(),
        ]));
    }

    #[test]
    fn more_memory_may_take_longer() {
        assert!(memory(64) < memory(4096));
        assert_eq!(pause().within, SOON);
    }
}
