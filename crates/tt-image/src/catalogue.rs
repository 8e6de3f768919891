//! The templates of one data directory. Every change is atomic: a template is there with all of its files, or not at all.

use crate::files::{self, Lock, Temporary};
use crate::{ImageError, NAME_BYTES_MAX, digest, record};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tt_model::VmTemplate;

const BY_NAME: &str = "by-name";
/// What stands for `/` in the file name of a template's name, which has no `%` itself.
const SLASH: &str = "%2F";

/// The templates below a data directory, and the means to build the built-in ones.
///
/// It holds nothing in memory: any number of them, in any number of processes, may work on one directory.
#[derive(Clone, Debug)]
pub struct Catalogue {
    pub(crate) data: PathBuf,
    pub(crate) cache: PathBuf,
    pub(crate) agent: PathBuf,
}

impl Catalogue {
    /// The catalogue of the data directory `data`. Builds keep what they fetched and made in `cache`, which data
    /// directories may share, and put the static program `agent` into the guest. Nothing is touched yet.
    #[must_use]
    pub fn new(
        data: impl Into<PathBuf>,
        cache: impl Into<PathBuf>,
        agent: impl Into<PathBuf>,
    ) -> Self {
        Self { data: data.into(), cache: cache.into(), agent: agent.into() }
    }

    /// All templates that have a name, in the order of their names. A damaged one is left out, with a warning in the log;
    /// [`Catalogue::get`] says what is wrong with it.
    ///
    /// # Errors
    /// [`ImageError::Read`] if the directory can not be read.
    pub fn list(&self) -> Result<Vec<VmTemplate>, ImageError> {
        let mut templates = Vec::new();
        for file in files::names(&self.by_name())? {
            let name = file.replace(SLASH, "/");
            match self.get(&name) {
                Ok(template) => templates.push(template),
                // Removed since.
                Err(ImageError::NotFound { .. }) => {}
                Err(error) => tracing::warn!(template = name, %error, "template is left out"),
            }
        }
        templates.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(templates)
    }

    /// What a name means now.
    ///
    /// # Errors
    /// [`ImageError::CheckName`], [`ImageError::NotFound`], [`ImageError::Damaged`], [`ImageError::Read`].
    pub fn get(&self, name: &str) -> Result<VmTemplate, ImageError> {
        let link = self.link(name)?;
        let digest = self.digest_of(name, &link)?;
        let dir = self.templates().join(&digest);
        let template = record::read(&dir)?;
        if template.name != name || template.digest != digest {
            return Err(ImageError::Damaged {
                path: dir,
                problem: format!("it is template {:?}", template.name),
            });
        }
        Ok(template)
    }

    /// Takes the name away, and removes the template that it meant. The caller has checked that no Vm was made from that
    /// one. An absent name is fine.
    ///
    /// # Errors
    /// [`ImageError::CheckName`], [`ImageError::Write`], [`ImageError::Busy`].
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        let link = self.link(name)?;
        let _lock = Lock::take(&self.templates())?;
        let meant = self.digest_of(name, &link);
        files::remove(&link)?;
        match meant {
            Ok(digest) => self.discard(&digest),
            // Whatever it was, it was no template's name.
            Err(_) => Ok(()),
        }
    }

    /// Removes every template that has no name any more and whose digest is not in `in_use`; answers their digests. The
    /// caller makes sure that no Vm is being made from one of them.
    ///
    /// # Errors
    /// [`ImageError::Read`], [`ImageError::Write`], [`ImageError::Busy`].
    pub fn collect(&self, in_use: &BTreeSet<String>) -> Result<Vec<String>, ImageError> {
        let _lock = Lock::take(&self.templates())?;
        let by_name = self.by_name();
        let mut named = BTreeSet::new();
        for file in files::names(&by_name)? {
            named.extend(self.digest_of(&file, &by_name.join(&file)).ok());
        }
        let mut unused = files::names(&self.templates())?;
        unused.retain(|n| digest::is_digest(n) && !named.contains(n) && !in_use.contains(n));
        for digest in &unused {
            self.discard(digest)?;
        }
        Ok(unused)
    }

    /// Makes a template out of the finished files in `from`, which has a record of it, and gives it its name.
    pub(crate) fn install(&self, from: &Path, template: &VmTemplate) -> Result<(), ImageError> {
        let link = self.link(&template.name)?;
        let templates = self.templates();
        let _lock = Lock::take(&templates)?;
        let dir = templates.join(&template.digest);
        if record::read(&dir).ok().as_ref() != Some(template) {
            files::remove(&dir)?;
            let temporary = Temporary::create(&templates)?;
            for name in record::files_of(template) {
                files::share(&from.join(name), &temporary.path().join(name))?;
            }
            record::write(temporary.path(), template)?;
            temporary.publish(&dir)?;
        }
        self.give_name(&link, &template.digest)
    }

    /// Points a name at a digest, from one moment to the next.
    fn give_name(&self, link: &Path, digest: &str) -> Result<(), ImageError> {
        let target = Path::new("..").join(digest);
        if fs::read_link(link).is_ok_and(|old| old == target) {
            return Ok(());
        }
        let by_name = self.by_name();
        files::make_dir(&by_name)?;
        let temporary = by_name.join(format!("{}{digest}", files::TEMPORARY));
        files::remove(&temporary)?;
        let give = || {
            symlink(&target, &temporary)?;
            fs::rename(&temporary, link)?;
            files::sync_dir(&by_name)?;
            files::sync_dir(&self.templates())
        };
        give().map_err(files::not_written(link))
    }

    /// Removes a template's directory; the caller has the lock. A kill leaves it whole or under a temporary name.
    fn discard(&self, digest: &str) -> Result<(), ImageError> {
        let dir = self.templates().join(digest);
        let temporary = self.templates().join(format!("{}{digest}", files::TEMPORARY));
        match fs::rename(&dir, &temporary) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(files::not_written(&dir)(e)),
            _ => files::remove(&temporary),
        }
    }

    fn digest_of(&self, name: &str, link: &Path) -> Result<String, ImageError> {
        let target = match fs::read_link(link) {
            Ok(target) => target,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(ImageError::NotFound { name: name.into() });
            }
            Err(e) if e.kind() == ErrorKind::InvalidInput => PathBuf::new(),
            Err(e) => return Err(files::not_read(link)(e)),
        };
        let digest = target.strip_prefix("..").ok().and_then(Path::to_str);
        match digest {
            Some(digest) if digest::is_digest(digest) => Ok(digest.to_owned()),
            _ => Err(ImageError::Damaged {
                path: link.into(),
                problem: "it is no link to a template".into(),
            }),
        }
    }

    /// The file that holds a name.
    fn link(&self, name: &str) -> Result<PathBuf, ImageError> {
        let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
        let right = name.len() <= NAME_BYTES_MAX
            && is_end(name.chars().next())
            && is_end(name.chars().last())
            && name.chars().all(allowed)
            && !name.contains("//")
            && !name.contains("..");
        if right {
            Ok(self.by_name().join(name.replace('/', SLASH)))
        } else {
            Err(ImageError::CheckName { name: name.into() })
        }
    }

    fn templates(&self) -> PathBuf {
        self.data.join("templates")
    }

    fn by_name(&self) -> PathBuf {
        self.templates().join(BY_NAME)
    }
}
