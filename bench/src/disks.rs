//! Making disks without a guest: `Storage::create_image` of each back end over the bare primitive on the same file system.
//! Both in turn, so that a busy moment meets both.

use crate::mount::{self, Kind, POOL, tool};
use crate::table::{Row, median};
use rustix::fs::ioctl_ficlone;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use testkit::{Must, skip};
use tt_model::{Instance, Layout, StorageKind, Vm};
use tt_storage::conformance::vm;
use tt_storage::{Pool, Storage, TEMPLATE_DISK, open_in};

const ROUNDS: usize = 15;
/// How often `create_image` may take what the primitive does, and how much more.
const RATIO_MAX: f64 = 1.2;
const MORE_MAX: Duration = Duration::from_millis(2);
/// The instance in names of data sets.
const INSTANCE: Instance = Instance(7);
/// Each back end on the file system that it is for.
const KINDS: [(StorageKind, Kind, &str); 4] = [
    (StorageKind::File, Kind::Xfs, "FICLONE"),
    (StorageKind::Btrfs, Kind::Btrfs, "`btrfs subvolume snapshot`"),
    (StorageKind::Zfs, Kind::Zfs, "`zfs clone`"),
    (StorageKind::Qcow2, Kind::Ext4, "`qemu-img create -b`"),
];

/// What a template is like.
#[derive(Clone, Copy)]
struct Shape {
    what: &'static str,
    disk_mb: u32,
    data_mb: u64,
    /// The data lies in so many pieces, spread over the disk.
    pieces: u64,
}

const LARGE: Shape =
    Shape { what: "10 GiB with 2 GiB", disk_mb: 10 << 10, data_mb: 2 << 10, pieces: 32 };
const SMALL: Shape =
    Shape { what: "1 GiB with 256 MiB", disk_mb: 1 << 10, data_mb: 256, pieces: 32 };
/// As a guest in use leaves it.
const PIECES: Shape = Shape { what: "10 GiB with 2 GiB in 16384 pieces", pieces: 16_384, ..LARGE };

/// What was measured: TT's call, the primitive alone, and the primitive brought to disk as TT's call is.
struct Times {
    ours: Duration,
    bare: Duration,
    durable: Duration,
}

/// For each back end: a disk of 10 GiB that holds 2 GiB over the primitive, the same in many pieces, and over a small one.
pub fn create_image() -> Vec<Row> {
    let mut rows = Vec::new();
    for (kind, place, primitive) in KINDS {
        let measured = [LARGE, PIECES, SMALL]
            .map(|shape| mount::with(place, |data| measure(data, kind, shape)).flatten());
        let [large, pieces, small] = match measured {
            [Ok(large), Ok(pieces), Ok(small)] => [large, pieces, small],
            [large, pieces, small] => {
                let reasons = [large.err(), pieces.err(), small.err()];
                skip("disks", &reasons.into_iter().flatten().collect::<Vec<_>>().join("; "));
                continue;
            }
        };
        let name = kind.name();
        for (shape, times) in [(LARGE, &large), (PIECES, &pieces)] {
            let what = format!("create_image of {} on {name} over {primitive}", shape.what);
            rows.push(Row::within(&what, times.ours, times.bare, RATIO_MAX, MORE_MAX));
            if times.durable > times.bare {
                let what = "  over the same with fsync of file and directory";
                rows.push(Row::ratio(what, times.ours, times.durable, None));
            }
        }
        let what = format!("  the first over one of {}", SMALL.what);
        rows.push(Row::within(what, large.ours, small.ours, RATIO_MAX, MORE_MAX));
    }
    rows
}

fn measure(data: &Path, kind: StorageKind, shape: Shape) -> Result<Times, String> {
    write_template(data, shape);
    let layout = Layout { data: data.into(), run: data.join("run"), instance: INSTANCE };
    let pool = Pool { name: POOL.into(), is_configured: true };
    let storage = open_in(Some(&pool), kind, &layout);
    let mut vm = vm(1, kind);
    vm.resource.disk_size = shape.disk_mb;
    // What is kept of the template is made by the first one.
    storage.create_image(&vm).map_err(|error| format!("{kind:?}: {error}"))?;
    let (mut ours, mut bare, mut durable) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        storage.destroy_image(&vm).must("remove the disk");
        let (alone, synced) = by_hand(data, kind, shape)?;
        bare.push(alone);
        durable.push(synced);
        ours.push(create(&*storage, &vm));
    }
    storage.destroy_image(&vm).must("remove the disk");
    Ok(Times { ours: median(ours), bare: median(bare), durable: median(durable) })
}

