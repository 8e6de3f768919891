//! Metas: records as files on the host, so that a snapshot knows its Vm as it was and a lost store
//! can be rebuilt.
//!
//! A meta is one line of JSON, [`Head`], and behind it the record as JSON. It is written under a
//! temporary name, synced and renamed, so it is whole or absent; what was altered or cut later is
//! refused by its length and checksum.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tt_model::{Layout, VmId};

/// Version of the form. A reader refuses another one.
const VERSION: u32 = 1;
/// Largest meta: the store takes no larger record either.
const BYTES_MAX: u64 = 2 << 20;
/// Behind the name of a meta that is not complete.
const TEMPORARY: &str = ".tmp";

/// Why a meta could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// It could not be written.
    #[error("could not write meta {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be read.
    #[error("could not read meta {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be removed.
    #[error("could not remove meta {}", path.display())]
    Remove {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("meta {} is damaged: {problem}", path.display())]
    Check {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl MetaError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Check { .. })
    }
}

/// The first line of a meta.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    /// Version of the form.
    tt_meta: u32,
    /// Length of what follows the line.
    bytes: u64,
    /// SHA-256 of what follows the line, hexadecimal.
    sha256: String,
}

/// The metas below one data directory.
#[derive(Clone, Debug)]
pub struct Metas {
    data: PathBuf,
}

impl Metas {
    /// Touches nothing yet.
    pub fn new(layout: &Layout) -> Self {
        Self { data: layout.data.clone() }
    }

    /// Writes `record` as the meta at `path`, relative to the data directory.
    pub fn write<T: Serialize>(&self, path: &Path, record: &T) -> Result<(), MetaError> {
        let path = self.data.join(path);
        let bytes = encode(record)
            .map_err(|source| MetaError::Write { path: path.clone(), source: source.into() })?;
        write_whole(&path, &bytes).map_err(|source| MetaError::Write { path, source })
    }

    /// Reads the meta at `path`, relative to the data directory.
    ///
    /// # Errors
    /// [`MetaError::Check`], naming the file, if a bit of it is not what was written.
    pub fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<T, MetaError> {
        let path = self.data.join(path);
        let bytes =
            read_bounded(&path).map_err(|source| MetaError::Read { path: path.clone(), source })?;
        decode(&bytes).map_err(|problem| MetaError::Check { path, problem })
    }

    /// Removes the meta at `path`, relative to the data directory; an absent one is fine.
    pub fn remove(&self, path: &Path) -> Result<(), MetaError> {
        let path = self.data.join(path);
        gone(fs::remove_file(&path)).map_err(|source| MetaError::Remove { path, source })
    }

    /// Removes all metas of a Vm.
    pub fn remove_all(&self, id: VmId) -> Result<(), MetaError> {
        let path = self.data.join("meta").join(id.to_string());
        gone(fs::remove_dir_all(&path)).map_err(|source| MetaError::Remove { path, source })
    }

    /// Removes the metas of a Vm that are not in `keep`, paths relative to the data directory.
    pub fn keep_only(&self, id: VmId, keep: &[&Path]) -> Result<(), MetaError> {
        let dir = self.data.join("meta").join(id.to_string());
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|source| MetaError::Read { path: dir.clone(), source })?,
        };
        let kept: Vec<_> = keep.iter().filter_map(|path| path.file_name()).collect();
        for entry in entries {
            let entry = entry.map_err(|source| MetaError::Read { path: dir.clone(), source })?;
            if !kept.contains(&entry.file_name().as_os_str()) {
                let path = entry.path();
                gone(fs::remove_file(&path))
                    .map_err(|source| MetaError::Remove { path, source })?;
            }
        }
        Ok(())
    }

    /// Ids of all Vms that have metas; found by looking.
    pub fn vms(&self) -> Result<Vec<VmId>, MetaError> {
        let names = self.names()?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The names of everything that lies beside the Vms' directories of metas.
    pub(crate) fn names(&self) -> Result<Vec<String>, MetaError> {
        let path = self.data.join("meta");
        let entries = match fs::read_dir(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries,
        };
        let read = || -> io::Result<Vec<String>> {
            entries?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        };
        read().map_err(|source| MetaError::Read { path, source })
    }
}

fn encode<T: Serialize>(record: &T) -> serde_json::Result<Vec<u8>> {
    let body = serde_json::to_vec(record)?;
    let head = Head { tt_meta: VERSION, bytes: body.len() as u64, sha256: checksum(&body) };
    let mut bytes = serde_json::to_vec(&head)?;
    bytes.push(b'\n');
    bytes.extend(body);
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("it has no first line")?;
    let (head, body) = (&bytes[..end], &bytes[end + 1..]);
    let head: Head = serde_json::from_slice(head).map_err(|e| format!("its first line: {e}"))?;
    if head.tt_meta != VERSION {
        let version = head.tt_meta;
        return Err(format!("it has version {version}, this program reads {VERSION}"));
    }
    if head.bytes != body.len() as u64 {
        return Err(format!("{} of {} bytes are there", body.len(), head.bytes));
    }
    if head.sha256 != checksum(body) {
        return Err("its checksum is wrong".into());
    }
    serde_json::from_slice(body).map_err(|e| e.to_string())
}

fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(ErrorKind::InvalidInput)?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut name = path.as_os_str().to_owned();
    name.push(TEMPORARY);
    let temporary = PathBuf::from(name);
    let written = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    if let Err(error) = written() {
        // A full disk gets back what the half of it took; what stays is replaced by the next one.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    File::open(dir)?.sync_all()
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tt_model::{Instance, StorageKind, Vm, sample};

    fn metas() -> (tempfile::TempDir, Metas) {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().to_owned();
        let layout = Layout { run: data.join("run"), data, instance: Instance(1) };
        let metas = Metas::new(&layout);
        (dir, metas)
    }

    #[test]
    fn every_cut_and_every_altered_byte_is_refused_by_name() {
        let (dir, metas) = metas();
        let vm = sample::vm(7, "qemu", StorageKind::Qcow2);
        let path = tt_model::names::latest_meta(vm.id);
        metas.write(&path, &vm).unwrap();
        assert_eq!(metas.read::<Vm>(&path).unwrap(), vm);
        let file = dir.path().join(&path);
        let whole = fs::read(&file).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            let error = metas.read::<Vm>(&path).unwrap_err();
            assert!(matches!(error, MetaError::Check { .. }), "{error:?}");
            assert!(error.to_string().contains("meta/7/latest.json"), "{error}");
        };
        for end in 0..whole.len() {
            refused(&whole[..end]);
        }
        for at in 0..whole.len() {
            let mut altered = whole.clone();
            altered[at] ^= 1;
            refused(&altered);
        }
        let mut longer = whole.clone();
        longer.push(b' ');
        refused(&longer);
    }

    #[test]
    fn only_what_is_kept_stays() {
        let (dir, metas) = metas();
        for number in 0..3 {
            metas.write(&tt_model::names::meta(VmId(7), number), &number).unwrap();
        }
        metas.keep_only(VmId(7), &[&tt_model::names::meta(VmId(7), 1)]).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path().join("meta/7")).unwrap().collect();
        assert_eq!((left.len(), metas.vms().unwrap()), (1, vec![VmId(7)]));
        metas.remove_all(VmId(7)).unwrap();
        metas.remove_all(VmId(7)).unwrap();
        assert!(metas.vms().unwrap().is_empty());
    }
}
