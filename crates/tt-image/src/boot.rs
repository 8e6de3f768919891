//! What a template without a kernel of its own boots with: Debian's kernel for virtual machines, and an initial RAM file
//! system with TT's agent and the drivers that it loads. It never installs a package on the host.

use crate::deb::{self, Downloads, Package};
use crate::files::{self, Temporary};
use crate::{
    Catalogue, INITRAMFS, ImageError, KERNEL, Progress, cpio, digest, elf, kernel, modules,
};
use std::path::{Path, PathBuf};
use tt_guest::entry::{ENTRY_FILE, Entry, INIT_MARK};

/// Counts the changes of what this file makes out of the same boot.
pub(crate) const RECIPE: u32 = 2;
/// Builds, and unpacked kernels, that stay in the cache; older ones go.
const KEPT_MAX: usize = 3;
/// Begins the names of modules that only machines with a vsock load; after the digits that others begin with.
const VSOCK_MARK: &str = "vsock-";
/// Largest agent or other program; they have about 2 MB.
pub(crate) const PROGRAM_BYTES_MAX: u64 = 64 << 20;
/// Largest packed kernel; Debian's has 14 MB.
const KERNEL_BYTES_MAX: u64 = 256 << 20;

/// Which version of Debian's packages a build takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packages {
    /// What the cache has; the newest if it has none. Needs no network after the first build.
    #[default]
    Kept,
    /// The newest that apt knows.
    Newest,
}

/// What is booted with.
pub(crate) struct Boot {
    /// The kernel's package.
    pub(crate) package: PathBuf,
    /// The agent's program.
    pub(crate) agent: Vec<u8>,
}

/// What runs as the guest's first process once its disk is the root.
#[derive(Clone, Copy)]
pub(crate) enum First<'a> {
    /// The agent, and beside it perhaps the process of a container image.
    Agent(Option<&'a Entry>),
    /// What the root file system has for that; the agent is a service there.
    OfRoot,
}

impl Boot {
    /// Puts all modules of the kernel into `dir`, below its version. `work` is a new directory on the same file system.
    pub(crate) fn put_modules(
        &self,
        work: &Path,
        dir: &Path,
        progress: &dyn Progress,
    ) -> Result<(), ImageError> {
        deb::unpack(&self.package, work, progress)?;
        let from = only(&lib(work), "")?;
        files::make_dir(dir)?;
        let to = dir.join(from.file_name().unwrap_or_default());
        std::fs::rename(&from, &to).map_err(files::not_written(&to))?;
        files::remove(work)
    }

    /// Name and version of the kernel's package.
    pub(crate) fn package(&self) -> &str {
        let stem = self.package.file_stem();
        stem.and_then(|stem| stem.to_str()).unwrap_or_default()
    }
}

impl Catalogue {
    /// Finds or fetches it. The caller has the lock of the cache.
    pub(crate) fn boot(
        &self,
        packages: Packages,
        progress: &dyn Progress,
    ) -> Result<Boot, ImageError> {
        if !cfg!(target_arch = "x86_64") {
            return Err(ImageError::Format {
                what: "kernel for guests".into(),
                problem: "there is one for x86_64 hosts only".into(),
            });
        }
        let agent = files::read(&self.agent, PROGRAM_BYTES_MAX)?;
        if !elf::is_static_program(&agent) {
            return Err(ImageError::Format {
                what: format!("agent {}", self.agent.display()),
                problem: "it is no static program; build it with `-C target-feature=+crt-static`"
                    .into(),
            });
        }
        Ok(Boot { package: self.fetched(deb::KERNEL, packages, progress)?, agent })
    }

    /// The file of a package.
    pub(crate) fn fetched(
        &self,
        package: Package<'_>,
        packages: Packages,
        progress: &dyn Progress,
    ) -> Result<PathBuf, ImageError> {
        let downloads = Downloads::open(&self.cache)?;
        match (packages, downloads.kept(package)?) {
            (Packages::Kept, Some(deb)) => Ok(deb),
            _ => downloads.newest(package, progress),
        }
    }

