//! From a machine to QEMU's arguments. A pure function: it opens nothing and decides nothing but spelling.

use super::Accelerator;
use super::args::Args;
use super::begin::{self, Boot};
use super::node::{Disk, nodes};
use serde_json::json;
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use tt_model::MacAddr;

/// Bound of TCG's buffer of translated code, in MB. A booting Debian kernel fills some 20; QEMU's own default is 1024,
/// which no cgroup limit would allow for.
pub(super) const TRANSLATIONS_MB: u32 = 128;
/// Name of the virtio port of the guest's agent.
pub(super) const AGENT_PORT: &str = "tt.agent.0";
/// A socket in the program's working directory that nobody talks through. QEMU removes it when it leaves its main loop and tidies
/// up, not when an error or a signal ends it on the spot: where it is gone, the guest has switched itself off.
pub(super) const END: &str = "end";

/// A machine, as QEMU is told of it.
#[derive(Clone, Debug)]
pub(super) struct MachineSpec {
    /// For `ps`.
    pub name: String,
    /// The socket [`END`], listening.
    pub end: Option<RawFd>,
    pub accelerator: Accelerator,
    pub cpu_num: u16,
    pub mem_mb: u32,
    pub ram: Ram,
    pub boot: Boot,
    pub disk: Disk,
    /// A second, read-only disk: what cloud-init in the guest reads.
    pub seed: Option<Disk>,
    pub mac: MacAddr,
    /// The tap's descriptor.
    pub tap: RawFd,
    /// The serial console.
    pub console: Channel,
    /// The agent's channel.
    pub agent: Channel,
    pub monitor: Channel,
    /// Whether it stands still until it is let go on.
    pub waits: bool,
    /// Whether it takes a machine's state: when and from where.
    pub incoming: Option<Incoming>,
}

/// What is behind a machine's memory.
#[derive(Clone, Debug)]
pub(super) enum Ram {
    /// Nothing but the host's memory.
    Host,
    /// A file of exactly its size, which it writes to.
    Shared(PathBuf),
    /// Such a file, which it only reads: what it changes is its own.
    Private {
        file: PathBuf,
        /// Whether this QEMU can open it without the right to write.
        read_only: bool,
    },
}

/// One end of a byte stream of a machine.
#[derive(Clone, Copy, Debug)]
pub(super) enum Channel {
    /// A socket that listens.
    Listening(RawFd),
    /// A socket that is connected.
    Connected(RawFd),
    /// Nobody is there.
    Null,
}

/// Where a machine's state comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Incoming {
    /// From a descriptor, at once.
    Fd(RawFd),
    /// From where the monitor says, when it says so.
    Deferred,
}

/// Whether it is QEMU's `microvm`: under TCG that one hangs on a busy host (it has no timer to calibrate the TSC by),
/// and it has no disk that firmware could boot from.
fn is_micro(spec: &MachineSpec) -> bool {
    spec.accelerator == Accelerator::Kvm && matches!(spec.boot, Boot::Kernel(_))
}

/// QEMU's arguments, without the program.
pub(super) fn argv(spec: &MachineSpec) -> Vec<OsString> {
    let mut args = Args::default();
    args.flag("-nodefaults").flag("-no-user-config");
    args.pair("-name", format!("{},debug-threads=on", spec.name));
    args.pair("-display", "none");
    args.pair("-sandbox", SANDBOX);
    processor(&mut args, spec);
    memory(&mut args, spec);
    begin::begin(&mut args, &spec.boot);
    disk(&mut args, spec);
    network(&mut args, spec);
    channels(&mut args, spec);
    if let Some(fd) = spec.end {
        args.pair("-chardev", listening(END, fd));
    }
    seed(&mut args, spec);
    if spec.waits {
        args.flag("-S");
    }
    match spec.incoming {
        None => {}
        Some(Incoming::Fd(fd)) => args.pair("-incoming", format!("fd:{fd}")),
        Some(Incoming::Deferred) => args.pair("-incoming", "defer"),
    }
    args.0
}

/// QEMU's seccomp filter: no obsolete calls, no new privileges, no new programs, no change of scheduling.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

fn processor(args: &mut Args, spec: &MachineSpec) {
    let (accelerator, cpu) = match spec.accelerator {
        Accelerator::Kvm => ("kvm".to_owned(), "host"),
        Accelerator::Tcg => (format!("tcg,thread=multi,tb-size={TRANSLATIONS_MB}"), "max"),
    };
    args.pair("-accel", accelerator);
    args.pair("-cpu", cpu);
    let n = spec.cpu_num;
    args.pair("-smp", format!("{n},sockets=1,cores={n},threads=1"));
    let machine = match is_micro(spec) {
        // With ACPI the guest finds its devices, and its power button, without a command line.
        true => "microvm,acpi=on,rtc=on,pit=off,pic=off,isa-serial=on,auto-kernel-cmdline=off",
        // No more of a PC than a guest without screen and keyboard has use for.
        false => "q35,graphics=off,i8042=off,sata=off,smbus=off,usb=off,vmport=off",
    };
    args.pair("-machine", format!("{machine},memory-backend=ram"));
}

