//! The built-in template `debian-12`: a full Debian with systemd, a server of SSH, cloud-init and the agent as a service,
//! put together by mmdebstrap from packages. It boots with the kernel that `micro` has. It never installs a package on the
//! host, nor runs any of the guest's programs there outside of mmdebstrap.

use crate::boot::{Boot, First, RECIPE, prune};
use crate::draft::describe;
use crate::files::{self, Lock, Temporary};
use crate::tool::Tool;
use crate::tree::make_disk;
use crate::{Catalogue, DISK, Facts, ImageError, Packages, Progress, digest, record, sources};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tt_model::VmTemplate;
use tt_model::template::{FEATURE_AGENT, FEATURE_CLOUD_INIT};

/// Name of the template.
pub const DEBIAN: &str = "debian-12";

/// Counts the changes of what this file makes out of the same packages.
const DEBIAN_RECIPE: u32 = 2;
/// Debian's name of the release.
const SUITE: &str = "bookworm";
/// What is there beside what Debian takes for essential: no recommended packages, and no kernel, which would bring the
/// tools for an initial RAM file system of its own.
const PACKAGES: [&str; 12] = [
    "ca-certificates",
    "cloud-init",
    "dbus",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "netbase",
    "openssh-server",
    "procps",
    "systemd-sysv",
    "udev",
];
/// Where the packages lie once they are put together, in the cache.
const ROOT: &str = "root.tar";
/// Fetching 80 MB over a slow line, and unpacking and configuring it on a busy host.
const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(1800);
/// Unpacking 300 MB on a slow disk.
const UNPACK_TIMEOUT: Duration = Duration::from_secs(600);
/// Starting a program that says its version.
const ASK_TIMEOUT: Duration = Duration::from_secs(20);
/// Reading the modules' symbols.
const DEPMOD_TIMEOUT: Duration = Duration::from_secs(120);

/// Files of settings: path and content.
const TEXTS: [(&str, &str); 9] = [
    ("etc/hostname", "localhost\n"),
    // Empty, not absent: a guest without a random machine-id has none, and the template is no guest.
    ("etc/machine-id", ""),
    ("etc/fstab", "LABEL=root / ext4 defaults 0 0\n"),
    (
        "etc/systemd/system/tt-guest.service",
        "[Unit]\nDescription=Agent of TT\nDefaultDependencies=no\nAfter=systemd-remount-fs.service systemd-tmpfiles-setup-dev.service\n\
         Conflicts=shutdown.target\nBefore=shutdown.target\n\n\
         [Service]\nExecStart=/usr/sbin/tt-guest\nRestart=always\nRestartSec=1\n\
         # What it was asked to run is the user's, not the service's.\nKillMode=process\nOOMScoreAdjust=-900\nTasksMax=infinity\n\n\
         [Install]\nWantedBy=multi-user.target\n",
    ),
    (
        "etc/systemd/system/tt-host-key.service",
        "[Unit]\nDescription=Key of this guest's SSH server\nBefore=ssh.service\n\
         ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n\n\
         [Service]\nType=oneshot\nExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N \"\" -f /etc/ssh/ssh_host_ed25519_key\n\n\
         [Install]\nWantedBy=multi-user.target\n",
    ),
    // Keys only, and one kind of key of its own: others take an emulated guest half a minute to make.
    (
        "etc/ssh/sshd_config.d/tt.conf",
        "HostKey /etc/ssh/ssh_host_ed25519_key\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n",
    ),
    (
        "etc/cloud/cloud.cfg.d/95-tt.cfg",
        "# The agent sets the host name; TT makes the key of the SSH server.\npreserve_hostname: true\nlocale: C.UTF-8\n\
         ssh_deletekeys: false\nssh_genkeytypes: [ed25519]\ndisable_root: false\n",
    ),
    // Whoever reaches the console may ask the daemon for anything.
    (
        "etc/systemd/system/serial-getty@.service.d/tt.conf",
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 %I $TERM\n",
    ),
    ("etc/apt/apt.conf.d/95-tt", "APT::Install-Recommends \"false\";\n"),
];
/// Symbolic links: path and target.
const LINKS: [(&str, &str); 8] = [
    ("etc/systemd/system/multi-user.target.wants/tt-guest.service", "../tt-guest.service"),
    ("etc/systemd/system/multi-user.target.wants/tt-host-key.service", "../tt-host-key.service"),
    ("etc/systemd/system/default.target", "/lib/systemd/system/multi-user.target"),
    // The interface keeps the kernel's name: a new one would come while the agent sets its address.
    ("etc/systemd/network/99-default.link", "/dev/null"),
    // A guest of an hour is not to spend it on updates that nobody asked for.
    ("etc/systemd/system/apt-daily.timer", "/dev/null"),
    ("etc/systemd/system/apt-daily-upgrade.timer", "/dev/null"),
    ("etc/systemd/system/e2scrub_all.timer", "/dev/null"),
    ("etc/systemd/system/e2scrub_reap.service", "/dev/null"),
];
/// Of the server's keys that its package makes, every guest would have the same.
const HOST_KEYS: &str = "ssh_host_";