fn create(storage: &dyn Storage, vm: &Vm) -> Duration {
    let begin = Instant::now();
    storage.create_image(vm).must("make the disk");
    begin.elapsed()
}

/// The time of the primitive alone, and until what it made is on disk; the latter where it is not by then.
fn by_hand(data: &Path, kind: StorageKind, shape: Shape) -> Result<(Duration, Duration), String> {
    let (hand, template) = (data.join("hand"), data.join("templates/sample").join(TEMPLATE_DISK));
    let begin = Instant::now();
    match kind {
        StorageKind::File => {
            let clone = File::create(&hand).must("a file");
            ioctl_ficlone(&clone, File::open(&template).must("the template")).must("FICLONE");
        }
        StorageKind::Btrfs => alone(
            Command::new("btrfs")
                .args(["-q", "subvolume", "snapshot"])
                .arg(data.join("volumes/sample.btrfs"))
                .arg(&hand),
        )?,
        StorageKind::Zfs => alone(
            Command::new("zfs")
                .args(["clone", "-o", &format!("mountpoint={}", hand.display())])
                .arg(format!("{POOL}/tt/{INSTANCE}/t/sample@base"))
                .arg(format!("{POOL}/hand")),
        )?,
        StorageKind::Qcow2 => alone(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
                .args([&template, &hand])
                .arg(format!("{}M", shape.disk_mb)),
        )?,
        StorageKind::Zvol => return Err("it is measured on none of these file systems".into()),
        StorageKind::Docker => return Err("a container has no disk to clone".into()),
    }
    let bare = begin.elapsed();
    if matches!(kind, StorageKind::File | StorageKind::Qcow2) {
        let (file, dir) =
            (File::open(&hand).must("the clone"), File::open(data).must("a directory"));
        file.sync_all().and_then(|()| dir.sync_all()).must("sync");
    }
    let durable = begin.elapsed();
    match kind {
        StorageKind::File | StorageKind::Qcow2 => fs::remove_file(&hand).must("remove a file"),
        StorageKind::Docker | StorageKind::Zvol => {}
        StorageKind::Btrfs => {
            tool(Command::new("btrfs").args(["-q", "subvolume", "delete"]).arg(&hand))?;
        }
        StorageKind::Zfs => {
            // It is busy for a moment after it was mounted.
            let destroy = || tool(Command::new("zfs").args(["destroy", &format!("{POOL}/hand")]));
            let tries = (0..100).find_map(|_| {
                std::thread::sleep(Duration::from_millis(20));
                destroy().ok()
            });
            tries.ok_or_else(|| format!("{POOL}/hand can not be destroyed"))?;
        }
    }
    let is_synced_later = matches!(kind, StorageKind::File | StorageKind::Qcow2);
    Ok((bare, if is_synced_later { durable } else { bare }))
}

/// Runs a program and nothing else: nobody listens to it.
fn alone(command: &mut Command) -> Result<(), String> {
    let ended = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    match ended.is_ok_and(|status| status.success()) {
        true => Ok(()),
        false => Err(format!("{command:?} failed")),
    }
}

fn write_template(data: &Path, shape: Shape) {
    let dir = data.join("templates/sample");
    fs::create_dir_all(&dir).must("a directory");
    let disk = File::create(dir.join(TEMPLATE_DISK)).must("a template");
    let disk_bytes = u64::from(shape.disk_mb) << 20;
    disk.set_len(disk_bytes).must("a sparse file");
    let piece = vec![7; usize::try_from((shape.data_mb << 20) / shape.pieces).must("a size")];
    for number in 0..shape.pieces {
        // Whole blocks, so that no piece is read to be written.
        let at = disk_bytes / shape.pieces * number / 4096 * 4096;
        disk.write_all_at(&piece, at).must("write");
    }
    disk.sync_all().must("sync");
}
