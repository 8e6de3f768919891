//! A template into a registry, from where others pull it. What the registry has already is not sent again.

use super::artifact;
use super::blob::Digest;
use super::pull::checked;
use super::registry::{Access, Patience, Repository, patiently};
use super::spec::MANIFEST;
use crate::{Catalogue, ImageError, Progress};
use tt_model::Remote;
use tt_model::{Reference, VmTemplate};

impl Catalogue {
    /// Pushes a template to `remote`, which has a tag; answers the digest by which it can be pulled. `before` is a reference
    /// to which it was pushed earlier: what lies there is taken over, if it is the same registry.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] if the template is not there any more, [`ImageError::Fetch`], [`ImageError::NoRoom`],
    /// [`ImageError::Unwanted`]; [`ImageError::Format`] for a reference that is none. Whatever it is, the draft of that name is
    /// to be discarded then.
    pub fn push(
        &self,
        template: &VmTemplate,
        remote: &Remote,
        before: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<String, ImageError> {
        self.push_within(template, remote, before, Patience::default(), progress)
    }

    pub(super) fn push_within(
        &self,
        template: &VmTemplate,
        remote: &Remote,
        before: Option<&str>,
        patience: Patience,
        progress: &dyn Progress,
    ) -> Result<String, ImageError> {
        let there = self.get(&template.name)?;
        let reference = checked(remote)?;
        let access = Access::Push { from: before.and_then(|before| beside(before, &reference)) };
        let mut repository = Repository::open(remote, &reference, access, patience, progress)?;
        // What a killed one left is written over, and goes with the draft.
        let draft = self.draft(&template.name, progress)?;
        let packed = artifact::pack(&there, &self.data.join(&there.path), draft.dir(), progress)?;
        progress.step(&format!("asking {}", reference.host));
        for (blob, path) in &packed.blobs {
            patiently(patience, progress, || {
                if repository.has_blob(&blob.digest)? {
                    return Ok(());
                }
                progress.step(&format!("sending {}", artifact::name(blob)));
                repository.put_blob(&blob.digest, path, blob.size)
            })?;
        }
        progress.step("sending the manifest");
        patiently(patience, progress, || {
            repository.put_manifest(reference.version(), MANIFEST[0], &packed.manifest)
        })?;
        self.discard(&template.name)?;
        Ok(Digest::of(&packed.manifest).to_string())
    }
}

/// The repository of `before`, if it is another one of the same registry.
fn beside(before: &str, reference: &Reference) -> Option<String> {
    let before = Reference::parse(before).ok()?;
    let is_beside = before.host == reference.host && before.name != reference.name;
    is_beside.then_some(before.name)
}
