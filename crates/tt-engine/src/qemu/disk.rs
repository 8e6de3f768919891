//! The disk of a living machine: how large it is, what it may do in a second, which file is on top, and what that lies on. It never looks into one.

use super::node::{Disk, Layer, file_node, image};
use super::qmp::Qmp;
use super::{MONITOR, machine};
use crate::EngineError;
use crate::limit::DiskLimit;
use crate::remains::{Remains, give, note};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use tt_model::{Layout, Vm, names};

/// Below a machine's directory: the size in MB that its guest was told, so that nobody asks again.
const GROWN: &str = "disk_mb";
/// Below a machine's directory: the layers that it is known to have.
const CHAIN: &str = "layers";
/// How the name of the disk's node begins in a machine, unlike those of flash chips and the seed.
const DISK: &str = "disk";
/// How the names of layers begin in a machine.
const NODE: &str = "disk-";

/// The top of a machine's disk.
#[derive(Clone, Debug)]
pub(super) struct Top {
    pub node: String,
    pub bytes: u64,
    /// The device that it is behind.
    pub device: String,
}

#[derive(Debug, Deserialize)]
struct Device {
    /// Where it stands among the machine's devices.
    qdev: Option<String>,
    inserted: Option<Inserted>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Inserted {
    node_name: String,
    image: Image,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    virtual_size: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Node {
    node_name: Option<String>,
}

/// What is behind the disk of a Vm's machine.
pub(super) fn disk(layout: &Layout, vm: &Vm) -> Disk {
    match vm.storage {
        storage if storage.is_layered() => Disk::Layers(layers(layout, vm)),
        storage if storage.is_device() => Disk::Device { file: layout.disk(vm) },
        storage => Disk::Image { format: machine::format(storage), file: layout.disk(vm) },
    }
}

/// The files of a Vm's disk, the lowest one first.
fn layers(layout: &Layout, vm: &Vm) -> Vec<Layer> {
    let format = machine::format(vm.storage);
    let layer = |epoch: &u32| {
        let file = layout.data.join(names::runtime_image(vm.storage, vm.id, *epoch));
        Layer { node: node_name(epoch), format, file }
    };
    vm.chain(vm.epoch).iter().rev().map(layer).collect()
}

fn node_name(epoch: &u32) -> String {
    format!("{NODE}{epoch}")
}

/// Notes that the machine has the layers that the record names.
pub(super) fn note_chain(remains: &Remains<'_>, vm: &Vm) -> Result<(), EngineError> {
    note(remains, CHAIN, &text(vm))
}

/// The epochs of the layers of a Vm's disk, upper ones first, as JSON.
fn text(vm: &Vm) -> String {
    json!(vm.chain(vm.epoch)).to_string()
}

/// The top of the machine's one disk.
pub(super) fn top(qmp: &mut Qmp, monitor: &Path) -> Result<Top, EngineError> {
    let devices: Vec<Device> = qmp.ask("query-block")?;
    let top = devices.into_iter().find_map(|Device { qdev, inserted }| {
        let Inserted { node_name: node, image } = inserted?;
        let device = qdev.filter(|_| node.starts_with(DISK))?;
        Some(Top { node, bytes: image.virtual_size, device })
    });
    top.ok_or_else(|| no_disk(monitor))
}

fn no_disk(monitor: &Path) -> EngineError {
    super::qmp::refuse(monitor, "query-block", "it has no disk".into())
}

/// Brings the machine's disk to what the record says.
pub(super) fn update(remains: &Remains<'_>, vm: &Vm) -> Result<(), EngineError> {
    let noted = |name: &str| fs::read_to_string(remains.file(name)).unwrap_or_default();
    let chain = noted(CHAIN);
    if vm.storage.is_layered() && chain != text(vm) {
        switch(remains, vm)?;
        // Whoever finds none after a death tells the machine of all layers once more.
        note(remains, CHAIN, "")?;
        let known: Vec<u32> = serde_json::from_str(&chain).unwrap_or_default();
        arrange(remains, vm, &known)?;
        note_chain(remains, vm)?;
    }
    if noted(GROWN) != vm.resource.disk_size.to_string() {
        grow(remains, vm)?;
    }
    limit(remains, vm)
}

/// Limits what the disk does, unless the machine was told so. As in Firecracker, what it may do in a second may come at once
/// (`docs/throttle.txt` of QEMU's source).
pub(super) fn limit(remains: &Remains<'_>, vm: &Vm) -> Result<(), EngineError> {
    let limit = DiskLimit::of(vm);
    if limit.is_told(remains) {
        return Ok(());
    }
    let (bytes, operations) = (limit.bytes(), limit.operations());
    let monitor = remains.file(MONITOR);
    let mut qmp = Qmp::connect(&monitor)?;
    let device = top(&mut qmp, &monitor)?.device;
    let order = json!({
        "id": device,
        "bps": bytes, "bps_max": bytes, "bps_rd": 0, "bps_wr": 0,
        "iops": operations, "iops_max": operations, "iops_rd": 0, "iops_wr": 0,
    });
    limit.give(remains, || qmp.order("block_set_io_throttle", order))
}

/// Grows the machine's disk to what is wanted, and tells its guest.
fn grow(remains: &Remains<'_>, vm: &Vm) -> Result<(), EngineError> {
    let monitor = remains.file(MONITOR);
    let mut qmp = Qmp::connect(&monitor)?;
    let top = top(&mut qmp, &monitor)?;
    let wanted = u64::from(vm.resource.disk_size) << 20;
    // Also if it has that size: a layer that was made with it is larger than the guest was told.
    if top.bytes <= wanted {
        qmp.order("block_resize", json!({"node-name": top.node, "size": wanted}))?;
    }
    note(remains, GROWN, &vm.resource.disk_size.to_string())
}

/// Lets the machine write to `vm.runtime_image`, an empty overlay over what it has.
pub(super) fn switch(remains: &Remains<'_>, vm: &Vm) -> Result<(), EngineError> {
    let monitor = remains.file(MONITOR);
    let mut qmp = Qmp::connect(&monitor)?;
    // Not `query-block`, which tells of each layer all that it lies on: the guest stands still meanwhile.
    let devices: Vec<Node> = qmp.ask("query-blockstats")?;
    let mut nodes = devices.into_iter().filter_map(|device| device.node_name);
    let has = nodes.find(|node| node.starts_with(DISK)).ok_or_else(|| no_disk(&monitor))?;
    let layers = layers(remains.layout, vm);
    let Some(layer) = layers.last().filter(|layer| layer.node != has) else { return Ok(()) };
    let uid = remains.layout.uid(vm.id);
    give(&layer.file, Some(uid), uid)?;
    let mut overlay = image(layer, None, true);
    // It is put over the node that is there, not over the file that it names.
    overlay["backing"] = json!(null);
    let node = &layer.node;
    if qmp.order("blockdev-add", overlay.clone()).is_err() {
        // A daemon that died may have got so far: nothing lies on that one, and nothing writes to it.
        let _ = qmp.order("blockdev-del", json!({"node-name": node}));
        qmp.order("blockdev-add", overlay)?;
    }
    let switched = qmp.order("blockdev-snapshot", json!({"node": has, "overlay": node}));
    if switched.is_err() {
        // So that another try finds the name free.
        let _ = qmp.order("blockdev-del", json!({"node-name": node}));
    }
    switched
}

/// Lets what the machine writes to lie on what the record says: merges take the place of what was merged, and what
/// nothing lies on any more is let go. What a guest sees is the same before, after and in between. `known`: the chain
/// that it is known to have had.
fn arrange(remains: &Remains<'_>, vm: &Vm, known: &[u32]) -> Result<(), EngineError> {
    let mut qmp = Qmp::connect(&remains.file(MONITOR))?;
    let layers = layers(remains.layout, vm);
    let mut have = nodes(&mut qmp)?;
    if !layers.last().is_some_and(|top| have.contains(&top.node)) {
        // One of a daemon that gave layers no names: its next process has them.
        return Ok(());
    }
    let known: Vec<String> = known.iter().rev().map(node_name).collect();
    let mut below: Option<&Layer> = None;
    for (number, layer) in layers.iter().enumerate() {
        // It lies on what it was made on. Told again, QEMU 7.2 would open its file for writing once more when the next
        // layer comes, and by then it may not.
        let is_top = number + 1 == layers.len();
        let mut node = image(layer, below, is_top);
        let is_known = |below: &Layer| {
            known.windows(2).any(|pair| *pair == [below.node.clone(), layer.node.clone()])
        };
        if have.insert(layer.node.clone()) {
            qmp.order("blockdev-add", node)?;
        } else if below.is_some_and(|below| !is_top && !is_known(below)) {
            node["file"] = json!(file_node(layer));
            qmp.order("blockdev-reopen", json!({"options": [node]}))?;
        }
        below = Some(layer);
    }
    let is_needed = |name: &String| layers.iter().any(|layer| layer.node == *name);
    have.retain(|name| name.starts_with(NODE) && !name.ends_with("-file") && !is_needed(name));
    let_go(&mut qmp, have);
    Ok(())
}

/// Lets the machine close what nothing lies on any more. What stays open by that is what it was, to the byte.
fn let_go(qmp: &mut Qmp, mut nodes: BTreeSet<String>) {
    let mut refused = None;
    // What another one lies on can not go before that one: each round lets go at least the highest one.
    for _ in 0..nodes.len() {
        nodes.retain(|name| match qmp.order("blockdev-del", json!({"node-name": name})) {
            Ok(()) => false,
            Err(error) => {
                refused = Some(error);
                true
            }
        });
    }
    // Such as what a layer lies on that was made, but not switched to, by a daemon that died: until the next snapshot.
    if let Some(error) = refused.filter(|_| !nodes.is_empty()) {
        let error = crate::error::chain(&error);
        tracing::warn!(?nodes, error, "a machine keeps layers open that were merged");
    }
}

/// The names of all nodes.
fn nodes(qmp: &mut Qmp) -> Result<BTreeSet<String>, EngineError> {
    let nodes: Vec<Node> = qmp.ask_with("query-named-block-nodes", json!({"flat": true}))?;
    Ok(nodes.into_iter().filter_map(|node| node.node_name).collect())
}
