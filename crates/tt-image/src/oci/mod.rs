//! Container images as templates. An image's layers are laid over each other in a directory, which becomes a disk that
//! boots with TT's kernel and agent; the agent runs the image's process. Images come from strangers: see `unpack.rs` and
//! `tar.rs` for what is not let in. Nothing of an image is ever run on the host.

mod artifact;
mod blob;
mod cache;
pub(crate) mod container;
mod fetch;
mod image;
mod pull;
mod push;
mod registry;
mod runs;
mod source;
mod spec;
mod tar;
pub(crate) mod tree;
mod unpack;

#[cfg(test)]
mod tests;

use crate::{CONTAINER, Catalogue, Draft, Facts, ImageError, Progress, files};
use image::{Form, Image};
use rustix::fs::Mode;
use source::Source;
use std::fs::File;
use std::path::{Path, PathBuf};
use tt_model::VmTemplate;
use unpack::{Limits, Unpacker};

/// Where the layers are laid over each other, in the draft. Closed to all but root: an image has set-id programs.
pub(crate) const UNPACKED: &str = "unpacked";
/// What an image may hold in all of its layers; the largest in use have about half a million files.
const LIMITS: Limits =
    Limits { bytes: spec::BLOB_BYTES_MAX, entries: 3_000_000, hidden_bytes: 64 << 20 };

/// Removes from the cache directory `cache` the blobs that nothing used for long, and the oldest of what is too much.
pub(crate) fn collect_blobs(cache: &Path) -> Result<(), ImageError> {
    cache::Cache::new(cache).collect()
}

impl Catalogue {
    /// Whether `source` holds an image: an OCI layout, or what `docker save` writes, as a directory or a tar archive
    /// that is not compressed.
    ///
    /// # Errors
    /// [`ImageError::Read`], [`ImageError::Unwanted`].
    pub fn holds_image(&self, source: &Path, progress: &dyn Progress) -> Result<bool, ImageError> {
        match Source::open(source, progress) {
            Ok(source) => Ok(Form::of(&source).is_some()),
            // No archive at all.
            Err(ImageError::Format { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes the image in `source` (see [`Catalogue::holds_image`]) a template, in `draft`: a disk that boots and runs
    /// the image's process, and a container.
    ///
    /// # Errors
    /// [`ImageError::Format`] for an image that is not let in; those of [`Catalogue::install_rootfs`].
    pub fn install_image(
        &self,
        draft: &Draft,
        source: &Path,
        facts: &Facts,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        let source = Source::open(source, progress)?;
        self.install_opened(draft, &Image::open(&source)?, facts, progress)
    }

    fn install_opened(
        &self,
        draft: &Draft,
        image: &Image<'_>,
        facts: &Facts,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        let root = make_root(draft)?;
        let mut unpacker = Unpacker::new(&root, LIMITS, progress)?;
        for number in 0..image.layers() {
            progress.step(&format!("unpacking layer {} of {}", number + 1, image.layers()));
            let open = |bytes_max| image.open_layer(number, bytes_max);
            unpacker.layer(&image.layer_name(number), &open)?;
        }
        let container = draft.dir().join(CONTAINER);
        files::remove(&container)?;
        progress.step("keeping it as a container");
        container::write(image, &container, progress)?;
        let mut facts = facts.clone();
        facts.memo.get_or_insert_with(|| memo(image));
        self.install_rootfs(draft, &root, image.entry.as_ref(), &facts, progress)
    }
}

/// Unpacks a root file system from a plain tar archive, with the same care as an image's layers. Answers where it lies in
/// the draft.
pub(crate) fn unpack_root(
    draft: &Draft,
    archive: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, ImageError> {
    let root = make_root(draft)?;
    progress.step("unpacking the root file system");
    let open = |bytes_max| {
        let file = File::open(archive).map_err(files::not_read(archive))?;
        let bytes = file.metadata().map_err(files::not_read(archive))?.len();
        if bytes > bytes_max {
            let problem = format!("it has more than {} MB", bytes_max >> 20);
            return Err(ImageError::Format { what: "root file system".into(), problem });
        }
        Ok(file)
    };
    Unpacker::new(&root, LIMITS, progress)?.layer("root file system", &open)?;
    Ok(root)
}

fn make_root(draft: &Draft) -> Result<PathBuf, ImageError> {
    let unpacked = draft.dir().join(UNPACKED);
    files::remove(&unpacked)?;
    let closed = rustix::fs::mkdir(&unpacked, Mode::RWXU);
    closed.map_err(|e| files::not_written(&unpacked)(e.into()))?;
    let root = unpacked.join("root");
    rustix::fs::mkdir(&root, Mode::from_raw_mode(0o755))
        .map_err(|e| files::not_written(&root)(e.into()))?;
    Ok(root)
}

/// What an image says of itself, in a line.
fn memo(image: &Image<'_>) -> String {
    const CHARS_MAX: usize = 60;
    let program = image.entry.as_ref().map(|entry| entry.argv.join(" ")).unwrap_or_default();
    let program: String = program.chars().filter(|c| !c.is_control()).take(CHARS_MAX).collect();
    let id: String = image.id.hex().chars().take(12).collect();
    if program.is_empty() { format!("image {id}") } else { format!("image {id}: {program}") }
}
