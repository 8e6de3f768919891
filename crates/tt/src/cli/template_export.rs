//! `tt template export`: a template's disk as a file of the client's machine, whole or not there. Holes stay holes.

use super::error::CliError;
use super::{Context, text::one_line};
use rustix::fs::{AtFlags, CWD, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tt_api::access::DiskForm;
use tt_api::client::DiskStream;
use tt_model::check::quoted;
use tt_model::template::DiskFormat;
use tt_model::units::format_size_mb;

/// How often it is said how far it is.
const SAY_BYTES: u64 = 1 << 30;

/// The format that the name of a file asks for.
pub(super) fn format_of(file: &Path) -> DiskFormat {
    match file.extension() {
        Some(extension) if extension == "qcow2" => DiskFormat::Qcow2,
        _ => DiskFormat::Raw,
    }
}

/// Writes the disk of `template` into `to`; answers the file's size in bytes. What is there is replaced with `force` only,
/// and in one moment.
pub(super) async fn export(
    context: &Context,
    template: &str,
    to: &Path,
    format: DiskFormat,
    force: bool,
) -> Result<u64, CliError> {
    check(to, force)?;
    let form = match format {
        DiskFormat::Qcow2 => DiskForm::Qcow2,
        // The same bytes without the holes, which need not be sent.
        DiskFormat::Raw | DiskFormat::Vmdk | DiskFormat::Vdi => DiskForm::Sparse,
    };
    let mut stream = context.client.disk(template, form).await?;
    let part = Part::create(to).map_err(failed("make the file"))?;
    tokio::select! {
        written = write(context, template, &mut stream, &part.file) => written?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.map_err(failed("watch for Ctrl-C"))?;
            return Err(CliError::GiveUp { what: format!("the export of {template}") });
        }
    }
    let size = stream.size().unwrap_or_default();
    match part.finish(size, to, force) {
        Err(e) if !force && e.kind() == io::ErrorKind::AlreadyExists => Err(there(to)),
        finished => finished.map(|()| size).map_err(failed("finish the file")),
    }
}

/// Refuses before anything is sent what could not be finished.
fn check(to: &Path, force: bool) -> Result<(), CliError> {
    match to.symlink_metadata() {
        Ok(meta) if meta.is_dir() => Err(CliError::Use {
            problem: format!("{} is a directory", quoted(&to.to_string_lossy())),
            remedy: "write the name of a file in it".into(),
        }),
        Ok(_) if !force => Err(there(to)),
        // What can not be looked at can not be written either, which says why.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn there(to: &Path) -> CliError {
    CliError::Use {
        problem: format!("{} is there", quoted(&to.to_string_lossy())),
        remedy: "write another name, or --force to replace it".into(),
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> CliError {
    move |source| CliError::System { action, source }
}

/// A file that is not complete. It has no name, so that nothing is left of it however this program ends, or where the
/// file system has no such files, one that is removed with it.
struct Part {
    file: File,
    path: Option<PathBuf>,
}

impl Part {
    fn create(to: &Path) -> io::Result<Self> {
        let mut nameless = OpenOptions::new();
        nameless.write(true).custom_flags(OFlags::TMPFILE.bits().cast_signed());
        match nameless.open(dir_of(to)) {
            Ok(file) => Ok(Self { file, path: None }),
            // As kernel and file systems say that they have none, open(2).
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::OPNOTSUPP | Errno::ISDIR)) => {
                Self::named(to)
            }
            Err(e) => Err(e),
        }
    }

    fn named(to: &Path) -> io::Result<Self> {
        let path = part_of(to);
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Self { file, path: Some(path) })
    }

    /// Gives it its size and its name.
    fn finish(mut self, size: u64, to: &Path, force: bool) -> io::Result<()> {
        self.file.set_len(size)?;
        self.file.sync_all()?;
        if self.path.is_none() && !force {
            self.link(to)?;
            return File::open(dir_of(to))?.sync_all();
        }
        let path = match self.path.clone() {
            Some(path) => path,
            None => {
                let path = part_of(to);
                self.link(&path)?;
                self.path.insert(path).clone()
            }
        };
        if force {
            std::fs::rename(&path, to)?
        } else {
            name(&path, to)?
        }
        File::open(dir_of(to))?.sync_all()
    }

    /// Names what has no name; never in the place of something else.
    fn link(&self, to: &Path) -> io::Result<()> {
        let nameless = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(rustix::fs::linkat(CWD, nameless, CWD, to, AtFlags::SYMLINK_FOLLOW)?)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Renamed by now, or a second name of what was finished, or of no use to anybody.
        let _ = self.path.as_ref().map(std::fs::remove_file);
    }
}

/// Gives a file another name, never in the place of something else.
fn name(path: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, path, CWD, to, RenameFlags::NOREPLACE) {
        // NFS has links, FAT has this; none has neither.
        Err(Errno::INVAL) => std::fs::hard_link(path, to),
        renamed => Ok(renamed?),
    }
}

fn dir_of(to: &Path) -> &Path {
    to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn part_of(to: &Path) -> PathBuf {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(format!(".part-{}", std::process::id()));
    to.with_file_name(name)
}

async fn write(
    context: &Context,
    template: &str,
    stream: &mut DiskStream,
    file: &File,
) -> Result<(), CliError> {
    let (mut done, mut said) = (0, 0);
    while let Some((at, bytes)) = stream.next().await? {
        file.write_all_at(&bytes, at).map_err(failed("write the file"))?;
        done += bytes.len() as u64;
        if done - said >= SAY_BYTES {
            said = done;
            let size = format_size_mb(done >> 20);
            context.output.note(&format!("{} {size} written", one_line(template)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_gets_its_name_at_the_end_only_and_in_no_place_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("disk");
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        for create in [Part::create, Part::named] {
            let part = create(&to).unwrap();
            assert!(!to.exists());
            drop(part);
            assert_eq!(names(), 0);
            let part = create(&to).unwrap();
            part.file.write_all_at(b"new", 0).unwrap();
            std::fs::write(&to, "old").unwrap();
            let error = part.finish(3, &to, false).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!((std::fs::read_to_string(&to).unwrap().as_str(), names()), ("old", 1));
            let part = create(&to).unwrap();
            part.file.write_all_at(b"new", 0).unwrap();
            part.finish(3, &to, true).unwrap();
            assert_eq!((std::fs::read_to_string(&to).unwrap().as_str(), names()), ("new", 1));
            std::fs::remove_file(&to).unwrap();
            create(&to).unwrap().finish(0, &to, false).unwrap();
            assert_eq!(names(), 1);
            std::fs::remove_file(&to).unwrap();
        }
    }
}
