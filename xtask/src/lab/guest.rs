//! What the guest of the lab consists of: one archive that its kernel unpacks into memory.

use super::report::MARK;
use super::{Suite, create};
use crate::command::Argv;
use crate::compile::Built;
use crate::failure::{Failure, Outcome};
use crate::test::kernel::Kernel;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// What the guest's root begins with.
const DIRS: [&str; 11] =
    ["bin", "dev", "etc", "lab", "lib/modules", "lib64", "proc", "run", "sys", "tmp", "var/tmp"];
/// The module that makes `/dev/kvm`, and the one that makes taps. Others the kernel asks for.
const MODULES: [&str; 2] = ["kvm-amd", "tun"];
/// Programs of this machine that the tests start.
const PROGRAMS: [&str; 2] = ["qemu-system-x86_64", "qemu-img"];
/// Programs that a whole host needs beside that.
const HOST_PROGRAMS: [&str; 4] = ["nft", "ip", "mkfs.ext4", "mount"];
/// Where in the guest the small template lies, made on this machine: the guest has no packages.
pub const CACHE: &str = "lab/cache";
/// What QEMU reads beside itself, where there is such a thing: firmware, and modules of its own for accelerators.
const DATA: [&str; 3] = ["/usr/share/qemu", "/usr/share/seabios", "/usr/lib/x86_64-linux-gnu/qemu"];
/// A test that hangs costs no more than this.
const SUITE_LIMIT: Duration = Duration::from_secs(1500);

/// What is brought beside the kernel and the suites.
#[derive(Debug)]
pub struct Brought<'a> {
    /// A Firecracker.
    pub firecracker: Option<&'a Path>,
    /// What a whole host is made of.
    pub whole: Option<Whole>,
}

/// The program and what goes into its guests.
#[derive(Debug)]
pub struct Whole {
    /// The program and the agent.
    pub built: Built,
    /// What tests put into guests.
    pub helper: PathBuf,
    /// What measures, if that is what is wanted.
    pub bench: Option<PathBuf>,
}

/// Puts the archive together in `scratch`; answers its path.
pub fn make(
    scratch: &Path,
    kernel: &Kernel,
    suites: &[(Suite, PathBuf)],
    brought: &Brought<'_>,
    args: &[String],
) -> Outcome<PathBuf> {
    let root = root(scratch);
    for dir in DIRS {
        let dir = root.join(dir);
        fs::create_dir_all(&dir).map_err(Failure::to("make", dir.display()))?;
    }
    PROGRAMS.iter().try_for_each(|program| bring(program, &root))?;
    put(&which("busybox")?, &root.join("bin/busybox"))?;
    for data in DATA.map(Path::new).into_iter().filter(|data| data.exists()) {
        let above = root.join(below(data)).parent().unwrap_or(&root).to_owned();
        fs::create_dir_all(&above).map_err(Failure::to("make", above.display()))?;
        Argv::new("cp").args(["--recursive", "--dereference"]).arg(data).arg(&above).run()?;
    }
    modules(kernel, &root)?;
    for (suite, program) in suites {
        strip(program, &root.join("lab").join(suite.target))?;
        libraries(program, &root)?;
    }
    if let Some(firecracker) = brought.firecracker {
        put(firecracker, &root.join("lab/firecracker-program"))?;
    }
    if let Some(whole) = &brought.whole {
        host(whole, &root)?;
    }
    let init = root.join("init");
    let measures = brought.whole.as_ref().is_some_and(|whole| whole.bench.is_some());
    fs::write(&init, script(suites.iter().map(|(suite, _)| suite), args, measures))
        .and_then(|()| fs::set_permissions(&init, fs::Permissions::from_mode(0o755)))
        .map_err(Failure::to("write", init.display()))?;
    symlink("busybox", root.join("bin/sh")).map_err(Failure::to("link", "sh"))?;
    pack(scratch, &root)
}

/// The guest's root, while it is put together.
pub fn root(scratch: &Path) -> PathBuf {
    scratch.join("root")
}

/// Brings a program of this machine.
fn bring(program: &str, root: &Path) -> Outcome {
    let path = which(program)?;
    put(&path, &root.join("bin").join(program))?;
    libraries(&path, root)
}

/// Brings all modules: which ones a table of packet rules needs, the kernel finds out when it is loaded.
fn modules(kernel: &Kernel, root: &Path) -> Outcome {
    let name = kernel.modules.file_name().unwrap_or_default();
    Argv::new("cp").arg("--recursive").arg(&kernel.modules).arg(root.join("lib/modules")).run()?;
    bring("modprobe", root)?;
    Argv::new("depmod").arg("--basedir").arg(root).arg(name).run()
}

/// Brings what a whole host is made of.
fn host(whole: &Whole, root: &Path) -> Outcome {
    HOST_PROGRAMS.iter().try_for_each(|program| bring(program, root))?;
    let lab = root.join("lab");
    let programs = [(Some(&whole.built.tt), "tt"), (whole.bench.as_ref(), "bench")];
    for (program, name) in programs.into_iter().filter_map(|(path, name)| Some((path?, name))) {
        strip(program, &lab.join(name))?;
        libraries(program, root)?;
    }
    put(&whole.built.agent, &lab.join("tt-guest"))?;
    put(&whole.helper, &lab.join("tt-test-helper"))
}

