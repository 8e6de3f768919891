//! The kernel of the guests that tests start by hand: fetched as Debian's package and unpacked, never installed.

use crate::command::Argv;
use crate::failure::{Failure, Outcome};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The package whose only dependency is the current kernel for virtual machines.
const META: &str = "linux-image-cloud-amd64";
/// Long enough for 30 MB over a slow line.
const FETCH_LIMIT: Duration = Duration::from_secs(600);

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Its image.
    pub image: PathBuf,
    /// The directory with its folder `kernel` of modules.
    pub modules: PathBuf,
}

/// Fetches the current kernel into `cache`, unless it is there.
///
/// # Errors
/// If apt does not have it.
pub fn fetch(cache: &Path) -> Outcome<Kernel> {
    let listing = Argv::new("apt-cache").args(["depends", META]).text()?;
    let name = dependency(&listing)
        .ok_or_else(|| Failure::new(format!("apt knows no kernel behind {META}")))?;
    let dir = cache.join("kernels-by-hand").join(name);
    let whole = dir.join("whole");
    if !whole.exists() {
        // What a killed run left is fetched anew.
        let scratch = dir.with_extension("part");
        for old in [&dir, &scratch] {
            if old.exists() {
                fs::remove_dir_all(old).map_err(Failure::to("remove", old.display()))?;
            }
        }
        fs::create_dir_all(&scratch).map_err(Failure::to("make", scratch.display()))?;
        let get =
            Argv::new("apt-get").args(["-q", "-o", "APT::Sandbox::User=root", "download", name]);
        get.dir(&scratch).limit(FETCH_LIMIT).run()?;
        let package = only_child(&scratch)?;
        Argv::new("dpkg-deb").arg("-x").arg(&package).arg(&dir).run()?;
        fs::remove_dir_all(&scratch).map_err(Failure::to("remove", scratch.display()))?;
        fs::write(&whole, "").map_err(Failure::to("write", whole.display()))?;
    }
    let version = name.trim_start_matches("linux-image-");
    Ok(Kernel {
        image: dir.join("boot").join(format!("vmlinuz-{version}")),
        modules: only_child(&dir.join("lib/modules"))?,
    })
}

fn dependency(listing: &str) -> Option<&str> {
    let mut names = listing.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.find(|name| name.starts_with("linux-image-"))
}

fn only_child(dir: &Path) -> Outcome<PathBuf> {
    let mut entries = fs::read_dir(dir).map_err(Failure::to("list", dir.display()))?;
    match (entries.next(), entries.next()) {
        (Some(Ok(entry)), None) => Ok(entry.path()),
        _ => Err(Failure::new(format!("{} should hold one thing", dir.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_behind_the_name_is_found() {
        let listing = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-1-cloud-amd64\n";
        assert_eq!(dependency(listing), Some("linux-image-6.1.0-1-cloud-amd64"));
        assert_eq!(dependency("linux-image-cloud-amd64\n"), None);
    }
}
