//! The built-in template `micro`: Debian's kernel for virtual machines, BusyBox, and the agent as init.
//!
//! A build is keyed by what goes into it, so it happens once for each combination; a cached one is installed in
//! milliseconds. It never installs a package on the host, and needs the network only for packages that are not there.

use crate::boot::{Boot, First, PROGRAM_BYTES_MAX, RECIPE, prune};
use crate::draft::describe;
use crate::files::{self, Lock, Temporary};
use crate::tool::Tool;
use crate::{
    Catalogue, DISK, Facts, ImageError, Packages, Progress, deb, digest, elf, modules, record,
    rootfs,
};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tt_model::VmTemplate;
use tt_model::template::FEATURE_AGENT;

/// Name of the template.
pub const MICRO: &str = "micro";

/// Where Debian has BusyBox; the plain `busybox` package, which is not static, has it there too.
const BUSYBOX: &str = "/bin/busybox";
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

struct Parts {
    boot: Boot,
    busybox: Program,
}

/// A static program, where it can be run.
struct Program {
    path: PathBuf,
    content: Vec<u8>,
    /// Holds the file, if it came out of a package.
    _unpacked: Option<Temporary>,
}

impl Catalogue {
    /// Builds the template `micro`, or takes it from the cache, and gives it its name here. `progress` is told of each
    /// step as it begins. A second builder waits for the first.
    ///
    /// # Errors
    /// [`ImageError::Missing`] and [`ImageError::Format`] say what to install or to put right; [`ImageError::Tool`],
    /// [`ImageError::Run`], [`ImageError::Read`], [`ImageError::Write`] and [`ImageError::Busy`] may pass. The catalogue
    /// is then as it was.
    pub fn build_micro(
        &self,
        packages: Packages,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        let _lock = Lock::take(&self.cache)?;
        let parts = self.parts(packages, progress)?;
        let built = self.cache.join(MICRO).join(parts.key());
        let template = match record::read(&built) {
            Ok(template) => {
                files::touch(&built);
                template
            }
            Err(_) => {
                files::remove(&built)?;
                let template = self.build(&parts, &built, progress)?;
                prune(&self.cache.join(MICRO))?;
                template
            }
        };
        progress.step("installing");
        self.install(&built, &template)?;
        Ok(template)
    }

    fn parts(&self, packages: Packages, progress: &dyn Progress) -> Result<Parts, ImageError> {
        let boot = self.boot(packages, progress)?;
        let busybox = match Program::read(Path::new(BUSYBOX)) {
            Some(busybox) => busybox,
            None => self.unpack_busybox(&self.fetched(deb::BUSYBOX, packages, progress)?)?,
        };
        Ok(Parts { boot, busybox })
    }

    fn unpack_busybox(&self, deb: &Path) -> Result<Program, ImageError> {
        let temporary = Temporary::create(&self.cache)?;
        deb::unpack(deb, temporary.path())?;
        let mut places = ["bin/busybox", "usr/bin/busybox"].into_iter();
        let busybox = places.find_map(|place| Program::read(&temporary.path().join(place)));
        let busybox = busybox.ok_or_else(|| ImageError::Format {
            what: format!("package {}", deb.display()),
            problem: "it has no static busybox".into(),
        })?;
        Ok(Program { _unpacked: Some(temporary), ..busybox })
    }

    fn build(
        &self,
        parts: &Parts,
        built: &Path,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        let temporary = Temporary::create(&self.cache)?;
        let dir = temporary.path();
        self.put_boot(&parts.boot, First::Agent(None), dir, progress)?;
        progress.step("making the root file system");
        self.make_disk(parts, dir)?;
        let template = describe(dir, &facts(parts), progress)?;
        record::write(dir, &template)?;
        files::make_dir(&self.cache.join(MICRO))?;
        temporary.publish(built)?;
        Ok(template)
    }

    fn make_disk(&self, parts: &Parts, dir: &Path) -> Result<(), ImageError> {
        let work = dir.join("work");
        files::make_dir(&work)?;
        let applets = Tool::new(&parts.busybox.path, "busybox-static", LIST_TIMEOUT)
            .arg("--list-full")
            .run()?;
        let applets = String::from_utf8_lossy(&applets);
        rootfs::make(&work, &rootfs::nodes(&applets, &parts.busybox.content, &parts.boot.agent))?;
        let disk = dir.join(DISK);
        std::fs::rename(work.join(DISK), &disk).map_err(files::not_written(&disk))?;
        files::settle(&disk)?;
        files::remove(&work)
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

impl Parts {
    /// Stands for everything that goes into a build.
    fn key(&self) -> String {
        let lines = [
            RECIPE.to_string(),
            self.boot.package().to_owned(),
            modules::WANTED.join(" "),
            digest::of_bytes(&self.busybox.content),
            digest::of_bytes(&self.boot.agent),
        ];
        digest::of_bytes(lines.join("\n").as_bytes())
    }
}

fn facts(parts: &Parts) -> Facts {
    Facts {
        name: MICRO.into(),
        memo: Some(format!("BusyBox on {}", parts.boot.package())),
        arch: std::env::consts::ARCH.into(),
        inside: vec![FEATURE_AGENT.into()],
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
        let busybox = catalogue.unpack_busybox(&deb).unwrap();
        let list = Tool::new(&busybox.path, "busybox-static", LIST_TIMEOUT).arg("--list-full");
        let list = String::from_utf8(list.run().unwrap()).unwrap();
        for applet in ["bin/sh", "usr/bin/wget", "usr/bin/nc", "sbin/udhcpc"] {
            assert!(list.lines().any(|line| line == applet), "{applet}");
        }
    }

    #[test]
    fn every_part_counts_in_the_key() {
        let parts = |kernel: &str, busybox: &[u8], agent: &[u8]| Parts {
            boot: Boot { package: kernel.into(), agent: agent.into() },
            busybox: Program { path: BUSYBOX.into(), content: busybox.into(), _unpacked: None },
        };
        let key = parts("/d/linux_1_amd64.deb", b"b", b"a").key();
        assert_eq!(key, parts("/elsewhere/linux_1_amd64.deb", b"b", b"a").key());
        assert_ne!(key, parts("/d/linux_2_amd64.deb", b"b", b"a").key());
        assert_ne!(key, parts("/d/linux_1_amd64.deb", b"c", b"a").key());
        assert_ne!(key, parts("/d/linux_1_amd64.deb", b"b", b"c").key());
    }
}
