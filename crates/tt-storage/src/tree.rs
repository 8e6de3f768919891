//! Removal of whatever lies at a name: files, directories, subvolumes of btrfs. It never follows a symbolic link, and never
//! enters another file system: what is mounted there belongs to another back end.

use crate::btrfs::subvolume;
use rustix::io::Errno;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Removes what lies at `path`, with all that is below it. Nothing there is fine. Answers whether it is gone: a directory
/// in which another file system is mounted stays.
pub(crate) fn remove(path: &Path) -> io::Result<bool> {
    let Some(meta) = look(path)? else { return Ok(true) };
    if !meta.is_dir() {
        return gone(fs::remove_file(path));
    }
    let above = path.parent().ok_or(ErrorKind::InvalidInput)?;
    if subvolume::is_subvolume(path, &meta)? {
        return remove_subvolume(above, path);
    }
    if fs::symlink_metadata(above)?.dev() != meta.dev() {
        return Ok(false);
    }
    if empty(path)? { gone(fs::remove_dir(path)) } else { Ok(false) }
}

fn remove_subvolume(above: &Path, path: &Path) -> io::Result<bool> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let parent = File::open(above)?;
    match subvolume::destroy(&parent, name) {
        // Other subvolumes lie in it.
        Err(e) if e.raw_os_error() == Some(Errno::NOTEMPTY.raw_os_error()) => {
            subvolume::set_read_only(&File::open(path)?, false)?;
            if !empty(path)? {
                return Ok(false);
            }
            gone(subvolume::destroy(&parent, name))
        }
        destroyed => gone(destroyed),
    }
}

/// Removes what lies in a directory. Answers whether nothing is left.
fn empty(dir: &Path) -> io::Result<bool> {
    let mut is_empty = true;
    for entry in fs::read_dir(dir)? {
        is_empty &= remove(&entry?.path())?;
    }
    Ok(is_empty)
}

/// What lies at `path`, no link followed.
pub(crate) fn look(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&e.kind()) => Ok(None),
        Err(e) => Err(e),
    }
}

fn gone(removed: io::Result<()>) -> io::Result<bool> {
    match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn whatever_it_is_goes_and_what_links_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("a/b/c")).unwrap();
        fs::write(path("a/b/file"), "x").unwrap();
        fs::write(path("outside"), "x").unwrap();
        symlink(path("outside"), path("a/link")).unwrap();
        symlink(dir.path(), path("a/b/c/up")).unwrap();
        for name in ["a", "a", "a/b", "outside/below"] {
            assert!(remove(&path(name)).unwrap(), "{name}");
        }
        assert!(!path("a").exists());
        assert!(path("outside").exists());
    }
}
