//! The images below a data directory, whatever their format: `images/<vm>/<epoch>.<format>`, and beside them what an
//! interrupted create left. It never writes under an image's final name before the image is complete.

use crate::template::Template;
use crate::{RESERVE_MB, Space, Storage, StorageError};
use rustix::fs::{Mode, OFlags};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};
use tt_model::{Layout, StorageKind, Vm, VmId};

/// Entered by machines, listed by the daemon only.
const DIR_MODE: u32 = 0o711;
/// Read and written by its machine only.
const IMAGE_MODE: u32 = 0o600;
/// Behind the name of an image that is not complete.
const TEMPORARY: &str = ".tmp";

/// What one format does differently.
pub(crate) trait Format: Send + Sync + std::fmt::Debug {
    /// Which back end it is.
    fn kind(&self) -> StorageKind;

    /// Makes `image`, an empty file, a clone of `template` with `job.want_bytes()`. Asks [`Job::reserve`] before it writes
    /// data. The caller removes the file after an error, and syncs it otherwise.
    fn clone_template(
        &self,
        job: &Job,
        template: &Template,
        image: &File,
    ) -> Result<(), StorageError>;

    /// The size that a guest sees.
    fn size_bytes(&self, path: &Path, image: &File) -> Result<u64, StorageError>;

    /// Gives a smaller image the size that is wanted.
    fn grow(&self, job: &Job, image: &File) -> Result<(), StorageError>;
}

/// One create: what is wanted where.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// Final name of the image.
    pub(crate) path: PathBuf,
    /// The data directory.
    pub(crate) data: &'a Path,
    /// Whose image it is.
    pub(crate) vm: &'a Vm,
}

impl Job<'_> {
    /// The size that the image must have.
    pub(crate) fn want_bytes(&self) -> u64 {
        u64::from(self.vm.resource.disk_size) << 20
    }

    /// Refuses what would leave less than [`RESERVE_MB`] free.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<(), StorageError> {
        let need_mb = bytes.div_ceil(1 << 20).saturating_add(RESERVE_MB);
        let free_mb = space(self.data)?.free_mb;
        if need_mb > free_mb {
            return Err(StorageError::NoSpace { path: self.path.clone(), need_mb, free_mb });
        }
        Ok(())
    }

    /// What a failed write of about so many bytes was: a full file system, or something else.
    pub(crate) fn failed(&self, bytes: u64, source: io::Error) -> StorageError {
        let full = matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        match space(self.data) {
            Ok(space) if full => StorageError::NoSpace {
                path: self.path.clone(),
                need_mb: bytes.div_ceil(1 << 20) + RESERVE_MB,
                free_mb: space.free_mb,
            },
            _ => StorageError::Create { path: self.path.clone(), source },
        }
    }

    /// What a failed change of an existing image was.
    pub(crate) fn not_grown(&self, source: io::Error) -> StorageError {
        StorageError::Grow { path: self.path.clone(), want_mb: self.vm.resource.disk_size, source }
    }
}

/// The back end: one format below one data directory.
#[derive(Debug)]
pub(crate) struct Images {
    layout: Layout,
    format: Box<dyn Format>,
}

impl Images {
    pub(crate) fn new(layout: Layout, format: Box<dyn Format>) -> Self {
        Self { layout, format }
    }

    fn job<'a>(&'a self, vm: &'a Vm) -> Result<Job<'a>, StorageError> {
        let kind = self.format.kind();
        let path = below(&self.layout.data, &vm.runtime_image)?;
        let own = path.starts_with(self.layout.images_of(vm.id));
        if !own || path.extension() != Some(kind.extension().as_ref()) {
            return Err(StorageError::CheckName {
                path: vm.runtime_image.clone(),
                right: tt_model::names::runtime_image(kind, vm.id, vm.epoch),
            });
        }
        Ok(Job { path, data: &self.layout.data, vm })
    }

    /// Brings an image that exists to its size, owner and mode.
    fn adjust(&self, job: &Job, image: &File) -> Result<(), StorageError> {
        let have_bytes = self.format.size_bytes(&job.path, image)?;
        let want_mb = job.vm.resource.disk_size;
        if have_bytes > job.want_bytes() {
            return Err(StorageError::Shrink { path: job.path.clone(), have_bytes, want_mb });
        }
        if have_bytes < job.want_bytes() {
            self.format.grow(job, image)?;
            image.sync_all().map_err(|e| job.not_grown(e))?;
        }
        give(image, self.layout.uid(job.vm.id)).map_err(|e| job.not_grown(e))
    }

    fn create(&self, job: &Job) -> Result<(), StorageError> {
        // Opened before anything is made: a template that is missing or too large changes nothing.
        let template = Template::open(job)?;
        job.reserve(0)?;
        let dir = self.layout.images_of(job.vm.id);
        let failed = |e| job.failed(0, e);
        let changed = self.make_dirs(&dir).map_err(failed)?;
        let temporary = Temporary::create(&job.path).map_err(failed)?;
        self.format.clone_template(job, &template, &temporary.file)?;
        give(&temporary.file, self.layout.uid(job.vm.id))
            .and_then(|()| temporary.commit(&job.path))
            // Inner ones first: most file systems then have written the outer ones already.
            .and_then(|()| changed.iter().try_for_each(|dir| sync_dir(dir)))
            .map_err(failed)
    }

