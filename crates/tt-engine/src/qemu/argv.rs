//! From a machine to QEMU's arguments. A pure function: it opens nothing and decides nothing but spelling.

use super::Accelerator;
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
/// The program's id file in its working directory; QEMU removes it when it ends by itself.
pub(super) const PID_FILE: &str = "pid";

/// A machine, as QEMU is told of it.
#[derive(Clone, Debug)]
pub(super) struct MachineSpec {
    /// For `ps`.
    pub name: String,
    pub accelerator: Accelerator,
    pub cpu_num: u16,
    pub mem_mb: u32,
    /// The file behind its memory; of exactly `mem_mb`.
    pub ram: PathBuf,
    /// Boot straight into a kernel; `None`: from the disk, by firmware.
    pub kernel: Option<Kernel>,
    /// `raw` or `qcow2`.
    pub disk_format: &'static str,
    pub disk: PathBuf,
    pub mac: MacAddr,
    pub fds: Fds,
}

/// A kernel to boot straight into.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// Firmware that does nothing but start it (qboot); `None`: QEMU's default one (SeaBIOS), which is slower and, on
    /// `microvm`, puts the ACPI tables where QEMU puts the initramfs of an uncompressed kernel.
    pub firmware: Option<PathBuf>,
}

/// Descriptors that the program inherits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fds {
    /// The tap.
    pub tap: RawFd,
    /// The listening socket of the serial console.
    pub console: RawFd,
    /// The listening socket of the agent's channel.
    pub agent: RawFd,
    /// The listening socket of the monitor.
    pub monitor: RawFd,
}

/// Whether it is QEMU's `microvm`: under TCG that one hangs on a busy host (it has no timer to calibrate the TSC by),
/// and it has no disk that firmware could boot from.
fn is_micro(spec: &MachineSpec) -> bool {
    spec.accelerator == Accelerator::Kvm && spec.kernel.is_some()
}

/// QEMU's arguments, without the program.
pub(super) fn argv(spec: &MachineSpec) -> Vec<OsString> {
    let mut args = Args::default();
    args.flag("-nodefaults").flag("-no-user-config");
    args.pair("-name", format!("{},debug-threads=on", spec.name));
    args.pair("-display", "none");
    args.pair("-sandbox", SANDBOX);
    args.pair("-pidfile", PID_FILE);
    processor(&mut args, spec);
    memory(&mut args, spec);
    boot(&mut args, spec);
    disk(&mut args, spec);
    network(&mut args, spec);
    channels(&mut args, spec);
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
    let ram = json!({
        "qom-type": "memory-backend-file",
        "id": "ram",
        "size": u64::from(spec.mem_mb) << 20,
        "mem-path": spec.ram,
        "share": true,
        "dump": false,
    });
    args.pair("-object", ram.to_string());
}

fn boot(args: &mut Args, spec: &MachineSpec) {
    let Some(kernel) = &spec.kernel else {
        return;
    };
    if let Some(firmware) = &kernel.firmware {
        args.pair("-bios", firmware);
    }
    args.pair("-kernel", &kernel.kernel);
    args.pair("-initrd", &kernel.initramfs);
    args.pair("-append", COMMAND_LINE);
}

/// The kernel's command line. Without its self-tests of ciphers Debian's cloud kernel boots in 0.8 of the time under
/// TCG; what else is said to help (`tsc=`, `no_timer_check`, `i8042.`, `mitigations=`) did not show. A panic ends in a
/// reboot: by default the guest would stand still for ever.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=1 cryptomgr.notests";

fn disk(args: &mut Args, spec: &MachineSpec) {
    let blockdev = json!({
        "node-name": "disk",
        "driver": spec.disk_format,
        "discard": "unmap",
        "file": {
            "driver": "file",
            "filename": spec.disk,
            // Whoever else opens it for writing fails, and so does this machine's own twin.
            "locking": "on",
            "aio": "threads",
            "discard": "unmap",
        },
    });
    args.pair("-blockdev", blockdev.to_string());
    // A full host is told to the guest; by default the machine would stand still until someone looks.
    let device = json!({
        "driver": driver(spec, "virtio-blk"),
        "drive": "disk",
        "serial": "disk",
        "rerror": "report",
        "werror": "report",
    });
    args.pair("-device", device.to_string());
}

fn network(args: &mut Args, spec: &MachineSpec) {
    args.pair("-netdev", format!("tap,id=net,fd={}", spec.fds.tap));
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
    for (id, fd) in
        [("console", spec.fds.console), ("agent", spec.fds.agent), ("monitor", spec.fds.monitor)]
    {
        args.pair("-chardev", format!("socket,id={id},fd={fd},server=on,wait=off"));
    }
    args.pair("-serial", "chardev:console");
    args.pair("-mon", "chardev=monitor,mode=control");
    args.device(json!({"driver": driver(spec, "virtio-serial"), "max_ports": 2}));
    args.device(json!({"driver": "virtserialport", "chardev": "agent", "name": AGENT_PORT}));
    args.pair("-object", json!({"qom-type": "rng-builtin", "id": "rng"}).to_string());
    args.device(json!({"driver": driver(spec, "virtio-rng"), "rng": "rng"}));
    // `microvm` does not have it, and qboot stops at its ACPI table.
    let firmware = spec.kernel.as_ref().and_then(|k| k.firmware.as_ref());
    if !is_micro(spec) && firmware.is_none() {
        args.device(json!({"driver": "vmgenid", "guid": "auto"}));
    }
}

/// The device on the machine's bus.
fn driver(spec: &MachineSpec, kind: &str) -> String {
    match is_micro(spec) {
        true => format!("{kind}-device"),
        false => format!("{kind}-pci"),
    }
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.flag(option).0.push(value.into());
    }

    fn device(&mut self, device: serde_json::Value) {
        self.pair("-device", device.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QBOOT: &str = "/usr/share/qemu/qboot.rom";

    fn spec(accelerator: Accelerator, kernel: Option<Kernel>) -> MachineSpec {
        MachineSpec {
            name: "tt-0001-7".into(),
            accelerator,
            cpu_num: 2,
            mem_mb: 256,
            ram: "/run/tt/ram/7".into(),
            kernel,
            disk_format: "raw",
            disk: "/var/lib/tt/images/7/0.raw".into(),
            mac: "82:17:0d:00:00:02".parse().unwrap(),
            fds: Fds { tap: 10, console: 11, agent: 12, monitor: 13 },
        }
    }

    fn kernel(firmware: Option<&str>) -> Option<Kernel> {
        Some(Kernel {
            kernel: "/t/kernel".into(),
            initramfs: "/t/initramfs".into(),
            firmware: firmware.map(Into::into),
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
        let mut spec = spec(Accelerator::Tcg, None);
        spec.disk_format = "qcow2";
        insta::assert_snapshot!(lines(&spec));
    }

    #[test]
    fn odd_paths_stay_one_value() {
        let mut spec = spec(Accelerator::Tcg, kernel(None));
        spec.disk = "/d/a,id=\"x\".raw".into();
        let args = argv(&spec);
        let blockdev = args.iter().position(|a| a == "-blockdev").unwrap();
        let value: serde_json::Value =
            serde_json::from_str(args[blockdev + 1].to_str().unwrap()).unwrap();
        assert_eq!(value["file"]["filename"], "/d/a,id=\"x\".raw");
    }
}
