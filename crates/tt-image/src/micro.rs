//! The built-in template `micro`: Debian's kernel for virtual machines, BusyBox, and the agent as init.
//!
//! A build is keyed by what goes into it, so it happens once for each combination; a cached one is installed in
//! milliseconds. It never installs a package on the host, and needs the network only for packages that are not there.

use crate::deb::{self, Downloads};
use crate::files::{self, Lock, Temporary};
use crate::tool::Tool;
use crate::{
    Catalogue, DISK, INITRAMFS, ImageError, KERNEL, cpio, digest, elf, kernel, modules, record,
    rootfs,
};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tt_model::VmTemplate;
use tt_model::template::{FEATURE_AGENT, FEATURE_DISK, FEATURE_KERNEL};

/// Name of the template.
pub const MICRO: &str = "micro";

/// Counts the changes of what this file and its siblings make out of the same parts.
const RECIPE: u32 = 1;
/// Builds, and unpacked kernels, that stay in the cache; older ones go.
const KEPT_MAX: usize = 3;
/// Largest agent or BusyBox; they have about 2 MB.
const PROGRAM_BYTES_MAX: u64 = 64 << 20;
/// Largest packed kernel; Debian's has 14 MB.
const KERNEL_BYTES_MAX: u64 = 256 << 20;
/// Where Debian has BusyBox; the plain `busybox` package, which is not static, has it there too.
const BUSYBOX: &str = "/bin/busybox";
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// Which version of Debian's packages a build takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packages {
    /// What the cache has; the newest if it has none. Needs no network after the first build.
    #[default]
    Kept,
    /// The newest that apt knows.
    Newest,
}

struct Parts {
    kernel: PathBuf,
    busybox: Program,
    agent: Vec<u8>,
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
        progress: &dyn Fn(&str),
    ) -> Result<VmTemplate, ImageError> {
        if !cfg!(target_arch = "x86_64") {
            return Err(ImageError::Format {
                what: format!("template {MICRO:?}"),
                problem: "it is made for x86_64 hosts only".into(),
            });
        }
        let _lock = Lock::take(&self.cache)?;
        let parts = self.parts(packages, progress)?;
        let built = self.cache.join(MICRO).join(parts.key());
        let template = match record::read(&built) {
            Ok(template) => template,
            Err(_) => {
                files::remove(&built)?;
                let template = self.build(&parts, &built, progress)?;
                prune(&self.cache.join(MICRO))?;
                template
            }
        };
        progress("installing");
        self.install(&built, &template)?;
        Ok(template)
    }

    fn parts(&self, packages: Packages, progress: &dyn Fn(&str)) -> Result<Parts, ImageError> {
        let agent = files::read(&self.agent, PROGRAM_BYTES_MAX)?;
        if !elf::is_static_program(&agent) {
            return Err(ImageError::Format {
                what: format!("agent {}", self.agent.display()),
                problem: "it is no static program; build it with `-C target-feature=+crt-static`"
                    .into(),
            });
        }
        let downloads = Downloads::open(&self.cache)?;
        let fetch = |package| match packages {
            Packages::Newest => downloads.newest(package, progress),
            Packages::Kept => match downloads.kept(package)? {
                Some(deb) => Ok(deb),
                None => downloads.newest(package, progress),
            },
        };
        Ok(Parts {
            kernel: fetch(deb::KERNEL)?,
            busybox: match Program::read(Path::new(BUSYBOX)) {
                Some(busybox) => busybox,
                None => self.unpack_busybox(&fetch(deb::BUSYBOX)?)?,
            },
            agent,
        })
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
        progress: &dyn Fn(&str),
    ) -> Result<VmTemplate, ImageError> {
        let unpacked = self.unpack_kernel(parts, progress)?;
        let temporary = Temporary::create(&self.cache)?;
        let dir = temporary.path();
        files::share(&unpacked.join(KERNEL), &dir.join(KERNEL))?;
        progress("making the initial RAM file system");
        files::write(&dir.join(INITRAMFS), &initramfs(&unpacked, &parts.agent)?)?;
        progress("making the root file system");
        self.make_disk(parts, dir)?;
        let template = describe(dir, &parts.kernel)?;
        record::write(dir, &template)?;
        files::make_dir(&self.cache.join(MICRO))?;
        temporary.publish(built)?;
        Ok(template)
    }

    /// Kernel and modules of a package, as files that are kept: the agent changes more often than they do.
    fn unpack_kernel(&self, parts: &Parts, progress: &dyn Fn(&str)) -> Result<PathBuf, ImageError> {
        let kernels = self.cache.join("kernels");
        let what = [parts.package(), &RECIPE.to_string(), &modules::WANTED.join(" ")].join("\n");
        let unpacked = kernels.join(digest::of_bytes(what.as_bytes()));
        if unpacked.join(KERNEL).is_file() {
            return Ok(unpacked);
        }
        progress(&format!("unpacking {}", parts.package()));
        let temporary = Temporary::create(&self.cache)?;
        let package = temporary.path().join("package");
        deb::unpack(&parts.kernel, &package)?;
        let image = only(&package.join("boot"), "vmlinuz-")?;
        let image = kernel::unpacked(files::read(&image, KERNEL_BYTES_MAX)?)?;
        files::write(&temporary.path().join(KERNEL), &image)?;
        // Newer packages have everything below `usr`.
        let lib = [package.join("lib/modules"), package.join("usr/lib/modules")];
        let lib = lib.iter().find(|dir| dir.is_dir()).unwrap_or(&lib[0]);
        let tree = modules::Tree::open(&only(lib, "")?)?;
        for (number, module) in tree.resolve(&modules::WANTED)?.iter().enumerate() {
            let file = format!("{number:02}-{}.ko", module.name);
            files::write(&temporary.path().join(file), &module.content)?;
        }
        files::remove(&package)?;
        files::make_dir(&kernels)?;
        temporary.publish(&unpacked)?;
        prune(&kernels)?;
        Ok(unpacked)
    }

    fn make_disk(&self, parts: &Parts, dir: &Path) -> Result<(), ImageError> {
        let work = dir.join("work");
        files::make_dir(&work)?;
        let applets = Tool::new(&parts.busybox.path, "busybox-static", LIST_TIMEOUT)
            .arg("--list-full")
            .run()?;
        let applets = String::from_utf8_lossy(&applets);
        rootfs::make(&work, &rootfs::nodes(&applets, &parts.busybox.content, &parts.agent))?;
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
    /// Name and version of the kernel's package.
    fn package(&self) -> &str {
        let stem = self.kernel.file_stem();
        stem.and_then(|stem| stem.to_str()).unwrap_or_default()
    }

    /// Stands for everything that goes into a build.
    fn key(&self) -> String {
        let lines = [
            RECIPE.to_string(),
            self.package().to_owned(),
            modules::WANTED.join(" "),
            digest::of_bytes(&self.busybox.content),
            digest::of_bytes(&self.agent),
        ];
        digest::of_bytes(lines.join("\n").as_bytes())
    }
}

