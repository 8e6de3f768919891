//! A template under construction: a directory of finished files and a few facts become an installed template. What it can
//! run on follows from the files; nothing else says so.

use crate::files::{self, Lock};
use crate::import::{SOURCE, SOURCE_UNPACKED, note_of};
use crate::oci::UNPACKED;
use crate::progress::Progress;
use crate::{CONTAINER, Catalogue, DISK, INITRAMFS, ImageError, KERNEL, digest, record};
use std::path::{Path, PathBuf};
use tt_model::VmTemplate;
use tt_model::template::{FEATURE_CONTAINER, FEATURE_DISK, FEATURE_KERNEL, engines_for};

/// Where drafts lie, below the data directory: installing their files is then a link, not a copy.
const DRAFTS: &str = "making";
/// What is made in a draft out of what was fetched.
const MADE: [&str; 6] = [DISK, KERNEL, INITRAMFS, CONTAINER, UNPACKED, SOURCE_UNPACKED];

/// What the files of a template do not say themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its globally unique name.
    pub name: String,
    /// Description for people.
    pub memo: Option<String>,
    /// The processors that its programs are for, as `uname -m` says it.
    pub arch: String,
    /// What is in it: features that are no forms, e.g. [`tt_model::template::FEATURE_AGENT`].
    pub inside: Vec<String>,
}

/// The directory in which one template is being made. Only one at a time has it, in all processes.
///
/// It stays when it is dropped, so that whoever makes the same template next goes on with what is there: a kill and an
/// error look the same. [`Catalogue::finish`] and [`Catalogue::discard`] remove it.
#[derive(Debug)]
pub struct Draft {
    dir: PathBuf,
    _lock: Lock,
}

impl Draft {
    /// Where its files are put: [`DISK`], [`KERNEL`] with [`INITRAMFS`], [`CONTAINER`]. Whatever else is there is
    /// removed at the end.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a file is put that a template is made from, by [`Catalogue::install_image`]; it goes with the draft.
    #[must_use]
    pub fn source(&self) -> PathBuf {
        self.dir.join(SOURCE)
    }

    /// Removes what an earlier try has made of its source: that would be taken for a part of what is made now, and may be of
    /// another source. What was fetched in part stays: whoever goes on with that checks what it is.
    ///
    /// # Errors
    /// [`ImageError::Write`].
    pub fn forget_made(&self) -> Result<(), ImageError> {
        let source = self.dir.join(SOURCE);
        if !note_of(&source).exists() {
            files::remove(&source)?;
        }
        MADE.iter().try_for_each(|name| files::remove(&self.dir.join(name)))
    }

    /// Gives the room back that a failure has taken and a retry would not go on with.
    pub(crate) fn settled<T>(&self, made: Result<T, ImageError>) -> Result<T, ImageError> {
        // Whoever ends the daemon does not wait for it: the next try forgets, too.
        if matches!(&made, Err(error) if !matches!(error, ImageError::Unwanted)) {
            // What went wrong first is what is to be said.
            let _ = self.forget_made();
        }
        made
    }
}

impl Catalogue {
    /// The draft of the template `name`, with what an earlier try left in it.
    ///
    /// # Errors
    /// [`ImageError::CheckName`], [`ImageError::Write`], [`ImageError::Busy`], [`ImageError::Unwanted`].
    pub fn draft(&self, name: &str, progress: &dyn Progress) -> Result<Draft, ImageError> {
        let dir = self.draft_dir(name)?;
        let lock = Lock::take(&dir, progress)?;
        Ok(Draft { dir, _lock: lock })
    }

    /// Makes a template of the files in `draft` and gives it its name; the draft is gone then.
    ///
    /// # Errors
    /// [`ImageError::Format`] if there is no form of a template; [`ImageError::Unwanted`]; what the file system refused.
    pub fn finish(
        &self,
        draft: &Draft,
        facts: &Facts,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        progress.step("reading it through for its digest");
        let template = describe(draft.dir(), facts, progress)?;
        progress.step("installing");
        for name in record::files_of(&template) {
            files::settle(&draft.dir().join(name))?;
        }
        self.install(draft.dir(), &template, progress)?;
        self.discard(&facts.name)?;
        Ok(template)
    }

