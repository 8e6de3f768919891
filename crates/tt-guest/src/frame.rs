//! Frames: the unit of the channel between host and guest, and a decoder without I/O. It never panics, never holds more
//! than [`CAPACITY`] bytes, and does work in proportion to its input, whatever that is.
//!
//! A frame is, in little endian: magic `TTG1` (4 bytes), payload length `u32`, stream `u32` (0: control), kind `u8`,
//! CRC-32 (IEEE) of those 13 bytes and the payload `u32`, payload.

use crate::Error;

/// What every frame begins with.
pub const MAGIC: [u8; 4] = *b"TTG1";
/// Bytes before the payload.
pub const HEADER_LEN: usize = 17;
/// Largest payload in bytes: large enough that headers cost nothing, small enough that streams take turns.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Largest frame in bytes.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_PAYLOAD;
/// Bytes that a [`Decoder`] holds at most: an unfinished frame and a read's worth behind it.
pub const CAPACITY: usize = 2 * MAX_FRAME;

/// Where the checksum begins.
const CRC_AT: usize = 13;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A message as JSON, on stream 0.
    Control = 0,
    /// Host to guest: bytes for standard input, or of the archive that is copied in.
    Stdin = 1,
    /// Guest to host: bytes of standard output (or the terminal), or of the archive that is copied out.
    Stdout = 2,
    /// Guest to host: bytes of standard error.
    Stderr = 3,
    /// Host to guest: no more standard input.
    StdinEof = 4,
    /// Guest to host: no more standard output.
    StdoutEof = 5,
    /// Guest to host: no more standard error.
    StderrEof = 6,
    /// Either way: the receiver grants that many more bytes (`u32`) to the sender of the stream's data.
    Credit = 7,
}

impl Kind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        const ALL: [Kind; 8] = [
            Kind::Control,
            Kind::Stdin,
            Kind::Stdout,
            Kind::Stderr,
            Kind::StdinEof,
            Kind::StdoutEof,
            Kind::StderrEof,
            Kind::Credit,
        ];
        ALL.get(usize::from(number)).copied()
    }
}

/// One frame, checksum verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The stream it belongs to; 0 for control.
    pub stream: u32,
    /// What the payload is.
    pub kind: Kind,
    /// At most `MAX_PAYLOAD` bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The granted bytes, if this is a well-formed credit.
    #[must_use]
    pub fn credit(&self) -> Option<u32> {
        match (self.kind, <[u8; 4]>::try_from(self.payload.as_slice())) {
            (Kind::Credit, Ok(bytes)) => Some(u32::from_le_bytes(bytes)),
            _ => None,
        }
    }
}

/// Encodes one frame.
///
/// # Errors
/// `EncodeFrame` if the payload exceeds `MAX_PAYLOAD`.
pub fn encode(stream: u32, kind: Kind, payload: &[u8]) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len().min(MAX_PAYLOAD));
    encode_into(&mut bytes, stream, kind, payload)?;
    Ok(bytes)
}

/// Appends one encoded frame to `out`.
///
/// # Errors
/// `EncodeFrame` if the payload exceeds `MAX_PAYLOAD`; `out` is then unchanged.
pub fn encode_into(
    out: &mut Vec<u8>,
    stream: u32,
    kind: Kind,
    payload: &[u8],
) -> Result<(), Error> {
    if payload.len() > MAX_PAYLOAD {
        return Err(Error::EncodeFrame { bytes: payload.len() });
    }
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[8..12].copy_from_slice(&stream.to_le_bytes());
    header[12] = kind as u8;
    let checksum = checksum(&header[..CRC_AT], payload);
    header[CRC_AT..].copy_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    Ok(())
}

/// Encodes a credit of `bytes` for the sender of the stream's data.
#[must_use]
pub fn encode_credit(stream: u32, bytes: u32) -> Vec<u8> {
    // Four bytes of payload always fit.
    encode(stream, Kind::Credit, &bytes.to_le_bytes()).unwrap_or_default()
}

/// What goes before the first frame of a new session: `MAX_FRAME` zero bytes. They complete any frame that a killed
/// predecessor left unfinished, so that it cannot swallow what follows.
#[must_use]
pub fn resync() -> Vec<u8> {
    vec![0; MAX_FRAME]
}