fn memory(args: &mut Args, spec: &MachineSpec) {
    args.pair("-m", format!("{}M", spec.mem_mb));
    let mut ram = json!({
        "qom-type": "memory-backend-file",
        "id": "ram",
        "size": u64::from(spec.mem_mb) << 20,
        "dump": false,
    });
    match &spec.ram {
        Ram::Host => ram["qom-type"] = json!("memory-backend-ram"),
        Ram::Shared(file) => {
            ram["mem-path"] = json!(file);
            ram["share"] = json!(true);
        }
        Ram::Private { file, read_only } => {
            ram["mem-path"] = json!(file);
            ram["share"] = json!(false);
            if *read_only {
                ram["readonly"] = json!(true);
                ram["rom"] = json!("off");
            }
        }
    }
    args.pair("-object", ram.to_string());
}

fn disk(args: &mut Args, spec: &MachineSpec) {
    let nodes = nodes("disk", &spec.disk);
    for node in &nodes {
        args.pair("-blockdev", node.to_string());
    }
    // A full host is told to the guest; by default the machine would stand still until someone looks.
    let mut device = json!({
        "driver": driver(spec, "virtio-blk"),
        "drive": nodes.last().map(|top| &top["node-name"]),
        "serial": "disk",
        "rerror": "report",
        "werror": "report",
    });
    if !matches!(spec.boot, Boot::Kernel(_)) {
        // Before anything else that firmware might try, such as the seed.
        device["bootindex"] = json!(0);
    }
    args.device(device);
}

/// The last device, so that the others are where they are without it.
fn seed(args: &mut Args, spec: &MachineSpec) {
    let Some(seed) = &spec.seed else { return };
    for mut node in nodes("seed", seed) {
        node["read-only"] = json!(true);
        if let Some(file) = node.get_mut("file") {
            file["read-only"] = json!(true);
        }
        args.pair("-blockdev", node.to_string());
    }
    args.device(json!({"driver": driver(spec, "virtio-blk"), "drive": "seed", "serial": "seed"}));
}

fn network(args: &mut Args, spec: &MachineSpec) {
    args.pair("-netdev", format!("tap,id=net,fd={}", spec.tap));
    let mut device = json!({
        "driver": driver(spec, "virtio-net"),
        "netdev": "net",
        "mac": spec.mac,
    });
    if !is_micro(spec) {
        // No boot program for the network.
        device["romfile"] = json!("");
    }
    args.pair("-device", device.to_string());
}

fn channels(args: &mut Args, spec: &MachineSpec) {
    for (id, channel) in
        [("console", spec.console), ("agent", spec.agent), ("monitor", spec.monitor)]
    {
        let chardev = match channel {
            Channel::Listening(fd) => listening(id, fd),
            Channel::Connected(fd) => format!("socket,id={id},fd={fd}"),
            Channel::Null => format!("null,id={id}"),
        };
        args.pair("-chardev", chardev);
    }
    args.pair("-serial", "chardev:console");
    args.pair("-mon", "chardev=monitor,mode=control");
    args.device(json!({"driver": driver(spec, "virtio-serial"), "max_ports": 2}));
    args.device(json!({"driver": "virtserialport", "chardev": "agent", "name": AGENT_PORT}));
    args.pair("-object", json!({"qom-type": "rng-builtin", "id": "rng"}).to_string());
    args.device(json!({"driver": driver(spec, "virtio-rng"), "rng": "rng"}));
    // `microvm` does not have it, and qboot stops at its ACPI table.
    let is_qboot = matches!(&spec.boot, Boot::Kernel(kernel) if kernel.firmware.is_some());
    if !is_micro(spec) && !is_qboot {
        args.device(json!({"driver": "vmgenid", "guid": "auto"}));
    }
}

fn listening(id: &str, fd: RawFd) -> String {
    format!("socket,id={id},fd={fd},server=on,wait=off")
}

