//! A root file system that lies unpacked in a directory, as a bootable disk: ext4, with our kernel, and the agent as its
//! first process out of the initial RAM file system. Nothing is added to the tree.

use crate::boot::First;
use crate::files::{self, Lock};
use crate::tool::Tool;
use crate::{Catalogue, DISK, Draft, Facts, ImageError, Packages, Progress, space};
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use tt_guest::entry::Entry;
use tt_model::VmTemplate;
use tt_model::template::FEATURE_AGENT;

/// Most that a tree may hold; what is larger is imported as a disk.
pub(crate) const TREE_BYTES_MAX: u64 = 256 << 30;
/// Most files, directories and links of a tree.
pub(crate) const TREE_NODES_MAX: u64 = 4_000_000;
/// Deepest directory of a tree: a path of Linux has 4096 bytes.
const DEPTH_MAX: usize = 2048;
/// What is left free for a guest that does not grow its disk, in bytes and in inodes.
const FREE_BYTES: u64 = 64 << 20;
const FREE_NODES: u64 = 4096;
const BLOCK_BYTES: u64 = 4096;
const INODE_BYTES: u64 = 256;
const JOURNAL_MB: u64 = 16;
/// Blocks of 4 KiB in 1 TiB, up to which the guest can grow it while it is mounted without moving anything.
const GROW_BLOCKS_MAX: &str = "268435456";
/// Writing a large tree on a slow disk.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// What a tree takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Extent {
    blocks_bytes: u64,
    /// Without what are holes on the host.
    data_bytes: u64,
    nodes: u64,
}

impl Catalogue {
    /// Makes the forms for machines out of the tree in `root`, with the owners and modes that it has there: [`DISK`],
    /// just large enough and 64 MB free, and the kernel that `micro` has. Then [`Catalogue::finish`]. A form that is in
    /// the draft already, such as [`CONTAINER`](crate::CONTAINER), stays. `entry` is what the guest runs beside the agent.
    ///
    /// `root` is best in `draft.dir()`: it is removed with it.
    ///
    /// # Errors
    /// [`ImageError::Format`] for a tree that is too large; those of [`Catalogue::build`].
    pub fn install_rootfs(
        &self,
        draft: &Draft,
        root: &Path,
        entry: Option<&Entry>,
        facts: &Facts,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        {
            let _lock = Lock::take(&self.cache, progress)?;
            let boot = self.boot(Packages::Kept, progress)?;
            for name in [crate::KERNEL, crate::INITRAMFS] {
                files::remove(&draft.dir().join(name))?;
            }
            self.put_boot(&boot, First::Agent(entry), draft.dir(), progress)?;
        }
        make_disk(root, &draft.dir().join(DISK), None, progress)?;
        let mut facts = facts.clone();
        if !facts.inside.iter().any(|feature| feature == FEATURE_AGENT) {
            facts.inside.push(FEATURE_AGENT.into());
        }
        self.finish(draft, &facts, progress)
    }
}

/// Makes the ext4 image `disk` of the tree in `root`: of the size `size_mb` (MB of 2^20 bytes), else as large as it must be.
pub(crate) fn make_disk(
    root: &Path,
    disk: &Path,
    size_mb: Option<u32>,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    progress.step("measuring the root file system");
    let mut extent = Extent::default();
    measure(root, DEPTH_MAX, &mut extent, &mut HashSet::new(), progress)?;
    let need_mb = extent.disk_mb();
    let size_mb = size_mb.map_or(need_mb, u64::from);
    if size_mb < need_mb {
        return Err(ImageError::Format {
            what: format!("size {size_mb}M of the disk"),
            problem: format!("its files take {need_mb} MB with what a guest needs to start"),
        });
    }
    progress.step("making the root file system");
    files::remove(disk)?;
    space::check_room(disk, extent.data_bytes)?;
    mkfs(root, disk, extent, size_mb).run_for(&space::Roomy { progress, path: disk })?;
    files::settle(disk)
}

impl Extent {
    fn inodes(self) -> u64 {
        self.nodes + FREE_NODES
    }

    /// What a disk of it takes, in MB.
    fn disk_mb(self) -> u64 {
        let inodes = self.inodes() * INODE_BYTES;
        let bytes = self.blocks_bytes + FREE_BYTES + inodes + (JOURNAL_MB << 20);
        // A twentieth for what the file system keeps for itself: group descriptors, bitmaps, the room to grow.
        (bytes + bytes / 20).div_ceil(1 << 20)
    }
}