/// Decodes all of `bytes` at once, as if they came over a channel: what a fuzzer calls.
#[must_use]
pub fn decode_all(bytes: &[u8]) -> Vec<Result<Frame, Error>> {
    let mut decoder = Decoder::default();
    let mut decoded = Vec::new();
    decoder.feed(bytes, |frame| decoded.push(frame));
    decoded
}

/// Turns bytes into frames, in whatever pieces they come.
///
/// After bytes that are no frame it goes on with the next magic. A frame whose checksum does not match is dropped
/// whole: its payload may hold a user's data, which must never be taken for frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    at: usize,
    garbage: u64,
}

impl Decoder {
    /// Takes as many of `bytes` as there is room for, and returns how many. It takes at least one, unless complete
    /// frames wait to be fetched by [`Self::next_frame`].
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        self.buffer.drain(..std::mem::take(&mut self.at));
        let count = bytes.len().min(CAPACITY - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        count
    }

    /// The next frame, or what was wrong with the bytes before it; `None` when more bytes are needed.
    pub fn next_frame(&mut self) -> Option<Result<Frame, Error>> {
        let found = self.skip_to_magic();
        if found && self.garbage > 0 {
            return Some(Err(Error::FindFrame { bytes: std::mem::take(&mut self.garbage) }));
        }
        let header: [u8; HEADER_LEN] =
            self.buffer.get(self.at..self.at + HEADER_LEN)?.try_into().ok()?;
        let length = read_u32(&header, 4);
        if length as usize > MAX_PAYLOAD {
            self.at += MAGIC.len();
            return Some(Err(Error::AcceptFrame { bytes: length }));
        }
        let end = self.at + HEADER_LEN + length as usize;
        let payload = self.buffer.get(self.at + HEADER_LEN..end)?;
        let frame = if checksum(&header[..CRC_AT], payload) != read_u32(&header, CRC_AT) {
            Err(Error::VerifyFrame { bytes: HEADER_LEN + payload.len() })
        } else if let Some(kind) = Kind::from_number(header[12]) {
            Ok(Frame { stream: read_u32(&header, 8), kind, payload: payload.to_vec() })
        } else {
            Err(Error::RecogniseFrame { kind: header[12] })
        };
        self.at = end;
        Some(frame)
    }

    /// Pushes all of `bytes` and hands every frame, or error, to `each` as soon as it is complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Result<Frame, Error>)) {
        while !bytes.is_empty() {
            let taken = self.push(bytes);
            bytes = &bytes[taken..];
            while let Some(frame) = self.next_frame() {
                each(frame);
            }
        }
    }

    /// Moves to the next magic, or to what may be the beginning of one; returns whether a whole one is there.
    fn skip_to_magic(&mut self) -> bool {
        let waiting = &self.buffer[self.at..];
        let found = waiting.windows(MAGIC.len()).position(|window| window == MAGIC);
        let skipped = found.unwrap_or(waiting.len().saturating_sub(MAGIC.len() - 1));
        self.garbage += waiting[..skipped].iter().filter(|byte| **byte != 0).count() as u64;
        self.at += skipped;
        found.is_some()
    }
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

