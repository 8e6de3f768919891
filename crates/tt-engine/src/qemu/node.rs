//! Disks as nodes of QEMU's block layer. Pure: no file is opened here.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What is behind a machine's disk.
#[derive(Clone, Debug)]
pub(super) enum Disk {
    /// A file, `raw` or `qcow2`.
    Image { format: &'static str, file: PathBuf },
    /// Nothing, of this size: for a machine that never runs.
    Null { bytes: u64 },
}

/// The node of that name for it.
pub(super) fn node(name: &str, disk: &Disk) -> Value {
    match disk {
        Disk::Null { bytes } => {
            json!({"node-name": name, "driver": "null-co", "size": bytes, "read-zeroes": true})
        }
        Disk::Image { format, file } => image(name, format, file),
    }
}

/// The node of a file that the machine writes to.
pub(super) fn image(node: &str, format: &str, file: &Path) -> Value {
    json!({
        "node-name": node,
        "driver": format,
        "discard": "unmap",
        "file": {
            "driver": "file",
            "filename": file,
            // Whoever else opens it for writing fails, and so does this machine's own twin.
            "locking": "on",
            "aio": "threads",
            "discard": "unmap",
        },
    })
}
