//! What is packed with gzip, xz or zstd, unpacked within bounds on output, memory and time. A stream that ends too early,
//! or has something else behind it, is refused.

use super::head::Packing;
use crate::{ImageError, Progress, files, space};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::path::Path;

/// Largest window of zstd, as a power of two: what its own program takes without being told otherwise.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Memory for xz: its largest preset, `-9`, takes 65 MiB.
const XZ_MEMORY_BYTES_MAX: u64 = 256 << 20;

/// Unpacks the file `from` into the new file `to`, at most `most` bytes, with holes for zeros.
pub(super) fn unpack(
    packing: Packing,
    from: &Path,
    to: &Path,
    most: u64,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    progress.step("unpacking");
    let input = File::open(from).map_err(files::not_read(from))?;
    let total = input.metadata().map_err(files::not_read(from))?.len();
    let read = Cell::new(0);
    let input = BufReader::with_capacity(1 << 17, Counted { input, read: &read });
    let refused = |problem: String| ImageError::Format { what: "packed file".into(), problem };
    let mut output = match decoder(packing, input) {
        Ok(output) => output,
        Err(error) => return Err(refused(error.to_string())),
    };
    let mut writer = space::SparseWriter::create(to)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        progress.check()?;
        progress.bytes(read.get(), Some(total));
        let len = match output.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.raw_os_error().is_some() => {
                return Err(files::not_read(from)(error));
            }
            Err(error) => return Err(refused(error.to_string())),
        };
        writer.write(&buffer[..len])?;
        if writer.bytes() > most {
            let problem =
                format!("{total} bytes hold more than {} MB, the most for so many", most >> 20);
            return Err(refused(problem));
        }
    }
    writer.finish()
}

fn decoder<'a>(packing: Packing, input: impl io::BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match packing {
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Packing::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        Packing::Xz => {
            let flags = liblzma::stream::CONCATENATED;
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, flags)
                .map_err(io::Error::from)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
    })
}

/// Counts what was read.
struct Counted<'a> {
    input: File,
    read: &'a Cell<u64>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.input.read(buffer)?;
        self.read.set(self.read.get() + len as u64);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quiet;
    use std::io::Write;

    fn pack(packing: Packing, bytes: &[u8]) -> Vec<u8> {
        match packing {
            Packing::Gzip => {
                let fast = flate2::Compression::fast();
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), fast);
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Packing::Zstd => zstd::stream::encode_all(bytes, 1).unwrap(),
            Packing::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    fn unpacked(packing: Packing, packed: &[u8]) -> Result<Vec<u8>, ImageError> {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::write(&from, packed).unwrap();
        unpack(packing, &from, &to, 1 << 30, &Quiet)?;
        Ok(std::fs::read(&to).unwrap())
    }

    #[test]
    fn every_packing_comes_back_and_nothing_is_believed_that_is_cut_or_goes_on() {
        let content = [b"some text ".repeat(50_000), vec![0; 1 << 20], b"end".to_vec()].concat();
        for packing in [Packing::Gzip, Packing::Xz, Packing::Zstd] {
            let packed = pack(packing, &content);
            assert!(unpacked(packing, &packed).unwrap() == content, "{packing:?}");
            for wrong in [
                packed[..packed.len() - 5].to_vec(),
                packed[..20].to_vec(),
                [packed.clone(), b"something else".to_vec()].concat(),
            ] {
                let error = unpacked(packing, &wrong).unwrap_err();
                assert!(matches!(error, ImageError::Format { .. }), "{packing:?}: {error:?}");
            }
        }
    }
}
