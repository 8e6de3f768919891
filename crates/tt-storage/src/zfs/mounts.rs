//! What is mounted where, as the kernel says. It mounts nothing.

use std::fs;
use std::io;
use std::path::Path;

/// What is mounted at a directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    /// The data set of ZFS; `None` if it is something else, or a part of one.
    pub(super) set: Option<String>,
}

/// The data set of ZFS that is mounted at a directory; `None` if nothing is, or something else.
pub(super) fn set_of(dir: &Path) -> io::Result<Option<String>> {
    Ok(what(&dir.canonicalize()?)?.and_then(|mounted| mounted.set))
}

/// What is mounted at a directory, whose name has no links in it; `None` if nothing is.
pub(super) fn what(dir: &Path) -> io::Result<Option<Mounted>> {
    // The thread's own: a test may have its mounts to itself.
    Ok(find(&fs::read_to_string("/proc/thread-self/mountinfo")?, dir))
}

/// The last mount at a place hides the others (proc_pid_mountinfo(5)).
fn find(table: &str, dir: &Path) -> Option<Mounted> {
    let (fields, kind) = table.lines().rev().find_map(|line| {
        let (fields, kind) = line.split_once(" - ")?;
        let place = fields.split(' ').nth(4)?;
        (Path::new(&plain(place)) == dir).then_some((fields, kind))
    })?;
    // Only the root of a data set.
    let is_root = fields.split(' ').nth(3) == Some("/");
    let mut words = kind.split(' ');
    let is_zfs = matches!(words.next(), Some("zfs" | "fuse.zfs"));
    Some(Mounted { set: words.next().filter(|_| is_root && is_zfs).map(plain) })
}

/// Undoes the kernel's writing of spaces and the like as three octal digits.
fn plain(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend(before.bytes());
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(code.unwrap_or(b'\\'));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    bytes.extend(rest.bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sets_are_found_where_they_are_mounted() {
        let table = "\
            22 1 0:20 / / rw - ext4 /dev/vda rw\n\
            46 52 0:40 / /d/m\\040x rw,relatime - fuse.zfs p/a\\040b rw,user_id=0\n\
            47 52 0:41 / /d/0.zfs rw - zfs p/old rw\n\
            48 52 0:42 / /d/0.zfs rw,noatime shared:1 - zfs p/new rw,xattr\n\
            49 52 0:43 /sub /d/bind rw - zfs p/set rw\n\
            50 52 0:44 / /d/other rw - tmpfs p/set rw";
        let find = |dir: &str| find(table, Path::new(dir)).map(|mounted| mounted.set);
        assert_eq!(find("/d/m x"), Some(Some("p/a b".to_owned())));
        assert_eq!(find("/d/0.zfs"), Some(Some("p/new".to_owned())));
        for dir in ["/", "/d/bind", "/d/other"] {
            assert_eq!(find(dir), Some(None), "{dir}");
        }
        for dir in ["/d", "/d/none"] {
            assert_eq!(find(dir), None, "{dir}");
        }
    }
}
