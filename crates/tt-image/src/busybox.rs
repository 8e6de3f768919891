//! The ground of the recipe `micro`: a static BusyBox with all of its applets. Debian packages bring their files alone: no
//! script of theirs runs, and what they need beside them is for the recipe to name.

use crate::boot::{Boot, PROGRAM_BYTES_MAX};
use crate::files::{self, Temporary};
use crate::recipe::Copies;
use crate::rootfs::{self, Nodes};
use crate::tool::Tool;
use crate::{
    CONTAINER, Catalogue, DISK, ImageError, Packages, Progress, deb, digest, elf, modules, saved,
};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tt_guest::entry::Entry;

/// Where Debian has BusyBox; the plain `busybox` package, which is not static, has it there too.
const BUSYBOX: &str = "/bin/busybox";
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// Which forms a build has: others are another build.
const FORMS: &str = "disk, container";
/// Deepest folder of a package.
const DEPTH_MAX: usize = 64;
/// What no guest of this size reads.
const LEFT_OUT: [&str; 2] = ["usr/share/doc", "usr/share/man"];

/// What is there before a recipe's own files.
pub(crate) struct Ground {
    busybox: Program,
    /// Files of packages.
    packages: Vec<PathBuf>,
}

/// A static program, where it can be run.
struct Program {
    path: PathBuf,
    content: Vec<u8>,
    /// Holds the file, if it came out of a package.
    _unpacked: Option<Temporary>,
}

impl Catalogue {
    /// Finds BusyBox and the packages of these names, or fetches them. The caller has the lock of the cache.
    pub(crate) fn busybox(
        &self,
        names: &[String],
        packages: Packages,
        progress: &dyn Progress,
    ) -> Result<Ground, ImageError> {
        let busybox = match Program::read(Path::new(BUSYBOX)) {
            Some(busybox) => busybox,
            None => {
                self.unpack_busybox(&self.fetched(deb::BUSYBOX, packages, progress)?, progress)?
            }
        };
        let fetched = |name: &String| self.fetched(deb::Package::named(name), packages, progress);
        Ok(Ground { busybox, packages: names.iter().map(fetched).collect::<Result<_, _>>()? })
    }

    fn unpack_busybox(&self, deb: &Path, progress: &dyn Progress) -> Result<Program, ImageError> {
        let temporary = Temporary::create(&self.cache)?;
        deb::unpack(deb, temporary.path(), progress)?;
        let mut places = ["bin/busybox", "usr/bin/busybox"].into_iter();
        let busybox = places.find_map(|place| Program::read(&temporary.path().join(place)));
        let busybox = busybox.ok_or_else(|| ImageError::Format {
            what: format!("package {}", deb.display()),
            problem: "it has no static busybox".into(),
        })?;
        Ok(Program { _unpacked: Some(temporary), ..busybox })
    }
}

impl Ground {
    /// Stands for it.
    pub(crate) fn key(&self) -> Vec<String> {
        let names = self.packages.iter().filter_map(|deb| deb.file_name()?.to_str());
        let mut lines = vec![
            FORMS.to_owned(),
            modules::WANTED.join(" "),
            digest::of_bytes(&self.busybox.content),
        ];
        lines.extend(names.map(str::to_owned));
        lines
    }

    /// Makes disk and container in `dir`, with `own` on top. `entry`: what the container runs beside the agent.
    pub(crate) fn make_forms(
        &self,
        boot: &Boot,
        own: &Nodes,
        entry: Option<&Entry>,
        size_mb: Option<u32>,
        dir: &Path,
        progress: &dyn Progress,
    ) -> Result<(), ImageError> {
        let work = dir.join("work");
        files::make_dir(&work)?;
        let applets = Tool::new(&self.busybox.path, "busybox-static", LIST_TIMEOUT)
            .arg("--list-full")
            .run_for(progress)?;
        let applets = String::from_utf8_lossy(&applets);
        let packed = self.unpacked(&work, progress)?;
        let nodes = rootfs::nodes(&applets, &self.busybox.content, &boot.agent, packed, own)?;
        let container = dir.join(CONTAINER);
        saved::write(&nodes, entry, &container)?;
        files::settle(&container)?;
        progress.step("making the root file system");
        rootfs::make(&work, &nodes, size_mb, progress)?;
        let disk = dir.join(DISK);
        std::fs::rename(work.join(DISK), &disk).map_err(files::not_written(&disk))?;
        files::settle(&disk)?;
        files::remove(&work)
    }

    fn unpacked(&self, work: &Path, progress: &dyn Progress) -> Result<Nodes, ImageError> {
        let mut copies = Copies::new("its packages", progress);
        for deb in &self.packages {
            let name = deb.file_stem().unwrap_or_default().to_string_lossy();
            progress.step(&format!("unpacking {name}"));
            let package = work.join("package");
            deb::unpack(deb, &package, progress)?;
            for path in LEFT_OUT {
                files::remove(&package.join(path))?;
            }
            copies.copy(&package, "", DEPTH_MAX)?;
            files::remove(&package)?;
        }
        let mut nodes = copies.nodes;
        nodes.remove("");
        Ok(nodes)
    }
}

impl Program {
    fn read(path: &Path) -> Option<Self> {
        let content = files::read(path, PROGRAM_BYTES_MAX).ok()?;
        elf::is_static_program(&content).then(|| Self {
            path: path.into(),
            content,
            _unpacked: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busybox_comes_out_of_its_package_where_it_is_not_installed() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::new(dir.path().join("data"), dir.path(), "/none");
        let downloads = deb::Downloads::open(dir.path()).unwrap();
        let deb = downloads.newest(deb::BUSYBOX, &crate::Quiet).unwrap();
        assert_eq!(downloads.kept(deb::BUSYBOX).unwrap().as_ref(), Some(&deb));
        let busybox = catalogue.unpack_busybox(&deb, &crate::Quiet).unwrap();
        let list = Tool::new(&busybox.path, "busybox-static", LIST_TIMEOUT).arg("--list-full");
        let list = String::from_utf8(list.run().unwrap()).unwrap();
        for applet in ["bin/sh", "usr/bin/wget", "usr/bin/nc", "sbin/udhcpc"] {
            assert!(list.lines().any(|line| line == applet), "{applet}");
        }
    }
}
