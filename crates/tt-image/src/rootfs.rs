//! The root file system of templates on BusyBox: all of its applets, the agent as init, files of packages, and what the recipe
//! names, as an ext4 image that is the same, byte for byte, wherever and whenever it is made.

use crate::tool::Tool;
use crate::{ImageError, Progress, files};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// Size of the image without a word on it: what BusyBox and the agent take, ten times over. Guests grow it to their disk's size.
pub(crate) const SIZE_MB: u32 = 64;

/// Every time in the image, seconds since the epoch: any constant will do (2023-11-14).
const TIME: &str = "1700000000";
const UUID: &str = "6d696372-6f00-4000-8000-000000000000";
const HASH_SEED: &str = "6d696372-6f00-4000-8000-000000000001";
/// Blocks of 4 KiB in 1 TiB, up to which the guest can grow it while it is mounted without moving anything.
const GROW_BLOCKS_MAX: &str = "268435456";
/// Some seconds for `micro`; for the most that a recipe comes to on a busy host some minutes.
const TIMEOUT: Duration = Duration::from_secs(900);
const BLOCK_BYTES: u64 = 4096;
/// Of the disk there is one inode for so much.
const INODE_EACH_BYTES: u64 = 16384;
/// The journal has 4 MB of it.
const FREE_BYTES: u64 = 12 << 20;
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

/// Everything in the file system. `applets` is what `busybox --list-full` prints: paths without the leading slash; `packed`
/// comes out of packages; `own` counts where both say something of one path.
pub(crate) fn nodes(
    applets: &str,
    busybox: &[u8],
    agent: &[u8],
    packed: Nodes,
    own: &Nodes,
) -> Result<Nodes, ImageError> {
    let is_dir = |path: &str| matches!(own.get(path), Some(Node::Dir(_)));
    let mut nodes = Nodes::new();
    for applet in applets.lines().take(APPLETS_MAX) {
        let path = format!("/{applet}");
        // Only where there is a directory for it; `linuxrc` of the first RAM disks would lie in the root.
        if path.rsplit_once('/').is_some_and(|(dir, _)| is_dir(dir)) {
            nodes.insert(path, Node::Link("/bin/busybox".into()));
        }
    }
    nodes.extend(packed);
    nodes.insert("/sbin/init".into(), Node::Link("tt-guest".into()));
    nodes.extend(own.clone());
    nodes.insert("/bin/busybox".into(), Node::File(0o755, busybox.into()));
    nodes.insert("/sbin/tt-guest".into(), Node::File(0o755, agent.into()));
    let paths: Vec<String> = nodes.keys().cloned().collect();
    for path in paths {
        add_parents(&mut nodes, &path)?;
    }
    Ok(nodes)
}

/// Makes directories of the parents that nothing is said of.
fn add_parents(nodes: &mut Nodes, path: &str) -> Result<(), ImageError> {
    for (end, _) in path.match_indices('/').skip(1) {
        let parent = &path[..end];
        match nodes.get(parent) {
            Some(Node::Dir(_)) => {}
            None => drop(nodes.insert(parent.to_owned(), Node::Dir(0o755))),
            Some(_) => {
                return Err(ImageError::Format {
                    what: format!("path {path:?} in the guest"),
                    problem: format!("{parent:?} is no directory; name its real place"),
                });
            }
        }
    }
    Ok(())
}

