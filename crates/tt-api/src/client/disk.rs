//! A template's disk as it arrives: parts of a file with their places. It writes nothing.

use super::Client;
use super::http::{ANSWER_TIMEOUT, Body, request};
use crate::access::DiskForm;
use crate::error::ClientError;
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_LENGTH;

/// Head of a piece of a sparse stream: its place and its length.
const HEAD_BYTES: usize = 12;

/// A disk that is being received. Dropping it ends that.
#[derive(Debug)]
pub struct DiskStream {
    action: String,
    body: Incoming,
    is_sparse: bool,
    /// How much is to come, where that was said.
    total: Option<u64>,
    /// What has arrived and was not handed out yet.
    pending: Bytes,
    /// A head of which only a part has arrived.
    head: Vec<u8>,
    /// Where the next byte belongs, and how many more belong to this piece.
    at: u64,
    left: u64,
    size: Option<u64>,
}

impl DiskStream {
    pub(super) async fn open(
        client: &Client,
        path: &str,
        form: DiskForm,
    ) -> Result<Self, ClientError> {
        let action = format!("GET {path}");
        let request = request(Method::GET, path, Body::none(), &action)?;
        let sent = tokio::time::timeout(ANSWER_TIMEOUT, client.send(request, &action)).await;
        let seconds = ANSWER_TIMEOUT.as_secs();
        let timeout = |_| ClientError::Timeout { action: action.clone(), seconds };
        let response = sent.map_err(timeout)??;
        let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let total = length.and_then(|length| length.parse().ok());
        let is_sparse = form == DiskForm::Sparse;
        Ok(Self {
            action,
            body: response.into_body(),
            is_sparse,
            total,
            pending: Bytes::new(),
            head: Vec::new(),
            at: 0,
            left: if is_sparse { 0 } else { u64::MAX },
            size: None,
        })
    }

    /// The next bytes with their place in the file; what lies between is zero. None at the end, after which
    /// [`DiskStream::size`] is known.
    ///
    /// # Errors
    /// If the connection is lost, or it ends too early.
    pub async fn next(&mut self) -> Result<Option<(u64, Bytes)>, ClientError> {
        loop {
            if !self.pending.is_empty() && self.left > 0 {
                let len = self.pending.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                let (at, bytes) = (self.at, self.pending.split_to(len));
                self.at += len as u64;
                self.left -= len as u64;
                return Ok(Some((at, bytes)));
            }
            if !self.pending.is_empty() {
                self.take_head()?;
                continue;
            }
            let frame = tokio::time::timeout(ANSWER_TIMEOUT, self.body.frame()).await;
            let seconds = ANSWER_TIMEOUT.as_secs();
            let timeout = |_| ClientError::Timeout { action: self.action.clone(), seconds };
            match frame.map_err(timeout)? {
                Some(Ok(frame)) => self.pending = frame.into_data().unwrap_or_default(),
                Some(Err(source)) => {
                    return Err(ClientError::Exchange { action: self.action.clone(), source });
                }
                None if !self.is_sparse && self.total.is_none_or(|total| total == self.at) => {
                    self.size = Some(self.at);
                    return Ok(None);
                }
                None if self.size.is_some() => return Ok(None),
                None => return Err(self.broken("it ends too early")),
            }
        }
    }

    /// The size of the whole file, once all of it has arrived.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    fn take_head(&mut self) -> Result<(), ClientError> {
        if self.size.is_some() {
            return Err(self.broken("it goes on behind its end"));
        }
        let len = self.pending.len().min(HEAD_BYTES - self.head.len());
        self.head.extend_from_slice(&self.pending.split_to(len));
        let Some((at, bytes)) = self.head.split_first_chunk::<8>() else { return Ok(()) };
        let Ok(bytes) = <[u8; 4]>::try_from(bytes) else { return Ok(()) };
        let (at, bytes) = (u64::from_le_bytes(*at), u64::from(u32::from_le_bytes(bytes)));
        self.head.clear();
        if at < self.at {
            return Err(self.broken("its pieces are not in order"));
        }
        if at.checked_add(bytes).is_none() {
            return Err(self.broken("a piece goes beyond what a file can be"));
        }
        (self.at, self.left) = (at, bytes);
        self.size = (bytes == 0).then_some(at);
        Ok(())
    }

    fn broken(&self, what: &str) -> ClientError {
        ClientError::Protocol { action: self.action.clone(), what: what.to_owned() }
    }
}
