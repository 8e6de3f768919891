//! Disks and root file systems of strangers as templates: from a file of the host or a URL, packed or not. Whatever is
//! imported is first copied to where nobody else changes it, then looked at, and only then given to a converter, which
//! runs in a box. Nothing of it is ever run or mounted on the host.

mod convert;
mod fetch;
mod head;
mod packed;

use crate::boot::First;
use crate::files::{self, Lock};
use crate::http::{Limits, parse_url};
use crate::oci::unpack_root;
use crate::tool::Tool;
use crate::{Catalogue, DISK, Draft, Facts, ImageError, Packages, Progress, digest, space};
use fetch::Fetch;
pub(crate) use fetch::{begins_at, note_of, open_local, wait};
use head::{Head, Kind};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tt_model::template::{DiskFormat as Format, FEATURE_AGENT};
use tt_model::{VmTemplate, shown_url};

/// What was fetched or copied, in the draft.
pub(crate) const SOURCE: &str = "source";
/// What was in it, if it was packed.
pub(crate) const SOURCE_UNPACKED: &str = "source-unpacked";
/// Copying the largest folder from a slow disk.
const PACK_TIMEOUT: Duration = Duration::from_secs(7200);

/// What is to be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// An absolute path of the host, of a file or of a folder with a root file system; or an `http` or `https` URL.
    pub from: String,
    /// SHA-256 of the file as it lies there, hexadecimal.
    pub digest: Option<String>,
    /// What it is, if its content does not say so; within, if it is packed.
    pub format: Option<Format>,
}

/// What an import may take.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Largest file, packed or not, and largest disk; the file system may be smaller.
    bytes_max: u64,
    /// What may come out of any packed file, and beyond that for each byte of it: an empty disk shrinks to less, but what
    /// is larger and emptier is no disk that somebody waits for.
    unpacked_bytes: u64,
    unpacked_ratio: u64,
    http: Limits,
    /// Pause before a fetch is tried again; each following one is twice as long.
    pause: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            bytes_max: 16 << 40,
            unpacked_bytes: 16 << 30,
            unpacked_ratio: 200,
            http: Limits::default(),
            pause: Duration::from_millis(500),
        }
    }
}

impl Import {
    /// Whether it is fetched, not copied.
    fn is_url(&self) -> bool {
        self.from.contains("://")
    }
}

impl Catalogue {
    /// Makes a template of a disk, or of a root file system, which gets our kernel and agent. An error leaves no template;
    /// what was fetched stays in the draft if a retry helps.
    ///
    /// # Errors
    /// [`ImageError::Fetch`], [`ImageError::NoRoom`], [`ImageError::Unwanted`]; [`ImageError::Format`] says what is wrong
    /// with the file.
    pub fn import(
        &self,
        draft: &Draft,
        import: &Import,
        facts: &Facts,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        let made = self.import_within(draft, import, facts, &Bounds::default(), progress);
        draft.settled(made)
    }

    fn import_within(
        &self,
        draft: &Draft,
        import: &Import,
        facts: &Facts,
        bounds: &Bounds,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        draft.forget_made()?;
        let source = draft.dir().join(SOURCE);
        let room = space::room(draft.dir())?;
        let most = bounds.bytes_max.min(room.total_bytes);
        if import.is_url() {
            parse_url(&import.from)?;
            let Bounds { http: limits, pause, .. } = *bounds;
            Fetch { url: &import.from, to: &source, bytes_max: most, limits, pause }
                .run(progress)?;
        } else if Path::new(&import.from).symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            let folder = Path::new(&import.from);
            check_said(import, facts)?;
            if self.holds_image(folder, progress)? {
                return self.install_image(draft, folder, facts, progress);
            }
            pack(folder, &source, progress)?;
        } else {
            let file = open_local(Path::new(&import.from))?;
            copy(&file, Path::new(&import.from), &source, most, progress)?;
        }
        if let Some(wanted) = &import.digest {
            check_digest(&source, wanted, progress)?;
        }
        let (source, head) = unpacked(draft, source, bounds, progress)?;
        let kind = match (import.format, head.kind()) {
            (Some(Format::Raw), Some(Kind::BareRoot)) => Kind::BareRoot,
            (Some(format), _) => Kind::Disk(format),
            (None, Some(kind)) => kind,
            (None, None) => {
                return Err(refused(
                    import,
                    "it is no disk or archive that is known: qcow2, vmdk, vdi, a raw disk that boots, a root file \
                     system as ext4 or tar, each plain or in gzip, xz or zstd; if it is a raw disk all the same, \
                     say so by `--format raw`",
                ));
            }
        };
        match kind {
            Kind::Packed(_) => return Err(refused(import, "it is packed twice; unpack it first")),
            Kind::Tar => {
                check_said(import, facts)?;
                return self.import_tar(draft, &source, facts, progress);
            }
            Kind::BareRoot | Kind::Disk(Format::Raw) => {
                if kind == Kind::BareRoot {
                    check_said(import, facts)?;
                }
                check_disk(head.disk_bytes(Format::Raw), most).map_err(|p| refused(import, &p))?;
                rename(&source, &draft.dir().join(DISK))?;
            }
            Kind::Disk(format) => {
                let size = check_disk(head.disk_bytes(format), most);
                let size = size.map_err(|problem| refused(import, &problem))?;
                convert::convert(format, &source, size, &draft.dir().join(DISK), progress)?;
            }
        }
        files::remove(&source)?;
        self.finish_disk(draft, facts, progress)
    }

    /// An archive holds a container image, or else a root file system.
    fn import_tar(
        &self,
        draft: &Draft,
        source: &Path,
        facts: &Facts,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        if self.holds_image(source, progress)? {
            return self.install_image(draft, source, facts, progress);
        }
        let root = unpack_root(draft, source, progress)?;
        files::remove(source)?;
        self.install_rootfs(draft, &root, None, facts, progress)
    }

    /// A disk that has no boot loader, for it is nothing but a file system, boots with our kernel and has our agent.
    pub(crate) fn finish_disk(
        &self,
        draft: &Draft,
        facts: &Facts,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        let disk = draft.dir().join(DISK);
        let head = File::open(&disk).and_then(|file| Head::read(&file));
        let head = head.map_err(files::not_read(&disk))?;
        if head.kind() != Some(Kind::BareRoot) {
            return self.finish(draft, facts, progress);
        }
        {
            let _lock = Lock::take(&self.cache, progress)?;
            let boot = self.boot(Packages::Kept, progress)?;
            self.put_boot(&boot, First::Agent(None), draft.dir(), progress)?;
        }
        let mut facts = facts.clone();
        facts.inside.push(FEATURE_AGENT.to_owned());
        self.finish(draft, &facts, progress)
    }
}