    /// Puts the kernel of the template `from`, if it has one, into `draft`, so that a disk that was made from it boots on.
    /// Answers what else is in it: its features that are no forms.
    ///
    /// # Errors
    /// [`ImageError::Read`], [`ImageError::Damaged`] if the template is gone or not what it was; [`ImageError::Write`].
    pub fn carry_over(
        &self,
        draft: &Draft,
        from: &VmTemplate,
        progress: &dyn Progress,
    ) -> Result<Vec<String>, ImageError> {
        let dir = self.data.join(&from.path);
        let there = record::read(&dir)?;
        if there.has(FEATURE_KERNEL) {
            for name in [KERNEL, INITRAMFS] {
                let to = draft.dir().join(name);
                files::remove(&to)?;
                files::share(&dir.join(name), &to, progress)?;
            }
        }
        let forms = [FEATURE_DISK, FEATURE_KERNEL, FEATURE_CONTAINER];
        let is_form = |feature: &String| forms.contains(&feature.as_str());
        Ok(there.features.into_iter().filter(|feature| !is_form(feature)).collect())
    }

    /// Removes what is left of the making of the template `name`. An absent one is fine.
    ///
    /// # Errors
    /// [`ImageError::CheckName`], [`ImageError::Write`].
    pub fn discard(&self, name: &str) -> Result<(), ImageError> {
        files::remove(&self.draft_dir(name)?)
    }

    /// Names of the templates of which a draft lies here.
    ///
    /// # Errors
    /// [`ImageError::Read`].
    pub fn drafts(&self) -> Result<Vec<String>, ImageError> {
        let names = files::names(&self.data.join(DRAFTS))?;
        Ok(names.iter().map(|file| Self::name_of(file)).collect())
    }

    pub(crate) fn draft_dir(&self, name: &str) -> Result<PathBuf, ImageError> {
        Ok(self.data.join(DRAFTS).join(Self::file_of(name)?))
    }
}

/// The template that the files in `dir` make.
pub(crate) fn describe(
    dir: &Path,
    facts: &Facts,
    progress: &dyn Progress,
) -> Result<VmTemplate, ImageError> {
    let is_there = |name: &str| dir.join(name).is_file();
    let mut features = Vec::new();
    for (form, names) in [
        (FEATURE_DISK, &[DISK][..]),
        (FEATURE_KERNEL, &[KERNEL, INITRAMFS]),
        (FEATURE_CONTAINER, &[CONTAINER]),
    ] {
        if names.iter().all(|name| is_there(name)) {
            features.push(form.to_owned());
        }
    }
    features.extend(facts.inside.iter().cloned());
    let mut template = VmTemplate {
        name: facts.name.clone(),
        memo: facts.memo.clone(),
        compatible_engines: engines_for(&features),
        features,
        arch: facts.arch.clone(),
        ..VmTemplate::default()
    };
    if template.compatible_engines.is_empty() {
        return Err(ImageError::Format {
            what: format!("template {:?}", facts.name),
            problem: format!("it has neither {DISK} nor {CONTAINER}"),
        });
    }
    // Whatever its record says counts: what has one digest must be one template.
    let mut content = format!("{template:?}\n");
    for name in record::files_of(&template) {
        let path = dir.join(name);
        let digest = digest::of_sparse_file(&path, progress)?;
        content.push_str(&format!("{name} {digest}\n"));
        let meta = path.symlink_metadata().map_err(files::not_read(&path))?;
        if matches!(name, DISK | CONTAINER) && template.disk_size == 0 {
            template.disk_size = disk_size(name, meta.len())?;
        }
    }
    template.digest = digest::of_bytes(content.as_bytes());
    template.path = record::path_of(&template.digest);
    Ok(template)
}

