//! The ground of the recipe `debian-12`: a release of Debian, put together by mmdebstrap from packages, with the agent in it. It
//! boots with the kernel that `micro` has. It never installs a package on the host, nor runs any of the guest's programs
//! there outside of mmdebstrap.

use crate::boot::{Boot, prune};
use crate::files::{self, Temporary};
use crate::oci::tree::{self as guest, Meta, TreeError};
use crate::rootfs::{Node, Nodes};
use crate::tool::Tool;
use crate::{DISK, ImageError, Packages, Progress, digest, sources, tree};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

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
/// Where the agent's service looks for it.
const AGENT: &str = "/usr/sbin/tt-guest";
/// Of the server's keys that its package makes, every guest would have the same.
const HOST_KEYS: &str = "ssh_host_";
/// Time of what the recipe names, seconds since the epoch: any constant will do (2023-11-14).
const TIME: i64 = 1_700_000_000;

/// A release with some packages, and where they come from.
pub(crate) struct Ground {
    suite: String,
    packages: Vec<String>,
    sources: Vec<(&'static str, String)>,
}

impl Ground {
    /// Of the release `suite`, as the host's own lists for apt have it.
    pub(crate) fn of(suite: &str, packages: &[String]) -> Result<Self, ImageError> {
        let sources = sources::of_host(suite)?;
        Ok(Self { suite: suite.to_owned(), packages: packages.to_vec(), sources })
    }

    /// Of one list.
    #[cfg(test)]
    pub(crate) fn with(packages: &[String], list: &str) -> Self {
        let sources = vec![("guest.list", list.to_owned())];
        Self { suite: "bookworm".into(), packages: packages.to_vec(), sources }
    }

    /// Stands for what the packages are put together from.
    pub(crate) fn key(&self) -> String {
        let sources = self.sources.iter().map(|(_, text)| text.as_str());
        let packages = self.packages.iter().map(String::as_str);
        let lines: Vec<&str> = [&*self.suite].into_iter().chain(packages).chain(sources).collect();
        digest::of_bytes(lines.join("\n").as_bytes())
    }

    /// The packages, put together; kept below `shelf`, for the agent and a recipe's own files change more often than they do.
    pub(crate) fn root(
        &self,
        shelf: &Path,
        packages: Packages,
        progress: &dyn Progress,
    ) -> Result<PathBuf, ImageError> {
        check_tools(progress)?;
        let roots = shelf.join("roots");
        let kept = roots.join(self.key());
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
        let temporary = Temporary::create(shelf)?;
        let dir = temporary.path();
        let work = dir.join("work");
        files::make_dir(&work)?;
        let mut lists = Vec::new();
        for (name, text) in &self.sources {
            let list = work.join(name);
            files::write(&list, text.as_bytes())?;
            lists.push(list);
        }
        self.bootstrap(&work, &dir.join(ROOT), &lists).run_for(progress)?;
        files::settle(&dir.join(ROOT))?;
        files::remove(&work)?;
        files::make_dir(&roots)?;
        temporary.publish(&kept)?;
        prune(&roots)?;
        Ok(tar)
    }

    /// Puts the packages together in an archive, in a box: whatever ends it, the daemon's own end, too, ends all that it
    /// started and takes what it has mounted along. Its work in `work` stays then.
    fn bootstrap(&self, work: &Path, to: &Path, lists: &[PathBuf]) -> Tool {
        let include = format!("--include={}", self.packages.join(","));
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
            .arg(&self.suite)
            .arg(to)
            .args(lists)
    }
}

/// Makes the disk in `dir` out of the archive `root`, with `own` on top.
pub(crate) fn make_disk(
    root: &Path,
    boot: &Boot,
    own: &Nodes,
    size_mb: Option<u32>,
    dir: &Path,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    progress.step("unpacking");
    let tree = dir.join("tree");
    files::make_dir(&tree)?;
    unpack(root, &tree).run_for(progress)?;
    progress.step(&format!("unpacking the modules of {}", boot.package()));
    boot.put_modules(&dir.join("package"), &tree.join("usr/lib/modules"), progress)?;
    depmod(&tree, &files::names(&tree.join("usr/lib/modules"))?).run_for(progress)?;
    forget(&tree).map_err(files::not_written(&tree))?;
    let agent = Node::File(0o755, boot.agent.clone());
    for (path, node) in own.iter().chain([(&AGENT.to_owned(), &agent)]) {
        progress.check()?;
        put(&tree, path, node).map_err(|error| not_put(path, error))?;
    }
    tree::make_disk(&tree, &dir.join(DISK), size_mb, progress)?;
    files::remove(&tree)
}

/// Says what is missing before minutes are spent.
fn check_tools(progress: &dyn Progress) -> Result<(), ImageError> {
    for (program, package) in [("mmdebstrap", "mmdebstrap"), ("depmod", "kmod")] {
        Tool::new(program, package, ASK_TIMEOUT).arg("--version").run_for(progress)?;
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

/// Takes out what would be the same in all guests, or is the host's.
fn forget(tree: &Path) -> io::Result<()> {
    match std::fs::read_dir(tree.join("etc/ssh")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(HOST_KEYS) {
                    std::fs::remove_file(entry.path())?;
                }
            }
        }
    }
    sources::forget_logins(tree)
}

/// Puts one thing into the tree, where its links lead to what they will lead to in the guest.
fn put(tree: &Path, path: &str, node: &Node) -> Result<(), TreeError> {
    let parts: Vec<&[u8]> =
        path.split('/').filter(|part| !part.is_empty()).map(str::as_bytes).collect();
    let place = guest::Tree::open(tree)?.make_way(&parts)?;
    let meta = |mode| Meta { mode, uid: 0, gid: 0, mtime: TIME };
    if !matches!(node, Node::Dir(_)) && place.is_directory()? {
        return Err(TreeError::Refuse("a directory of the packages is there".into()));
    }
    match node {
        Node::Dir(mode) => guest::describe(place.directory()?, meta(*mode), &[]),
        Node::Link(to) => place.symlink(to.as_bytes(), meta(0o777)),
        Node::File(mode, content) => {
            let mut file = place.file()?;
            let written = file.write_all(content);
            written.map_err(|e| {
                rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO)
            })?;
            guest::describe(&file, meta(*mode), &[])
        }
    }
}