/// What boots with our kernel has our agent for its first process: neither firmware nor cloud-init is asked there.
fn check_said(import: &Import, facts: &Facts) -> Result<(), ImageError> {
    match facts.inside.is_empty() {
        true => Ok(()),
        false => Err(refused(
            import,
            &format!(
                "it is no disk that boots by itself, so it can not have: {}; leave `--feature` out",
                facts.inside.join(", ")
            ),
        )),
    }
}

/// Makes an archive of a folder of the host, by a program that follows no link in it.
fn pack(folder: &Path, to: &Path, progress: &dyn Progress) -> Result<(), ImageError> {
    progress.step("packing the folder");
    files::remove(to)?;
    let tool = Tool::new("tar", "tar", PACK_TIMEOUT)
        .args(["--create", "--numeric-owner", "--one-file-system", "--format=pax", "--file"])
        .arg(to)
        .arg("--directory")
        .arg(folder)
        .arg(".");
    tool.run_for(&space::Roomy { progress, path: to }).map(drop)
}

/// What lies in the source, unpacked once if it is packed.
fn unpacked(
    draft: &Draft,
    source: PathBuf,
    bounds: &Bounds,
    progress: &dyn Progress,
) -> Result<(PathBuf, Head), ImageError> {
    let read = |path: &Path| {
        let head = File::open(path).and_then(|file| Head::read(&file));
        head.map_err(files::not_read(path))
    };
    let head = read(&source)?;
    let Some(Kind::Packed(packing)) = head.kind() else { return Ok((source, head)) };
    let unpacked = draft.dir().join(SOURCE_UNPACKED);
    files::remove(&unpacked)?;
    let packed = source.metadata().map_err(files::not_read(&source))?.len();
    let most = packed.saturating_mul(bounds.unpacked_ratio).saturating_add(bounds.unpacked_bytes);
    packed::unpack(packing, &source, &unpacked, most, progress)?;
    files::remove(&source)?;
    let head = read(&unpacked)?;
    Ok((unpacked, head))
}

/// The size of a disk, if one that large can be here.
fn check_disk(size: Result<u64, String>, most: u64) -> Result<u64, String> {
    let size = size?;
    if size == 0 {
        return Err("it is empty".into());
    }
    if size > most {
        return Err(format!(
            "its disk has {} MB, and {} MB is the most that fits here",
            size >> 20,
            most >> 20
        ));
    }
    Ok(size)
}

/// Copies a file of the host, by shared blocks where that works.
fn copy(
    from: &File,
    name: &Path,
    to: &Path,
    bytes_max: u64,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    progress.step("copying");
    let bytes = from.metadata().map_err(files::not_read(name))?.len();
    if bytes > bytes_max {
        let problem = format!(
            "it has {} MB, and {} MB is the most that fits here",
            bytes >> 20,
            bytes_max >> 20
        );
        return Err(ImageError::Format { what: name.display().to_string(), problem });
    }
    space::copy_sparse(from, name, to, progress)
}

fn check_digest(path: &Path, wanted: &str, progress: &dyn Progress) -> Result<(), ImageError> {
    progress.step("checking its digest");
    let found = digest::of_content(path, progress)?;
    if found == wanted {
        return Ok(());
    }
    // Another try must not go on with it.
    files::remove(path)?;
    Err(ImageError::Format {
        what: "file".into(),
        problem: format!("its digest is sha256:{found}, not sha256:{wanted}; nothing was imported"),
    })
}

fn rename(from: &Path, to: &Path) -> Result<(), ImageError> {
    files::remove(to)?;
    std::fs::rename(from, to).map_err(files::not_written(to))?;
    space::pad(to)
}

fn refused(import: &Import, problem: &str) -> ImageError {
    let what = match import.is_url() {
        true => shown_url(&import.from),
        false => import.from.chars().take(300).collect(),
    };
    ImageError::Format { what, problem: problem.to_owned() }
}

#[cfg(test)]
mod tests;