/// The template that the files in `dir` make.
fn describe(dir: &Path, kernel: &Path) -> Result<VmTemplate, ImageError> {
    let mut content = format!("{MICRO}\n");
    for name in [KERNEL, INITRAMFS, DISK] {
        let path = dir.join(name);
        let digest = digest::of_sparse_file(&path).map_err(files::not_read(&path))?;
        content.push_str(&format!("{name} {digest}\n"));
    }
    let digest = digest::of_bytes(content.as_bytes());
    let package = kernel.file_stem().unwrap_or_default().to_string_lossy();
    Ok(VmTemplate {
        name: MICRO.into(),
        path: record::path_of(&digest),
        memo: Some(format!("BusyBox on {package}")),
        compatible_engines: vec!["qemu".into()],
        features: vec![FEATURE_DISK.into(), FEATURE_KERNEL.into(), FEATURE_AGENT.into()],
        arch: std::env::consts::ARCH.into(),
        digest,
        disk_size: rootfs::SIZE_MB,
    })
}

/// The agent's first stage, and the modules that it loads, in the order of their file names.
fn initramfs(unpacked: &Path, agent: &[u8]) -> Result<Vec<u8>, ImageError> {
    let mut archive = cpio::Archive::default();
    for dir in ["dev", "proc", "sys", "root", "tt", "tt/ko"] {
        archive.dir(dir);
    }
    archive.device("dev/console", 5, 1);
    archive.file("init", 0o755, agent);
    // Tells the agent which stage it is.
    archive.file("tt/initramfs", 0o444, b"");
    let mut list = String::new();
    for name in files::names(unpacked)?.iter().filter(|name| name.ends_with(".ko")) {
        let module = files::read(&unpacked.join(name), PROGRAM_BYTES_MAX)?;
        archive.file(&format!("tt/ko/{name}"), 0o444, &module);
        list.push_str(&format!("ko/{name}\n"));
    }
    archive.file("tt/modules", 0o444, list.as_bytes());
    Ok(archive.finish())
}

/// The one entry of `dir` whose name begins like this.
fn only(dir: &Path, begin: &str) -> Result<PathBuf, ImageError> {
    let mut names = files::names(dir)?;
    names.retain(|name| name.starts_with(begin));
    match names.as_slice() {
        [name] => Ok(dir.join(name)),
        names => Err(ImageError::Format {
            what: "kernel package".into(),
            problem: format!("{} entries of {dir:?} begin with {begin:?}, not one", names.len()),
        }),
    }
}

/// Removes all but the youngest directories.
fn prune(dir: &Path) -> Result<(), ImageError> {
    let mut ages = Vec::new();
    for name in files::names(dir)? {
        let path = dir.join(name);
        let meta = path.symlink_metadata().map_err(files::not_read(&path))?;
        ages.push((meta.modified().ok(), path));
    }
    ages.sort();
    let old = ages.len().saturating_sub(KEPT_MAX);
    ages[..old].iter().try_for_each(|(_, path)| files::remove(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busybox_comes_out_of_its_package_where_it_is_not_installed() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::new(dir.path().join("data"), dir.path(), "/none");
        let downloads = Downloads::open(dir.path()).unwrap();
        let deb = downloads.newest(deb::BUSYBOX, &|_| {}).unwrap();
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
            kernel: kernel.into(),
            busybox: Program { path: BUSYBOX.into(), content: busybox.into(), _unpacked: None },
            agent: agent.into(),
        };
        let key = parts("/d/linux_1_amd64.deb", b"b", b"a").key();
        assert_eq!(key, parts("/elsewhere/linux_1_amd64.deb", b"b", b"a").key());
        assert_ne!(key, parts("/d/linux_2_amd64.deb", b"b", b"a").key());
        assert_ne!(key, parts("/d/linux_1_amd64.deb", b"c", b"a").key());
        assert_ne!(key, parts("/d/linux_1_amd64.deb", b"b", b"c").key());
    }
}