fn not_put(path: &str, error: TreeError) -> ImageError {
    match error {
        TreeError::Refuse(problem) => {
            ImageError::Format { what: format!("path {path:?} in the guest"), problem }
        }
        TreeError::System(errno) => files::not_written(Path::new(path))(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn packages_are_put_together_without_a_shell_and_without_the_hosts_settings() {
        let ground = Ground::with(&["cloud-init".into(), "openssh-server".into()], "deb x");
        let lists = ["/w/guest.list".into()];
        let line =
            ground.bootstrap(Path::new("/w"), Path::new("/c/root.tar"), &lists).command_line();
        assert!(line.starts_with("setpriv --pdeathsig KILL unshare --mount --pid "), "{line}");
        assert!(line.contains(" mmdebstrap --quiet --mode=root --variant=minbase "), "{line}");
        assert!(line.ends_with(" bookworm /c/root.tar /w/guest.list"), "{line}");
        assert!(line.contains(" --include=cloud-init,openssh-server "), "{line}");
    }

    #[test]
    fn no_two_guests_share_what_makes_one_itself() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        forget(tree).unwrap();
        fs::create_dir_all(tree.join("etc/ssh")).unwrap();
        for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "sshd_config"] {
            fs::write(tree.join("etc/ssh").join(name), "x").unwrap();
        }
        fs::create_dir(tree.join("etc/apt")).unwrap();
        let list = tree.join("etc/apt/sources.list");
        fs::write(&list, "deb http://user:secret@a.org bookworm main\n").unwrap();
        for _ in 0..2 {
            forget(tree).unwrap();
            assert_eq!(files::names(&tree.join("etc/ssh")).unwrap(), ["sshd_config"]);
            let apt = fs::read_to_string(&list).unwrap();
            assert_eq!(apt, "deb http://a.org bookworm main\n");
        }
    }

    #[test]
    fn what_a_recipe_names_stays_in_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("run")).unwrap();
        fs::create_dir(tree.join("var")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "mine").unwrap();
        symlink("/run", tree.join("var/run")).unwrap();
        symlink(outside.join("file"), tree.join("link")).unwrap();
        symlink(&outside, tree.join("out")).unwrap();
        let file = |text: &str| Node::File(0o640, text.as_bytes().to_vec());
        for _ in 0..2 {
            put(&tree, "/var/run/new/file", &file("a")).unwrap();
            put(&tree, "/link", &file("b")).unwrap();
            put(&tree, "/var/lib/dir", &Node::Dir(0o1777)).unwrap();
            put(&tree, "/var/lib/link", &Node::Link("dir".into())).unwrap();
        }
        assert_eq!(fs::read_to_string(tree.join("run/new/file")).unwrap(), "a");
        assert_eq!(fs::read_to_string(tree.join("link")).unwrap(), "b");
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "mine");
        assert!(matches!(put(&tree, "/out/file", &file("c")), Err(TreeError::Refuse(_))));
        assert!(matches!(put(&tree, "/var/lib", &file("c")), Err(TreeError::Refuse(_))));
        let mode = |path: &str| {
            fs::symlink_metadata(tree.join(path)).unwrap().permissions().mode() & 0o7777
        };
        assert_eq!((mode("link"), mode("var/lib/dir")), (0o640, 0o1777));
        assert_eq!(fs::read_link(tree.join("var/lib/link")).unwrap(), Path::new("dir"));
    }
}
