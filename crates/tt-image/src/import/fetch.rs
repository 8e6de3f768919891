//! A file fetched over HTTP into the draft of a template. What an interruption leaves is gone on with, if the server says
//! that it still has the same; it never holds more than it may.

use crate::http::{Http, Limits, Nothing, Response};
use crate::{ImageError, Progress, digest, files, space};
use hyper::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE,
    LAST_MODIFIED, RANGE,
};
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tt_model::shown_url;

/// Tries in a row that bring nothing to speak of before it is given up for now.
const TRIES: u32 = 5;
const LOOK: Duration = Duration::from_millis(100);
/// Largest note about what is fetched.
const NOTE_BYTES_MAX: u64 = 16 << 10;
/// The free space is looked at after this much.
const ROOM_LOOK_BYTES: u64 = 32 << 20;

/// What is being fetched, so that only the same is gone on with.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// A digest of the whole URL: what stands behind its `?` may be a secret, and tells one file from another.
    url: String,
    /// A validator of the server: an entity tag, else a date (RFC 9110, 8.8).
    validator: Option<String>,
}

/// One fetch.
pub(super) struct Fetch<'a> {
    pub(super) url: &'a str,
    /// Where it comes to lie.
    pub(super) to: &'a Path,
    pub(super) bytes_max: u64,
    pub(super) limits: Limits,
    /// Before it is tried again; each following pause is twice as long.
    pub(super) pause: Duration,
}

/// How one exchange ended.
enum Ended {
    Complete,
    /// The server has something else now, or will not go on.
    StartAgain,
}

impl Fetch<'_> {
    /// Fetches it, with what is there already.
    pub(super) fn run(&self, progress: &dyn Progress) -> Result<(), ImageError> {
        progress.step("fetching");
        let mut http = Http::new(self.limits)?;
        let (mut tries, mut best) = (0, self.fetched());
        loop {
            let error = match self.exchange(&mut http, progress) {
                Ok(Ended::Complete) => return files::remove(&self.note_path()),
                Ok(Ended::StartAgain) => {
                    self.forget()?;
                    self.failed("it changes while it is fetched", true)
                }
                Err(error) if !error.is_retryable() => return Err(error),
                Err(ImageError::Unwanted) => return Err(ImageError::Unwanted),
                Err(error) => error,
            };
            let fetched = self.fetched();
            // Less than that is no progress, or a server could drip for ever.
            tries = if fetched >= best + self.limits.pace_bytes { 0 } else { tries + 1 };
            best = best.max(fetched);
            if tries >= TRIES {
                return Err(error);
            }
            tracing::info!(url = shown_url(self.url), %error, "fetching goes on after a pause");
            wait(self.pause * 2_u32.pow(tries), progress)?;
        }
    }

    fn exchange(&self, http: &mut Http, progress: &dyn Progress) -> Result<Ended, ImageError> {
        let have = self.fetched();
        let note = self.note();
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let validator = note.as_ref().and_then(|note| note.validator.as_deref());
        let validator = validator.and_then(|text| HeaderValue::from_str(text).ok());
        if let Some(validator) = validator.filter(|_| have > 0) {
            let range = HeaderValue::from_str(&format!("bytes={have}-"));
            headers.insert(RANGE, range.map_err(|e| self.failed(&e.to_string(), false))?);
            headers.insert(IF_RANGE, validator);
        }
        let response = http.send(&Method::GET, self.url, &headers, &Nothing, progress)?;
        match response.status {
            StatusCode::PARTIAL_CONTENT if begins_at(&response, have) => {
                self.take(response, have, progress)
            }
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                Ok(Ended::StartAgain)
            }
            StatusCode::OK => {
                self.forget()?;
                self.write_note(&response)?;
                self.take(response, 0, progress)
            }
            status => {
                let may_pass = status.is_server_error()
                    || matches!(
                        status,
                        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
                    );
                Err(self.failed(&format!("the server answers {status}"), may_pass))
            }
        }
    }

    fn take(
        &self,
        mut response: Response,
        have: u64,
        progress: &dyn Progress,
    ) -> Result<Ended, ImageError> {
        let length = response.header(&CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
        let total = length.map(|length| length.saturating_add(have));
        self.check_size(total.unwrap_or(0))?;
        space::check_room(self.to, length.unwrap_or(0))?;
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(self.to);
        let mut file = file.map_err(files::not_written(self.to))?;
        let (mut done, mut looked) = (have, have);
        while let Some(piece) = response.piece(progress)? {
            done += piece.len() as u64;
            self.check_size(done)?;
            if done - looked > ROOM_LOOK_BYTES {
                looked = done;
                space::check_room(self.to, 0)?;
            }
            file.write_all(&piece).map_err(files::not_written(self.to))?;
            progress.bytes(done, total);
        }
        file.sync_all().map_err(files::not_written(self.to))?;
        Ok(Ended::Complete)
    }

    fn check_size(&self, bytes: u64) -> Result<(), ImageError> {
        if bytes <= self.bytes_max {
            return Ok(());
        }
        let problem =
            format!("it has more than {} MB, the most that fits here", self.bytes_max >> 20);
        Err(self.failed(&problem, false))
    }

    /// Bytes that are there of what the note says.
    fn fetched(&self) -> u64 {
        let is_known = self.note().is_some();
        let bytes = self.to.symlink_metadata().ok().filter(|meta| meta.is_file()).map(|m| m.len());
        bytes.filter(|_| is_known).unwrap_or(0)
    }

    fn note(&self) -> Option<Note> {
        let json = files::read(&self.note_path(), NOTE_BYTES_MAX).ok()?;
        let note: Note = serde_json::from_slice(&json).ok()?;
        (note.url == self.key()).then_some(note)
    }

    fn write_note(&self, response: &Response) -> Result<(), ImageError> {
        // A weak tag does not say that every byte is the same.
        let tag = response.header(&ETAG).filter(|tag| !tag.starts_with("W/"));
        let validator = tag.or_else(|| response.header(&LAST_MODIFIED));
        let note = Note { url: self.key(), validator: validator.map(str::to_owned) };
        let path = self.note_path();
        let json = serde_json::to_vec(&note).map_err(|e| files::not_written(&path)(e.into()))?;
        files::write(&path, &json)
    }

    fn forget(&self) -> Result<(), ImageError> {
        files::remove(&self.note_path())?;
        files::remove(self.to)
    }

    fn key(&self) -> String {
        digest::of_bytes(self.url.as_bytes())
    }

    fn note_path(&self) -> PathBuf {
        note_of(self.to)
    }

    fn failed(&self, problem: &str, retry: bool) -> ImageError {
        let url = shown_url(self.url);
        ImageError::Fetch { url, problem: problem.to_owned(), retry }
    }
}

