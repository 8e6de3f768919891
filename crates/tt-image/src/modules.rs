//! The kernel modules that a guest needs before it sees its disk, in the order in which they load. Debian's packages have
//! no `modules.dep`, so what depends on what is read from the modules themselves. It never loads one.

use crate::{ImageError, Progress, elf, files, unpack};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What the guest drives: PCI and memory-mapped virtio, and its disk, network, channel to the host and entropy on it.
pub(crate) const WANTED: [&str; 6] =
    ["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng"];
/// What it drives beside that where the channel to the host is a vsock.
pub(crate) const VSOCK: [&str; 1] = ["vmw_vsock_virtio_transport"];

/// Largest module, packed or not.
const MODULE_BYTES_MAX: usize = 64 << 20;
/// Largest list of modules.
const LIST_BYTES_MAX: u64 = 16 << 20;
/// Deepest folder of modules below `kernel/`.
const DEPTH_MAX: usize = 16;
/// Longest chain of dependencies; the longest of all virtio modules is four.
const CHAIN_MAX: usize = 32;

/// A module, unpacked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its name, with `_` for every `-`.
    pub(crate) name: String,
    /// The ELF file.
    pub(crate) content: Vec<u8>,
}

/// The modules of one kernel, from its directory in `lib/modules`.
#[derive(Debug)]
pub(crate) struct Tree {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl Tree {
    /// Looks through the directory.
    pub(crate) fn open(dir: &Path) -> Result<Self, ImageError> {
        let list = files::read(&dir.join("modules.builtin"), LIST_BYTES_MAX)?;
        let built_in = String::from_utf8_lossy(&list).lines().filter_map(name_of).collect();
        let mut found = BTreeMap::new();
        find(&dir.join("kernel"), DEPTH_MAX, &mut found)?;
        Ok(Self { files: found, built_in })
    }

    /// These modules and all that they need, each after what it needs, without what the kernel has built in.
    pub(crate) fn resolve(
        &self,
        wanted: &[&str],
        progress: &dyn Progress,
    ) -> Result<Vec<Module>, ImageError> {
        let mut modules = Vec::new();
        for name in wanted {
            self.add(name, CHAIN_MAX, &mut modules, progress)?;
        }
        Ok(modules)
    }

    fn add(
        &self,
        name: &str,
        chain: usize,
        modules: &mut Vec<Module>,
        progress: &dyn Progress,
    ) -> Result<(), ImageError> {
        let name = name.replace('-', "_");
        if self.built_in.contains(&name) || modules.iter().any(|m| m.name == name) {
            return Ok(());
        }
        let unusable = |problem: &str| ImageError::Format {
            what: format!("kernel module {name}"),
            problem: problem.to_owned(),
        };
        let Some(chain) = chain.checked_sub(1) else {
            return Err(unusable("it needs itself"));
        };
        let path = self.files.get(&name);
        let path = path.ok_or_else(|| unusable("the kernel package has no such module"))?;
        let packed = files::read(path, MODULE_BYTES_MAX as u64)?;
        let content =
            match unpack::decompress("kernel module", &packed, MODULE_BYTES_MAX, progress)? {
                Some(content) => content,
                None => packed,
            };
        let depends = elf::module_depends(&content);
        for needed in depends.ok_or_else(|| unusable("it does not say what it depends on"))? {
            self.add(&needed, chain, modules, progress)?;
        }
        modules.push(Module { name, content });
        Ok(())
    }
}

/// `kernel/drivers/char/hw_random/rng-core.ko.xz` is `rng_core`.
fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, packing) = file.split_once(".ko")?;
    let known = ["", ".gz", ".xz", ".zst"].contains(&packing);
    known.then(|| name.replace('-', "_"))
}

fn find(dir: &Path, depth: usize, found: &mut BTreeMap<String, PathBuf>) -> Result<(), ImageError> {
    let Some(depth) = depth.checked_sub(1) else {
        return Ok(());
    };
    for name in files::names(dir)? {
        let path = dir.join(&name);
        let meta = path.symlink_metadata().map_err(files::not_read(&path))?;
        if meta.is_dir() {
            find(&path, depth, found)?;
        } else if let Some(name) = name_of(&name) {
            found.insert(name, path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest ELF file with a `.modinfo` section.
    fn module(depends: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0";
        let info = format!("license=GPL\0depends={depends}\0name=x\0");
        let (names_at, info_at) = (64, 64 + names.len());
        let sections_at = info_at + info.len();
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[0x28..0x30].copy_from_slice(&(sections_at as u64).to_le_bytes());
        bytes[0x3c..0x3e].copy_from_slice(&2_u16.to_le_bytes());
        bytes.extend_from_slice(names);
        bytes.extend_from_slice(info.as_bytes());
        for (name, at, len) in [(0_u32, names_at, names.len()), (1, info_at, info.len())] {
            let mut header = vec![0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(len as u64).to_le_bytes());
            bytes.extend_from_slice(&header);
        }
        bytes
    }

    fn tree(modules: &[(&str, &str)], built_in: &str) -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let drivers = dir.path().join("kernel/drivers");
        std::fs::create_dir_all(&drivers).unwrap();
        std::fs::write(dir.path().join("modules.builtin"), built_in).unwrap();
        for (name, depends) in modules {
            std::fs::write(drivers.join(format!("{name}.ko")), module(depends)).unwrap();
        }
        let tree = Tree::open(dir.path()).unwrap();
        (dir, tree)
    }

    #[test]
    fn each_module_follows_what_it_needs_and_comes_once() {
        let (_dir, tree) = tree(
            &[("net", "ring,bus"), ("bus", "ring,rng-core"), ("ring", ""), ("my-rng", "bus")],
            "kernel/drivers/char/rng-core.ko\n",
        );
        let modules = tree.resolve(&["net", "my_rng", "bus", "rng_core"], &crate::Quiet).unwrap();
        let names: Vec<&str> = modules.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["ring", "bus", "net", "my_rng"]);
    }

    #[test]
    fn what_is_missing_or_circular_is_named() {
        let (_dir, tree) = tree(&[("a", "b"), ("b", "a"), ("c", "gone")], "");
        for (wanted, text) in [("a", "needs itself"), ("c", "gone"), ("d", "module d")] {
            let error = tree.resolve(&[wanted], &crate::Quiet).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn names_are_read_from_paths() {
        assert_eq!(name_of("kernel/a/rng-core.ko.xz").unwrap(), "rng_core");
        assert_eq!(name_of("kernel/a/virtio.ko").unwrap(), "virtio");
        assert_eq!(name_of("kernel/a/virtio.kobject"), None);
    }
}