    /// Puts [`KERNEL`] and [`INITRAMFS`] into `dir`. The caller has the lock of the cache.
    pub(crate) fn put_boot(
        &self,
        boot: &Boot,
        first: First<'_>,
        dir: &Path,
        progress: &dyn Progress,
    ) -> Result<(), ImageError> {
        let unpacked = self.unpack_kernel(boot, progress)?;
        files::share(&unpacked.join(KERNEL), &dir.join(KERNEL), progress)?;
        progress.step("making the initial RAM file system");
        files::write(&dir.join(INITRAMFS), &initramfs(&unpacked, &boot.agent, first)?)
    }

    /// Kernel and modules of a package, as files that are kept: the agent changes more often than they do.
    fn unpack_kernel(&self, boot: &Boot, progress: &dyn Progress) -> Result<PathBuf, ImageError> {
        let kernels = self.cache.join("kernels");
        let wanted = modules::WANTED.iter().chain(&modules::VSOCK).copied();
        let wanted: Vec<&str> = wanted.collect();
        let what = [boot.package(), &RECIPE.to_string(), &wanted.join(" ")].join("\n");
        let unpacked = kernels.join(digest::of_bytes(what.as_bytes()));
        if unpacked.join(KERNEL).is_file() {
            files::touch(&unpacked);
            return Ok(unpacked);
        }
        progress.step(&format!("unpacking {}", boot.package()));
        let temporary = Temporary::create(&self.cache)?;
        let package = temporary.path().join("package");
        deb::unpack(&boot.package, &package, progress)?;
        let image = only(&package.join("boot"), "vmlinuz-")?;
        let image = kernel::unpacked(files::read(&image, KERNEL_BYTES_MAX)?, progress)?;
        files::write(&temporary.path().join(KERNEL), &image)?;
        let tree = modules::Tree::open(&only(&lib(&package), "")?)?;
        let always = tree.resolve(&modules::WANTED, progress)?;
        let vsock = tree.resolve(&modules::VSOCK, progress)?;
        let vsock = vsock.iter().filter(|module| !always.contains(module));
        let named = always.iter().map(|m| ("", m)).chain(vsock.map(|m| (VSOCK_MARK, m)));
        for (number, (mark, module)) in named.enumerate() {
            let file = format!("{mark}{number:02}-{}.ko", module.name);
            files::write(&temporary.path().join(file), &module.content)?;
        }
        files::remove(&package)?;
        files::make_dir(&kernels)?;
        temporary.publish(&unpacked)?;
        prune(&kernels)?;
        Ok(unpacked)
    }
}

/// The agent's first stage, and the modules that it loads, in the order of their file names.
fn initramfs(unpacked: &Path, agent: &[u8], first: First<'_>) -> Result<Vec<u8>, ImageError> {
    let mut archive = cpio::Archive::default();
    for dir in ["dev", "proc", "sys", "root", "tt", "tt/ko"] {
        archive.dir(dir);
    }
    archive.device("dev/console", 5, 1);
    archive.file("init", 0o755, agent);
    // Tells the agent which stage it is.
    archive.file("tt/initramfs", 0o444, b"");
    let (mut always, mut vsock) = (String::new(), String::new());
    for name in files::names(unpacked)?.iter().filter(|name| name.ends_with(".ko")) {
        let module = files::read(&unpacked.join(name), PROGRAM_BYTES_MAX)?;
        archive.file(&format!("tt/ko/{name}"), 0o444, &module);
        let list = if name.starts_with(VSOCK_MARK) { &mut vsock } else { &mut always };
        list.push_str(&format!("ko/{name}\n"));
    }
    archive.file("tt/modules", 0o444, always.as_bytes());
    archive.file("tt/modules-vsock", 0o444, vsock.as_bytes());
    if let First::OfRoot = first {
        archive.file(INIT_MARK.trim_start_matches('/'), 0o444, b"");
    }
    if let First::Agent(Some(entry)) = first {
        let path = Path::new(ENTRY_FILE);
        let json = serde_json::to_vec(entry).map_err(|e| files::not_written(path)(e.into()))?;
        archive.file(ENTRY_FILE.trim_start_matches('/'), 0o444, &json);
    }
    Ok(archive.finish())
}

/// Where an unpacked package has the modules; newer ones have everything below `usr`.
fn lib(package: &Path) -> PathBuf {
    let old = package.join("lib/modules");
    if old.is_dir() { old } else { package.join("usr/lib/modules") }
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

/// Removes all but the directories that were used last.
pub(crate) fn prune(dir: &Path) -> Result<(), ImageError> {
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