/// Where it is noted what is fetched to `to`, as long as that is not there to its end.
pub(crate) fn note_of(to: &Path) -> PathBuf {
    to.with_extension("note")
}

/// `bytes FIRST-LAST/TOTAL` (RFC 9110, 14.4).
pub(crate) fn begins_at(response: &Response, at: u64) -> bool {
    let range = response.header(&CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes "));
    let first = range.and_then(|range| range.split_once('-')).map(|(first, _)| first.parse());
    first == Some(Ok(at))
}

/// Waits as long as it is wanted.
pub(crate) fn wait(pause: Duration, progress: &dyn Progress) -> Result<(), ImageError> {
    let begin = Instant::now();
    while begin.elapsed() < pause {
        progress.check()?;
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// The file that `from` names, opened so that it is what it was said to be: a regular file, no link.
pub(crate) fn open_local(from: &Path) -> Result<File, ImageError> {
    use rustix::fs::{Mode, OFlags};
    let refused = |problem: &str| ImageError::Format {
        what: from.display().to_string(),
        problem: problem.to_owned(),
    };
    if !from.is_absolute() {
        return Err(refused("write its whole path, beginning with a `/`"));
    }
    // Without blocking: a FIFO would wait for a writer.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = match rustix::fs::open(from, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::LOOP) => return Err(refused("it is a symbolic link")),
        Err(rustix::io::Errno::NXIO) => return Err(refused("it is no regular file")),
        Err(rustix::io::Errno::NOENT) => return Err(refused("there is no such file on the host")),
        Err(e) => return Err(files::not_read(from)(e.into())),
    };
    match file.metadata() {
        Ok(meta) if meta.is_file() => Ok(file),
        Ok(_) => Err(refused("it is no regular file")),
        Err(e) => Err(files::not_read(from)(e)),
    }
}
