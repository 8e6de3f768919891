//! Rigs on real file systems: directories, loop mounts, and the files of images.

use rustix::fs::{FallocateFlags, fallocate};
use std::any::Any;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use tempfile::{NamedTempFile, TempDir};
use tt_model::names::template_volume;
use tt_model::{Instance, Layout, StorageKind, Vm};
use tt_storage::conformance::{Rig, write_template};
use tt_storage::{Pool, RESERVE_MB, Storage, open_in};

/// A file system of its own in a file, mounted through a loop device until it is dropped.
pub struct Mount {
    dir: TempDir,
}

impl Mount {
    /// Makes one; `Err` says why this machine can not.
    pub fn new(mkfs: &[&str], size_mb: u64) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let image = dir.path().join("image");
        let point = dir.path().join("mnt");
        let file = File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(size_mb << 20).map_err(|e| e.to_string())?;
        fs::create_dir(&point).map_err(|e| e.to_string())?;
        let (program, args) = mkfs.split_first().ok_or("no mkfs")?;
        tool(Command::new(program).args(args).arg(&image))?;
        // Unmounting detaches a loop device that `mount` has attached.
        tool(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&point))?;
        Ok(Self { dir })
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if tool(Command::new("umount").arg(self.path())).is_err() {
            let _ = tool(Command::new("umount").arg("-l").arg(self.path()));
        }
    }
}

/// A back end on a data directory with the suite's template.
#[derive(Debug)]
pub struct Files {
    pub layout: Layout,
    pub kind: StorageKind,
    /// Whether nobody else writes to the file system.
    pub is_alone: bool,
}

impl Files {
    pub fn new(data: &Path, kind: StorageKind) -> Self {
        write_template(data).unwrap();
        Self::found(data, kind)
    }

    /// The same where another process has made it.
    pub fn found(data: &Path, kind: StorageKind) -> Self {
        let layout = Layout { data: data.into(), run: data.join("run"), instance: Instance(7) };
        Self { layout, kind, is_alone: false }
    }

    /// The same on a file system of its own.
    pub fn alone(data: &Path, kind: StorageKind) -> Self {
        Self { is_alone: true, ..Self::new(data, kind) }
    }

    fn raw(&self) -> bool {
        self.kind != StorageKind::Qcow2
    }

    /// What is at the name of the disk: itself, or the directory in which it lies.
    fn place(&self, vm: &Vm) -> PathBuf {
        let disk = self.layout.disk(vm);
        if self.kind.inner().is_some() { disk.parent().unwrap().into() } else { disk }
    }

    /// What QEMU reads from a qcow2 image.
    fn flat(&self, disk: &Path) -> NamedTempFile {
        let flat = NamedTempFile::new().unwrap();
        let mut convert = Command::new("qemu-img");
        tool(convert.args(["convert", "-f", "qcow2", "-O", "raw"]).arg(disk).arg(flat.path()))
            .unwrap();
        flat
    }
}

impl Rig for Files {
    fn storage(&self) -> Arc<dyn Storage> {
        let pool = Pool { name: crate::pool::NAME.into(), is_configured: true };
        open_in(Some(&pool), self.kind, &self.layout)
    }

    fn layout(&self) -> Option<&Layout> {
        Some(&self.layout)
    }

    fn size_mb(&self, vm: &Vm) -> Option<u64> {
        let disk = self.layout.disk(vm);
        let len = match self.kind.is_device() {
            true => File::open(&disk).ok()?.seek(SeekFrom::End(0)).unwrap(),
            false => fs::metadata(&disk).ok()?.len(),
        };
        if self.raw() {
            assert_eq!(len % (1 << 20), 0);
            return Some(len >> 20);
        }
        tool(Command::new("qemu-img").arg("check").arg(&disk)).unwrap();
        Some(size_in_header(&disk) >> 20)
    }

    fn read(&self, vm: &Vm, offset: u64, len: usize) -> Option<Vec<u8>> {
        let disk = self.layout.disk(vm);
        let mut bytes = vec![0; len];
        if self.raw() {
            File::open(disk).unwrap().read_exact_at(&mut bytes, offset).unwrap();
            return Some(bytes);
        }
        self.flat(&disk).as_file().read_exact_at(&mut bytes, offset).unwrap();
        Some(bytes)
    }

