//! Disks as nodes of QEMU's block layer. Pure: no file is opened here.

use serde_json::{Value, json};
use std::path::PathBuf;

/// What is behind a machine's disk.
#[derive(Clone, Debug)]
pub(super) enum Disk {
    /// A file, `raw` or `qcow2`.
    Image { format: &'static str, file: PathBuf },
    /// A block device.
    Device { file: PathBuf },
    /// Files that lie on each other: the lowest one first, the one that is written last.
    Layers(Vec<Layer>),
    /// Nothing, of this size: for a machine that never runs.
    Null { bytes: u64 },
}

/// One file of a disk.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    /// Its name in the machine.
    pub node: String,
    pub format: &'static str,
    pub file: PathBuf,
}

/// The nodes for it, in the order in which they are made: the last one is what a device is given. It has that name,
/// unless layers have names of their own.
pub(super) fn nodes(name: &str, disk: &Disk) -> Vec<Value> {
    match disk {
        Disk::Null { bytes } => {
            let size = json!({"driver": "null-co", "size": bytes, "read-zeroes": true});
            vec![named(size, name)]
        }
        Disk::Image { format, file } => {
            let layer = Layer { node: name.to_owned(), format, file: file.clone() };
            vec![image(&layer, None, true)]
        }
        Disk::Device { file } => {
            let layer = Layer { node: name.to_owned(), format: "raw", file: file.clone() };
            let mut node = image(&layer, None, true);
            node["file"]["driver"] = json!("host_device");
            // What the guest has written is in the device then, where a snapshot of it finds it, and not in memory twice.
            node["cache"] = json!({"direct": true});
            node["file"]["cache"] = json!({"direct": true});
            vec![node]
        }
        Disk::Layers(layers) => {
            // The lowest one says itself what it lies on: the storage has seen to that. Nothing else is asked.
            let below = layers.iter().map(Some);
            let pairs = layers.iter().zip(std::iter::once(None).chain(below));
            let top = layers.len();
            pairs.zip(1..).map(|((layer, below), n)| image(layer, below, n == top)).collect()
        }
    }
}

/// The name of the file of a layer in the machine.
pub(super) fn file_node(layer: &Layer) -> String {
    format!("{}-file", layer.node)
}

/// One layer of a disk: over `below`, or over what it names itself. `is_top`: whether the guest writes to it.
pub(super) fn image(layer: &Layer, below: Option<&Layer>, is_top: bool) -> Value {
    let file = json!({
        "driver": "file",
        "filename": layer.file,
        // Whoever else opens it for writing fails, and so does this machine's own twin.
        "locking": "on",
        "aio": "threads",
        "discard": "unmap",
    });
    let file = named(file, &file_node(layer));
    let node = json!({"driver": layer.format, "discard": "unmap", "file": file});
    let mut node = named(node, &layer.node);
    if let Some(below) = below {
        node["backing"] = json!(below.node);
    }
    if !is_top {
        node["read-only"] = json!(true);
        node["file"]["read-only"] = json!(true);
    }
    node
}

fn named(mut node: Value, name: &str) -> Value {
    node["node-name"] = json!(name);
    node
}
