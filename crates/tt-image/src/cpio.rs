//! Writes an initial RAM file system: a cpio archive in the "newc" format, uncompressed, as the kernel's documentation
//! (driver-api/early-userspace/buffer-format.rst) has it. It never reads a file and knows no times or owners: all is root's.

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER: u32 = 0o020_000;

/// An archive under construction.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory of mode 0755. Parents must be added first.
    pub(crate) fn dir(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, REGULAR | mode, (0, 0), content);
    }

    /// Adds a character device of mode 0600.
    pub(crate) fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER | 0o600, (major, minor), &[]);
    }

    /// The complete archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        let inode = self.entries;
        let fields = [
            inode,
            mode,
            0, // user
            0, // group
            1, // links
            0, // time
            content.len() as u32,
            0, // device
            0,
            major,
            minor,
            path.len() as u32 + 1,
            0, // checksum, unused in this variant
        ];
        self.entries += 1;
        self.bytes.extend_from_slice(MAGIC.as_bytes());
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::Tool;
    use std::time::Duration;

    #[test]
    fn the_cpio_tool_reads_it() {
        let mut archive = Archive::default();
        archive.dir("dev");
        archive.device("dev/console", 5, 1);
        archive.file("init", 0o755, b"12345");
        archive.file("empty", 0o644, b"");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let tool = Tool::new("cpio", "cpio", Duration::from_secs(10)).args(["-itvn", "--quiet"]);
        match tool.filter(bytes, 1 << 20).run() {
            Ok(listing) => {
                let listing = String::from_utf8(listing).unwrap();
                let columns: Vec<Vec<&str>> =
                    listing.lines().map(|l| l.split_whitespace().collect()).collect();
                let modes: Vec<&str> = columns.iter().map(|c| c[0]).collect();
                let names: Vec<&str> = columns.iter().filter_map(|c| c.last().copied()).collect();
                assert_eq!(modes, ["drwxr-xr-x", "crw-------", "-rwxr-xr-x", "-rw-r--r--"]);
                assert_eq!(names, ["dev", "dev/console", "init", "empty"]);
                assert_eq!(columns[2][4], "5");
            }
            Err(e) => println!("SKIPPED the_cpio_tool_reads_it: {e}"),
        }
    }
}