/// What a build is made from.
struct Parts {
    boot: Boot,
    sources: Vec<(&'static str, String)>,
}

impl Catalogue {
    /// Builds the template `debian-12`, or takes it from the cache, and gives it its name here; otherwise as
    /// [`Catalogue::build_micro`].
    ///
    /// # Errors
    /// As [`Catalogue::build_micro`].
    pub fn build_debian(
        &self,
        packages: Packages,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        // Of its own: what others build meanwhile does not wait for the minutes that this takes.
        let cache = self.cache.join(DEBIAN);
        let _lock = Lock::take(&cache)?;
        let sources = sources::of_host(SUITE)?;
        let parts = {
            let _lock = Lock::take(&self.cache)?;
            Parts { boot: self.boot(packages, progress)?, sources }
        };
        let built = cache.join("builds").join(parts.key());
        let template = match record::read(&built) {
            Ok(template) => {
                files::touch(&built);
                template
            }
            Err(_) => {
                check_tools()?;
                files::remove(&built)?;
                let root = self.debian_root(&parts, packages, progress)?;
                let template = self.build_of(&parts, &root, &built, progress)?;
                prune(&cache.join("builds"))?;
                template
            }
        };
        progress.step("installing");
        self.install(&built, &template)?;
        Ok(template)
    }

    /// The packages, put together; kept, for the agent changes more often than they do.
    fn debian_root(
        &self,
        parts: &Parts,
        packages: Packages,
        progress: &dyn Progress,
    ) -> Result<PathBuf, ImageError> {
        let cache = self.cache.join(DEBIAN);
        let roots = cache.join("roots");
        let kept = roots.join(parts.root_key());
        if packages == Packages::Newest {
            files::remove(&kept)?;
        }
        let tar = kept.join(ROOT);
        if tar.is_file() {
            files::touch(&kept);
            return Ok(tar);
        }
        files::remove(&kept)?;
        progress.step("putting packages together");
        let temporary = Temporary::create(&cache)?;
        let dir = temporary.path();
        let work = dir.join("work");
        files::make_dir(&work)?;
        let mut lists = Vec::new();
        for (name, text) in &parts.sources {
            let list = work.join(name);
            files::write(&list, text.as_bytes())?;
            lists.push(list);
        }
        bootstrap(&work, &dir.join(ROOT), &lists).run_for(progress)?;
        files::settle(&dir.join(ROOT))?;
        files::remove(&work)?;
        files::make_dir(&roots)?;
        temporary.publish(&kept)?;
        prune(&roots)?;
        Ok(tar)
    }

