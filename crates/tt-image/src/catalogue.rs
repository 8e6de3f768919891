//! The templates of one data directory. Every change is atomic: a template is there with all of its files, or not at all.

use crate::files::{self, Lock, Temporary};
use crate::{ImageError, Progress, digest, record};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tt_model::VmTemplate;
use tt_model::check::check_template_name;

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
            let name = Self::name_of(&file);
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
    /// [`ImageError::CheckName`], [`ImageError::Write`], [`ImageError::Busy`], [`ImageError::Unwanted`].
    pub fn remove(&self, name: &str, progress: &dyn Progress) -> Result<(), ImageError> {
        let link = self.link(name)?;
        let _lock = Lock::take(&self.templates(), progress)?;
        let meant = self.digest_of(name, &link);
        files::remove(&link)?;
        match meant {
            Ok(digest) => self.drop_files(&digest),
            // Whatever it was, it was no template's name.
            Err(_) => Ok(()),
        }
    }

    /// Removes every template that has no name any more and whose digest is not in `in_use`; answers their digests:
    /// none while another one is installed. The caller makes sure that no Vm is being made from one of them.
    ///
    /// # Errors
    /// [`ImageError::Read`], [`ImageError::Write`].
    pub fn collect(&self, in_use: &BTreeSet<String>) -> Result<Vec<String>, ImageError> {
        let Some(_lock) = Lock::try_take(&self.templates())? else { return Ok(Vec::new()) };
        let by_name = self.by_name();
        let mut named = BTreeSet::new();
        for file in files::names(&by_name)? {
            named.extend(self.digest_of(&file, &by_name.join(&file)).ok());
        }
        let mut unused = files::names(&self.templates())?;
        unused.retain(|n| digest::is_digest(n) && !named.contains(n) && !in_use.contains(n));
        for digest in &unused {
            self.drop_files(digest)?;
        }
        Ok(unused)
    }

    /// Makes a template out of the finished files in `from`, which has a record of it, and gives it its name.
    pub(crate) fn install(
        &self,
        from: &Path,
        template: &VmTemplate,
        progress: &dyn Progress,
    ) -> Result<(), ImageError> {
        let link = self.link(&template.name)?;
        let templates = self.templates();
        let _lock = Lock::take(&templates, progress)?;
        let dir = templates.join(&template.digest);
        if record::read(&dir).ok().as_ref() != Some(template) {
            files::remove(&dir)?;
            let temporary = Temporary::create(&templates)?;
            for name in record::files_of(template) {
                files::share(&from.join(name), &temporary.path().join(name), progress)?;
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
        // Not beside the link: here the next holder of the lock clears it.
        let temporary = self.templates().join(format!("{}{digest}", files::TEMPORARY));
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
    fn drop_files(&self, digest: &str) -> Result<(), ImageError> {
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
        Ok(self.by_name().join(Self::file_of(name)?))
    }

    /// A template's name as the name of a file.
    pub(crate) fn file_of(name: &str) -> Result<String, ImageError> {
        match check_template_name(name) {
            Ok(()) => Ok(name.replace('/', SLASH)),
            Err(_) => Err(ImageError::CheckName { name: name.into() }),
        }
    }

    /// And back.
    pub(crate) fn name_of(file: &str) -> String {
        file.replace(SLASH, "/")
    }

    fn templates(&self) -> PathBuf {
        self.data.join("templates")
    }

    fn by_name(&self) -> PathBuf {
        self.templates().join(BY_NAME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DISK, NAME_BYTES_MAX};
    use rustix::fs::{FileType, Mode, mknodat};
    use tempfile::TempDir;
    use tt_model::template::FEATURE_DISK;

    fn catalogue() -> (TempDir, Catalogue) {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::new(dir.path().join("data"), dir.path().join("cache"), "/none");
        (dir, catalogue)
    }

    /// Installs a template of 1 MB without a kernel.
    fn install(dir: &TempDir, catalogue: &Catalogue, name: &str, content: &[u8]) -> VmTemplate {
        let from = tempfile::tempdir_in(dir.path()).unwrap();
        fs::write(from.path().join(DISK), content).unwrap();
        let digest = digest::of_bytes(&[name.as_bytes(), content].concat());
        let template = VmTemplate {
            name: name.into(),
            path: record::path_of(&digest),
            digest,
            disk_size: 1,
            features: vec![FEATURE_DISK.into()],
            ..VmTemplate::default()
        };
        catalogue.install(from.path(), &template, &crate::Quiet).unwrap();
        template
    }

    #[test]
    fn templates_come_and_go_by_name() {
        let (dir, catalogue) = catalogue();
        assert_eq!(catalogue.list().unwrap(), []);
        let far = install(&dir, &catalogue, "github.com/ktmlm/alpine", b"a");
        let near = install(&dir, &catalogue, "near", b"a");
        assert_eq!(catalogue.list().unwrap(), [far.clone(), near]);
        let again = install(&dir, &catalogue, "near", b"b");
        assert_eq!(catalogue.get("near").unwrap(), again);
        catalogue.remove("near", &crate::Quiet).unwrap();
        assert_eq!(catalogue.list().unwrap(), [far]);
    }

    #[test]
    fn hostile_names_are_refused() {
        let (_dir, catalogue) = catalogue();
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        let names = ["", "..", "a/../b", "/etc", "a//b", "a b", "a\0", "a%2Fb", ".tmp-1", "mıcro"];
        for name in names.into_iter().chain([long.as_str()]) {
            for error in [
                catalogue.get(name).unwrap_err(),
                catalogue.remove(name, &crate::Quiet).unwrap_err(),
            ] {
                assert!(matches!(error, ImageError::CheckName { .. }), "{name:?}: {error}");
            }
        }
    }

    /// Puts something else in the place of a template's file.
    type Spoil = fn(&Path);

    #[test]
    fn hostile_files_are_refused_and_do_not_hide_others() {
        let spoils: [(&str, Spoil); 8] = [
            ("template.json", |p| symlink("/etc/hostname", p).unwrap()),
            ("template.json", |p| node(p, FileType::Fifo)),
            ("template.json", |p| node(p, FileType::CharacterDevice)),
            ("template.json", |p| fs::create_dir(p).unwrap()),
            ("template.json", |p| fs::File::create(p).unwrap().set_len(1 << 40).unwrap()),
            ("template.json", |p| fs::write(p, b"{\"version\": 1}").unwrap()),
            (DISK, |p| symlink("/dev/zero", p).unwrap()),
            (DISK, |p| fs::File::create(p).unwrap().set_len(1 << 40).unwrap()),
        ];
        for (number, (file, spoil)) in spoils.into_iter().enumerate() {
            let (dir, catalogue) = catalogue();
            let good = install(&dir, &catalogue, "good", b"good");
            let bad = install(&dir, &catalogue, "bad", b"bad");
            let path = catalogue.data.join(&bad.path).join(file);
            fs::remove_file(&path).unwrap();
            spoil(&path);
            let error = catalogue.get("bad").unwrap_err();
            assert!(matches!(error, ImageError::Damaged { .. }), "{number}: {error}");
            assert_eq!(catalogue.list().unwrap(), [good], "{number}");
            // Made again, it is whole again.
            let bad = install(&dir, &catalogue, "bad", b"bad");
            assert_eq!(catalogue.get("bad").unwrap(), bad, "{number}");
        }
    }

    #[test]
    fn hostile_links_are_refused_and_can_be_removed() {
        let (dir, catalogue) = catalogue();
        install(&dir, &catalogue, "good", b"good");
        let outside = dir.path().join("precious");
        fs::create_dir(&outside).unwrap();
        let link = catalogue.by_name().join("bad");
        for target in ["/etc", "../../../precious", "..", &outside.to_string_lossy()] {
            symlink(target, &link).unwrap();
            let error = catalogue.get("bad").unwrap_err();
            assert!(matches!(error, ImageError::Damaged { .. }), "{target}: {error}");
            assert_eq!(catalogue.list().unwrap().len(), 1);
            catalogue.remove("bad", &crate::Quiet).unwrap();
            assert!(!link.is_symlink() && outside.is_dir());
        }
    }

    #[test]
    fn what_an_interrupted_change_left_is_cleared_by_the_next() {
        let (dir, catalogue) = catalogue();
        let left = catalogue.templates().join(".tmp-1-0");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join(DISK), b"half").unwrap();
        install(&dir, &catalogue, "good", b"good");
        assert!(!left.exists());
    }

    fn node(path: &Path, kind: FileType) {
        let device = rustix::fs::makedev(1, 5);
        mknodat(rustix::fs::CWD, path, kind, Mode::RUSR, device).unwrap();
    }
}
