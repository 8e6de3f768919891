//! Recipes: what a template is built from, as a person writes it down in a small TOML file. A recipe is a list of what is
//! there, never a program. See `docs/recipes.md`.

mod check;

use crate::check::quoted;
use crate::units::parse_size_mb;
use crate::{ErrorCode, Refusal};
use check::{is_line, refuse};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Names of the recipes that are built in, and on which others build.
pub const BUILT_IN: [&str; 2] = ["micro", "debian-12"];
/// What the recipes that are built in build on: BusyBox, or a release of Debian.
pub const GROUNDS: [&str; 2] = [GROUND_BUSYBOX, "bookworm"];
/// The ground that is no release of Debian.
pub const GROUND_BUSYBOX: &str = "busybox";
/// Largest recipe: it is kept in the template's record.
pub const RECIPE_BYTES_MAX: usize = 64 << 10;

/// Longest path of the host that a recipe's files are looked for in.
const DIR_BYTES_MAX: usize = 2048;

/// A recipe.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Globally unique name of the template that it makes.
    pub name: String,
    /// The recipe that is built in on which it builds: all of that one is there, too.
    pub base: String,
    /// Description for people.
    pub memo: Option<String>,
    /// Smallest size of the disk, e.g. `256M`; see [`Recipe::size_mb`].
    pub size: Option<String>,
    /// Names of Debian packages.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Files.
    #[serde(default, rename = "file")]
    pub files: Vec<RecipeFile>,
    /// Directories.
    #[serde(default, rename = "dir")]
    pub dirs: Vec<RecipeDir>,
    /// Symbolic links.
    #[serde(default, rename = "link")]
    pub links: Vec<RecipeLink>,
    /// What runs beside the agent.
    pub process: Option<RecipeProcess>,
}

/// A file of a guest; its content is `text` or what lies at `from`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeFile {
    /// Where it is in the guest.
    pub path: String,
    /// Its content.
    pub text: Option<String>,
    /// A file or folder of the host, seen from where the recipe lies.
    pub from: Option<String>,
    /// Its mode; without one 0644, or for what lies at `from` as it is there: 0755 for what its owner can run.
    pub mode: Option<u32>,
}

/// A directory of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeDir {
    /// Where it is in the guest.
    pub path: String,
    /// Its mode; without one 0755.
    pub mode: Option<u32>,
}

/// A symbolic link of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeLink {
    /// Where it is in the guest.
    pub path: String,
    /// What it leads to, in the guest.
    pub to: String,
}

/// A process that the agent starts once the guest is set up.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeProcess {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Its environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// `USER` or `USER:GROUP`; without one root.
    pub user: Option<String>,
    /// Where it starts; without one the root directory.
    pub cwd: Option<String>,
}

impl Recipe {
    /// Reads a recipe of a user, and checks all that can be said before anything is looked at. `text` is TOML, at most
    /// [`RECIPE_BYTES_MAX`].
    ///
    /// # Errors
    /// Names the line or the field, the value, and what would be right.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let recipe = read(text)?;
        recipe.check(&BUILT_IN)?;
        if BUILT_IN.contains(&recipe.name.as_str()) {
            let problem = "a recipe that is built in makes the template of this name";
            return refuse("name", &recipe.name, problem, "choose another one");
        }
        Ok(recipe)
    }

    /// Reads a recipe that is built in: as [`Recipe::parse`], but it builds on one of [`GROUNDS`].
    ///
    /// # Errors
    /// As [`Recipe::parse`].
    pub fn parse_built_in(text: &str) -> Result<Self, Refusal> {
        let recipe = read(text)?;
        recipe.check(&GROUNDS)?;
        Ok(recipe)
    }

    /// The smallest size of its disk, in MB (2^20 bytes).
    #[must_use]
    pub fn size_mb(&self) -> Option<u32> {
        self.size.as_deref().and_then(|size| parse_size_mb(size).ok())
    }

    /// The recipe of all that `base` and this one have; where both say something of one path, this one counts.
    #[must_use]
    pub fn upon(self, base: &Self) -> Self {
        let own: BTreeSet<&str> = self.paths().map(|(_, path)| path).collect();
        let of_base = |path: &str| !own.contains(path);
        let mut whole = Self {
            base: base.base.clone(),
            packages: [&*base.packages, &*self.packages].concat(),
            files: base.files.iter().filter(|file| of_base(&file.path)).cloned().collect(),
            dirs: base.dirs.iter().filter(|dir| of_base(&dir.path)).cloned().collect(),
            links: base.links.iter().filter(|link| of_base(&link.path)).cloned().collect(),
            ..self.clone()
        };
        whole.packages.sort();
        whole.packages.dedup();
        whole.files.extend(self.files);
        whole.dirs.extend(self.dirs);
        whole.links.extend(self.links);
        whole.process = self.process.or_else(|| base.process.clone());
        whole.size = self.size.or_else(|| base.size.clone());
        whole
    }

    /// What it names in the guest: by which field, and where.
    fn paths(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let files = self.files.iter().map(|file| ("file.path", file.path.as_str()));
        let dirs = self.dirs.iter().map(|dir| ("dir.path", dir.path.as_str()));
        files.chain(dirs).chain(self.links.iter().map(|link| ("link.path", link.path.as_str())))
    }
}

