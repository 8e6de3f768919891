//! The disk of a snapshot as a file, or a device, for one reader: a clone of its own, under a name that no other reader has,
//! beside what is kept of templates. It lies below no Vm, so neither the Vm nor its snapshot has to wait for who reads it.

use super::command::Refused;
use super::form::Form;
use super::pool::Pool;
use crate::images::files::make_dir;
use crate::{StorageError, tree};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tt_model::StorageKind;
use tt_model::names::template_volume;

/// Of a reader's data set and directory; the id of its process follows, and a number.
const PREFIX: &str = "read-";

/// Numbers of those who read in this process.
static READERS: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A snapshot that is being read.
pub(super) struct Reader<'a> {
    form: Form,
    pool: &'a Pool,
    number: u64,
    set: String,
    place: PathBuf,
}

impl<'a> Reader<'a> {
    /// Shows the snapshot `from` as a file. Refuses [`Refused::Absent`] if there is none.
    pub(super) fn open(
        form: Form,
        pool: &'a Pool,
        data: &Path,
        from: &str,
    ) -> Result<Self, StorageError> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let place = shelf(data).join(&name);
        readers().insert(number);
        let reader = Self { form, pool, number, set: pool.reader_set(&name), place };
        let failed = |source| StorageError::Create { path: reader.place.clone(), source };
        make_dir(&shelf(data)).and_then(|_| make_dir(&reader.place)).map_err(failed)?;
        match form.clone_set(from, &reader.set, &reader.place) {
            Err(Refused::Absent) => {
                let source = io::Error::from(ErrorKind::NotFound);
                return pool.check().and(Err(StorageError::OpenDisk { path: from.into(), source }));
            }
            cloned => cloned?,
        };
        if form == Form::Volume {
            form.show(&reader.set, &reader.place)?;
        }
        match form.is_shown(&reader.set, &reader.place).map_err(failed)? {
            true => Ok(reader),
            false => Err(StorageError::Pool { problem: format!("{} is not mounted", reader.set) }),
        }
    }

    /// The disk's name, relative to the data directory.
    pub(super) fn disk(&self, data: &Path) -> String {
        let disk = self.place.join(self.form.kind().inner().unwrap_or_default());
        disk.strip_prefix(data).unwrap_or(&disk).to_string_lossy().into_owned()
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove(self.form, self.pool, &self.set, &self.place) {
            tracing::warn!(set = self.set, %error, "what showed a snapshot stays for now");
        }
        readers().remove(&self.number);
    }
}

/// Removes what readers have left that were killed.
pub(super) fn sweep(form: Form, pool: &Pool, data: &Path) -> Result<(), StorageError> {
    let shelf = shelf(data);
    let failed = |source| StorageError::List { path: shelf.clone(), source };
    let entries = match fs::read_dir(&shelf) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if let Some(name) = entry.file_name().to_str().filter(|name| is_left(name)) {
            remove(form, pool, &pool.reader_set(name), &entry.path())?;
        }
    }
    Ok(())
}

/// Whether a name is a reader's that is not there any more.
fn is_left(name: &str) -> bool {
    let parts = name.strip_prefix(PREFIX).and_then(|parts| parts.split_once('-'));
    let parts =
        parts.and_then(|(pid, number)| Some((pid.parse::<u32>().ok()?, number.parse().ok()?)));
    match parts {
        None => false,
        Some((pid, number)) if pid == std::process::id() => !readers().contains(&number),
        Some((pid, _)) => !Path::new("/proc").join(pid.to_string()).exists(),
    }
}

/// The directory goes last: it tells that there may be a data set.
fn remove(form: Form, pool: &Pool, set: &str, place: &Path) -> Result<(), StorageError> {
    form.let_go(place)?;
    pool.drop_reader(set)?;
    let removed = tree::remove(place).map(drop);
    removed.map_err(|source| StorageError::Destroy { path: place.into(), source })
}

fn shelf(data: &Path) -> PathBuf {
    let any = data.join(template_volume(StorageKind::Zfs, "any"));
    any.parent().unwrap_or(data).to_path_buf()
}

fn readers() -> MutexGuard<'static, BTreeSet<u64>> {
    READERS.lock().unwrap_or_else(PoisonError::into_inner)
}
