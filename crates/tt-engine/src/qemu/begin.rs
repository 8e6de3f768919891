//! What a machine begins with, as QEMU is told of it: a kernel, a BIOS or UEFI. As pure as the rest of its arguments.

use super::args::Args;
use super::node::{Disk, nodes};
use serde_json::json;
use std::path::PathBuf;

/// What the machine begins with.
#[derive(Clone, Debug)]
pub(super) enum Boot {
    /// A kernel of the host's.
    Kernel(Kernel),
    /// The disk, by a BIOS: QEMU's own one (SeaBIOS).
    Bios,
    /// The disk, by UEFI.
    Uefi(Uefi),
}

/// UEFI firmware.
#[derive(Clone, Debug)]
pub(super) struct Uefi {
    /// Its program, which all machines share.
    pub code: PathBuf,
    /// Its variables, the machine's own.
    pub vars: Disk,
}

/// A kernel to boot straight into.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// Firmware that does nothing but start it (qboot); `None`: QEMU's default one (SeaBIOS), which is slower and, on
    /// `microvm`, puts the ACPI tables where QEMU puts the initramfs of an uncompressed kernel.
    pub firmware: Option<PathBuf>,
    /// For systemd, which needs it before the agent can be asked: 32 hexadecimal digits.
    pub machine_id: Option<String>,
}

/// The arguments for it.
pub(super) fn begin(args: &mut Args, boot: &Boot) {
    let kernel = match boot {
        Boot::Bios => return,
        Boot::Uefi(uefi) => return flash(args, uefi),
        Boot::Kernel(kernel) => kernel,
    };
    if let Some(firmware) = &kernel.firmware {
        args.pair("-bios", firmware);
    }
    args.pair("-kernel", &kernel.kernel);
    args.pair("-initrd", &kernel.initramfs);
    let machine_id = kernel.machine_id.iter().map(|id| format!(" systemd.machine_id={id}"));
    args.pair("-append", COMMAND_LINE.to_owned() + &machine_id.collect::<String>());
}

/// UEFI's program and variables lie in two flash chips, in this order.
fn flash(args: &mut Args, uefi: &Uefi) {
    let code = json!({
        "node-name": "uefi-code",
        "driver": "raw",
        "read-only": true,
        "file": {"driver": "file", "filename": uefi.code, "read-only": true},
    });
    args.pair("-blockdev", code.to_string());
    for node in nodes("uefi-vars", &uefi.vars) {
        args.pair("-blockdev", node.to_string());
    }
    args.pair("-machine", "pflash0=uefi-code,pflash1=uefi-vars");
}

/// The kernel's command line. Without its self-tests of ciphers Debian's cloud kernel boots in 0.8 of the time under
/// TCG; what else is said to help (`tsc=`, `i8042.`, `mitigations=`) did not show. `no_timer_check` as kernels do by themselves under
/// KVM: on a busy host an emulated timer is late, the kernel takes its wiring for broken, and no clock of the guest ticks. A panic ends in a
/// reboot: by default the guest would stand still for ever.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=1 cryptomgr.notests no_timer_check";