/// Checks where a recipe's files are looked for: the folder of the recipe, an absolute path of the host.
///
/// # Errors
/// Says what would be right.
pub fn check_dir(dir: &str) -> Result<(), Refusal> {
    if dir.starts_with('/') && dir.len() <= DIR_BYTES_MAX && is_line(dir) {
        return Ok(());
    }
    let remedy = format!("give an absolute path of the host, of at most {DIR_BYTES_MAX} bytes");
    refuse("dir", dir, "it is no folder of a recipe", &remedy)
}

fn read(text: &str) -> Result<Recipe, Refusal> {
    let invalid = |what: String, problem: &str, remedy: &str| {
        Refusal::new(ErrorCode::Invalid, what, problem, remedy)
    };
    if text.len() > RECIPE_BYTES_MAX {
        let (problem, remedy) = (
            format!("it has {} bytes", text.len()),
            format!("write at most {RECIPE_BYTES_MAX}; larger files are copied by `from`"),
        );
        return Err(invalid("recipe".into(), &problem, &remedy));
    }
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| text.floor_char_boundary(span.start));
        let begin = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[begin..].lines().next().unwrap_or_default();
        let number = text[..at].matches('\n').count() + 1;
        let problem: String = error.message().replace('\n', ", ");
        let what = format!("recipe, line {number} {}", quoted(line));
        invalid(what, &problem, "docs/recipes.md has the fields and what they take")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::recipe) const GOOD: &str = r#"
name = "example.org/web"
base = "micro"
memo = "pages"
size = "128M"
packages = ["busybox-static", "g++"]

[[file]]
path = "/srv/index.html"
text = "hello\n"
mode = 0o600

[[file]]
path = "/srv/more"
from = "pages"

[[dir]]
path = "/srv/empty"

[[link]]
path = "/etc/localtime"
to = "../usr/share/zoneinfo/Etc/UTC"

[process]
argv = ["httpd", "-f"]
env = { PATH = "/bin" }
"#;

    #[test]
    fn a_recipe_is_read() {
        let recipe = Recipe::parse(GOOD).unwrap();
        assert_eq!((recipe.size_mb(), recipe.packages.len()), (Some(128), 2));
        assert_eq!(recipe.files[0].mode, Some(0o600));
        assert_eq!(recipe.process.unwrap().env["PATH"], "/bin");
        Recipe::parse("name = \"x\"\nbase = \"debian-12\"").unwrap();
    }

    #[test]
    fn the_recipe_on_top_counts() {
        let base = "name = \"micro\"\nbase = \"busybox\"\npackages = [\"zz\", \"g++\"]\n\
                    [[dir]]\npath = \"/srv\"\n[[file]]\npath = \"/srv/more\"\ntext = \"old\"\n\
                    [[link]]\npath = \"/srv/empty\"\nto = \"x\"\n";
        let base = Recipe::parse_built_in(base).unwrap();
        let whole = Recipe::parse(GOOD).unwrap().upon(&base);
        assert_eq!((whole.name.as_str(), whole.base.as_str()), ("example.org/web", "busybox"));
        assert_eq!(whole.packages, ["busybox-static", "g++", "zz"]);
        let paths: Vec<_> = whole.paths().map(|(_, path)| path).collect();
        assert_eq!(paths, ["/srv/index.html", "/srv/more", "/srv", "/srv/empty", "/etc/localtime"]);
    }
}