fn mkfs(root: &Path, disk: &Path, extent: Extent, size_mb: u64) -> Tool {
    Tool::new("mkfs.ext4", "e2fsprogs", TIMEOUT)
        .args(["-q", "-F", "-L", "root", "-m", "0", "-b", "4096", "-I", "256"])
        .args(["-N", &extent.inodes().to_string(), "-J", &format!("size={JOURNAL_MB}")])
        .args(["-O", "resize_inode", "-E"])
        // The root directory is root's, whoever unpacked the tree.
        .arg(format!(
            "resize={GROW_BLOCKS_MAX},lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0"
        ))
        .arg("-d")
        .arg(root)
        .arg(disk)
        .arg(format!("{size_mb}M"))
}

/// Adds up what is below `dir`, following no link and crossing into no other file system's devices.
fn measure(
    dir: &Path,
    depth: usize,
    extent: &mut Extent,
    linked: &mut HashSet<(u64, u64)>,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    progress.check()?;
    let refused = |problem: String| ImageError::Format { what: "root file system".into(), problem };
    let Some(depth) = depth.checked_sub(1) else {
        return Err(refused(format!("it is deeper than {DEPTH_MAX} directories")));
    };
    for entry in std::fs::read_dir(dir).map_err(files::not_read(dir))? {
        let path = entry.map_err(files::not_read(dir))?.path();
        let meta = path.symlink_metadata().map_err(files::not_read(&path))?;
        // A file with several names lies there once.
        if !meta.is_dir() && meta.nlink() > 1 && !linked.insert((meta.dev(), meta.ino())) {
            continue;
        }
        extent.nodes += 1;
        // By its length: what is a hole on the host may be none in the image.
        extent.blocks_bytes += meta.len().next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES);
        // `st_blocks` counts 512 bytes whatever the file system's block size.
        extent.data_bytes += meta.len().min(meta.blocks().saturating_mul(512));
        if extent.nodes > TREE_NODES_MAX || extent.blocks_bytes > TREE_BYTES_MAX {
            return Err(refused(format!(
                "it has more than {TREE_NODES_MAX} files or {} GB",
                TREE_BYTES_MAX >> 30
            )));
        }
        if meta.is_dir() {
            measure(&path, depth, extent, linked, progress)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quiet;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    #[test]
    fn a_tree_becomes_a_sound_disk_with_its_owners_modes_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        for number in 0..3000 {
            fs::write(root.join(format!("usr/{number}")), b"x").unwrap();
        }
        fs::write(root.join("usr/bin/tool"), vec![7; 5 << 20]).unwrap();
        fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/same")).unwrap();
        chown(root.join("usr/bin/tool"), Some(1000), Some(1001)).unwrap();
        // Only now: a change of the owner takes the bit away.
        fs::set_permissions(root.join("usr/bin/tool"), Permissions::from_mode(0o4755)).unwrap();
        symlink("/etc/shadow", root.join("link")).unwrap();
        let disk = dir.path().join(DISK);
        make_disk(&root, &disk, None, &Quiet).unwrap();
        let run = |program: &str, args: &[&str]| {
            let tool = Tool::new(program, "e2fsprogs", TIMEOUT).dir(dir.path());
            String::from_utf8(tool.args(args.iter().copied()).run().unwrap()).unwrap()
        };
        run("e2fsck", &["-fn", DISK]);
        let tool = run("debugfs", &["-R", "stat /usr/bin/same", DISK]);
        assert!(tool.contains("Mode:  04755") && tool.contains("Links: 2"), "{tool}");
        assert!(tool.contains("User:  1000") && tool.contains("Group:  1001"), "{tool}");
        let link = run("debugfs", &["-R", "stat /link", DISK]);
        assert!(link.contains("/etc/shadow"), "{link}");
    }

    #[test]
    fn a_disk_that_would_fill_the_file_system_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("large"), vec![7; 40 << 20]).unwrap();
        space::with_little_room(dir.path(), |small| {
            let disk = small.join(DISK);
            let made = make_disk(&root, &disk, None, &Quiet);
            assert!(matches!(made, Err(ImageError::NoRoom { .. })), "{made:?}");
            fs::remove_file(root.join("large")).unwrap();
            make_disk(&root, &disk, None, &Quiet).unwrap();
        });
    }

    #[test]
    fn what_nobody_wants_is_not_made() {
        struct Unwanted;
        impl Progress for Unwanted {
            fn step(&self, _what: &str) {}
            fn is_wanted(&self) -> bool {
                false
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let made = make_disk(dir.path(), &dir.path().join(DISK), None, &Unwanted);
        assert!(matches!(made, Err(ImageError::Unwanted)), "{made:?}");
    }
}
