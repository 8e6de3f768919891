//! A template's disk as a stream of bytes, made as it is read: nothing is written on the host, and a template that is
//! removed meanwhile is read to its end.

mod qcow2;

use crate::{Catalogue, DISK, ImageError, files, record};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use tt_model::VmTemplate;
use tt_model::template::FEATURE_DISK;

/// Most data in one piece of a sparse stream.
const PIECE_BYTES: u64 = 256 << 10;
/// Head of a piece: its place (8 bytes) and length (4 bytes), little endian.
const HEAD_BYTES: usize = 12;

/// How a disk is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportForm {
    /// Byte for byte, holes as zeros.
    Raw,
    /// A qcow2 image that needs no other file and has no clusters for holes.
    Qcow2,
    /// Pieces of data: each 8 bytes of its place and 4 bytes of its length, little endian, and that much data; the last one
    /// has the length 0, and the disk's size as its place.
    Sparse,
}

/// A disk that is sent.
pub struct Export {
    /// Length of the stream, where it is known.
    pub bytes: Option<u64>,
    blocks: Box<dyn Blocks>,
    /// What was made and not read yet.
    block: Vec<u8>,
    at: usize,
}

/// Something that comes in blocks; an empty one is the end.
trait Blocks: Send {
    fn next(&mut self, block: &mut Vec<u8>) -> io::Result<()>;
}

impl Catalogue {
    /// Opens a template's disk to send it.
    ///
    /// # Errors
    /// [`ImageError::Format`] for a template without a disk; [`ImageError::Damaged`], [`ImageError::Read`].
    pub fn export(&self, template: &VmTemplate, form: ExportForm) -> Result<Export, ImageError> {
        let dir = self.data.join(&template.path);
        if !record::read(&dir)?.has(FEATURE_DISK) {
            return Err(ImageError::Format {
                what: format!("template {:?}", template.name),
                problem: "it has no disk".into(),
            });
        }
        let path = dir.join(DISK);
        Export::open(&path, form).map_err(files::not_read(&path))
    }
}

impl Export {
    fn open(path: &Path, form: ExportForm) -> io::Result<Self> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let (bytes, blocks): (Option<u64>, Box<dyn Blocks>) = match form {
            ExportForm::Raw => (Some(size), Box::new(Raw { file, size, at: 0 })),
            ExportForm::Sparse => (None, Box::new(Sparse { file, size, at: 0, is_over: false })),
            ExportForm::Qcow2 => {
                let image = qcow2::Image::of(file)?;
                (Some(image.bytes()), Box::new(image))
            }
        };
        Ok(Self { bytes, blocks, block: Vec::new(), at: 0 })
    }
}

impl Read for Export {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() {
            (self.at, self.block) = (0, Vec::new());
            self.blocks.next(&mut self.block)?;
        }
        let len = buffer.len().min(self.block.len() - self.at);
        buffer[..len].copy_from_slice(&self.block[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

struct Raw {
    file: File,
    size: u64,
    at: u64,
}

impl Blocks for Raw {
    fn next(&mut self, block: &mut Vec<u8>) -> io::Result<()> {
        let len = PIECE_BYTES.min(self.size - self.at);
        block.resize(len as usize, 0);
        self.file.read_exact_at(block, self.at)?;
        self.at += len;
        Ok(())
    }
}

struct Sparse {
    file: File,
    size: u64,
    at: u64,
    is_over: bool,
}

impl Blocks for Sparse {
    fn next(&mut self, block: &mut Vec<u8>) -> io::Result<()> {
        if self.is_over {
            return Ok(());
        }
        let (at, len) = match data(&self.file, self.at, self.size)? {
            Some((start, end)) => (start, PIECE_BYTES.min(end - start)),
            None => (self.size, 0),
        };
        self.is_over = len == 0;
        block.extend(at.to_le_bytes());
        block.extend((len as u32).to_le_bytes());
        block.resize(HEAD_BYTES + len as usize, 0);
        self.file.read_exact_at(&mut block[HEAD_BYTES..], at)?;
        self.at = at + len;
        Ok(())
    }
}

/// The next part of a file that is no hole, from `at` on.
fn data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // A file system that does not know its holes.
        Err(Errno::INVAL) => at,
        Err(e) => return Err(e.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(size).min(size);
    Ok((start < end).then_some((start, end)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn disk(dir: &Path, size: u64, data: &[(u64, usize)]) -> std::path::PathBuf {
        let path = dir.join(DISK);
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        for (at, len) in data {
            file.write_all_at(&vec![7; *len], *at).unwrap();
        }
        path
    }

    fn read(path: &Path, form: ExportForm) -> Vec<u8> {
        let mut export = Export::open(path, form).unwrap();
        let (mut content, bytes) = (Vec::new(), export.bytes);
        export.read_to_end(&mut content).unwrap();
        assert!(bytes.is_none_or(|bytes| bytes == content.len() as u64), "{form:?}");
        content
    }

    #[test]
    fn every_form_has_the_same_disk() {
        const GB: u64 = 1 << 30;
        for (size, parts) in [
            (3 << 20, &[][..]),
            (3 << 20, &[(0, 3 << 20)]),
            (5_000_192, &[(4096, 10), (4_999_000, 1192)]),
            (GB + 512, &[(10 << 20, 300_000), (GB - 70_000, 70_000)]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = disk(dir.path(), size, parts);
            if size < GB {
                assert!(read(&path, ExportForm::Raw) == std::fs::read(&path).unwrap());
            }
            let image = dir.path().join("x.qcow2");
            let content = read(&path, ExportForm::Qcow2);
            assert!(content.len() < 12 << 20, "{} bytes", content.len());
            std::fs::write(&image, content).unwrap();
            for args in [
                &["check", "-q", "-f", "qcow2"][..],
                &["compare", "-q", "-f", "raw", "-F", "qcow2"],
            ] {
                let mut command = Command::new("qemu-img");
                command.args(args);
                if args[0] == "compare" {
                    command.arg(&path);
                }
                assert!(command.arg(&image).status().unwrap().success(), "{size}: {args:?}");
            }
            let copy = unsparse(&read(&path, ExportForm::Sparse), dir.path());
            let same = Command::new("cmp").args([&path, &copy]).status().unwrap();
            assert!(same.success(), "{size}");
        }
    }

    fn unsparse(mut stream: &[u8], dir: &Path) -> std::path::PathBuf {
        let path = dir.join("copy");
        let file = File::create(&path).unwrap();
        loop {
            let at = u64::from_le_bytes(stream[..8].try_into().unwrap());
            let len = u32::from_le_bytes(stream[8..12].try_into().unwrap()) as usize;
            if len == 0 {
                assert_eq!(stream.len(), HEAD_BYTES);
                file.set_len(at).unwrap();
                return path;
            }
            file.write_all_at(&stream[12..12 + len], at).unwrap();
            stream = &stream[12 + len..];
        }
    }
}
