//! Blobs of a registry as files: several at once, from where an interrupted try stopped, and each from the cache if it is
//! there. All of them are hashed as they come; a file has its name only when all of its content is what its digest promises.

use super::blob::{Digest, Verified};
use super::cache::Cache;
use super::registry::{Access, Patience, Repository, TRIES, is_passing_error};
use super::spec::{Descriptor, refuse};
use crate::http::Response;
use crate::import::wait;
use crate::progress::{Asking, is_unwanted};
use crate::{ImageError, Progress, files, space};
use hyper::StatusCode;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tt_model::Reference;
use tt_model::Remote;

/// Blobs that are fetched at the same time: as many as others do, so that no registry minds.
const AT_ONCE: usize = 3;
/// Files that are not complete.
const PART: &str = ".part";
/// The free space is looked at after this much.
const ROOM_LOOK_BYTES: u64 = 32 << 20;

/// Where blobs come from and go to.
pub(super) struct Fetch<'a> {
    pub(super) remote: &'a Remote,
    pub(super) reference: &'a Reference,
    pub(super) cache: &'a Cache,
    /// The directory that gets the files, named by their digits.
    pub(super) to: &'a Path,
    pub(super) patience: Patience,
    pub(super) progress: &'a dyn Progress,
}

/// How much of all is there.
struct Counter<'a> {
    progress: &'a dyn Progress,
    done: AtomicU64,
    total: u64,
}

