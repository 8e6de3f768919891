//! A file, or bytes, as what is sent along with a request. It counts what has gone out, and never holds more than a piece of
//! a file.

use super::{Body, Sent};
use crate::{ImageError, files};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

/// Read and handed on at once.
const PIECE_BYTES: u64 = 64 << 10;

/// A file of a known length.
pub(crate) struct Upload<'a> {
    path: &'a Path,
    bytes: u64,
    gone: Arc<AtomicU64>,
}

/// The rest of a file.
struct Rest {
    file: File,
    left: u64,
    gone: Arc<AtomicU64>,
}

impl<'a> Upload<'a> {
    /// The file at `path`, which has `bytes` bytes.
    pub(crate) fn new(path: &'a Path, bytes: u64) -> Self {
        Self { path, bytes, gone: Arc::default() }
    }
}

impl Sent for Upload<'_> {
    fn body(&self) -> Result<Body, ImageError> {
        let file = File::open(self.path).map_err(files::not_read(self.path))?;
        self.gone.store(0, Ordering::Relaxed);
        Ok(Rest { file, left: self.bytes, gone: self.gone.clone() }.boxed_unsync())
    }

    fn bytes(&self) -> Option<(u64, u64)> {
        Some((self.gone.load(Ordering::Relaxed), self.bytes))
    }
}

impl Sent for Bytes {
    fn body(&self) -> Result<Body, ImageError> {
        Ok(http_body_util::Full::new(self.clone()).map_err(|never| match never {}).boxed_unsync())
    }
}

impl HttpBody for Rest {
    type Data = Bytes;
    type Error = io::Error;

    /// Reads at once: a piece of a file takes less than the socket that waits for it.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let mut piece = Vec::new();
        let most = self.left.min(PIECE_BYTES);
        let read = (&mut self.file).take(most).read_to_end(&mut piece);
        Poll::Ready(Some(match read {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                self.left -= len as u64;
                self.gone.fetch_add(len as u64, Ordering::Relaxed);
                Ok(Frame::data(piece.into()))
            }
            Err(error) => Err(error),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
