//! A file as its runs of data, without its holes, packed by zstd: so that a disk that is mostly empty costs no more than its
//! data on the way, and has its holes again where it arrives. The same file is always packed to the same bytes.

use super::blob::{Digest, Verified};
use super::spec::{Descriptor, refuse};
use crate::space::{self, SparseWriter};
use crate::{ImageError, Progress, files};
use rustix::fs::SeekFrom;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// First bytes of a file's runs.
const MAGIC: &[u8; 8] = b"TTRUNS1\n";
/// Runs are of whole pieces of this size, but for the last of a file.
const PIECE_BYTES: usize = 64 << 10;
/// Longest run, so that a reader can hold one.
const RUN_BYTES_MAX: usize = 16 * PIECE_BYTES;
/// Largest file of a template.
const FILE_BYTES_MAX: u64 = 16 << 40;
/// Level of zstd: quick, and small enough.
const LEVEL: i32 = 3;
/// The free space is looked at after so much data.
const ROOM_LOOK_BYTES: u64 = 32 << 20;
/// Data that may come out of any file, and beyond that for each byte of a packed one: the same as for imports.
const DATA_BYTES: u64 = 16 << 30;
const DATA_RATIO: u64 = 200;

/// Writes the runs of a file: magic, length; for each run where it begins, its length, its data; at the end one that begins
/// at the file's length and has none. Numbers are 64 bits, little endian.
pub(super) fn pack(
    path: &Path,
    to: &Path,
    progress: &dyn Progress,
) -> Result<(Digest, u64), ImageError> {
    let (not_read, not_written) = (files::not_read(path), files::not_written(to));
    let file = File::open(path).map_err(&not_read)?;
    let bytes = file.metadata().map_err(&not_read)?.len();
    let out = Hashed {
        out: BufWriter::new(File::create_new(to).map_err(&not_written)?),
        hash: Sha256::new(),
        bytes: 0,
    };
    let mut out = zstd::stream::write::Encoder::new(out, LEVEL).map_err(&not_written)?;
    out.include_checksum(true).map_err(&not_written)?;
    out.write_all(MAGIC)
        .and_then(|()| out.write_all(&bytes.to_le_bytes()))
        .map_err(&not_written)?;
    let mut run = Run { begin: 0, data: Vec::new() };
    let mut piece = vec![0; PIECE_BYTES];
    let (mut at, mut unlooked) = (0, ROOM_LOOK_BYTES);
    while at < bytes {
        progress.check()?;
        progress.bytes(at, Some(bytes));
        if unlooked >= ROOM_LOOK_BYTES {
            unlooked = 0;
            space::check_room(to, 0)?;
        }
        if let Some(data) = next_data(&file, at, bytes) {
            at = data - data % PIECE_BYTES as u64;
        }
        if at >= bytes {
            break;
        }
        let len = piece.len().min(usize::try_from(bytes - at).unwrap_or(usize::MAX));
        file.read_exact_at(&mut piece[..len], at).map_err(&not_read)?;
        let is_zero = piece[..len].iter().all(|byte| *byte == 0);
        let goes_on = run.begin + run.data.len() as u64 == at;
        if is_zero || !goes_on || run.data.len() + len > RUN_BYTES_MAX {
            run.write(&mut out).map_err(&not_written)?;
            run.begin = at;
        }
        if !is_zero {
            run.data.extend_from_slice(&piece[..len]);
            unlooked += len as u64;
        }
        at += len as u64;
    }
    run.write(&mut out).map_err(&not_written)?;
    Run { begin: bytes, data: Vec::new() }.write_head(&mut out).map_err(&not_written)?;
    let Hashed { out, hash, bytes } = out.finish().map_err(&not_written)?;
    let file = out.into_inner().map_err(|e| not_written(e.into_error()))?;
    file.sync_all().map_err(&not_written)?;
    Ok((Digest::from_hash(hash), bytes))
}