/// The device on the machine's bus.
fn driver(spec: &MachineSpec, kind: &str) -> String {
    match is_micro(spec) {
        true => format!("{kind}-device"),
        false => format!("{kind}-pci"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::begin::{Kernel, Uefi};
    use crate::qemu::node::Layer;

    const QBOOT: &str = "/usr/share/qemu/qboot.rom";

    fn spec(accelerator: Accelerator, boot: Boot) -> MachineSpec {
        MachineSpec {
            name: "tt-0001-7".into(),
            end: Some(14),
            accelerator,
            cpu_num: 2,
            mem_mb: 256,
            ram: Ram::Host,
            boot,
            disk: Disk::Image { format: "raw", file: "/var/lib/tt/images/7/0.raw".into() },
            seed: None,
            mac: "82:17:0d:00:00:02".parse().unwrap(),
            tap: 10,
            console: Channel::Listening(11),
            agent: Channel::Listening(12),
            monitor: Channel::Listening(13),
            waits: false,
            incoming: None,
        }
    }

    fn kernel(firmware: Option<&str>) -> Boot {
        Boot::Kernel(Kernel {
            kernel: "/t/kernel".into(),
            initramfs: "/t/initramfs".into(),
            firmware: firmware.map(Into::into),
            machine_id: Some("0123456789abcdef0123456789abcdef".into()),
        })
    }

    fn lines(spec: &MachineSpec) -> String {
        let mut text = String::new();
        for arg in argv(spec) {
            let arg = arg.into_string().unwrap();
            text.push(if arg.starts_with('-') { '\n' } else { ' ' });
            text.push_str(&arg);
        }
        text
    }

    #[test]
    fn a_kernel_under_tcg() {
        let spec = spec(Accelerator::Tcg, kernel(Some(QBOOT)));
        insta::assert_snapshot!(lines(&spec));
    }

    #[test]
    fn a_kernel_under_kvm() {
        insta::assert_snapshot!(lines(&spec(Accelerator::Kvm, kernel(Some(QBOOT)))));
    }

    #[test]
    fn a_qcow2_disk_by_firmware() {
        let mut spec = spec(Accelerator::Tcg, Boot::Bios);
        let layer = |epoch| Layer {
            node: format!("disk-{epoch}"),
            format: "qcow2",
            file: format!("/var/lib/tt/images/7/{epoch}.qcow2").into(),
        };
        spec.disk = Disk::Layers([0, 5, 3].map(layer).into());
        insta::assert_snapshot!(lines(&spec));
    }

    #[test]
    fn a_cloud_image_by_uefi_with_its_seed() {
        let vars = Disk::Image { format: "raw", file: "/var/lib/tt/memory/7/firmware/vars".into() };
        let uefi = Uefi { code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(), vars };
        let seed = Disk::Image { format: "raw", file: "/run/tt/vm/7/seed".into() };
        let spec = MachineSpec { seed: Some(seed), ..spec(Accelerator::Kvm, Boot::Uefi(uefi)) };
        insta::assert_snapshot!(lines(&spec));
    }

    #[test]
    fn its_mould() {
        let uefi = Uefi {
            code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
            vars: Disk::Null { bytes: 540_672 },
        };
        let spec = MachineSpec {
            disk: Disk::Null { bytes: 64 << 20 },
            seed: Some(Disk::Null { bytes: 1 << 20 }),
            ..spec(Accelerator::Tcg, Boot::Uefi(uefi))
        };
        insta::assert_snapshot!(lines(&spec));
    }

    #[test]
    fn a_machine_that_begins_from_memory() {
        let mut spec = spec(Accelerator::Tcg, kernel(Some(QBOOT)));
        let file = "/var/lib/tt/memory/7/3/ram";
        spec.ram = Ram::Private { file: file.into(), read_only: true };
        (spec.waits, spec.incoming) = (true, Some(Incoming::Deferred));
        insta::assert_snapshot!(lines(&spec));
        spec.ram = Ram::Private { file: file.into(), read_only: false };
        assert!(!lines(&spec).contains("readonly"));
    }

    #[test]
    fn a_mould() {
        let spec = MachineSpec {
            end: None,
            ram: Ram::Shared("/var/lib/tt/memory/7/3.new/ram".into()),
            disk: Disk::Null { bytes: 64 << 20 },
            console: Channel::Null,
            agent: Channel::Null,
            monitor: Channel::Connected(13),
            waits: true,
            incoming: Some(Incoming::Fd(15)),
            ..spec(Accelerator::Tcg, kernel(Some(QBOOT)))
        };
        insta::assert_snapshot!(lines(&spec));
    }

    #[test]
    fn a_device_is_written_past_the_hosts_memory() {
        let mut spec = spec(Accelerator::Kvm, kernel(None));
        spec.disk = Disk::Device { file: "/var/lib/tt/images/7/0.zvol/disk".into() };
        let line =
            lines(&spec).lines().find(|line| line.starts_with("-blockdev")).map(str::to_owned);
        insta::assert_snapshot!(line.unwrap());
    }

    #[test]
    fn odd_paths_stay_one_value() {
        let mut spec = spec(Accelerator::Tcg, kernel(None));
        spec.disk = Disk::Image { format: "raw", file: "/d/a,id=\"x\".raw".into() };
        let args = argv(&spec);
        let blockdev = args.iter().position(|a| a == "-blockdev").unwrap();
        let value: serde_json::Value =
            serde_json::from_str(args[blockdev + 1].to_str().unwrap()).unwrap();
        assert_eq!(value["file"]["filename"], "/d/a,id=\"x\".raw");
    }
}
