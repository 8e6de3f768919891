//! The content of a disk as one plain file: what a layer has not is looked for in the one below. Which disk lies on which is
//! taken from the record; what an image says of that itself is never followed. It never writes into an image.

use crate::images::files::{below, open_device, open_plain, size_bytes, space};
use crate::{RESERVE_MB, StorageError, qcow2};
use rustix::fs::{SeekFrom, ioctl_ficlone};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tt_model::StorageKind;

/// Looked at and copied at once: the clusters of our qcow2 images.
const PIECE_BYTES: u64 = qcow2::CLUSTER_BYTES;
/// Asked whether to go on, and how much room is left, after this much.
const LOOK_BYTES: u64 = 8 << 20;
/// Most disks that lie one on the other, kept images and a template included.
const LAYERS_MAX: usize = 4096;

/// One disk of a stack.
enum Layer {
    Plain { file: File, bytes: u64 },
    Overlay(qcow2::Reader),
}

/// What a layer has of a piece.
enum Has {
    /// Nothing: what lies below shows through.
    Nothing,
    Zeros,
    Data,
}

/// Writes what `layers`, the topmost first, show together into `to`, an empty file.
pub(crate) fn export(
    data: &Path,
    layers: &[String],
    to: &File,
    goes_on: &dyn Fn(u64, u64) -> bool,
) -> Result<(), StorageError> {
    if layers.is_empty() || layers.len() > LAYERS_MAX {
        return Err(StorageError::CheckPath { path: layers.concat() });
    }
    let path = data.join(&layers[0]);
    let failed = |source: io::Error| StorageError::Export { path: path.clone(), source };
    let mut stack = Vec::new();
    for name in layers {
        stack.push(Layer::open(&below(data, name)?)?);
    }
    let size = stack[0].bytes();
    if let [Layer::Plain { file, .. }] = stack.as_slice()
        && ioctl_ficlone(to, file).is_ok()
    {
        return to.sync_all().map_err(failed);
    }
    let mut buffer = vec![0; PIECE_BYTES as usize];
    let (mut at, mut looked) = (0, 0);
    while at < size {
        if at - looked >= LOOK_BYTES || at == 0 {
            looked = at;
            if !goes_on(at, size) {
                return Err(failed(ErrorKind::Interrupted.into()));
            }
            let free_mb = space(data)?.free_mb;
            if free_mb < RESERVE_MB {
                return Err(StorageError::NoSpace { path, need_mb: RESERVE_MB, free_mb });
            }
        }
        let len = PIECE_BYTES.min(size - at);
        let piece = &mut buffer[..len as usize];
        if show(&mut stack, at, piece, &path)? && piece.iter().any(|byte| *byte != 0) {
            to.write_all_at(piece, at).map_err(failed)?;
        }
        at += len;
        at = skip(&stack, at).min(size);
    }
    to.set_len(size).and_then(|()| to.sync_all()).map_err(failed)
}

/// Reads a piece from the topmost layer that has it. Answers whether any has.
fn show(stack: &mut [Layer], at: u64, piece: &mut [u8], path: &Path) -> Result<bool, StorageError> {
    for layer in stack {
        match layer.read(at, piece, path)? {
            Has::Nothing => {}
            Has::Zeros => return Ok(false),
            Has::Data => return Ok(true),
        }
    }
    Ok(false)
}

/// Where the next piece begins: a plain disk that lies on nothing says where its holes end.
fn skip(stack: &[Layer], at: u64) -> u64 {
    let [Layer::Plain { file, bytes }] = stack else { return at };
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data / PIECE_BYTES * PIECE_BYTES,
        Err(rustix::io::Errno::NXIO) => *bytes,
        Err(_) => at,
    }
    .max(at)
}

impl Layer {
    fn open(path: &Path) -> Result<Self, StorageError> {
        let failed = |source| StorageError::OpenDisk { path: path.into(), source };
        let is_device =
            path.file_name().and_then(|name| name.to_str()) == StorageKind::Zvol.inner();
        let open = if is_device { open_device } else { open_plain };
        let file = open(path, false).map_err(failed)?;
        if path.extension().is_some_and(|extension| extension == "qcow2") {
            return qcow2::Reader::open(PathBuf::from(path), file).map(Self::Overlay);
        }
        let bytes = size_bytes(&file).map_err(failed)?;
        Ok(Self::Plain { file, bytes })
    }

    /// The size that a guest sees.
    fn bytes(&self) -> u64 {
        match self {
            Self::Plain { bytes, .. } => *bytes,
            Self::Overlay(reader) => reader.size_bytes(),
        }
    }

    /// `path`: what the piece is read for.
    fn read(&mut self, at: u64, piece: &mut [u8], path: &Path) -> Result<Has, StorageError> {
        let failed = |source: io::Error| StorageError::OpenDisk { path: path.into(), source };
        match self {
            Self::Plain { bytes, .. } if at >= *bytes => Ok(Has::Nothing),
            Self::Plain { file, bytes } => {
                // What lies behind its end is zero.
                let len = piece.len().min((*bytes - at) as usize);
                file.read_exact_at(&mut piece[..len], at).map_err(failed)?;
                piece[len..].fill(0);
                Ok(Has::Data)
            }
            Self::Overlay(reader) if at >= reader.size_bytes() => Ok(Has::Nothing),
            Self::Overlay(reader) => match reader.find(at)? {
                qcow2::Cluster::Absent => Ok(Has::Nothing),
                qcow2::Cluster::Zeros => Ok(Has::Zeros),
                qcow2::Cluster::At(offset) => {
                    reader.read(offset, piece).map_err(failed)?;
                    Ok(Has::Data)
                }
            },
        }
    }
}