impl Counter<'_> {
    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.progress.bytes(done, Some(self.total));
    }

    fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Fetch<'_> {
    /// Fetches all of them; the same one twice is one.
    pub(super) fn all(&self, blobs: &[&Descriptor]) -> Result<(), ImageError> {
        let mut wanted: Vec<&Descriptor> = blobs.to_vec();
        wanted.sort_by(|a, b| a.digest.cmp(&b.digest));
        wanted.dedup_by(|a, b| a.digest == b.digest);
        let total = wanted.iter().map(|blob| blob.size).sum();
        files::make_dir(self.to)?;
        space::check_room(self.to, total)?;
        let counter = Counter { progress: self.progress, done: AtomicU64::new(0), total };
        let queue = Mutex::new(wanted);
        let failure = Mutex::new(None);
        let work = || {
            if let Err(error) = self.work(&queue, &counter) {
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                // Nobody needs the rest now.
                queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(blobs.len()) {
                scope.spawn(work);
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn work(
        &self,
        queue: &Mutex<Vec<&Descriptor>>,
        counter: &Counter<'_>,
    ) -> Result<(), ImageError> {
        let Self { remote, reference, patience, progress, .. } = *self;
        let mut repository = Repository::open(remote, reference, Access::Pull, patience, progress)?;
        loop {
            // Taken by itself: a lock that is held in the condition of a loop is held in its body.
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(blob) = next else { return Ok(()) };
            self.one(&mut repository, blob, counter)?;
        }
    }

    fn one(
        &self,
        repository: &mut Repository<'_>,
        blob: &Descriptor,
        counter: &Counter<'_>,
    ) -> Result<(), ImageError> {
        let path = blob_path(self.to, &blob.digest);
        if path.is_file() || self.cache.take(&blob.digest, blob.size, &path, self.progress)? {
            counter.add(blob.size);
            return Ok(());
        }
        let mut part = Part::open(path.with_extension(&PART[1..]), blob.size, self.progress)?;
        counter.add(part.done);
        let (mut tries, mut best) = (0, part.done);
        while part.done < blob.size {
            let error = match self.once(repository, blob, &mut part, counter) {
                Ok(()) => continue,
                Err(error) if !is_passing_error(&error) => return Err(error),
                Err(error) => error,
            };
            // Less than that is no progress, or a registry could drip for ever.
            let has_moved = part.done >= best + self.patience.limits.pace_bytes;
            tries = if has_moved { 0 } else { tries + 1 };
            best = best.max(part.done);
            if tries >= TRIES {
                return Err(error);
            }
            tracing::info!(blob = %blob.digest, %error, "fetching goes on after a pause");
            wait(self.patience.pause * 2_u32.pow(tries), self.progress)?;
        }
        part.finish(&blob.digest, &path)?;
        self.cache.keep(&blob.digest, &path)
    }

    /// One try: goes on behind what there is.
    fn once(
        &self,
        repository: &mut Repository<'_>,
        blob: &Descriptor,
        part: &mut Part,
        counter: &Counter<'_>,
    ) -> Result<(), ImageError> {
        let answer = repository.blob(&blob.digest, part.done)?;
        if answer.status != StatusCode::PARTIAL_CONTENT {
            // From the beginning, or the registry knows of nothing behind what is there.
            counter.take_back(part.done);
            part.restart()?;
        }
        let url = answer.url.path().to_owned();
        let again = |problem: String| ImageError::Fetch { url, problem, retry: true };
        if answer.status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(again("it has less than there is already".into()));
        }
        self.take(answer, blob, part, counter)?;
        match part.done == blob.size {
            true => Ok(()),
            false => Err(again(format!("it ends after {} of {} bytes", part.done, blob.size))),
        }
    }

    fn take(
        &self,
        mut answer: Response,
        blob: &Descriptor,
        part: &mut Part,
        counter: &Counter<'_>,
    ) -> Result<(), ImageError> {
        let mut looked = part.done;
        while let Some(piece) = answer.piece(self.progress)? {
            if part.done + piece.len() as u64 > blob.size {
                part.remove()?;
                let problem = format!("it has more than {} bytes", blob.size);
                return Err(refuse(&format!("blob {}", blob.digest), problem));
            }
            part.add(&piece)?;
            counter.add(piece.len() as u64);
            if part.done - looked > ROOM_LOOK_BYTES {
                looked = part.done;
                space::check_room(&part.path, 0)?;
            }
        }
        Ok(())
    }
}

/// A file that is not complete, and the digest of what is there.
struct Part {
    path: PathBuf,
    file: File,
    hash: Sha256,
    done: u64,
}

impl Part {
    /// With what an earlier try left, if that can be the beginning of so many bytes.
    fn open(path: PathBuf, bytes: u64, progress: &dyn Progress) -> Result<Self, ImageError> {
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let mut part = Self {
            file: file.map_err(files::not_written(&path))?,
            hash: Sha256::new(),
            done: 0,
            path,
        };
        let mut buffer = vec![0; 256 << 10];
        loop {
            progress.check()?;
            let len = part.file.read(&mut buffer).map_err(files::not_read(&part.path))?;
            part.hash.update(&buffer[..len]);
            part.done += len as u64;
            if part.done > bytes {
                part.restart()?;
            }
            if len == 0 {
                return Ok(part);
            }
        }
    }

    fn restart(&mut self) -> Result<(), ImageError> {
        (self.hash, self.done) = (Sha256::new(), 0);
        self.file.set_len(0).map_err(files::not_written(&self.path))
    }

    fn add(&mut self, piece: &[u8]) -> Result<(), ImageError> {
        self.file.write_all(piece).map_err(files::not_written(&self.path))?;
        self.hash.update(piece);
        self.done += piece.len() as u64;
        Ok(())
    }

    /// Gives it its name if it is what was promised; what is not goes, so that a retry begins anew.
    fn finish(self, digest: &Digest, path: &Path) -> Result<(), ImageError> {
        let found = Digest::from_hash(self.hash.clone());
        if found != *digest {
            self.remove()?;
            let problem = format!("its content has the digest {found}");
            return Err(refuse(&format!("blob {digest}"), problem));
        }
        self.file.sync_all().map_err(files::not_written(&self.path))?;
        fs::rename(&self.path, path).map_err(files::not_written(path))
    }

    fn remove(&self) -> Result<(), ImageError> {
        files::remove(&self.path)
    }
}

/// Whether all of a file is what was promised.
pub(super) fn is_whole(
    path: &Path,
    digest: &Digest,
    bytes: u64,
    progress: &dyn Progress,
) -> Result<bool, ImageError> {
    let Ok(file) = File::open(path) else { return Ok(false) };
    let mut content = Verified::exact(Asking::new(file, progress), digest.clone(), bytes);
    match io::copy(&mut content, &mut io::sink()) {
        Err(error) if is_unwanted(&error) => Err(ImageError::Unwanted),
        read => Ok(read.is_ok()),
    }
}

/// Where a fetched blob lies in the directory `to`.
pub(super) fn blob_path(to: &Path, digest: &Digest) -> PathBuf {
    to.join(digest.hex())
}
