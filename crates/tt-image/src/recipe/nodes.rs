//! What a recipe names in the guest, with its content: texts, and copies of files and folders of the host. It follows no link
//! on the host, and takes nothing but plain files, folders and links.

use crate::rootfs::{Node, Nodes};
use crate::{ImageError, Progress, files};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tt_model::Recipe;
use tt_model::recipe::RecipeFile;

/// Most that one recipe copies, since it is held in memory; what is larger is imported as a disk.
pub(crate) const COPY_BYTES_MAX: u64 = 256 << 20;
/// Most files, folders and links that one recipe comes to.
pub(crate) const NODES_MAX: usize = 10_000;
/// Deepest folder that is copied.
const DEPTH_MAX: usize = 32;

const FILE_MODE: u32 = 0o644;
const PROGRAM_MODE: u32 = 0o755;
const DIR_MODE: u32 = 0o755;

/// What is copied, and how much more may be.
pub(crate) struct Copies<'a> {
    pub(crate) nodes: Nodes,
    left: u64,
    /// Who it is for, in messages.
    what: &'a str,
    progress: &'a dyn Progress,
}

/// All that `recipe` names, which lies in `dir`.
pub(super) fn of(
    recipe: &Recipe,
    dir: &Path,
    progress: &dyn Progress,
) -> Result<Nodes, ImageError> {
    let what = format!("recipe {:?}", recipe.name);
    let mut copies = Copies::new(&what, progress);
    for dir in &recipe.dirs {
        copies.add(dir.path.clone(), Node::Dir(dir.mode.unwrap_or(DIR_MODE)))?;
    }
    for link in &recipe.links {
        copies.add(link.path.clone(), Node::Link(link.to.clone()))?;
    }
    for file in &recipe.files {
        match (&file.text, &file.from) {
            (Some(text), _) => {
                let mode = file.mode.unwrap_or(FILE_MODE);
                copies.add(file.path.clone(), Node::File(mode, text.clone().into_bytes()))?;
            }
            (None, from) => {
                let from = Path::new(from.as_deref().unwrap_or_default());
                copies.check_way(dir, from)?;
                copies.file(file, &dir.join(from))?;
            }
        }
    }
    Ok(copies.nodes)
}

impl<'a> Copies<'a> {
    /// None yet, for `what`.
    pub(crate) fn new(what: &'a str, progress: &'a dyn Progress) -> Self {
        Self { nodes: Nodes::new(), left: COPY_BYTES_MAX, what, progress }
    }

    /// That no link lies on the way from the recipe's folder to a file in it: it would lead out of that.
    fn check_way(&self, dir: &Path, from: &Path) -> Result<(), ImageError> {
        let way = from.ancestors().skip(1).filter(|part| !part.as_os_str().is_empty());
        for part in way.map(|part| dir.join(part)) {
            if part.is_symlink() {
                return Err(self.refused(&part, "it is a symbolic link on the way to a file"));
            }
        }
        Ok(())
    }

