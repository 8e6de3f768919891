//! What the guest of the lab consists of: one archive that its kernel unpacks into memory.

use super::report::MARK;
use super::{Suite, create};
use crate::command::Argv;
use crate::failure::{Failure, Outcome};
use crate::test::kernel::Kernel;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// The module that makes `/dev/kvm`, and the one that makes taps; with what they need.
const MODULES: [&str; 2] = ["kvm-amd", "tun"];
/// Programs of this machine that the tests start.
const PROGRAMS: [&str; 2] = ["qemu-system-x86_64", "qemu-img"];
/// What QEMU reads beside itself, where there is such a thing: firmware, and modules of its own for accelerators.
const DATA: [&str; 3] = ["/usr/share/qemu", "/usr/share/seabios", "/usr/lib/x86_64-linux-gnu/qemu"];
/// A test that hangs costs no more than this.
const SUITE_LIMIT: Duration = Duration::from_secs(1500);
/// Deepest folder below the modules' one.
const DEPTH_MAX: usize = 12;

/// Puts the archive together in `scratch`; answers its path.
pub fn make(
    scratch: &Path,
    kernel: &Kernel,
    suites: &[(Suite, PathBuf)],
    firecracker: Option<&Path>,
    args: &[String],
) -> Outcome<PathBuf> {
    let root = scratch.join("root");
    for dir in ["bin", "dev", "lab/ko", "lib64", "proc", "run", "sys", "tmp", "var/tmp"] {
        let dir = root.join(dir);
        fs::create_dir_all(&dir).map_err(Failure::to("make", dir.display()))?;
    }
    for program in PROGRAMS {
        let path = which(program)?;
        put(&path, &root.join("bin").join(program))?;
        libraries(&path, &root)?;
    }
    put(&which("busybox")?, &root.join("bin/busybox"))?;
    for data in DATA.map(Path::new).into_iter().filter(|data| data.exists()) {
        let above = root.join(below(data)).parent().unwrap_or(&root).to_owned();
        fs::create_dir_all(&above).map_err(Failure::to("make", above.display()))?;
        Argv::new("cp").args(["--recursive", "--dereference"]).arg(data).arg(&above).run()?;
    }
    let mut modules = Vec::new();
    for name in MODULES {
        add_module(&kernel.modules.join("kernel"), name, DEPTH_MAX, &mut modules)?;
    }
    for (number, module) in modules.iter().enumerate() {
        put(module, &root.join(format!("lab/ko/{number:02}.ko")))?;
    }
    for (suite, program) in suites {
        let to = root.join("lab").join(suite.target);
        Argv::new("strip").args(["--strip-debug", "-o"]).arg(&to).arg(program).run()?;
        libraries(program, &root)?;
    }
    if let Some(firecracker) = firecracker {
        put(firecracker, &root.join("lab/firecracker-program"))?;
    }
    let init = root.join("init");
    fs::write(&init, script(suites.iter().map(|(suite, _)| suite), args))
        .and_then(|()| fs::set_permissions(&init, fs::Permissions::from_mode(0o755)))
        .map_err(Failure::to("write", init.display()))?;
    symlink("busybox", root.join("bin/sh")).map_err(Failure::to("link", "sh"))?;
    pack(scratch, &root)
}

/// The guest's first process: mounts, loads, runs the tests, switches off. What a device's mode is on a machine with udev, it is
/// here, too.
fn script<'a>(suites: impl Iterator<Item = &'a Suite>, args: &[String]) -> String {
    let mut text = "#!/bin/busybox sh\n\
        /bin/busybox --install -s /bin\n\
        export PATH=/bin TMPDIR=/tmp RUST_BACKTRACE=0 TT_TEST_ACCELERATOR=kvm\n\
        mount -t proc proc /proc\n\
        mount -t sysfs sysfs /sys\n\
        mount -t devtmpfs devtmpfs /dev\n\
        mount -t tmpfs -o mode=755 tmpfs /run\n\
        mount -t tmpfs -o mode=1777 tmpfs /tmp\n\
        mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
        for module in /lab/ko/*; do insmod $module; done\n\
        chmod 666 /dev/kvm /dev/net/tun\n\
        [ -e /lab/firecracker-program ] && export TT_FIRECRACKER=/lab/firecracker-program\n"
        .to_owned();
    for suite in suites {
        let Suite { target, filter, skip } = suite;
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

/// Adds the file of a module, after those of what it needs.
fn add_module(dir: &Path, name: &str, depth: usize, modules: &mut Vec<PathBuf>) -> Outcome {
    let wanted = name.replace('_', "-") + ".ko";
    let missing = || Failure::new(format!("the kernel has no module {name}"));
    let path = find(dir, &wanted, DEPTH_MAX)?.ok_or_else(missing)?;
    let depth = depth.checked_sub(1).ok_or_else(|| Failure::new("modules need each other"))?;
    let needed = Argv::new("modinfo").args(["-F", "depends"]).arg(&path).text()?;
    for needed in needed.trim().split(',').filter(|name| !name.is_empty()) {
        add_module(dir, needed, depth, modules)?;
    }
    if !modules.contains(&path) {
        modules.push(path);
    }
    Ok(())
}

fn find(dir: &Path, wanted: &str, depth: usize) -> Outcome<Option<PathBuf>> {
    let Some(depth) = depth.checked_sub(1) else { return Ok(None) };
    for entry in fs::read_dir(dir).map_err(Failure::to("list", dir.display()))? {
        let path = entry.map_err(Failure::to("list", dir.display()))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().replace('_', "-"));
        if path.is_dir() {
            if let Some(found) = find(&path, wanted, depth)? {
                return Ok(Some(found));
            }
        } else if name.as_deref() == Some(wanted) {
            return Ok(Some(path));
        }
    }
    Ok(None)
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
        let suite = Suite { target: "qemu", filter: "", skip: &["firmware::"] };
        let text = script([&suite].into_iter(), &[]);
        assert!(text.contains("echo 'tt-lab: begin qemu'\n"), "{text}");
        assert!(text.contains("--skip firmware:: |"), "{text}");
        assert!(text.ends_with("echo 'tt-lab: end'\npoweroff -f\n"), "{text}");
        let text = script([&suite].into_iter(), &["conforms; reboot".into()]);
        assert!(text.contains(" conformsreboot |"), "{text}");
    }
}
