//! What an image is made from: a template's disk, a kept image, another disk of the same Vm. Its content is never written,
//! and what an image says of itself is never followed: names come from the record.

use crate::images::Job;
use crate::images::files::{self, Owner, below, give, odd, open_device, open_plain};
use crate::layers::parse_name;
use crate::{StorageError, TEMPLATE_DISK, qcow2};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tt_model::names::runtime_image;
use tt_model::{StorageKind, Vm};

/// What an image is made from.
#[derive(Debug)]
pub(crate) struct Source {
    /// Its content.
    pub(crate) file: File,
    /// Its name, relative to the data directory.
    pub(crate) name: String,
    /// Its format.
    pub(crate) format: StorageKind,
    /// Its size as a guest would see it.
    pub(crate) size_bytes: u64,
    /// What it takes on the file system: what a sparse copy has to write.
    pub(crate) allocated_bytes: u64,
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// What it is.
    pub(crate) origin: Origin,
}

/// Where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The template's disk.
    Template,
    /// A kept image.
    Kept,
    /// Another disk of the same Vm.
    Own,
}

/// Name and format of what the disk of `vm` in `epoch` is made from, or lies on; see [`Source::open`].
pub(crate) fn origin(
    kind: StorageKind,
    vm: &Vm,
    epoch: u32,
) -> Result<(String, StorageKind), StorageError> {
    match (vm.disks.get(&epoch).and_then(|disk| disk.parent), &vm.base) {
        (Some(parent), _) => Ok((runtime_image(kind, vm.id, parent), kind)),
        (None, Some(base)) => kept(kind, base).map(|format| (base.clone(), format)),
        (None, None) => Ok((format!("{}/{TEMPLATE_DISK}", vm.template.path), StorageKind::File)),
    }
}

/// The format of a kept image; refuses a name that is none of an image.
fn kept(kind: StorageKind, base: &str) -> Result<StorageKind, StorageError> {
    // Only the names of images, and a raw disk only from a raw one.
    let found = parse_name(base).filter(|(_, _, is)| kind.is_layered() || *is == kind);
    found.map(|(_, _, format)| format).ok_or_else(|| StorageError::CheckName {
        path: base.to_owned(),
        right: format!("images/ID/EPOCH.{}", kind.extension()),
    })
}

impl Source {
    /// Opens what `job`, the disk of `vm` in `epoch`, is made from; refuses what does not fit the size asked for.
    pub(crate) fn open(
        job: &Job,
        kind: StorageKind,
        vm: &Vm,
        epoch: u32,
    ) -> Result<Self, StorageError> {
        let parent = vm.disks.get(&epoch).and_then(|disk| disk.parent);
        let source = match (parent, &vm.base) {
            (Some(parent), _) => Self::own(job.data, kind, vm, parent),
            (None, Some(base)) => Self::kept(job.data, kind, base),
            (None, None) => Self::template(job.data, vm),
        }?;
        if source.size_bytes > job.want_bytes {
            return Err(StorageError::BelowSource {
                source_mb: source.size_bytes.div_ceil(1 << 20),
                want_mb: job.want_mb(),
                path: source.path,
            });
        }
        Ok(source)
    }

    /// Another disk of the same Vm.
    pub(crate) fn own(
        data: &Path,
        kind: StorageKind,
        vm: &Vm,
        epoch: u32,
    ) -> Result<Self, StorageError> {
        Self::read(data, runtime_image(kind, vm.id, epoch), kind, Origin::Own)
    }

    fn kept(data: &Path, kind: StorageKind, base: &str) -> Result<Self, StorageError> {
        let format = kept(kind, base)?;
        let source = Self::read(data, base.to_owned(), format, Origin::Kept)?;
        let uid = source.file.metadata().map_err(|e| source.not_opened(e))?.uid();
        if uid != 0 {
            return Err(source.not_opened(odd("it still belongs to a machine")));
        }
        Ok(source)
    }

    fn template(data: &Path, vm: &Vm) -> Result<Self, StorageError> {
        let name = format!("{}/{TEMPLATE_DISK}", vm.template.path);
        Self::read(data, name, StorageKind::File, Origin::Template)
    }

    fn read(
        data: &Path,
        name: String,
        format: StorageKind,
        origin: Origin,
    ) -> Result<Self, StorageError> {
        let path = below(data, &name)?;
        let open = if format.is_device() { open_device } else { open_plain };
        let opened = open(&path, false)
            .and_then(|file| Ok((file.metadata()?, files::size_bytes(&file)?, file)));
        let (meta, bytes, file) = opened.map_err(|e| not_opened(&path, origin, e))?;
        let size_bytes = match format {
            StorageKind::Qcow2 => qcow2::size_bytes(&path, &file)?,
            _ => bytes,
        };
        // `st_blocks` counts 512 bytes whatever the file system's block size.
        let allocated_bytes = meta.blocks() * 512;
        Ok(Self { file, name, format, size_bytes, allocated_bytes, path, origin })
    }

    /// Makes sure that the machine of the user `uid` reads it, and that no machine writes it any more once it is opened
    /// anew: a layer is to lie on it.
    pub(crate) fn freeze(&self, uid: u32) -> Result<(), StorageError> {
        let failed = |source| StorageError::Give { path: self.path.clone(), source };
        match self.origin {
            Origin::Template => Ok(()),
            Origin::Own => {
                // Its last writes too: a layer without what it lies on is nothing.
                give(&self.file, Owner::Frozen(uid))
                    .and_then(|_| self.file.sync_all())
                    .map_err(failed)
            }
            Origin::Kept => self.path.parent().map_or(Ok(()), share).map_err(failed),
        }
    }

    fn not_opened(&self, source: io::Error) -> StorageError {
        not_opened(&self.path, self.origin, source)
    }
}

fn not_opened(path: &Path, origin: Origin, source: io::Error) -> StorageError {
    let path = path.to_path_buf();
    match origin {
        Origin::Template => StorageError::OpenTemplate { path, source },
        Origin::Kept | Origin::Own => StorageError::OpenDisk { path, source },
    }
}

/// Lets every machine read a kept image: it and what it lies on are all that is in its directory.
fn share(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let file = open_plain(&entry?.path(), false)?;
        if give(&file, Owner::Shared)? {
            file.sync_all()?;
        }
    }
    Ok(())
}
