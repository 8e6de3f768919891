//! `cargo xtask lab zfs`: the disks on a real pool of OpenZFS, whose module of the kernel no package has ready: a Debian guest
//! is put together once, in which it is compiled, and kept beside what other commands keep. The guest is emulated, so it runs
//! on any machine, slowly. A run writes nothing to it.

use super::guest::shown;
use super::report::{MARK, Report};
use super::{Scratch, build_of, tell};
use crate::command::Argv;
use crate::compile::target_dir;
use crate::failure::{Failure, Outcome};
use crate::packages::{self, sources};
use crate::say::{self, Steps};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The release of the guest: its kernel and its OpenZFS (2.1) go together.
const RELEASE: &str = "bookworm";
/// Components of it: OpenZFS is in the second one.
const COMPONENTS: &str = "main contrib";
/// What is in the guest beside what every Debian has.
const PACKAGES: &str = "linux-image-cloud-amd64,linux-headers-cloud-amd64,dkms,zfs-dkms,zfsutils-linux,initramfs-tools,kmod,\
                        udev,mount,iproute2,e2fsprogs,qemu-utils,busybox";
/// To compile OpenZFS takes a quarter of an hour on two idle processors, and more than an hour on busy ones.
const MAKE_LIMIT: Duration = Duration::from_secs(3 * 3600);
/// Size of its file system in MB: about twice what is in it.
const ROOT_MB: u32 = 2500;
/// Size of the disk with the tests, in MB.
const TESTS_MB: u32 = 256;
const MEM_MB: u32 = 3072;
/// How long the guest may run: three times what a busy machine takes.
const RUN_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// A test that hangs costs no more than this.
const PART_LIMIT: Duration = Duration::from_secs(3600);
/// The test target of the package `tt-storage`, and what of it has to do with pools. Short ones come first.
const TARGET: &str = "real";
const PARTS: [&str; 7] = [
    "zvols::",
    "sets::",
    "lost_data_set",
    "zvols_conform",
    "data_sets_conform",
    "leaves_volumes",
    "leaves_data_sets",
];
/// Rules of udev. Those that name volumes are left: others look into each new device, for seconds here.
const RULES: &str = "/usr/lib/udev/rules.d";
/// The first process of the guest, which is on its root: it starts what is on the disk with the tests.
const FIRST: &str = "#!/bin/sh\n\
    mount -t devtmpfs devtmpfs /dev\n\
    mount -t ext4 -o ro /dev/vdb /lab && exec /lab/init\n\
    busybox poweroff -f\n";

/// A guest without its tests.
struct Root {
    disk: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
}

/// Runs all of it; `args` name parts of tests instead of all that have to do with pools.
///
/// # Errors
/// If something can not be built or run, or a test failed.
pub fn run(args: &[String]) -> Outcome {
    let start = Instant::now();
    let mut report = Report::default();
    let ran = Steps::default().run("all of it", || in_scratch(args, &mut report));
    tell(ran, &report, start)
}

fn in_scratch(args: &[String], report: &mut Report) -> Outcome {
    packages::install(&[packages::TO_RUN.as_slice(), &packages::TO_TEST].concat())?;
    let root = root(&target_dir().join("tt-test-cache/zfs-guest"))?;
    let program = build_of("tt-storage", TARGET)?;
    let scratch = Scratch::new()?;
    let tests = scratch.0.join("tests");
    fs::create_dir_all(&tests).map_err(Failure::to("make", tests.display()))?;
    Argv::new("strip").args(["--strip-debug", "-o"]).arg(tests.join(TARGET)).arg(program).run()?;
    write_program(&tests.join("init"), &script(args))?;
    let disk = scratch.0.join("tests.ext4");
    make_disk(&tests, &disk, TESTS_MB, false)?;
    say::title("the guest");
    machine(&root, &disk).limit(RUN_LIMIT).watch(|line| report.line(line))?;
    match report.came_to_its_end() {
        true => Ok(()),
        false => Err(Failure::new("the guest ended before its tests did")),
    }
}

/// The guest in `cache`; put together there unless it is whole.
fn root(cache: &Path) -> Outcome<Root> {
    let found = Root {
        disk: cache.join("root.ext4"),
        kernel: cache.join("kernel"),
        initramfs: cache.join("initramfs"),
    };
    let whole = cache.join("whole");
    if whole.exists() {
        return Ok(found);
    }
    say::line("a Debian guest is put together, and OpenZFS compiled in it: that takes its time");
    let (tree, list) = (cache.join("tree"), cache.join("apt.sources"));
    // What a killed run left is root's.
    remove(&tree)?;
    fs::create_dir_all(cache).map_err(Failure::to("make", cache.display()))?;
    let text = sources::of_release(&packages::source_files()?, RELEASE, COMPONENTS);
    fs::write(&list, text).map_err(Failure::to("write", list.display()))?;
    let made = fill(&tree, &list, &found);
    let removed = remove(&tree);
    made.and(removed)?;
    fs::write(&whole, "").map_err(Failure::to("write", whole.display())).map(|()| found)
}

/// Puts the tree together, and makes of it what the emulator takes.
fn fill(tree: &Path, list: &Path, to: &Root) -> Outcome {
    let debootstrap = Argv::new("mmdebstrap")
        .args(["--mode=root", "--variant=minbase", "--aptopt=APT::Install-Recommends \"false\""])
        .arg(format!("--include={PACKAGES}"))
        .arg(RELEASE)
        .args([tree, list])
        .env("DEBIAN_FRONTEND", "noninteractive");
    debootstrap.root().limit(MAKE_LIMIT).run()?;
    let first = list.with_file_name("first");
    write_program(&first, FIRST)?;
    Argv::new("install").arg("-D").arg(&first).arg(tree.join("sbin/lab")).root().run()?;
    Argv::new("mkdir").arg("-p").arg(tree.join("lab")).root().run()?;
    for (begin, to) in [("vmlinuz-", &to.kernel), ("initrd.img-", &to.initramfs)] {
        let from = only(&tree.join("boot"), begin)?;
        Argv::new("install").args(["-m", "644"]).arg(from).arg(to).root().run()?;
    }
    make_disk(tree, &to.disk, ROOT_MB, true)
}