    /// Makes what is missing of the directories above an image. Answers which of them are to be synced, inner ones first.
    fn make_dirs(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let images = self.layout.data.join("images");
        let is_first = make_dir(&images)?;
        make_dir(dir)?;
        remove_temporaries(dir)?;
        // `images` even if `dir` was there: who made it may have been killed before the sync.
        let mut changed = vec![dir.to_path_buf(), images];
        if is_first {
            changed.push(self.layout.data.clone());
        }
        Ok(changed)
    }
}

impl Storage for Images {
    fn kind(&self) -> StorageKind {
        self.format.kind()
    }

    fn create_image(&self, vm: &Vm) -> Result<(), StorageError> {
        let job = self.job(vm)?;
        match open_image(&job.path)? {
            Some(image) => self.adjust(&job, &image),
            None => self.create(&job),
        }
    }

    fn destroy_image(&self, vm: &Vm) -> Result<(), StorageError> {
        self.remove_stray(vm.id)
    }

    fn images(&self) -> Result<Vec<VmId>, StorageError> {
        let dir = self.layout.data.join("images");
        let failed = |source| StorageError::List { path: dir.clone(), source };
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            match name.to_str().and_then(id_of_name) {
                Some(id) => ids.push(id),
                None => {
                    tracing::warn!(?name, dir = %dir.display(), "is no image of a Vm; left alone")
                }
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }

    fn remove_stray(&self, id: VmId) -> Result<(), StorageError> {
        let path = self.layout.images_of(id);
        let removed = match fs::remove_dir_all(&path) {
            Err(e) if e.kind() == ErrorKind::NotADirectory => fs::remove_file(&path),
            removed => removed,
        };
        match removed {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(StorageError::Destroy { path, source })
            }
            _ => Ok(()),
        }
    }

    fn space(&self) -> Result<Space, StorageError> {
        space(&self.layout.data)
    }
}

/// Joins a name of the plan to `data`; refuses one that could lead elsewhere.
pub(crate) fn below(data: &Path, name: &str) -> Result<PathBuf, StorageError> {
    let relative = Path::new(name);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || name.is_empty() || name.contains('\0') {
        return Err(StorageError::CheckPath { path: name.into() });
    }
    Ok(data.join(relative))
}

/// An image under its temporary name. Unless it is committed, it is removed.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    fn create(path: &Path) -> io::Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push(TEMPORARY);
        let path = PathBuf::from(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(IMAGE_MODE)
            .open(&path)?;
        Ok(Self { path, file })
    }

    fn commit(&self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a commit nothing has this name any more; if it can not go now, the next create removes it.
        if let Err(e) = fs::remove_file(&self.path)
            && e.kind() != ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), error = %e, "temporary image stays for now");
        }
    }
}

fn open_image(path: &Path) -> Result<Option<File>, StorageError> {
    let damaged =
        |problem: &str| StorageError::Damaged { path: path.into(), problem: problem.into() };
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let image = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(rustix::io::Errno::LOOP) => return Err(damaged("it is a symbolic link")),
        Err(rustix::io::Errno::ISDIR) => return Err(damaged("it is a directory")),
        Err(e) => {
            return Err(StorageError::List { path: path.into(), source: e.into() });
        }
    };
    match image.metadata() {
        Ok(meta) if meta.is_file() => Ok(Some(image)),
        Ok(_) => Err(damaged("it is no regular file")),
        Err(source) => Err(StorageError::List { path: path.into(), source }),
    }
}

/// Gives an image to its machine's user alone.
fn give(image: &File, uid: u32) -> io::Result<()> {
    let meta = image.metadata()?;
    if (meta.uid(), meta.gid()) != (uid, uid) {
        fchown(image, Some(uid), Some(uid))?;
    }
    if meta.mode() & 0o7777 != IMAGE_MODE {
        image.set_permissions(Permissions::from_mode(IMAGE_MODE))?;
    }
    Ok(())
}

/// Whether the directory was made now.
fn make_dir(dir: &Path) -> io::Result<bool> {
    match DirBuilder::new().mode(DIR_MODE).create(dir) {
        Ok(()) => {
            // The umask may have taken bits away.
            fs::set_permissions(dir, Permissions::from_mode(DIR_MODE))?;
            Ok(true)
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

fn remove_temporaries(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().ends_with(TEMPORARY.as_bytes()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn space(dir: &Path) -> Result<Space, StorageError> {
    let stat = rustix::fs::statvfs(dir)
        .map_err(|e| StorageError::Space { path: dir.into(), source: e.into() })?;
    let mb = |blocks: u64| ((u128::from(blocks) * u128::from(stat.f_frsize)) >> 20) as u64;
    Ok(Space { total_mb: mb(stat.f_blocks), free_mb: mb(stat.f_bavail) })
}

/// Only what `VmId` itself writes: `007` and `+7` are not `7`.
fn id_of_name(name: &str) -> Option<VmId> {
    name.parse().ok().filter(|id: &VmId| id.to_string() == name)
}
