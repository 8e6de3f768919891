//! The root file system of the `micro` template: BusyBox with all of its applets, the agent as init, and a few files of
//! settings, as an ext4 image that is the same, byte for byte, wherever and whenever it is made.

use crate::tool::Tool;
use crate::{ImageError, files};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// Size of the image: what BusyBox and the agent take, ten times over. Guests grow it to their disk's size.
pub(crate) const SIZE_MB: u32 = 64;

/// Every time in the image, seconds since the epoch: any constant will do (2023-11-14).
const TIME: &str = "1700000000";
const UUID: &str = "6d696372-6f00-4000-8000-000000000000";
const HASH_SEED: &str = "6d696372-6f00-4000-8000-000000000001";
/// Blocks of 4 KiB in 1 TiB, up to which the guest can grow it while it is mounted without moving anything.
const GROW_BLOCKS_MAX: &str = "268435456";
const TIMEOUT: Duration = Duration::from_secs(60);
/// BusyBox has about 270.
const APPLETS_MAX: usize = 2000;

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// A directory with its mode.
    Dir(u32),
    /// A file with its mode and content.
    File(u32, Vec<u8>),
    /// A symbolic link.
    Link(String),
}

/// By absolute path, so that parents come first.
pub(crate) type Nodes = BTreeMap<String, Node>;

const DIRS: [(&str, u32); 23] = [
    ("/bin", 0o755),
    ("/dev", 0o755),
    ("/etc", 0o755),
    ("/etc/udhcpc", 0o755),
    ("/home", 0o755),
    ("/mnt", 0o755),
    ("/opt", 0o755),
    ("/proc", 0o555),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/sbin", 0o755),
    ("/srv", 0o755),
    ("/sys", 0o555),
    ("/tmp", 0o1777),
    ("/usr", 0o755),
    ("/usr/bin", 0o755),
    ("/usr/local", 0o755),
    ("/usr/local/bin", 0o755),
    ("/usr/sbin", 0o755),
    ("/var", 0o755),
    ("/var/lib", 0o755),
    ("/var/log", 0o755),
    ("/var/tmp", 0o1777),
];

const TEXTS: [(&str, u32, &str); 11] = [
    (
        "/etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
    ("/etc/group", 0o644, "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    // No password opens these accounts.
    ("/etc/shadow", 0o600, "root:*:19675:0:99999:7:::\nnobody:*:19675:0:99999:7:::\n"),
    ("/etc/hosts", 0o644, "127.0.0.1\tlocalhost\n"),
    ("/etc/hostname", 0o644, "micro\n"),
    // Empty, not absent: a guest without a random machine-id has none.
    ("/etc/machine-id", 0o444, ""),
    ("/etc/resolv.conf", 0o644, ""),
    ("/etc/shells", 0o644, "/bin/sh\n"),
    (
        "/etc/profile",
        0o644,
        "export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nexport PS1='\\u@\\h:\\w\\$ '\n",
    ),
    (
        "/etc/os-release",
        0o644,
        "NAME=\"TT micro\"\nID=tt-micro\nPRETTY_NAME=\"TT micro (BusyBox)\"\n",
    ),
    ("/etc/udhcpc/default.script", 0o755, UDHCPC_SCRIPT),
];

/// What `udhcpc` runs, for guests that are to ask for their address themselves.
const UDHCPC_SCRIPT: &str = "#!/bin/sh
case \"$1\" in
deconfig)
    ip addr flush dev \"$interface\"
    ip link set \"$interface\" up
    ;;
bound | renew)
    ip addr replace \"$ip/${mask:-24}\" dev \"$interface\"
    for gateway in $router; do
        ip route replace default via \"$gateway\" dev \"$interface\"
    done
    : >/etc/resolv.conf
    for server in $dns; do
        echo \"nameserver $server\" >>/etc/resolv.conf
    done
    ;;
esac
";

/// Everything in the file system. `applets` is what `busybox --list-full` prints: paths without the leading slash.
pub(crate) fn nodes(applets: &str, busybox: &[u8], agent: &[u8]) -> Nodes {
    let mut nodes = Nodes::new();
    for (path, mode) in DIRS {
        nodes.insert(path.into(), Node::Dir(mode));
    }
    for applet in applets.lines().take(APPLETS_MAX) {
        let path = format!("/{applet}");
        // Only where there is a directory for it; `linuxrc` of the first RAM disks would lie in the root.
        if path.rsplit_once('/').is_some_and(|(dir, _)| nodes.contains_key(dir)) {
            nodes.insert(path, Node::Link("/bin/busybox".into()));
        }
    }
    for (path, mode, text) in TEXTS {
        nodes.insert(path.into(), Node::File(mode, text.into()));
    }
    nodes.insert("/bin/busybox".into(), Node::File(0o755, busybox.into()));
    nodes.insert("/sbin/tt-guest".into(), Node::File(0o755, agent.into()));
    nodes.insert("/sbin/init".into(), Node::Link("tt-guest".into()));
    nodes
}