    fn build_of(
        &self,
        parts: &Parts,
        root: &Path,
        built: &Path,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        let cache = self.cache.join(DEBIAN);
        let temporary = Temporary::create(&cache)?;
        let dir = temporary.path();
        {
            let _lock = Lock::take(&self.cache)?;
            self.put_boot(&parts.boot, First::OfRoot, dir, progress)?;
        }
        progress.step("unpacking");
        let tree = dir.join("tree");
        files::make_dir(&tree)?;
        unpack(root, &tree).run_for(progress)?;
        progress.step(&format!("unpacking the modules of {}", parts.boot.package()));
        parts.boot.put_modules(&dir.join("package"), &tree.join("usr/lib/modules"))?;
        depmod(&tree, &files::names(&tree.join("usr/lib/modules"))?).run_for(progress)?;
        settings(&tree, &parts.boot.agent).map_err(files::not_written(&tree))?;
        make_disk(&tree, &dir.join(DISK), progress)?;
        files::remove(&tree)?;
        let template = describe(dir, &facts(parts), progress)?;
        record::write(dir, &template)?;
        files::make_dir(&cache.join("builds"))?;
        temporary.publish(built)?;
        Ok(template)
    }
}

impl Parts {
    /// Stands for what the packages are put together from.
    fn root_key(&self) -> String {
        let sources = self.sources.iter().map(|(_, text)| text.as_str());
        let lines: Vec<&str> = PACKAGES.into_iter().chain(sources).collect();
        digest::of_bytes([&[SUITE], &*lines].concat().join("\n").as_bytes())
    }

    /// Stands for everything that goes into a build.
    fn key(&self) -> String {
        let settings = TEXTS.iter().chain(&LINKS).map(|(path, what)| format!("{path} {what}"));
        let mut lines: Vec<String> = settings.collect();
        lines.extend([RECIPE.to_string(), DEBIAN_RECIPE.to_string(), self.root_key()]);
        lines.push(self.boot.package().to_owned());
        lines.push(digest::of_bytes(&self.boot.agent));
        digest::of_bytes(lines.join("\n").as_bytes())
    }
}

/// Puts the packages together in an archive, in a box: whatever ends it, the daemon's own end, too, ends all that it started
/// and takes what it has mounted along. Its work in `work` stays then.
fn bootstrap(work: &Path, to: &Path, lists: &[PathBuf]) -> Tool {
    let include = format!("--include={}", PACKAGES.join(","));
    Tool::new("setpriv", "util-linux", BOOTSTRAP_TIMEOUT)
        .env("TMPDIR", work.display().to_string())
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"])
        .args(["--format=tar", &include])
        .args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Retries \"2\""])
        .args([
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
        ])
        .arg(SUITE)
        .arg(to)
        .args(lists)
}

/// Says what is missing before minutes are spent.
fn check_tools() -> Result<(), ImageError> {
    for (program, package) in [("mmdebstrap", "mmdebstrap"), ("depmod", "kmod")] {
        Tool::new(program, package, ASK_TIMEOUT).arg("--version").run()?;
    }
    Ok(())
}

fn unpack(tar: &Path, to: &Path) -> Tool {
    Tool::new("tar", "tar", UNPACK_TIMEOUT)
        .args(["--extract", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--file"])
        .arg(tar)
        .arg("--directory")
        .arg(to)
}

/// Lists for `modprobe` what the modules need, and by which devices they are asked for.
fn depmod(tree: &Path, versions: &[String]) -> Tool {
    Tool::new("depmod", "kmod", DEPMOD_TIMEOUT).arg("--basedir").arg(tree).args(versions)
}

/// What the packages do not say themselves. No link of the tree is followed but those of its own directories.
fn settings(tree: &Path, agent: &[u8]) -> std::io::Result<()> {
    let put = |path: &str, content: &[u8], mode| {
        let path = tree.join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(tree))?;
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, content)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
    };
    for entry in std::fs::read_dir(tree.join("etc/ssh"))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(HOST_KEYS) {
            std::fs::remove_file(entry.path())?;
        }
    }
    sources::forget_logins(tree)?;
    for (path, text) in TEXTS {
        put(path, text.as_bytes(), 0o644)?;
    }
    put("usr/sbin/tt-guest", agent, 0o755)?;
    for (path, target) in LINKS {
        let path = tree.join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(tree))?;
        let _ = std::fs::remove_file(&path);
        symlink(target, &path)?;
    }
    Ok(())
}

