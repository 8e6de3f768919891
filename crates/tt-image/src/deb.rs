//! Debian packages as sources of files: found and fetched by apt, never installed. What was fetched is kept, so that the
//! next build needs no network.

use crate::files::{self, Temporary};
use crate::tool::Tool;
use crate::{ImageError, Progress};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The package whose only dependency is the current kernel package for virtual machines.
const KERNEL_META: &str = "linux-image-cloud-amd64";
/// Apt's own index can take a while to be rebuilt.
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);
/// Long enough for 30 MB over a slow line; apt itself gives up on a silent one.
const FETCH_TIMEOUT: Duration = Duration::from_secs(540);
const UNPACK_TIMEOUT: Duration = Duration::from_secs(120);

/// Where files of packages lie, in the cache.
pub(crate) const DOWNLOADS: &str = "downloads";

/// A package, by how its file name begins and ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package<'a> {
    begin: &'a str,
    end: &'a str,
}

/// A kernel for virtual machines.
pub(crate) const KERNEL: Package<'static> = Package { begin: "linux-image-", end: "-cloud-amd64" };
/// A shell and tools without libraries.
pub(crate) const BUSYBOX: Package<'static> = Package { begin: "busybox-static", end: "" };

/// Where the files of fetched packages are kept. The caller has the lock of the cache.
#[derive(Debug)]
pub(crate) struct Downloads {
    cache: PathBuf,
    dir: PathBuf,
}

impl Downloads {
    /// Below `cache`.
    pub(crate) fn open(cache: &Path) -> Result<Self, ImageError> {
        let dir = cache.join(DOWNLOADS);
        files::make_dir(&dir)?;
        Ok(Self { cache: cache.into(), dir })
    }

    /// The kept file of a package.
    pub(crate) fn kept(&self, package: Package<'_>) -> Result<Option<PathBuf>, ImageError> {
        let mut names = files::names(&self.dir)?;
        names.retain(|name| package.matches(name));
        Ok(names.last().map(|name| self.dir.join(name)))
    }

    /// The file of the newest version of a package that apt knows; replaces the one that was kept.
    pub(crate) fn newest(
        &self,
        package: Package<'_>,
        progress: &dyn Progress,
    ) -> Result<PathBuf, ImageError> {
        let name = match package.end {
            "" => package.begin.to_owned(),
            _ => current_kernel(progress)?,
        };
        progress.step(&format!("fetching package {name}"));
        let temporary = Temporary::create(&self.cache)?;
        fetch(&name, temporary.path()).run_for(progress)?;
        let fetched = files::names(temporary.path())?;
        let file = fetched.iter().find(|file| package.matches(file));
        let file = file.ok_or_else(|| unusable(&name, "apt fetched no file of it"))?;
        let (from, to) = (temporary.path().join(file), self.dir.join(file));
        files::settle(&from)?;
        std::fs::rename(&from, &to).map_err(files::not_written(&to))?;
        files::sync_dir(&self.dir).map_err(files::not_written(&self.dir))?;
        for old in files::names(&self.dir)? {
            if package.matches(&old) && old != *file {
                files::remove(&self.dir.join(old))?;
            }
        }
        Ok(to)
    }
}

impl<'a> Package<'a> {
    /// The one of this name.
    pub(crate) fn named(name: &'a str) -> Self {
        Self { begin: name, end: "" }
    }

    /// Whether `file` is `NAME_VERSION_ARCHITECTURE.deb` of it.
    fn matches(self, file: &str) -> bool {
        let name = file.strip_suffix(".deb").and_then(|f| f.split_once('_'));
        name.is_some_and(|(name, _)| {
            let rest = name.strip_prefix(self.begin);
            rest.is_some_and(|rest| match self.end {
                "" => rest.is_empty(),
                // `linux-image-cloud-amd64` itself is empty.
                end => rest.len() > end.len() && rest.ends_with(end),
            })
        })
    }
}

/// Unpacks all files of a package into `to`.
pub(crate) fn unpack(deb: &Path, to: &Path, progress: &dyn Progress) -> Result<(), ImageError> {
    let tool = Tool::new("dpkg-deb", "dpkg", UNPACK_TIMEOUT);
    tool.arg("-x").arg(deb).arg(to).run_for(progress).map(drop)
}

/// Reads apt's index only, not the network.
fn current_kernel(progress: &dyn Progress) -> Result<String, ImageError> {
    let tool = Tool::new("apt-cache", "apt", QUERY_TIMEOUT);
    let listing = tool.args(["depends", KERNEL_META]).run_for(progress)?;
    let listing = String::from_utf8_lossy(&listing);
    let name = dependency(&listing);
    name.ok_or_else(|| unusable(KERNEL_META, "apt knows no kernel behind it; run `apt-get update`"))
}

fn dependency(listing: &str) -> Option<String> {
    let mut depends = listing.lines().filter_map(|l| l.trim().strip_prefix("Depends: "));
    depends
        .find(|name| name.starts_with(KERNEL.begin) && name.ends_with(KERNEL.end))
        .map(str::to_owned)
}

fn fetch(name: &str, dir: &Path) -> Tool {
    Tool::new("apt-get", "apt", FETCH_TIMEOUT)
        .dir(dir)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-q", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30"])
        // The usual `_apt` can not enter a private directory.
        .args(["-o", "APT::Sandbox::User=root", "download", name])
}

fn unusable(package: &str, problem: &str) -> ImageError {
    ImageError::Format { what: format!("package {package}"), problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_kernel_is_found_in_what_apt_says() {
        let listing = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(dependency(listing).unwrap(), "linux-image-6.1.0-56-cloud-amd64");
        assert_eq!(dependency("linux-image-cloud-amd64\n"), None);
    }

    #[test]
    fn packages_are_known_by_their_file_names() {
        for (package, file, right) in [
            (KERNEL, "linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb", true),
            (KERNEL, "linux-image-cloud-amd64_6.1.192-2_amd64.deb", false),
            (KERNEL, "linux-image-6.1.0-56-amd64_6.1.192-2_amd64.deb", false),
            (KERNEL, "linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb.part", false),
            (BUSYBOX, "busybox-static_1%3a1.35.0-4+deb12u1+b1_amd64.deb", true),
            (BUSYBOX, "busybox_1%3a1.35.0-4_amd64.deb", false),
        ] {
            assert_eq!(package.matches(file), right, "{file}");
        }
    }

    #[test]
    fn the_newest_kept_package_is_used_without_the_network() {
        let cache = tempfile::tempdir().unwrap();
        let downloads = Downloads::open(cache.path()).unwrap();
        assert_eq!(downloads.kept(KERNEL).unwrap(), None);
        let file = "linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb";
        std::fs::write(cache.path().join("downloads").join(file), b"").unwrap();
        let kept = downloads.kept(KERNEL).unwrap().unwrap();
        assert!(kept.ends_with(file));
    }

    #[test]
    fn apt_is_asked_without_a_shell_and_with_bounds() {
        assert_eq!(
            fetch("busybox-static", Path::new("/d")).command_line(),
            "apt-get -q -o Acquire::Retries=2 -o Acquire::http::Timeout=30 \
             -o APT::Sandbox::User=root download busybox-static"
        );
    }
}
