//! Snapshots of a disk without a guest: 10 GiB that hold 2 GiB, through the drivers' own call.

use crate::mount::{self, Kind, tool};
use crate::table::{Row, median, millis};
use rustix::fs::ioctl_ficlone;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::{Must, skip};
use tt_model::plan::plan_take;
use tt_model::{Instance, Layout, Snapshot, StorageKind, Vm};
use tt_storage::Storage;
use tt_storage::conformance::{vm, write_template};

const ROUNDS: usize = 25;
/// Size of the disk, in MB.
const DISK_MB: u32 = 10 << 10;
/// What is written to it, in MB.
const DATA_MB: u64 = 2 << 10;
/// The data lies in pieces of so many MB, spread over the disk: few, and as many as a guest in use
/// leaves. The ioctl's time grows with them, that of making a clone durable does not.
const PIECES_MB: [u64; 2] = [64, 1];
/// How often `create_snapshot` may take what the primitive does.
const RATIO_MAX: f64 = 1.5;

/// Two calls of the back end `file` on XFS, each over a primitive on the same disk:
/// `Storage::create_snapshot`, for which the guest stands still, over `ioctl_ficlone(2)`; the same
/// with `Storage::sync_disk`, which follows when the guest runs again, over the ioctl with `fsync(2)`
/// of the clone and of its directory. Of the back end `qcow2` the time of the first call, which is
/// made before the guest stands still.
pub fn ten_gib() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut take = |measured: Result<Vec<Row>, String>| match measured {
        Ok(measured) => rows.extend(measured),
        Err(reason) => skip("freeze", &reason),
    };
    for piece_mb in PIECES_MB {
        take(mount::with(Kind::Xfs, |data| clones(data, piece_mb)));
    }
    for (kind, name) in [(Kind::Ext4, "ext4"), (Kind::Tmpfs, "tmpfs")] {
        take(mount::with(kind, |data| layers(data, name)).flatten());
    }
    rows
}

/// A back end with one Vm, whose disk is made.
struct Disk {
    layout: Layout,
    storage: Arc<dyn Storage>,
    vm: Vm,
}

impl Disk {
    fn new(data: &Path, kind: StorageKind) -> Self {
        write_template(data).must("a template");
        let layout = Layout { data: data.into(), run: data.join("run"), instance: Instance(7) };
        let storage = tt_storage::open(kind, &layout);
        let mut vm = vm(1, kind);
        vm.resource.disk_size = DISK_MB;
        storage.create_image(&vm).must("the disk");
        Self { layout, storage, vm }
    }

    /// Takes a snapshot and takes it back: the next one finds the disk as it was. The time until it
    /// is taken, and until it is durable.
    fn freeze(&self) -> (Duration, Duration) {
        let mut vm = self.vm.clone();
        vm.snapshots.insert("s".into(), Snapshot { name: "s".into(), ..Snapshot::default() });
        plan_take(&mut vm, "s");
        let begin = Instant::now();
        self.storage.create_snapshot(&vm, &vm.snapshots["s"]).must("the snapshot");
        let taken = begin.elapsed();
        let epoch = vm.snapshots["s"].epoch.unwrap_or(vm.epoch);
        self.storage.sync_disk(&vm, epoch).must("sync the snapshot");
        let synced = begin.elapsed();
        self.storage.destroy_snapshot(&self.vm).must("remove the snapshot");
        self.storage.create_image(&self.vm).must("give the disk back to its machine");
        (taken, synced)
    }
}

fn clones(data: &Path, piece_mb: u64) -> Vec<Row> {
    let disk = Disk::new(data, StorageKind::File);
    let source = File::options().read(true).write(true).open(disk.layout.disk(&disk.vm));
    let source = source.must("the disk");
    let piece = vec![7; usize::try_from(piece_mb << 20).must("a size")];
    for at_mb in places_mb(piece_mb) {
        source.write_all_at(&piece, at_mb << 20).must("write");
    }
    source.sync_all().must("sync");
    let (mut by_hand, mut frozen) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        by_hand.push(clone_by_hand(&source, data));
        frozen.push(disk.freeze());
    }
    let number = DATA_MB / piece_mb;
    let what = format!("snapshot of 10 GiB with 2 GiB in {number} pieces on XFS over FICLONE");
    let first = |times: &[(Duration, Duration)]| median(times.iter().map(|t| t.0).collect());
    let second = |times: &[(Duration, Duration)]| median(times.iter().map(|t| t.1).collect());
    vec![
        Row::ratio(what, first(&frozen), first(&by_hand), Some(RATIO_MAX)),
        Row::ratio(
            "  until it is durable, over FICLONE and fsync",
            second(&frozen),
            second(&by_hand),
            // Nobody stands still for it.
            None,
        ),
    ]
}

/// The time of the ioctl alone, and until the clone is durable.
fn clone_by_hand(source: &File, dir: &Path) -> (Duration, Duration) {
    let path = dir.join("clone");
    let clone = File::create(&path).must("a file");
    let dir = File::open(dir).must("a directory");
    let begin = Instant::now();
    ioctl_ficlone(&clone, source).must("FICLONE");
    let alone = begin.elapsed();
    clone.sync_all().and_then(|()| dir.sync_all()).must("sync");
    let synced = begin.elapsed();
    std::fs::remove_file(path).must("remove a file");
    (alone, synced)
}

fn layers(data: &Path, name: &str) -> Result<Vec<Row>, String> {
    let disk = Disk::new(data, StorageKind::Qcow2);
    let piece_mb = PIECES_MB[0];
    let mut write = Command::new("qemu-io");
    write.args(["-f", "qcow2"]);
    for at_mb in places_mb(piece_mb) {
        write.args(["-c", &format!("write -P 7 {at_mb}M {piece_mb}M")]);
    }
    tool(write.args(["-c", "flush"]).arg(disk.layout.disk(&disk.vm)))?;
    let times = (0..ROUNDS).map(|_| disk.freeze().0).collect();
    let what = format!("layer over 10 GiB with 2 GiB in qcow2 on {name}, before the hold");
    Ok(vec![Row::figure(what, millis(median(times)))])
}

/// Where pieces begin that are spread over the whole disk, in MB.
fn places_mb(piece_mb: u64) -> impl Iterator<Item = u64> {
    (0..DATA_MB / piece_mb).map(move |number| number * piece_mb * u64::from(DISK_MB) / DATA_MB)
}