fn facts(parts: &Parts) -> Facts {
    Facts {
        name: DEBIAN.into(),
        memo: Some(format!("Debian 12 on {}", parts.boot.package())),
        arch: std::env::consts::ARCH.into(),
        inside: vec![FEATURE_AGENT.into(), FEATURE_CLOUD_INIT.into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn packages_are_put_together_without_a_shell_and_without_the_hosts_settings() {
        let tool = bootstrap(Path::new("/w"), Path::new("/c/root.tar"), &["/w/guest.list".into()]);
        let line = tool.command_line();
        assert!(line.starts_with("setpriv --pdeathsig KILL unshare --mount --pid "), "{line}");
        assert!(line.contains(" mmdebstrap --quiet --mode=root --variant=minbase "), "{line}");
        assert!(line.ends_with(" bookworm /c/root.tar /w/guest.list"), "{line}");
        assert!(line.contains(",openssh-server,") && line.contains("cloud-init,"), "{line}");
    }

    #[test]
    fn no_two_guests_share_what_makes_one_itself() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        fs::create_dir_all(tree.join("etc/ssh")).unwrap();
        for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "sshd_config"] {
            fs::write(tree.join("etc/ssh").join(name), "x").unwrap();
        }
        fs::create_dir(tree.join("etc/apt")).unwrap();
        let list = tree.join("etc/apt/sources.list");
        fs::write(&list, "deb http://user:secret@a.org bookworm main\n").unwrap();
        fs::write(tree.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
        // What a package made of a link is not followed.
        let outside = dir.path().join("outside");
        fs::write(&outside, "mine").unwrap();
        symlink(&outside, tree.join("etc/hostname")).unwrap();
        for _ in 0..2 {
            settings(tree, b"agent").unwrap();
            assert_eq!(
                files::names(&tree.join("etc/ssh")).unwrap(),
                ["sshd_config", "sshd_config.d"]
            );
            assert_eq!(fs::read_to_string(tree.join("etc/machine-id")).unwrap(), "");
            assert_eq!(fs::read_to_string(&outside).unwrap(), "mine");
            let apt = fs::read_to_string(&list).unwrap();
            assert_eq!(apt, "deb http://a.org bookworm main\n");
            let agent = fs::metadata(tree.join("usr/sbin/tt-guest")).unwrap();
            assert_eq!(agent.permissions().mode() & 0o777, 0o755);
            let wanted = tree.join("etc/systemd/system/multi-user.target.wants/tt-guest.service");
            assert!(fs::read_to_string(wanted).unwrap().contains("ExecStart=/usr/sbin/tt-guest"));
        }
    }

    #[test]
    fn every_part_counts_in_the_key() {
        let parts = |kernel: &str, agent: &[u8], list: &str| Parts {
            boot: Boot { package: kernel.into(), agent: agent.into() },
            sources: vec![("guest.list", list.into())],
        };
        let first = parts("/d/linux_1_amd64.deb", b"a", "deb x");
        for (other, same_root) in [
            (parts("/d/linux_2_amd64.deb", b"a", "deb x"), true),
            (parts("/d/linux_1_amd64.deb", b"b", "deb x"), true),
            (parts("/d/linux_1_amd64.deb", b"a", "deb y"), false),
        ] {
            assert_ne!(first.key(), other.key());
            assert_eq!(first.root_key() == other.root_key(), same_root);
        }
    }
}