/// Makes the image `disk.raw` in `dir`, where it also leaves what it needs meanwhile. It has `size_mb`, or what `micro` has
/// and more where that is too small.
pub(crate) fn make(
    dir: &Path,
    nodes: &Nodes,
    size_mb: Option<u32>,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let size_mb = checked_size(nodes, size_mb)?;
    for (number, node) in nodes.values().enumerate() {
        if let Node::File(_, content) = node {
            progress.check()?;
            files::write(&dir.join(source(number)), content)?;
        }
    }
    files::write(&dir.join("script"), script(nodes).as_bytes())?;
    mkfs("disk.raw", size_mb).dir(dir).run_for(progress)?;
    let fill = Tool::new("debugfs", "e2fsprogs", TIMEOUT)
        .dir(dir)
        .env("E2FSPROGS_FAKE_TIME", TIME)
        .args(["-w", "-f", "script", "disk.raw"]);
    let printed = fill.run_all_for(progress)?;
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

/// The size that is asked for, if all fits, or one that does.
fn checked_size(nodes: &Nodes, size_mb: Option<u32>) -> Result<u32, ImageError> {
    let blocks = nodes.values().map(|node| match node {
        Node::File(_, content) => (content.len() as u64).next_multiple_of(BLOCK_BYTES),
        Node::Dir(_) | Node::Link(_) => BLOCK_BYTES,
    });
    // A tenth for tables, and room for what a guest writes at its start.
    let bytes = blocks.sum::<u64>() * 11 / 10 + FREE_BYTES;
    let need = (bytes.max(nodes.len() as u64 * 2 * INODE_EACH_BYTES)).div_ceil(1 << 20);
    match size_mb {
        Some(size) if u64::from(size) < need => Err(ImageError::Format {
            what: format!("size {size}M of the recipe"),
            problem: format!("its files take {need} MB with what a guest needs to start"),
        }),
        Some(size) => Ok(size),
        None => Ok(u32::try_from(need).unwrap_or(u32::MAX).max(SIZE_MB)),
    }
}

fn mkfs(image: &str, size_mb: u32) -> Tool {
    Tool::new("mkfs.ext4", "e2fsprogs", TIMEOUT)
        .env("E2FSPROGS_FAKE_TIME", TIME)
        .args(["-q", "-F", "-U", UUID, "-L", "micro", "-m", "0"])
        // One inode per 16 KiB keeps the tables small, also those of what the guest grows.
        .args(["-b", "4096", "-I", "256", "-i", &INODE_EACH_BYTES.to_string(), "-J", "size=4"])
        // Room to grow; and nothing left for a thread of the guest to write at its first mount.
        .args(["-O", "resize_inode", "-E"])
        .arg(format!(
            "resize={GROW_BLOCKS_MAX},hash_seed={HASH_SEED},lazy_itable_init=0,lazy_journal_init=0,\
             nodiscard,root_owner=0:0"
        ))
        .args([image, &format!("{size_mb}M")])
}

/// Commands for debugfs(8). Unlike `mkfs.ext4 -d`, which takes the order of a directory on the host and the present time
/// into the image, it is told everything.
fn script(nodes: &Nodes) -> String {
    let mut script = String::new();
    for (number, (path, node)) in nodes.iter().enumerate() {
        let path = word(path);
        // Writing to a string can not fail.
        let _ = match node {
            Node::Dir(_) => writeln!(script, "mkdir {path}"),
            Node::File(..) => writeln!(script, "write {} {path}", source(number)),
            Node::Link(target) => writeln!(script, "symlink {path} {}", word(target)),
        };
    }
    for (path, node) in nodes {
        let path = word(path);
        let mode = match node {
            Node::Dir(mode) => 0o040_000 | mode,
            Node::File(mode, _) => 0o100_000 | mode,
            Node::Link(_) => 0o120_777,
        };
        let _ = writeln!(script, "sif {path} mode 0{mode:o}");
        let _ = writeln!(script, "sif {path} uid 0\nsif {path} gid 0");
    }
    for path in nodes.keys().map(String::as_str).chain(["/", "/lost+found"]) {
        let path = word(path);
        for time in ["atime", "ctime", "mtime", "crtime"] {
            let _ = writeln!(script, "sif {path} {time} @{TIME}");
        }
    }
    script
}

/// A name as one word for debugfs, which takes lines apart at spaces that are not quoted. No name holds a line break.
fn word(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
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

    fn base() -> Nodes {
        let dirs = ["/bin", "/sbin", "/usr/bin", "/tmp"];
        let mut base: Nodes = dirs.map(|path| (path.into(), Node::Dir(0o755))).into();
        base.insert("/tmp".into(), Node::Dir(0o1777));
        base.insert("/etc/hostname".into(), Node::File(0o644, b"micro\n".into()));
        base
    }

    fn node(path: &str, node: Node) -> Nodes {
        Nodes::from([(path.to_owned(), node)])
    }

    #[test]
    fn the_image_is_sound_and_the_same_every_time() {
        let packed = node("/usr/share/a \"b\"/c d", Node::File(0o4755, b"packed".into()));
        let applets = "bin/sh\nusr/bin/[\nlinuxrc\n../evil\n";
        let nodes = nodes(applets, &[7; 5000], b"agent", packed, &base()).unwrap();
        let digests = [0, 1].map(|_| {
            let dir = tempfile::tempdir().unwrap();
            make(dir.path(), &nodes, None, &crate::Quiet).unwrap();
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
            let packed = "\"/usr/share/a \"\"b\"\"/c d\"";
            assert_eq!(debugfs(dir.path(), &format!("cat {packed}")), "packed");
            assert!(debugfs(dir.path(), &format!("stat {packed}")).contains("Mode:  04755"));
            // Times move on between the two.
            std::thread::sleep(Duration::from_millis(1100));
            digest::of_sparse_file(&dir.path().join("disk.raw"), &crate::Quiet).unwrap()
        });
        assert_eq!(digests[0], digests[1]);
    }

    #[test]
    fn applets_stay_in_their_directories_and_the_recipe_counts() {
        let applets = "bin/sh\nlinuxrc\n../evil\nno/such\nsbin/init\nusr/bin/wget\nbin/ls\n";
        let mut own = base();
        own.insert("/usr/bin/wget".into(), Node::File(0o755, b"own".into()));
        let packed = Nodes::from([
            ("/usr/bin/wget".into(), Node::File(0o755, b"packed".into())),
            ("/bin/ls".into(), Node::File(0o755, b"packed".into())),
            ("/tmp".into(), Node::Dir(0o700)),
        ]);
        let nodes = nodes(applets, b"", b"", packed, &own).unwrap();
        assert!(nodes.contains_key("/bin/sh"));
        assert_eq!(nodes["/sbin/init"], Node::Link("tt-guest".into()));
        assert_eq!(nodes["/usr/bin/wget"], Node::File(0o755, b"own".into()));
        assert_eq!(nodes["/bin/ls"], Node::File(0o755, b"packed".into()));
        assert_eq!((&nodes["/etc"], &nodes["/tmp"]), (&Node::Dir(0o755), &Node::Dir(0o1777)));
        for path in ["/linuxrc", "/../evil", "/no/such"] {
            assert!(!nodes.contains_key(path), "{path}");
        }
    }

    #[test]
    fn what_lies_below_no_directory_or_does_not_fit_is_refused() {
        let below = node("/etc/hostname/x", Node::Dir(0o755));
        let error = nodes("", b"", b"", below, &base()).unwrap_err().to_string();
        assert!(error.contains("\"/etc/hostname\" is no directory"), "{error}");
        let large = node("/x", Node::File(0o644, vec![1; 80 << 20]));
        assert_eq!(checked_size(&base(), None).unwrap(), SIZE_MB);
        let need = checked_size(&large, None).unwrap();
        assert!((90..110).contains(&need), "{need}");
        assert_eq!(checked_size(&large, Some(need)).unwrap(), need);
        let error = checked_size(&large, Some(need - 1)).unwrap_err().to_string();
        assert!(error.contains(&format!("its files take {need} MB")), "{error}");
        // Each thing takes an inode, however small it is.
        let many = (0..9000).map(|number| (format!("/{number}"), Node::Link("x".into())));
        assert_eq!(checked_size(&many.collect(), None).unwrap(), 282);
    }

    #[test]
    fn what_debugfs_can_not_do_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = Nodes::from([("/no/such/link".into(), Node::Link("x".into()))]);
        assert!(make(dir.path(), &nodes, None, &crate::Quiet).is_err());
    }
}
