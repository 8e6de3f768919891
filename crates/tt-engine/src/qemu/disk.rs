//! The disk of a living machine: how large it is, and which file is on top. It never looks into one.

use super::node::image;
use super::qmp::Qmp;
use super::{MONITOR, machine};
use crate::EngineError;
use crate::remains::{Remains, give};
use serde::Deserialize;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use tt_model::Vm;

/// Below a machine's directory: the size in MB that its disk is known to have, so that nobody asks again.
const GROWN: &str = "disk_mb";

/// The top of a machine's disk.
#[derive(Clone, Debug)]
pub(super) struct Top {
    pub node: String,
    pub file: PathBuf,
    pub bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Device {
    inserted: Option<Inserted>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Inserted {
    node_name: String,
    file: PathBuf,
    image: Image,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    virtual_size: u64,
}

/// The top of the machine's one disk.
pub(super) fn top(qmp: &mut Qmp, monitor: &Path) -> Result<Top, EngineError> {
    let devices: Vec<Device> = qmp.ask("query-block")?;
    let inserted = devices.into_iter().find_map(|device| device.inserted);
    inserted
        .map(|i| Top { node: i.node_name, file: i.file, bytes: i.image.virtual_size })
        .ok_or_else(|| super::qmp::refuse(monitor, "query-block", "it has no disk".into()))
}

/// Grows the machine's disk to what is wanted.
pub(super) fn grow(remains: &Remains<'_>, vm: &Vm) -> Result<(), EngineError> {
    let wanted_mb = vm.resource.disk_size.to_string();
    if fs::read_to_string(remains.file(GROWN)).is_ok_and(|mb| mb == wanted_mb) {
        return Ok(());
    }
    let monitor = remains.file(MONITOR);
    let mut qmp = Qmp::connect(&monitor)?;
    let top = top(&mut qmp, &monitor)?;
    let wanted = u64::from(vm.resource.disk_size) << 20;
    if top.bytes < wanted {
        qmp.order("block_resize", json!({"node-name": top.node, "size": wanted}))?;
    }
    machine::note(remains, GROWN, &wanted_mb)
}

/// Lets the machine write to `vm.runtime_image`, an empty overlay over what it has.
pub(super) fn switch(remains: &Remains<'_>, vm: &Vm) -> Result<(), EngineError> {
    let monitor = remains.file(MONITOR);
    let mut qmp = Qmp::connect(&monitor)?;
    let top = top(&mut qmp, &monitor)?;
    let file = remains.layout.disk(vm);
    if top.file == file {
        return Ok(());
    }
    let uid = remains.layout.uid(vm.id);
    give(&file, Some(uid), uid)?;
    let node = format!("disk-{}", vm.epoch);
    let mut overlay = image(&node, machine::format(vm.storage), &file);
    // It is put over the node that is there, not over the file that it names.
    overlay["backing"] = json!(null);
    qmp.order("blockdev-add", overlay)?;
    let switched = qmp.order("blockdev-snapshot", json!({"node": top.node, "overlay": node}));
    if switched.is_err() {
        // So that another try finds the name free.
        let _ = qmp.order("blockdev-del", json!({"node-name": node}));
    }
    switched
}