    fn file(&mut self, file: &RecipeFile, from: &Path) -> Result<(), ImageError> {
        let meta = match from.symlink_metadata() {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(self.refused(from, "there is no such file on the host"));
            }
            Err(e) => return Err(files::not_read(from)(e)),
        };
        if meta.is_dir() && file.mode.is_some() {
            return Err(
                self.refused(from, "it is a folder, which has no one mode: leave `mode` out")
            );
        }
        if meta.is_symlink() {
            return Err(self.refused(from, "it is a symbolic link: name what it leads to"));
        }
        self.copy(from, &file.path, DEPTH_MAX)?;
        if let (Some(mode), Some(Node::File(own, _))) = (file.mode, self.nodes.get_mut(&file.path))
        {
            *own = mode;
        }
        Ok(())
    }

    /// Copies what lies at `from`, and all that is in it, to `path` in the guest.
    pub(crate) fn copy(&mut self, from: &Path, path: &str, depth: usize) -> Result<(), ImageError> {
        self.progress.check()?;
        let meta = from.symlink_metadata().map_err(files::not_read(from))?;
        let mode = meta.permissions().mode();
        if meta.is_symlink() {
            let to = std::fs::read_link(from).map_err(files::not_read(from))?;
            let to = to.into_os_string().into_string();
            let to = to.map_err(|_| self.refused(from, "it is a link to what is no text"))?;
            return self.add(path.to_owned(), Node::Link(to));
        }
        if meta.is_file() {
            if meta.len() > self.left {
                return Err(self.too_much());
            }
            let mode = if mode & 0o100 == 0 { FILE_MODE } else { PROGRAM_MODE };
            return self.add(path.to_owned(), Node::File(mode, files::read(from, self.left)?));
        }
        let Some(depth) = depth.checked_sub(1).filter(|_| meta.is_dir()) else {
            let problem = format!("it is no file or folder, or deeper than {DEPTH_MAX} folders");
            return Err(self.refused(from, &problem));
        };
        self.add(path.to_owned(), Node::Dir(DIR_MODE))?;
        for entry in std::fs::read_dir(from).map_err(files::not_read(from))? {
            let name = entry.map_err(files::not_read(from))?.file_name();
            let Some(text) = name.to_str().filter(|name| !name.chars().any(char::is_control))
            else {
                return Err(self.refused(&from.join(&name), "its name is no line of text"));
            };
            self.copy(&from.join(text), &format!("{}/{text}", path.trim_end_matches('/')), depth)?;
        }
        Ok(())
    }

    fn add(&mut self, path: String, node: Node) -> Result<(), ImageError> {
        if let Node::File(_, content) = &node {
            let bytes = content.len() as u64;
            self.left = self.left.checked_sub(bytes).ok_or_else(|| self.too_much())?;
        }
        self.nodes.insert(path, node);
        if self.nodes.len() > NODES_MAX { Err(self.too_much()) } else { Ok(()) }
    }

    fn too_much(&self) -> ImageError {
        ImageError::Format {
            what: self.what.to_owned(),
            problem: format!(
                "it copies more than {} MB or {NODES_MAX} files; import a disk instead",
                COPY_BYTES_MAX >> 20
            ),
        }
    }

    fn refused(&self, from: &Path, problem: &str) -> ImageError {
        ImageError::Format {
            what: format!("file {:?} of {}", from.display().to_string(), self.what),
            problem: problem.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quiet;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn nodes(dir: &Path, text: &str) -> Result<Nodes, String> {
        let text = format!("name = \"x\"\nbase = \"micro\"\n{text}");
        of(&Recipe::parse(&text).unwrap(), dir, &Quiet).map_err(|error| error.to_string())
    }

    #[test]
    fn a_folder_is_copied_with_its_links_and_programs() {
        let dir = tempfile::tempdir().unwrap();
        let site = dir.path().join("site");
        fs::create_dir_all(site.join("cgi-bin")).unwrap();
        fs::write(site.join("index.html"), "hello").unwrap();
        fs::write(site.join("cgi-bin/run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(site.join("cgi-bin/run"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("/etc/shadow", site.join("link")).unwrap();
        let text = "[[file]]\npath = \"/srv\"\nfrom = \"site\"\n\
                    [[file]]\npath = \"/one\"\nfrom = \"./site/index.html\"\nmode = 0o600\n";
        let wanted = Nodes::from([
            ("/one".into(), Node::File(0o600, b"hello".into())),
            ("/srv".into(), Node::Dir(0o755)),
            ("/srv/cgi-bin".into(), Node::Dir(0o755)),
            ("/srv/cgi-bin/run".into(), Node::File(0o755, b"#!/bin/sh\n".into())),
            ("/srv/index.html".into(), Node::File(0o644, b"hello".into())),
            ("/srv/link".into(), Node::Link("/etc/shadow".into())),
        ]);
        assert_eq!(nodes(dir.path(), text).unwrap(), wanted);
    }

    #[test]
    fn what_can_not_be_copied_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        symlink("/etc/shadow", path.join("link")).unwrap();
        symlink("/etc", path.join("way")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path.join("socket")).unwrap();
        fs::create_dir(path.join("folder")).unwrap();
        fs::create_dir_all(path.join("deep").join("d/".repeat(DEPTH_MAX))).unwrap();
        fs::File::create(path.join("large")).unwrap().set_len(COPY_BYTES_MAX + 1).unwrap();
        fs::create_dir(path.join("odd")).unwrap();
        fs::write(path.join("odd/a\nb"), "").unwrap();
        for (line, shown) in [
            ("from = \"gone\"", "gone\" of recipe \"x\" can not be used: there is no such file"),
            ("from = \"link\"", "it is a symbolic link"),
            (
                "from = \"way/shadow\"",
                "way\" of recipe \"x\" can not be used: it is a symbolic link on the way",
            ),
            ("from = \"./way/./ssl/certs\"", "it is a symbolic link on the way"),
            ("from = \"socket\"", "it is no file or folder"),
            ("from = \"deep\"", "deeper than 32 folders"),
            ("from = \"large\"", "it copies more than 256 MB"),
            ("from = \"odd\"", "its name is no line of text"),
            ("from = \"folder\"\nmode = 0o755", "leave `mode` out"),
        ] {
            let text = format!("[[file]]\npath = \"/x\"\n{line}\n");
            let error = nodes(path, &text).unwrap_err();
            assert!(error.contains(shown), "{line}: {error}");
        }
    }
}
