//! Decompression by what the first bytes say: LZ4 legacy frames here, the rest through the usual programs.

use crate::tool::Tool;
use crate::{ImageError, Progress, lz4};
use std::time::Duration;

/// No kernel or module takes longer, even on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// First bytes of a format, and the program that reads it with its Debian package.
const PROGRAMS: [(&[u8], &str, &str); 3] = [
    (&[0x1f, 0x8b], "gzip", "gzip"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz", "xz-utils"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd", "zstd"),
];

/// The content of `packed`, `bytes_max` at most; `None` if the format is not known.
pub(crate) fn decompress(
    what: &str,
    packed: &[u8],
    bytes_max: usize,
    progress: &dyn Progress,
) -> Result<Option<Vec<u8>>, ImageError> {
    if packed.starts_with(&lz4::MAGIC) {
        let content = lz4::decompress_legacy(packed, bytes_max);
        return content.map(Some).map_err(|problem| ImageError::Format {
            what: what.to_owned(),
            problem: problem.to_owned(),
        });
    }
    let Some((_, program, package)) = PROGRAMS.iter().find(|(magic, ..)| packed.starts_with(magic))
    else {
        return Ok(None);
    };
    let tool = Tool::new(program, package, TIMEOUT).arg("-dc");
    tool.filter(packed.to_vec(), bytes_max as u64).run_for(progress).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_comes_back() {
        let text = b"some text ".repeat(10_000);
        for program in ["gzip", "xz", "zstd"] {
            let tool = Tool::new(program, program, TIMEOUT).arg("-c");
            match tool.filter(text.clone(), 1 << 20).run() {
                Ok(packed) => {
                    let content = decompress("text", &packed, 1 << 20, &crate::Quiet).unwrap();
                    assert!(content.as_ref() == Some(&text), "{program}");
                }
                Err(e) => println!("SKIPPED every_format_comes_back, {program}: {e}"),
            }
        }
        assert_eq!(decompress("text", b"BZh9", 100, &crate::Quiet).unwrap(), None);
    }
}
