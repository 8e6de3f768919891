//! Images and templates out of a registry. What is half fetched stays in the draft, and the next try goes on with it.

use super::artifact;
use super::cache::Cache;
use super::fetch::{Fetch, blob_path};
use super::image::{Image, choose};
use super::registry::{Access, Patience, Repository};
use super::source::Source;
use super::spec::{Descriptor, MANIFEST_BYTES_MAX, refuse};
use crate::{Catalogue, Draft, Facts, ImageError, Progress, files};
use std::collections::BTreeSet;
use std::path::Path;
use tt_model::Remote;
use tt_model::{Reference, Refusal, VmTemplate};

/// Where blobs lie in the draft.
const BLOBS: &str = "blobs";

impl Catalogue {
    /// Makes a template, in `draft`, of what lies at `remote`: a template that was pushed there, as it was, or an image, as
    /// [`Catalogue::install_image`] does. `facts` says its name, and its description if it gets another one.
    ///
    /// # Errors
    /// [`ImageError::Fetch`] says whether a retry helps; [`ImageError::Format`] for what is not let in;
    /// [`ImageError::NoRoom`], [`ImageError::Unwanted`].
    pub fn pull(
        &self,
        draft: &Draft,
        remote: &Remote,
        facts: &Facts,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        let made = self.pull_within(draft, remote, facts, Patience::default(), progress);
        draft.settled(made)
    }

    pub(super) fn pull_within(
        &self,
        draft: &Draft,
        remote: &Remote,
        facts: &Facts,
        patience: Patience,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        let reference = checked(remote)?;
        draft.forget_made()?;
        progress.step(&format!("asking {}", reference.host));
        let mut repository =
            Repository::open(remote, &reference, Access::Pull, patience, progress)?;
        let (media_type, json) = repository.manifest(reference.version())?;
        let (what, manifest) = choose(&remote.reference, &media_type, json, &mut |descriptor| {
            fetch_manifest(&mut repository, descriptor)
        })?;
        let is_template = artifact::is_template(&manifest);
        if !is_template {
            manifest.check_image(&what)?;
        }
        let blobs = draft.dir().join(BLOBS);
        let wanted: Vec<&Descriptor> = manifest.layers.iter().chain([&manifest.config]).collect();
        drop_others(&blobs, &wanted)?;
        let cache = Cache::new(&self.cache);
        progress.step(&format!("fetching {} parts", wanted.len()));
        let fetch =
            Fetch { remote, reference: &reference, cache: &cache, to: &blobs, patience, progress };
        fetch.all(&wanted)?;
        cache.collect()?;
        if is_template {
            let part = |descriptor: &Descriptor| blob_path(&blobs, &descriptor.digest);
            let facts = artifact::facts(&manifest, &part, facts, &what)?;
            artifact::unpack(&manifest, &part, draft.dir(), &what, progress)?;
            return self.finish(draft, &facts, progress);
        }
        let source = Source::blobs(&blobs, progress)?;
        let image = Image::of_manifest(&source, &what, &manifest)?;
        self.install_opened(draft, &image, facts, progress)
    }
}

/// The API has checked it already.
pub(super) fn checked(remote: &Remote) -> Result<Reference, ImageError> {
    let refused = |refusal: Refusal| refuse("place in a registry", refusal.to_string());
    remote.check().map_err(refused)
}

fn fetch_manifest(
    repository: &mut Repository<'_>,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, ImageError> {
    let what = format!("manifest {}", descriptor.digest);
    if descriptor.size > MANIFEST_BYTES_MAX {
        let problem = format!("it has {} bytes, {MANIFEST_BYTES_MAX} at most", descriptor.size);
        return Err(refuse(&what, problem));
    }
    let (_, json) = repository.manifest(&descriptor.digest.to_string())?;
    if json.len() as u64 != descriptor.size {
        let problem = format!("it has {} bytes, not {}", json.len(), descriptor.size);
        return Err(refuse(&what, problem));
    }
    Ok(json)
}

/// Removes what an earlier try fetched that is not wanted now: a tag may have moved on.
fn drop_others(blobs: &Path, wanted: &[&Descriptor]) -> Result<(), ImageError> {
    let wanted: BTreeSet<&str> = wanted.iter().map(|blob| blob.digest.hex()).collect();
    for name in files::names(blobs)? {
        let digits = name.split('.').next().unwrap_or_default();
        if !wanted.contains(digits) {
            files::remove(&blobs.join(&name))?;
        }
    }
    Ok(())
}