fn read_u32(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        (any::<u32>(), 0u8..8, proptest::collection::vec(any::<u8>(), 0..3000)).prop_map(
            |(stream, kind, payload)| Frame {
                stream,
                kind: Kind::from_number(kind).unwrap(),
                payload,
            },
        )
    }

    fn bytes_of(frames: &[Frame]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for frame in frames {
            encode_into(&mut bytes, frame.stream, frame.kind, &frame.payload).unwrap();
        }
        bytes
    }

    fn good(decoded: Vec<Result<Frame, Error>>) -> Vec<Frame> {
        decoded.into_iter().filter_map(Result::ok).collect()
    }

    #[test]
    fn the_layout_is_pinned() {
        let bytes = encode(7, Kind::Stdout, b"hi").unwrap();
        assert_eq!(bytes[..13], *b"TTG1\x02\0\0\0\x07\0\0\0\x02");
        assert_eq!(bytes[13..17], crc32fast::hash(b"TTG1\x02\0\0\0\x07\0\0\0\x02hi").to_le_bytes());
        assert_eq!(&bytes[17..], b"hi");
    }

    #[test]
    fn the_largest_frame_passes_and_a_larger_one_is_refused() {
        let payload = vec![0xA5; MAX_PAYLOAD];
        let decoded = decode_all(&encode(1, Kind::Stdin, &payload).unwrap());
        assert_eq!(decoded.len(), 1);
        assert_eq!(decoded[0].as_ref().unwrap().payload, payload);
        assert!(matches!(
            encode(1, Kind::Stdin, &vec![0; MAX_PAYLOAD + 1]),
            Err(Error::EncodeFrame { .. })
        ));
    }

    #[test]
    fn an_endless_length_and_an_unknown_kind_are_named() {
        let mut bytes = encode(1, Kind::Stdin, b"x").unwrap();
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        bytes.extend(encode(2, Kind::Stdin, b"y").unwrap());
        let decoded = decode_all(&bytes);
        assert!(matches!(decoded[0], Err(Error::AcceptFrame { bytes: u32::MAX })));
        assert_eq!(good(decoded)[0].payload, b"y");

        let mut unknown = *b"TTG1\0\0\0\0\0\0\0\0\x63\0\0\0\0";
        let crc = crc32fast::hash(&unknown[..13]);
        unknown[13..].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(decode_all(&unknown)[0], Err(Error::RecogniseFrame { kind: 0x63 })));
    }

    #[test]
    fn frames_inside_a_damaged_frame_are_never_taken_for_frames() {
        let forged = encode(0, Kind::Control, b"{\"type\":\"shutdown\"}").unwrap();
        let mut carrier = encode(3, Kind::Stdin, &forged).unwrap();
        carrier[13] ^= 1;
        assert!(good(decode_all(&carrier)).is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_stay_bounded(pieces in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..4000), 0..40)) {
            let mut decoder = Decoder::default();
            for piece in pieces {
                decoder.push(&piece);
                while decoder.next_frame().is_some() {}
                prop_assert!(decoder.buffer.len() <= CAPACITY);
            }
        }

        #[test]
        fn hostile_headers_never_panic(headers in proptest::collection::vec((any::<u32>(), any::<[u8; 9]>()), 0..200)) {
            let mut bytes = Vec::new();
            for (length, rest) in headers {
                bytes.extend(MAGIC);
                bytes.extend((length % (2 * MAX_PAYLOAD as u32)).to_le_bytes());
                bytes.extend(rest);
            }
            let _ = decode_all(&bytes);
        }

        #[test]
        fn frames_survive_any_split(frames in proptest::collection::vec(any_frame(), 0..12), cut in 1usize..5000) {
            let mut decoder = Decoder::default();
            let mut decoded = Vec::new();
            for piece in bytes_of(&frames).chunks(cut) {
                decoder.feed(piece, |frame| decoded.push(frame));
            }
            prop_assert_eq!(decoded.len(), frames.len());
            prop_assert_eq!(good(decoded), frames);
        }

        #[test]
        fn frames_after_garbage_are_recovered(
            mut garbage in proptest::collection::vec(any::<u8>(), 0..5000),
            frames in proptest::collection::vec(any_frame(), 1..5),
        ) {
            garbage.iter_mut().filter(|byte| **byte == b'1').for_each(|byte| *byte = b'0');
            garbage.extend(bytes_of(&frames));
            prop_assert_eq!(good(decode_all(&garbage)), frames);
        }

        #[test]
        fn a_half_frame_cannot_swallow_what_follows_the_preamble(
            half in any_frame(), cut in any::<prop::sample::Index>(),
            frames in proptest::collection::vec(any_frame(), 1..5),
        ) {
            let mut bytes = bytes_of(&[half]);
            bytes.truncate(cut.index(bytes.len()));
            bytes.extend(resync());
            bytes.extend(bytes_of(&frames));
            prop_assert_eq!(good(decode_all(&bytes)), frames);
        }
    }
}