fn remove(tree: &Path) -> Outcome {
    match tree.exists() {
        true => Argv::new("rm").args(["-r", "--one-file-system"]).arg(tree).root().run(),
        false => Ok(()),
    }
}

/// Makes a file system that holds what is in a directory. `is_roots`: the directory is root's, and so is what is in it.
fn make_disk(dir: &Path, disk: &Path, size_mb: u32, is_roots: bool) -> Outcome {
    if disk.exists() {
        fs::remove_file(disk).map_err(Failure::to("remove", disk.display()))?;
    }
    let make = Argv::new("mkfs.ext4").args(["-q", "-d"]).arg(dir).arg(disk);
    let make = make.arg(format!("{size_mb}M"));
    if is_roots { make.root() } else { make }.run()
}

fn write_program(path: &Path, text: &str) -> Outcome {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(Failure::to("write", path.display()))
}

/// The only file of a directory whose name begins so.
fn only(dir: &Path, begin: &str) -> Outcome<PathBuf> {
    let entries = fs::read_dir(dir).map_err(Failure::to("list", dir.display()))?;
    let named = |name: &OsString| name.to_string_lossy().starts_with(begin);
    let mut found = entries.flatten().filter(|entry| named(&entry.file_name()));
    match (found.next(), found.next()) {
        (Some(entry), None) => Ok(entry.path()),
        _ => Err(Failure::new(format!("{} should hold one {begin}", dir.display()))),
    }
}

/// The emulator that carries the guest. Nothing that it writes to its root outlives it.
fn machine(root: &Root, tests: &Path) -> Argv {
    let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
    let drive = |file: &Path, more: &str| {
        let mut words = OsString::from("file=");
        // A comma would end the name.
        words.push(file.display().to_string().replace(',', ",,"));
        words.push(format!(",if=virtio,format=raw,{more}"));
        ["-drive".into(), words]
    };
    Argv::new("qemu-system-x86_64")
        .args(words("-nodefaults -no-user-config -display none -no-reboot"))
        .args(words("-machine q35 -accel tcg,thread=multi -cpu qemu64 -smp 2"))
        .args(["-m".to_owned(), format!("{MEM_MB}M")])
        .args(["-kernel".into(), root.kernel.clone(), "-initrd".into(), root.initramfs.clone()])
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 root=/dev/vda rw init=/sbin/lab no_timer_check",
        ])
        .args(drive(&root.disk, "snapshot=on"))
        .args(drive(tests, "readonly=on"))
        .args(words("-serial stdio"))
}

/// What the guest does: starts udev, loads OpenZFS, runs the tests one after the other, switches off.
fn script(args: &[String]) -> String {
    let parts: Vec<String> = match args {
        [] => PARTS.map(str::to_owned).to_vec(),
        args => args.iter().map(|part| shown(part)).collect(),
    };
    let mut text = format!(
        "#!/bin/sh\n\
         export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp RUST_BACKTRACE=0\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t tmpfs -o mode=755 tmpfs /run\n\
         mount -t tmpfs -o mode=1777 tmpfs /tmp\n\
         ip link set lo up\n\
         mkdir /run/rules\n\
         cp {RULES}/50-udev-default.rules {RULES}/60-zvol.rules /run/rules/\n\
         mount --bind /run/rules {RULES}\n\
         /lib/systemd/systemd-udevd --daemon\n\
         udevadm trigger --action=add\n\
         modprobe zfs && udevadm settle || echo '{MARK} failed zfs'\n\
         echo \"OpenZFS $(cat /sys/module/zfs/version)\"\n",
    );
    let limit = PART_LIMIT.as_secs();
    for part in parts {
        // Writing to a `String` does not fail.
        let _ = write!(
            text,
            "echo '{MARK} begin {TARGET}'\n\
             timeout {limit} /lab/{TARGET} --test-threads=1 --nocapture {part} \
             || echo '{MARK} failed {TARGET} {part}'\n"
        );
    }
    let _ = write!(text, "echo '{MARK} end'\nbusybox poweroff -f\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_runs_what_is_asked_for_on_a_pool_and_switches_off() {
        let all = script(&[]);
        assert!(all.contains("modprobe zfs"), "{all}");
        for part in PARTS {
            assert!(all.contains(&format!("--nocapture {part} ||")), "{part}: {all}");
        }
        assert!(all.ends_with("echo 'tt-lab: end'\nbusybox poweroff -f\n"), "{all}");
        let one = script(&["zvols; reboot".into()]);
        assert!(one.contains("--nocapture zvolsreboot ||"), "{one}");
        assert!(!one.contains("sets::"), "{one}");
    }

    #[test]
    fn commas_in_paths_stay_in_paths() {
        let [root, tests] = ["/a,b/root", "/a,b/tests"].map(PathBuf::from);
        let root = Root { disk: root.clone(), kernel: root.clone(), initramfs: root };
        let line = machine(&root, &tests).to_string();
        assert!(line.contains("file=/a,,b/root,if=virtio,format=raw,snapshot=on"), "{line}");
        assert!(line.contains("file=/a,,b/tests,if=virtio,format=raw,readonly=on"), "{line}");
    }
}
