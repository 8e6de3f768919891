//! Content that is known by its digest: read to its end or refused, never believed before.

use super::tar::bad;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io::{self, BufReader, Read};

/// How compressed content begins.
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Largest window of zstd, as a power of two: what its own program takes without being told otherwise.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// What content is called by, `sha256:` and 64 hexadecimal digits. Here it holds the digits alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Digest(String);

impl Digest {
    /// Of bytes.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(crate::digest::of_bytes(bytes))
    }

    /// Of what was hashed.
    pub(super) fn from_hash(hash: Sha256) -> Self {
        Self(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The digits.
    pub(super) fn hex(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.strip_prefix("sha256:") {
            Some(hex) if crate::digest::is_digest(hex) => Ok(Self(hex.to_owned())),
            _ => {
                let shown: String = text.chars().take(100).collect();
                Err(format!("{shown:?} is no digest: `sha256:` and 64 hexadecimal digits"))
            }
        }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// Content that is checked as it is read: its end is an error unless all of it was what was promised.
pub(super) struct Verified<R> {
    input: R,
    hash: Sha256,
    digest: Digest,
    /// The promised length, if one was.
    bytes: Option<u64>,
    bytes_max: u64,
    done: u64,
}

impl<R: Read> Verified<R> {
    /// Content of the length `bytes`.
    pub(super) fn exact(input: R, digest: Digest, bytes: u64) -> Self {
        Self { bytes: Some(bytes), ..Self::up_to(input, digest, bytes) }
    }

    /// Content of at most `bytes_max`.
    pub(super) fn up_to(input: R, digest: Digest, bytes_max: u64) -> Self {
        Self { input, hash: Sha256::new(), digest, bytes: None, bytes_max, done: 0 }
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let len = self.input.read(buffer)?;
        self.done += len as u64;
        if self.done > self.bytes_max {
            return Err(bad(format!("it has more than {} bytes", self.bytes_max)));
        }
        if len > 0 {
            self.hash.update(&buffer[..len]);
            return Ok(len);
        }
        if let Some(bytes) = self.bytes.filter(|bytes| *bytes != self.done) {
            return Err(bad(format!("it has {} bytes, not {bytes}", self.done)));
        }
        let digest = Digest::from_hash(self.hash.clone());
        if digest != self.digest {
            return Err(bad(format!("its content has the digest {digest}, not {}", self.digest)));
        }
        Ok(0)
    }
}

/// What `input` holds, decompressed if its first bytes say so. Content that ends too early, or has something else behind
/// it, is an error.
pub(super) fn decompress<'a>(input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(128 << 10, input);
    let mut begin = Vec::new();
    (&mut input).take(ZSTD.len() as u64).read_to_end(&mut begin)?;
    let is_gzip = begin.starts_with(GZIP);
    let is_zstd = begin.starts_with(ZSTD);
    let all = io::Cursor::new(begin).chain(input);
    if is_gzip {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(all)));
    }
    if is_zstd {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(all)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(all))
}

/// Whether content begins as zstd does.
pub(super) fn is_zstd(input: impl Read) -> io::Result<bool> {
    let mut begin = Vec::new();
    input.take(ZSTD.len() as u64).read_to_end(&mut begin)?;
    Ok(begin == ZSTD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        decompress(packed)?.read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn every_form_is_read_to_its_end() {
        let text = b"some text ".repeat(50_000);
        let zstd = zstd::stream::encode_all(&*text, 3).unwrap();
        for packed in [text.clone(), gzip(&text), zstd] {
            assert!(read(&packed).unwrap() == text);
            // Two in a row are one.
            assert!(read(&packed.repeat(2)).unwrap() == text.repeat(2));
            let cut = read(&packed[..packed.len() - 5]);
            assert!(packed == text || cut.is_err(), "{cut:?}");
            let more = read(&[&*packed, b"something else"].concat());
            assert!(packed == text || more.is_err(), "{more:?}");
        }
        assert_eq!(read(b"").unwrap(), b"");
    }

    #[test]
    fn content_is_as_promised_or_its_end_is_an_error() {
        let digest = Digest::of(b"content");
        let read = |mut verified: Verified<&[u8]>| {
            let mut content = Vec::new();
            verified.read_to_end(&mut content).map(|_| content).map_err(|e| e.to_string())
        };
        let exact = |bytes, content| read(Verified::exact(content, digest.clone(), bytes));
        assert_eq!(exact(7, &b"content"[..]).unwrap(), b"content");
        assert_eq!(exact(7, b"conten").unwrap_err(), "it has 6 bytes, not 7");
        assert_eq!(exact(7, b"content!").unwrap_err(), "it has more than 7 bytes");
        assert!(exact(7, b"Content").unwrap_err().contains("has the digest"));
        let most = read(Verified::up_to(&b"content"[..], digest.clone(), 6));
        assert_eq!(most.unwrap_err(), "it has more than 6 bytes");
    }

    #[test]
    fn digests_have_one_form() {
        let right = format!("sha256:{}", "0f".repeat(32));
        assert_eq!(Digest::try_from(right.clone()).unwrap().to_string(), right);
        for wrong in ["", "sha256:", "sha512:00", "sha256:../../etc", &right.to_uppercase()] {
            assert!(Digest::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