/// Makes the image `disk.raw` in `dir`, where it also leaves what it needs meanwhile.
pub(crate) fn make(dir: &Path, nodes: &Nodes) -> Result<(), ImageError> {
    for (number, node) in nodes.values().enumerate() {
        if let Node::File(_, content) = node {
            files::write(&dir.join(source(number)), content)?;
        }
    }
    files::write(&dir.join("script"), script(nodes).as_bytes())?;
    mkfs("disk.raw").dir(dir).run()?;
    let fill = Tool::new("debugfs", "e2fsprogs", TIMEOUT)
        .dir(dir)
        .env("E2FSPROGS_FAKE_TIME", TIME)
        .args(["-w", "-f", "script", "disk.raw"]);
    let printed = fill.run_all()?;
    // It ends with success whatever happened; its first line is its version.
    let stderr = String::from_utf8_lossy(&printed.stderr);
    match stderr.lines().find(|line| !line.starts_with("debugfs ")) {
        Some(problem) => Err(ImageError::Tool {
            command: fill.command_line(),
            outcome: "failed".into(),
            stderr: problem.to_owned(),
        }),
        None => Ok(()),
    }
}

fn mkfs(image: &str) -> Tool {
    Tool::new("mkfs.ext4", "e2fsprogs", TIMEOUT)
        .env("E2FSPROGS_FAKE_TIME", TIME)
        .args(["-q", "-F", "-U", UUID, "-L", "micro", "-m", "0"])
        // One inode per 16 KiB keeps the tables small, also those of what the guest grows.
        .args(["-b", "4096", "-I", "256", "-i", "16384", "-J", "size=4"])
        // Room to grow; and nothing left for a thread of the guest to write at its first mount.
        .args(["-O", "resize_inode", "-E"])
        .arg(format!(
            "resize={GROW_BLOCKS_MAX},hash_seed={HASH_SEED},lazy_itable_init=0,lazy_journal_init=0,\
             nodiscard,root_owner=0:0"
        ))
        .args([image, &format!("{SIZE_MB}M")])
}

/// Commands for debugfs(8). Unlike `mkfs.ext4 -d`, which takes the order of a directory on the host and the present time
/// into the image, it is told everything.
fn script(nodes: &Nodes) -> String {
    let mut script = String::new();
    for (number, (path, node)) in nodes.iter().enumerate() {
        // Writing to a string can not fail.
        let _ = match node {
            Node::Dir(_) => writeln!(script, "mkdir {path}"),
            Node::File(..) => writeln!(script, "write {} {path}", source(number)),
            Node::Link(target) => writeln!(script, "symlink {path} {target}"),
        };
    }
    for (path, node) in nodes {
        let mode = match node {
            Node::Dir(mode) => 0o040_000 | mode,
            Node::File(mode, _) => 0o100_000 | mode,
            Node::Link(_) => 0o120_777,
        };
        let _ = writeln!(script, "sif {path} mode 0{mode:o}");
        let _ = writeln!(script, "sif {path} uid 0\nsif {path} gid 0");
    }
    for path in nodes.keys().map(String::as_str).chain(["/", "/lost+found"]) {
        for time in ["atime", "ctime", "mtime", "crtime"] {
            let _ = writeln!(script, "sif {path} {time} @{TIME}");
        }
    }
    script
}

/// The file on the host whose content goes to the node of that number.
fn source(number: usize) -> String {
    format!("content-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest;

    fn debugfs(dir: &Path, command: &str) -> String {
        let tool = Tool::new("debugfs", "e2fsprogs", TIMEOUT).dir(dir);
        let printed = tool.args(["-R", command, "disk.raw"]).run().unwrap();
        String::from_utf8(printed).unwrap()
    }

    #[test]
    fn the_image_is_sound_and_the_same_every_time() {
        let nodes = nodes("bin/sh\nusr/bin/[\nlinuxrc\n../evil\n", &[7; 5000], b"agent");
        let digests = [0, 1].map(|_| {
            let dir = tempfile::tempdir().unwrap();
            make(dir.path(), &nodes).unwrap();
            let check = Tool::new("e2fsck", "e2fsprogs", TIMEOUT).args(["-fn", "disk.raw"]);
            check.dir(dir.path()).run().unwrap();
            let meta = std::fs::metadata(dir.path().join("disk.raw")).unwrap();
            assert_eq!(meta.len(), u64::from(SIZE_MB) << 20);
            let agent = debugfs(dir.path(), "stat /sbin/tt-guest");
            assert!(agent.contains("Mode:  0755") && agent.contains("User:     0"), "{agent}");
            assert!(debugfs(dir.path(), "stat /tmp").contains("Mode:  01777"));
            assert!(debugfs(dir.path(), "stat /usr/bin/[").contains("/bin/busybox"));
            assert_eq!(debugfs(dir.path(), "cat /etc/hostname"), "micro\n");
            assert_eq!(debugfs(dir.path(), "cat /bin/busybox").as_bytes(), &[7; 5000]);
            // Times move on between the two.
            std::thread::sleep(Duration::from_millis(1100));
            digest::of_sparse_file(&dir.path().join("disk.raw"), &crate::Quiet).unwrap()
        });
        assert_eq!(digests[0], digests[1]);
    }

    #[test]
    fn applets_stay_in_their_directories() {
        let nodes = nodes("bin/sh\nlinuxrc\n../evil\nno/such\nsbin/init\n", b"", b"");
        assert!(nodes.contains_key("/bin/sh"));
        assert_eq!(nodes["/sbin/init"], Node::Link("tt-guest".into()));
        for path in ["/linuxrc", "/../evil", "/no/such"] {
            assert!(!nodes.contains_key(path), "{path}");
        }
    }

    #[test]
    fn what_debugfs_can_not_do_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = Nodes::from([("/no/such/link".into(), Node::Link("x".into()))]);
        assert!(make(dir.path(), &nodes).is_err());
    }
}
