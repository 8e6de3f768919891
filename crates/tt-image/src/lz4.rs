//! Decompression of LZ4 in the legacy frame that Linux packs its kernels in, after the format's descriptions
//! (lz4_Frame_format.md "Legacy frame", lz4_Block_format.md). It never compresses and never reads past its input.

/// First bytes of a legacy frame.
pub(crate) const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// What one block of a legacy frame holds at most.
const BLOCK_BYTES_MAX: usize = 8 << 20;
/// Shortest match; lengths are stored minus this.
const MATCH_BYTES_MIN: usize = 4;

/// The content of a legacy frame, `content_bytes_max` at most. What follows the last block (Linux appends the size) is
/// ignored if it is no block.
pub(crate) fn decompress_legacy(
    frame: &[u8],
    content_bytes_max: usize,
) -> Result<Vec<u8>, &'static str> {
    let mut rest = frame.strip_prefix(&MAGIC).ok_or("it is no LZ4 legacy frame")?;
    let mut content = Vec::new();
    while let Some((size, after)) = rest.split_first_chunk() {
        let size = u32::from_le_bytes(*size) as usize;
        let Some((block, after)) = after.split_at_checked(size) else {
            break;
        };
        decompress_block(block, &mut content)?;
        if content.len() > content_bytes_max {
            return Err("its content is too large");
        }
        rest = after;
    }
    Ok(content)
}

/// Appends the content of one block to `out`.
fn decompress_block(block: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
    let start = out.len();
    let mut input = Input(block);
    loop {
        let token = input.byte()?;
        let literals = input.length(token >> 4)?;
        out.extend_from_slice(input.take(literals)?);
        // The last sequence has no match.
        if input.0.is_empty() {
            return Ok(());
        }
        let offset = usize::from(input.byte()?) | usize::from(input.byte()?) << 8;
        let len = input.length(token & 15)? + MATCH_BYTES_MIN;
        if offset == 0 || offset > out.len() - start {
            return Err("it refers to data before its beginning");
        }
        if out.len() - start + len > BLOCK_BYTES_MAX {
            return Err("one of its blocks is too large");
        }
        copy_match(out, offset, len);
    }
}

/// Repeats `len` bytes from `offset` before the end; they may overlap what is written.
fn copy_match(out: &mut Vec<u8>, offset: usize, mut len: usize) {
    let from = out.len() - offset;
    while len > 0 {
        // What was written meanwhile can be copied too, so the steps double.
        let step = len.min(out.len() - from);
        out.extend_from_within(from..from + step);
        len -= step;
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Result<u8, &'static str> {
        let (first, rest) = self.0.split_first().ok_or("it ends too early")?;
        self.0 = rest;
        Ok(*first)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or("it ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    /// A length of 4 bits, which go on in further bytes if all are set.
    fn length(&mut self, nibble: u8) -> Result<usize, &'static str> {
        let mut len = usize::from(nibble);
        if nibble == 15 {
            loop {
                let more = self.byte()?;
                len += usize::from(more);
                if more != 255 {
                    break;
                }
            }
        }
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::Tool;
    use proptest::prelude::*;
    use std::time::Duration;

    fn frame(block: &[u8]) -> Vec<u8> {
        let size = (block.len() as u32).to_le_bytes();
        [&MAGIC[..], &size, block].concat()
    }

    #[test]
    fn literals_and_overlapping_matches() {
        // "ab", then 4 + 3 bytes from 2 back, then "c".
        let block = [0x23, b'a', b'b', 2, 0, 0x10, b'c'];
        assert_eq!(decompress_legacy(&frame(&block), 100).unwrap(), b"ababababac");
    }

    #[test]
    fn trailing_size_is_no_block() {
        let mut bytes = frame(&[0x10, b'x']);
        bytes.extend_from_slice(&1_u32.to_le_bytes());
        assert_eq!(decompress_legacy(&bytes, 100).unwrap(), b"x");
    }

    #[test]
    fn malformed_blocks_are_refused() {
        for block in [
            &[][..],
            &[0x10],
            &[0xf0, 255, 255],
            &[0x10, b'a', 1],
            &[0x10, b'a', 0, 0, 0],
            &[0x10, b'a', 2, 0, 0],
            &[0x1f, b'a', 1, 0, 255],
        ] {
            assert!(decompress_legacy(&frame(block), 1 << 20).is_err(), "{block:?}");
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut block = vec![0x1f, b'a', 1, 0];
        block.extend_from_slice(&[255; 40_000]);
        block.extend_from_slice(&[0, 0]);
        assert!(decompress_legacy(&frame(&block), 1 << 30).is_err());
    }

    #[test]
    fn what_the_lz4_tool_packs_comes_back() {
        let text: Vec<u8> = (0..60_000_u32).flat_map(|i| (i * i / 7).to_le_bytes()).collect();
        let tool = Tool::new("lz4", "lz4", Duration::from_secs(30)).args(["-l", "-9", "-c"]);
        match tool.filter(text.clone(), 1 << 22).run() {
            Ok(packed) => assert_eq!(decompress_legacy(&packed, 1 << 22).unwrap(), text),
            Err(e) => println!("SKIPPED what_the_lz4_tool_packs_comes_back: {e}"),
        }
    }

    proptest! {
        #[test]
        fn no_input_crashes_it(block in prop::collection::vec(any::<u8>(), 0..2000)) {
            if let Ok(content) = decompress_legacy(&frame(&block), 1 << 16) {
                prop_assert!(content.len() <= 1 << 16);
            }
        }
    }
}