/// Unpacks the blob at `blob`, of which `descriptor` says what it is, into the new file `path`. Refuses what is not in the
/// form, or more than packed disks come to.
pub(super) fn unpack(
    blob: &Path,
    descriptor: &Descriptor,
    path: &Path,
    what: &str,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let file = File::open(blob).map_err(files::not_read(blob))?;
    let data_max = descriptor.size.saturating_mul(DATA_RATIO).saturating_add(DATA_BYTES);
    let packed = Verified::exact(file, descriptor.digest.clone(), descriptor.size);
    unpack_from(packed, data_max, path, progress).map_err(|e| match e {
        Bad::Input(error) if error.raw_os_error().is_none() => refuse(what, error.to_string()),
        Bad::Input(error) => files::not_read(blob)(error),
        Bad::Output(error) => error,
    })
}

/// Where data begins at or behind `at`; the file's end if nothing but a hole follows; `None` if that is not known.
fn next_data(file: &File, at: u64, bytes: u64) -> Option<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => Some(data),
        Err(rustix::io::Errno::NXIO) => Some(bytes.next_multiple_of(PIECE_BYTES as u64)),
        Err(_) => None,
    }
}

struct Run {
    begin: u64,
    data: Vec<u8>,
}

impl Run {
    fn write(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.data.is_empty() {
            return Ok(());
        }
        self.write_head(out)?;
        out.write_all(&self.data)?;
        self.data.clear();
        Ok(())
    }

    fn write_head(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.begin.to_le_bytes())?;
        out.write_all(&(self.data.len() as u64).to_le_bytes())
    }
}

/// On which side it failed.
enum Bad {
    Input(io::Error),
    Output(ImageError),
}

fn bad(problem: &str) -> Bad {
    Bad::Input(super::tar::bad(problem.to_owned()))
}

fn unpack_from(
    packed: impl Read,
    data_max: u64,
    path: &Path,
    progress: &dyn Progress,
) -> Result<(), Bad> {
    let mut input = super::blob::decompress(packed).map_err(Bad::Input)?;
    let mut magic = [0; MAGIC.len()];
    input.read_exact(&mut magic).map_err(Bad::Input)?;
    if magic != *MAGIC {
        return Err(bad("it does not hold the runs of a file"));
    }
    let bytes = number(&mut input)?;
    if bytes > FILE_BYTES_MAX {
        return Err(bad("its file is larger than any can be"));
    }
    let mut out = SparseWriter::create(path).map_err(Bad::Output)?;
    let (mut data, mut total) = (Vec::new(), 0);
    loop {
        progress.check().map_err(Bad::Output)?;
        progress.bytes(out.bytes(), Some(bytes));
        let (begin, len) = (number(&mut input)?, number(&mut input)?);
        let end = begin.checked_add(len).filter(|end| *end <= bytes);
        if begin < out.bytes() || end.is_none() || len > RUN_BYTES_MAX as u64 {
            return Err(bad("its runs are not in order, or not within its file"));
        }
        out.skip(begin - out.bytes());
        if len == 0 && begin == bytes {
            break;
        }
        total += len;
        if len == 0 || total > data_max {
            return Err(bad("it has a run of nothing, or more data than packed disks come to"));
        }
        data.clear();
        (&mut input).take(len).read_to_end(&mut data).map_err(Bad::Input)?;
        if (data.len() as u64) < len {
            return Err(bad("it ends in the middle of a run"));
        }
        out.write(&data).map_err(Bad::Output)?;
    }
    // The end of the packed content is where its digest is checked; what is behind it is read no further than its first byte.
    let mut rest = [0];
    if input.read(&mut rest).map_err(Bad::Input)? > 0 {
        return Err(bad("something follows behind its end"));
    }
    out.finish().map_err(Bad::Output)
}

fn number(input: &mut impl Read) -> Result<u64, Bad> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes).map_err(Bad::Input)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Counts and hashes what passes.
struct Hashed<W> {
    out: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let len = self.out.write(buffer)?;
        self.hash.update(&buffer[..len]);
        self.bytes += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
