//! A disk in a foreign format made plain, by `qemu-img` in a box: a user of its own, no network, bounded time, memory and
//! output, and two open files. Its header has been checked: it names nothing else.

use super::Format;
use crate::tool::{Sandbox, Tool};
use crate::{ImageError, Progress, digest, files, space};
use rustix::fs::{Gid, Uid, fchown};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tt_model::ErrorCode;

/// The largest disks take about a minute for 10 GB here.
const TIMEOUT: Duration = Duration::from_secs(7200);
/// `qemu-img` takes 60 MB; its tables for a disk of 16 TiB some hundred.
const MEMORY_BYTES_MAX: u64 = 2 << 30;
/// Users of boxes, below those of machines (`0x70000000`); which one follows from the draft.
const UID_FIRST: u32 = 0x6f00_0000;

/// Writes the disk in `from`, which guests would see with `size_bytes`, into the new file `to`. `from` is the daemon's own
/// copy: nobody else changes it after it was looked at.
pub(super) fn convert(
    format: Format,
    from: &Path,
    size_bytes: u64,
    to: &Path,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    progress.step("converting the disk");
    files::remove(to)?;
    let source = File::open(from).map_err(files::not_read(from))?;
    let target = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(to);
    let target = target.map_err(files::not_written(to))?;
    // Whole sectors, as `qemu-img` will have it.
    let size_bytes = size_bytes.next_multiple_of(512);
    target.set_len(size_bytes).map_err(files::not_written(to))?;
    let user = user_of(from);
    own(&source, user, from)?;
    own(&target, user, to)?;
    let (source, target) = (Arc::new(source), Arc::new(target));
    let run = |tool: Tool, files: Vec<Arc<File>>| {
        let (memory_bytes, file_bytes, cpu) = (MEMORY_BYTES_MAX, size_bytes, TIMEOUT);
        let sandbox = Sandbox { user, files, memory_bytes, file_bytes, cpu };
        tool.sandbox(sandbox).run_for(&space::Roomy { progress, path: to })
    };
    // What is cut off would otherwise be read as zeros.
    let converted = run(check(format, &source), vec![source.clone()])
        .and_then(|_| run(command(format, &source, &target), vec![source, target.clone()]));
    own(&target, 0, to)?;
    match converted {
        Ok(_) => files::settle(to),
        Err(error) => Err(refused(format, error)),
    }
}

/// What it says of a disk that a stranger made will not change; that there is no room for it may.
fn refused(format: Format, error: ImageError) -> ImageError {
    match error {
        error if error.code() == ErrorCode::NoRoom => error,
        ImageError::Tool { outcome, stderr, .. } => ImageError::Format {
            what: format!("{} disk", format.name()),
            problem: format!("qemu-img {outcome}: {stderr}"),
        },
        error => error,
    }
}

/// Looks whether all of it is there.
fn check(format: Format, source: &File) -> Tool {
    const LEAKS_ONLY: i32 = 3;
    let tool = Tool::new("qemu-img", "qemu-utils", TIMEOUT).fine(LEAKS_ONLY);
    tool.args(["check", "-q", "-f", format.name()]).arg(opened(format, source))
}

fn command(format: Format, source: &File, target: &File) -> Tool {
    Tool::new("qemu-img", "qemu-utils", TIMEOUT)
        .args(["convert", "-n", "--target-is-zero", "-f", format.name(), "-O", "raw"])
        .arg(opened(format, source))
        .arg(descriptor(target))
}

/// An open file in a format that is said, never guessed; where the format could name another disk, that is none.
fn opened(format: Format, file: &File) -> String {
    let name = descriptor(file);
    match format {
        Format::Qcow2 | Format::Vmdk => format!(
            "json:{{\"driver\":\"{}\",\"backing\":null,\"file\":{{\"driver\":\"file\",\"filename\":\"{name}\"}}}}",
            format.name()
        ),
        Format::Raw | Format::Vdi => name,
    }
}

fn descriptor(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// One box does not reach into another.
fn user_of(path: &Path) -> u32 {
    let digest = digest::of_bytes(path.as_os_str().as_encoded_bytes());
    UID_FIRST + u32::from_str_radix(&digest[..4], 16).unwrap_or(0)
}

fn own(file: &File, user: u32, path: &Path) -> Result<(), ImageError> {
    let owned = fchown(file, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)));
    owned.map_err(|e| files::not_written(path)(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_system_is_no_bad_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (raw, disk) = (dir.path().join("raw"), dir.path().join("disk.qcow2"));
        std::fs::write(&raw, vec![7; 8 << 20]).unwrap();
        let pack = Tool::new("qemu-img", "qemu-utils", TIMEOUT);
        pack.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&disk).run().unwrap();
        space::with_room(dir.path(), 4 << 20, |small| {
            let target = File::create_new(small.join("disk")).unwrap();
            target.set_len(8 << 20).unwrap();
            let source = File::open(&disk).unwrap();
            let mut tool = command(Format::Qcow2, &source, &target);
            tool = tool.sandbox(Sandbox {
                user: 0,
                files: vec![Arc::new(source), Arc::new(target)],
                memory_bytes: MEMORY_BYTES_MAX,
                file_bytes: 8 << 20,
                cpu: TIMEOUT,
            });
            let error = refused(Format::Qcow2, tool.run().unwrap_err());
            assert_eq!(error.code(), ErrorCode::NoRoom, "{error}");
            assert!(error.is_retryable());
        });
    }

    #[test]
    fn the_format_is_said_and_no_other_disk_is_opened() {
        let file = File::open("/dev/null").unwrap();
        let line = command(Format::Qcow2, &file, &file).command_line();
        let fd = file.as_raw_fd();
        assert_eq!(
            line,
            format!(
                "qemu-img convert -n --target-is-zero -f qcow2 -O raw \
                 json:{{\"driver\":\"qcow2\",\"backing\":null,\"file\":{{\"driver\":\"file\",\
                 \"filename\":\"/proc/self/fd/{fd}\"}}}} /proc/self/fd/{fd}"
            )
        );
    }
}