fn disk_size(name: &str, bytes: u64) -> Result<u32, ImageError> {
    let size = u32::try_from(bytes.div_ceil(1 << 20)).ok().filter(|size| *size > 0);
    size.ok_or_else(|| ImageError::Format {
        what: name.to_owned(),
        problem: format!("it has {bytes} bytes; a disk has 1 byte to 4 PiB"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quiet;
    use std::fs;

    fn facts(name: &str) -> Facts {
        Facts { name: name.into(), memo: None, arch: "x86_64".into(), inside: vec!["agent".into()] }
    }

    #[test]
    fn files_become_a_template_and_nothing_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::new(dir.path().join("data"), dir.path().join("cache"), "/none");
        let draft = catalogue.draft("a.org/x", &Quiet).unwrap();
        assert_eq!(catalogue.drafts().unwrap(), ["a.org/x"]);
        let error = catalogue.finish(&draft, &facts("a.org/x"), &Quiet).unwrap_err();
        assert!(error.to_string().contains("neither"), "{error}");
        for name in [DISK, KERNEL, "rest"] {
            fs::write(draft.dir().join(name), name).unwrap();
        }
        let template = catalogue.finish(&draft, &facts("a.org/x"), &Quiet).unwrap();
        // A kernel without its initramfs is no form.
        assert_eq!(template.features, ["disk", "agent"]);
        assert_eq!(template.compatible_engines, ["qemu"]);
        assert_eq!((template.disk_size, catalogue.get("a.org/x").unwrap()), (1, template.clone()));
        assert_eq!(catalogue.drafts().unwrap(), Vec::<String>::new());
        let lies = dir.path().join("data").join(&template.path);
        assert_eq!(files::names(&lies).unwrap(), [DISK, "template.json"]);
    }

    #[test]
    fn what_was_made_is_no_part_of_the_next_try_and_what_was_fetched_is() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::new(dir.path().join("data"), dir.path().join("cache"), "/none");
        let draft = catalogue.draft("x", &Quiet).unwrap();
        for name in [DISK, KERNEL, INITRAMFS, CONTAINER, SOURCE_UNPACKED, "source", "source.note"] {
            fs::write(draft.dir().join(name), name).unwrap();
        }
        for name in ["unpacked/root/etc", "blobs"] {
            fs::create_dir_all(draft.dir().join(name)).unwrap();
        }
        for _ in 0..2 {
            draft.forget_made().unwrap();
            assert_eq!(files::names(draft.dir()).unwrap(), ["blobs", "source", "source.note"]);
        }
        // Nobody knows any more what it is.
        fs::remove_file(draft.dir().join("source.note")).unwrap();
        draft.forget_made().unwrap();
        assert_eq!(files::names(draft.dir()).unwrap(), ["blobs"]);
    }

    #[test]
    fn a_container_alone_is_for_docker_and_forms_add_up() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::new(dir.path().join("data"), dir.path().join("cache"), "/none");
        let draft = catalogue.draft("c", &Quiet).unwrap();
        fs::write(draft.dir().join(CONTAINER), vec![7; 3 << 20]).unwrap();
        let alone = catalogue.finish(&draft, &facts("c"), &Quiet).unwrap();
        assert_eq!((alone.compatible_engines, alone.disk_size), (vec!["docker".into()], 3));
        drop(draft);
        let draft = catalogue.draft("d", &Quiet).unwrap();
        for name in [DISK, KERNEL, INITRAMFS, CONTAINER] {
            fs::write(draft.dir().join(name), name).unwrap();
        }
        let all = catalogue.finish(&draft, &facts("d"), &Quiet).unwrap();
        assert_eq!(all.compatible_engines, ["qemu", "firecracker", "docker"]);
        assert_eq!(catalogue.get("d").unwrap(), all);
    }
}