    fn content(&self, vm: &Vm) -> Option<u64> {
        let disk = self.layout.disk(vm);
        if !disk.exists() {
            return None;
        }
        if self.raw() {
            return Some(hash(&fs::read(disk).unwrap()));
        }
        let bytes = fs::read(self.flat(&disk).path()).unwrap();
        assert_eq!(bytes.len() as u64, size_in_header(&disk));
        Some(hash(&bytes))
    }

    fn fill(&self, vm: &Vm, offset: u64, len: usize, byte: u8) {
        let disk = self.layout.disk(vm);
        if self.raw() {
            let file = File::options().write(true).open(disk).unwrap();
            file.write_all_at(&vec![byte; len], offset).unwrap();
        } else {
            let command = format!("write -P {byte} {offset} {len}");
            tool(Command::new("qemu-io").args(["-f", "qcow2", "-c", &command]).arg(disk)).unwrap();
        }
    }

    fn interrupt(&self, vm: &Vm) {
        fs::create_dir_all(self.layout.images_of(vm.id)).unwrap();
        let name = format!("{}.tmp", self.place(vm).display());
        fs::write(name, b"half").unwrap();
    }

    fn plant(&self, vm: &Vm) -> bool {
        fs::create_dir_all(self.place(vm)).unwrap();
        fs::write(self.place(vm).join("disk.raw"), b"foreign").unwrap();
        true
    }

    fn plant_template(&self) -> bool {
        let volume = self.layout.data.join(template_volume(self.kind, "sample"));
        if self.kind.inner().is_some() {
            fs::create_dir_all(&volume).unwrap();
            fs::write(volume.join("disk.raw"), b"foreign").unwrap();
        }
        self.kind.inner().is_some()
    }

    fn crowd(&self) -> Option<Box<dyn Any>> {
        self.is_alone.then(|| Box::new(Filler::new(&self.layout.data)) as Box<dyn Any>)
    }

    fn settle(&self) {
        rustix::fs::syncfs(File::open(&self.layout.data).unwrap()).unwrap();
    }

    fn templates(&self) -> Vec<String> {
        let names = fs::read_dir(self.layout.data.join("volumes")).into_iter().flatten();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// What takes all room of a file system but a little less than the reserve, until it is dropped.
pub struct Filler(PathBuf);

impl Filler {
    pub fn new(data: &Path) -> Self {
        let filler = Self(data.join("filler"));
        let file = File::create(&filler.0).unwrap();
        // What was removed may come back while this looks.
        for _ in 0..50 {
            rustix::fs::syncfs(&file).unwrap();
            let stat = rustix::fs::statvfs(data).unwrap();
            let free_mb = (stat.f_bavail * stat.f_frsize) >> 20;
            let Some(more_mb) = free_mb.checked_sub(RESERVE_MB - 8).filter(|mb| *mb > 8) else {
                break;
            };
            let len = file.metadata().unwrap().len();
            fallocate(&file, FallocateFlags::empty(), len, more_mb << 20).unwrap();
        }
        filler
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // XFS frees what a removed file had a little later, but what is cut off at once.
        let _ = File::create(&self.0);
        let _ = fs::remove_file(&self.0);
    }
}

/// The size of a qcow2 image: big endian, at byte 24.
fn size_in_header(disk: &Path) -> u64 {
    let mut size = [0; 8];
    File::open(disk).unwrap().read_exact_at(&mut size, 24).unwrap();
    u64::from_be_bytes(size)
}

/// A number for the bytes up to the zeros at their end.
fn hash(bytes: &[u8]) -> u64 {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut len = bytes.len();
    while len >= ZEROS.len() && bytes[len - ZEROS.len()..len] == ZEROS {
        len -= ZEROS.len();
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes[..len]);
    hasher.finish()
}

/// Whether this machine can look into qcow2 images.
pub fn has_qemu_img() -> bool {
    Command::new("qemu-img").arg("--version").output().is_ok()
}

/// Runs a program; `Err` says what it said.
pub fn tool(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        Ok(output)
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(format!("{command:?}: {stderr}"))
    }
}
