//! A guest for tests, made by hand: an initramfs and a root disk around the agent, and a QEMU process.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of a test fail it, and say why"
)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::{Client, PATIENCE, wait_until};

/// Size of the root disk; its file system is made smaller, and grown by the agent.
pub const DISK_MB: u64 = 96;
const FS_MB: u64 = 24;

/// The drivers of a guest on virtio-pci, in the order in which they need each other.
const MODULES: [&str; 10] = [
    "kernel/drivers/virtio/virtio_ring.ko",
    "kernel/drivers/virtio/virtio.ko",
    "kernel/drivers/virtio/virtio_pci_legacy_dev.ko",
    "kernel/drivers/virtio/virtio_pci_modern_dev.ko",
    "kernel/drivers/virtio/virtio_pci.ko",
    "kernel/drivers/block/virtio_blk.ko",
    "kernel/drivers/char/virtio_console.ko",
    "kernel/net/core/failover.ko",
    "kernel/drivers/net/net_failover.ko",
    "kernel/drivers/net/virtio_net.ko",
];

/// Those of the power button.
const LATER_MODULES: [&str; 2] = ["kernel/drivers/input/evdev.ko", "kernel/drivers/acpi/button.ko"];

/// What a guest is made from.
pub struct Parts {
    kernel: PathBuf,
    modules: PathBuf,
    agent: PathBuf,
}

impl Parts {
    pub fn from_environment() -> Option<Self> {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
        Some(Self {
            kernel: path("TT_BOOT_KERNEL")?,
            modules: path("TT_BOOT_MODULES")?,
            agent: path("TT_BOOT_AGENT")?,
        })
    }
}

/// A running guest; ended with the test.
pub struct Guest {
    qemu: Child,
    directory: tempfile::TempDir,
    console: UnixStream,
    seen: String,
}

impl Guest {
    pub fn boot(parts: &Parts, mac: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("initramfs"), initramfs(parts)).unwrap();
        make_disk(directory.path());
        let socket =
            |id: &str| format!("socket,id={id},path={},server=on,wait=off", at(id).display());
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-M",
            "q35",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            "256",
            "-nodefaults",
            "-display",
            "none",
        ]);
        command.arg("-kernel").arg(&parts.kernel).arg("-initrd").arg(at("initramfs"));
        command.args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"]);
        command.args(["-device", "virtio-serial-pci", "-chardev", &socket("agent")]);
        command.args(["-device", "virtserialport,chardev=agent,name=tt.agent.0"]);
        command.args(["-chardev", &socket("console"), "-serial", "chardev:console"]);
        command.args(["-chardev", &socket("qmp"), "-mon", "chardev=qmp,mode=control"]);
        command.arg("-drive").arg(format!("if=virtio,format=raw,file={}", at("disk").display()));
        command.args([
            "-netdev",
            "hubport,id=net,hubid=0",
            "-device",
            &format!("virtio-net-pci,netdev=net,mac={mac},romfile="),
        ]);
        let qemu = command.stdin(Stdio::null()).spawn().unwrap();
        let console = connect(&at("console"));
        console.set_nonblocking(true).unwrap();
        Self { qemu, directory, console, seen: String::new() }
    }

    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    pub fn client(&mut self) -> Client {
        let mut client = Client::connect(&self.scratch().join("agent"));
        client.hello();
        client
    }

    /// All that was on the console so far.
    pub fn console(&mut self) -> &str {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.console.read(&mut buffer) {
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        &self.seen
    }

    pub fn type_on_console(&mut self, text: &str) {
        self.console.write_all(text.as_bytes()).unwrap();
    }

    pub fn press_power_button(&self) {
        let mut qmp = connect(&self.scratch().join("qmp"));
        qmp.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"system_powerdown\"}")
            .unwrap();
        qmp.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        while !answer.contains("POWERDOWN") {
            let mut buffer = [0; 512];
            let count = qmp.read(&mut buffer).unwrap();
            answer.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }

    pub fn wait_off(&mut self) {
        wait_until("the end of the guest", || self.qemu.try_wait().unwrap().is_some());
    }

    /// Whether the root file system was left in order (and grown).
    pub fn disk_is_clean(&self) -> bool {
        let checked = Command::new("e2fsck")
            .args(["-fn"])
            .arg(self.scratch().join("disk"))
            .stdout(Stdio::null())
            .status();
        checked.unwrap().success()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if std::thread::panicking() {
            println!("console:\n{}", self.console());
        }
    }
}

