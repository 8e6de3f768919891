//! SHA-256 of files, as lower-case hexadecimal. It never writes.

use crate::{ImageError, Progress, files};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

/// What a sparse file is hashed by; the usual block of a file system.
const BLOCK_BYTES: usize = 4096;
/// Blocks read at once.
const READ_BLOCKS: usize = 256;

/// Of bytes.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Of a file's length and its blocks that are not all zero, each with its number: the same whether a block of zeros is a
/// hole or not, and quick for a file that is mostly holes.
pub(crate) fn of_sparse_file(path: &Path, progress: &dyn Progress) -> Result<String, ImageError> {
    let not_read = files::not_read(path);
    let mut file = File::open(path).map_err(&not_read)?;
    let bytes = file.metadata().map_err(&not_read)?.len();
    let mut hash = Sha256::new();
    hash.update(bytes.to_le_bytes());
    let mut buffer = vec![0; BLOCK_BYTES * READ_BLOCKS];
    let mut number = 0_u64;
    loop {
        progress.check()?;
        let at = number * BLOCK_BYTES as u64;
        progress.bytes(at, Some(bytes));
        // What lies in a hole is zero and need not be read.
        match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => number = data / BLOCK_BYTES as u64,
            Err(rustix::io::Errno::NXIO) => return Ok(hex(&hash.finalize())),
            Err(_) => {}
        }
        let start = io::SeekFrom::Start(number * BLOCK_BYTES as u64);
        file.seek(start).map_err(&not_read)?;
        let len = read_full(&mut file, &mut buffer).map_err(&not_read)?;
        for block in buffer[..len].chunks(BLOCK_BYTES) {
            if block.iter().any(|byte| *byte != 0) {
                hash.update(number.to_le_bytes());
                hash.update(block);
            }
            number += 1;
        }
        if len < buffer.len() {
            return Ok(hex(&hash.finalize()));
        }
    }
}

/// Of a file as it is, as everybody else computes it.
pub(crate) fn of_content(path: &Path, progress: &dyn Progress) -> Result<String, ImageError> {
    let not_read = files::not_read(path);
    let mut file = File::open(path).map_err(&not_read)?;
    let bytes = file.metadata().map_err(&not_read)?.len();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BLOCK_BYTES * READ_BLOCKS];
    let mut done = 0;
    loop {
        progress.check()?;
        progress.bytes(done, Some(bytes));
        match read_full(&mut file, &mut buffer).map_err(&not_read)? {
            0 => return Ok(hex(&hash.finalize())),
            len => {
                hash.update(&buffer[..len]);
                done += len as u64;
            }
        }
    }
}

/// Whether `text` has the form of a digest.
pub(crate) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..])? {
            0 => break,
            more => len += more,
        }
    }
    Ok(len)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quiet;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_and_zeros_are_the_same_but_places_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, zeros: bool, at: u64| {
            let path = dir.path().join(name);
            let file = File::create(&path).unwrap();
            if zeros {
                file.write_all_at(&vec![0; 3 << 20], 0).unwrap();
            }
            file.set_len(3 << 20).unwrap();
            file.write_all_at(b"data", at).unwrap();
            of_sparse_file(&path, &Quiet).unwrap()
        };
        let digest = make("sparse", false, 2 << 20);
        assert!(is_digest(&digest));
        assert_eq!(digest, make("full", true, 2 << 20));
        assert_ne!(digest, make("moved", false, (2 << 20) + 4096));
        assert_ne!(digest, of_bytes(b""));
    }
}