/// The guest's first process: mounts, loads, runs the tests, switches off. The kernel says nothing in the middle of their lines. What a device's mode is on a machine with udev, it is
/// here, too.
fn script<'a>(suites: impl Iterator<Item = &'a Suite>, args: &[String], measures: bool) -> String {
    let mut text = "#!/bin/busybox sh\n\
        /bin/busybox --install -s /bin\n\
        export PATH=/bin TMPDIR=/tmp RUST_BACKTRACE=0 TT_TEST_ACCELERATOR=kvm\n\
        mount -t proc proc /proc\n\
        mount -t sysfs sysfs /sys\n\
        mount -t devtmpfs devtmpfs /dev\n\
        mount -t tmpfs -o mode=755 tmpfs /run\n\
        mount -t tmpfs -o mode=1777 tmpfs /tmp\n\
        mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
        dmesg -n 1\n\
        echo /bin/modprobe >/proc/sys/kernel/modprobe\n\
        for module in MODULES; do modprobe $module; done\n\
        ip link set lo up\n\
        chmod 666 /dev/kvm /dev/net/tun\n\
        export TT_BIN=/lab/tt TT_GUEST_AGENT=/lab/tt-guest TT_TEST_HELPER=/lab/tt-test-helper TT_TEST_CACHE=/lab/cache\n\
        [ -e /lab/firecracker-program ] && export TT_FIRECRACKER=/lab/firecracker-program\n"
        .replace("MODULES", &MODULES.join(" "));
    for suite in suites {
        let Suite { target, filter, skip, .. } = suite;
        let skips: String = skip.iter().map(|part| format!(" --skip {part}")).collect();
        let chosen: String = args.iter().map(|part| format!(" {}", shown(part))).collect();
        let filters = match filter.is_empty() {
            true => chosen,
            false => format!(" {filter}"),
        };
        // Writing to a `String` does not fail.
        let _ = write!(
            text,
            "echo '{MARK} begin {target}'\n\
             timeout {} /lab/{target} --test-threads=1 --show-output{skips}{filters} \
             || echo '{MARK} failed {target}'\n",
            SUITE_LIMIT.as_secs(),
        );
    }
    if measures {
        let _ = writeln!(
            text,
            "echo '{MARK} begin bench'\n\
             timeout {} /lab/bench firecracker || echo '{MARK} failed bench'",
            SUITE_LIMIT.as_secs(),
        );
    }
    let _ = write!(text, "echo '{MARK} end'\npoweroff -f\n");
    text
}

/// Only what names of tests consist of gets into the script.
pub(super) fn shown(part: &str) -> String {
    part.chars().filter(|c| c.is_ascii_alphanumeric() || "_:".contains(*c)).collect()
}

fn which(program: &str) -> Outcome<PathBuf> {
    let dirs = ["/usr/bin", "/usr/sbin", "/bin", "/usr/local/bin"].map(Path::new);
    let found = dirs.into_iter().map(|dir| dir.join(program)).find(|path| path.exists());
    found.ok_or_else(|| Failure::new(format!("{program} is not installed")))
}

fn put(from: &Path, to: &Path) -> Outcome {
    if let Some(above) = to.parent() {
        fs::create_dir_all(above).map_err(Failure::to("make", above.display()))?;
    }
    fs::copy(from, to).map(drop).map_err(Failure::to("copy", from.display()))
}

/// Copies a program without what only a debugger reads.
fn strip(program: &Path, to: &Path) -> Outcome {
    Argv::new("strip").args(["--strip-debug", "-o"]).arg(to).arg(program).run()
}

/// Copies the libraries that a program is linked with, and what loads them, to where it looks for them.
fn libraries(program: &Path, root: &Path) -> Outcome {
    for library in linked(&Argv::new("ldd").arg(program).text()?) {
        let to = root.join(below(library));
        if !to.exists() {
            put(library, &to)?;
        }
    }
    Ok(())
}

/// The paths in what `ldd` prints.
fn linked(listing: &str) -> Vec<&Path> {
    let words = listing.lines().flat_map(|line| line.split_whitespace());
    words.filter(|word| word.starts_with('/')).map(Path::new).collect()
}

fn below(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Packs the tree as the kernel takes it.
fn pack(scratch: &Path, root: &Path) -> Outcome<PathBuf> {
    let (list, archive) = (scratch.join("list"), scratch.join("archive"));
    let find = Argv::new("find").arg(".").dir(root);
    fs::write(&list, find.text()?).map_err(Failure::to("write", list.display()))?;
    let names = fs::File::open(&list).map_err(Failure::to("read", list.display()))?;
    let to = create(&archive)?;
    let argv = Argv::new("cpio").args(["-o", "-H", "newc", "-R", "0:0", "--quiet"]).dir(root);
    let mut cpio = argv.start(|command| {
        command.stdin(Stdio::from(names)).stdout(Stdio::from(to));
    })?;
    let status = cpio.wait().map_err(Failure::to("wait for", "cpio"))?;
    match status.success() {
        true => Ok(archive),
        false => Err(Failure::new(format!("`{argv}`: {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_is_linked_with_is_read() {
        let listing = "\tlinux-vdso.so.1 (0x7ff)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let paths = ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(Path::new);
        assert_eq!(linked(listing), paths);
    }

    #[test]
    fn the_guest_says_what_it_runs_and_switches_off() {
        let suite =
            Suite { package: "tt-engine", target: "qemu", filter: "", skip: &["firmware::"] };
        let text = script([&suite].into_iter(), &[], false);
        assert!(text.contains("echo 'tt-lab: begin qemu'\n"), "{text}");
        assert!(text.contains("--skip firmware:: |"), "{text}");
        assert!(text.contains("for module in kvm-amd tun;"), "{text}");
        assert!(text.ends_with("echo 'tt-lab: end'\npoweroff -f\n"), "{text}");
        let text = script([&suite].into_iter(), &["conforms; reboot".into()], false);
        assert!(text.contains(" conformsreboot |") && !text.contains("/lab/bench"), "{text}");
        let text = script([].into_iter(), &[], true);
        assert!(text.contains("/lab/bench firecracker ||"), "{text}");
    }
}