fn connect(path: &Path) -> UnixStream {
    let until = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Ok(socket) => return socket,
            Err(error) => assert!(Instant::now() < until, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An archive in the kernel's `newc` format: the agent as `/init`, the drivers, and the mark of an initramfs.
fn initramfs(parts: &Parts) -> Vec<u8> {
    let mut archive = Vec::new();
    for directory in ["dev", "proc", "sys", "newroot", "tt"] {
        add(&mut archive, directory, 0o040_755, 0, &[]);
    }
    // The kernel opens it before there is a devtmpfs.
    add(&mut archive, "dev/console", 0o020_600, (5 << 8) | 1, &[]);
    add(&mut archive, "init", 0o100_755, 0, &fs::read(&parts.agent).unwrap());
    add(&mut archive, "tt/initramfs", 0o100_644, 0, &[]);
    for (list, modules) in [("tt/modules", &MODULES[..]), ("tt/modules-later", &LATER_MODULES)] {
        let mut listed = String::new();
        for module in modules {
            let content = fs::read(parts.modules.join(module)).unwrap();
            let name = module.rsplit('/').next().unwrap();
            add(&mut archive, &format!("tt/{name}"), 0o100_644, 0, unsigned(&content));
            listed.push_str(name);
            listed.push('\n');
        }
        add(&mut archive, list, 0o100_644, 0, listed.as_bytes());
    }
    add(&mut archive, "TRAILER!!!", 0, 0, &[]);
    archive
}

/// A module without its signature: unless the kernel insists, verifying it only costs time.
fn unsigned(module: &[u8]) -> &[u8] {
    const MARK: &[u8] = b"~Module signature appended~\n";
    const TRAILER_LEN: usize = 12;
    let Some(signed) = module.strip_suffix(MARK) else { return module };
    let length = u32::from_be_bytes(*signed.last_chunk().unwrap()) as usize;
    &signed[..signed.len() - TRAILER_LEN - length]
}

fn add(archive: &mut Vec<u8>, name: &str, mode: u32, device: u32, content: &[u8]) {
    let inode = archive.len() as u32;
    let fields = [
        inode,
        mode,
        0,
        0,
        1,
        0,
        content.len() as u32,
        0,
        0,
        device >> 8,
        device & 0xff,
        name.len() as u32 + 1,
        0,
    ];
    archive.extend(b"070701");
    archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
    archive.extend(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

fn make_disk(directory: &Path) {
    let root = directory.join("root");
    for path in ["bin", "sbin", "etc/tt", "root", "dev", "proc", "sys", "run", "tmp", "var"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    let put = |from: &Path, to: &str| {
        fs::copy(from, root.join(to)).unwrap();
        fs::set_permissions(root.join(to), fs::Permissions::from_mode(0o755)).unwrap();
    };
    put(Path::new("/bin/busybox"), "bin/busybox");
    let applets = "cat cut date echo false grep head hostname id ip ls mkdir pgrep sh sleep sort stat stty tail tr true tty wc yes";
    for applet in applets.split(' ') {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    fs::write(root.join("etc/tt/rc"), "#!/bin/sh\necho started > /run/tt-started\n").unwrap();
    fs::set_permissions(root.join("etc/tt/rc"), fs::Permissions::from_mode(0o755)).unwrap();
    let disk = directory.join("disk");
    let made = Command::new("mkfs.ext4")
        .args(["-qF", "-d"])
        .arg(&root)
        .arg(&disk)
        .arg(format!("{FS_MB}M"))
        .status()
        .unwrap();
    assert!(made.success());
    File::options().write(true).open(disk).unwrap().set_len(DISK_MB << 20).unwrap();
}
