//! What a recipe may say, as far as that can be told before anything is looked at. Pure.

use super::{GROUND_BUSYBOX, Recipe, RecipeFile, RecipeProcess};
use crate::check::{check_template_name, quoted};
use crate::template::MEMO_BYTES_MAX;
use crate::units::{format_size_mb, parse_size_mb};
use crate::{ErrorCode, Refusal};
use std::collections::BTreeSet;

/// The names of all of Debian's own packages together would be no recipe any more.
const PACKAGES_MAX: usize = 200;
const PACKAGE_BYTES_MAX: usize = 100;
/// Files, directories and links that one recipe names.
const NODES_MAX: usize = 1000;
const PATH_BYTES_MAX: usize = 512;
const PARTS_MAX: usize = 32;
/// Longest target of a link, and longest path on the host.
const TARGET_BYTES_MAX: usize = 1024;
/// Arguments of the process, and variables of its environment.
const ARGS_MAX: usize = 100;
const ARG_BYTES_MAX: usize = 4096;
/// Disks in MB: a guest grows its own one further.
const SIZE_MB_MAX: u32 = 64 << 10;
const MODE_MAX: u32 = 0o7777;
/// Where the agent's program is.
const AGENTS: [&str; 2] = ["/sbin/tt-guest", "/usr/sbin/tt-guest"];

impl Recipe {
    pub(super) fn check(&self, bases: &[&str]) -> Result<(), Refusal> {
        check_template_name(&self.name)?;
        if !bases.contains(&self.base.as_str()) {
            let remedy = format!("write one of: {}", bases.join(", "));
            return refuse("base", &self.base, "nothing can be built on it", &remedy);
        }
        if let Some(memo) = &self.memo
            && (memo.len() > MEMO_BYTES_MAX || !is_line(memo))
        {
            let remedy = format!("use one line of at most {MEMO_BYTES_MAX} bytes");
            return refuse("memo", memo, "it is no description", &remedy);
        }
        if let Some(size) = &self.size
            && !parse_size_mb(size).is_ok_and(|mb| mb <= SIZE_MB_MAX)
        {
            let most = format_size_mb(SIZE_MB_MAX.into());
            let remedy =
                format!("write a whole number of MB, or one with M or G behind it, up to {most}");
            return refuse("size", size, "it is no size of a disk", &remedy);
        }
        self.check_packages()?;
        self.check_nodes()?;
        self.process.as_ref().map_or(Ok(()), |process| process.check(&self.base))
    }

    fn check_packages(&self) -> Result<(), Refusal> {
        if self.packages.len() > PACKAGES_MAX {
            let (number, remedy) =
                (self.packages.len().to_string(), format!("name at most {PACKAGES_MAX}"));
            return refuse("packages", &number, "they are too many", &remedy);
        }
        // Debian's policy, 5.6.1; what begins otherwise would be an option or a pattern to a program.
        let is_name = |name: &str| {
            let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            (2..=PACKAGE_BYTES_MAX).contains(&name.len())
                && name.bytes().next().is_some_and(is_plain)
                && name.bytes().all(|b| is_plain(b) || b"+-.".contains(&b))
        };
        match self.packages.iter().find(|name| !is_name(name)) {
            Some(name) => refuse(
                "packages",
                name,
                "it is no name of a package",
                "write lower-case letters, digits, `+`, `-` and `.`, beginning with a letter or digit",
            ),
            None => Ok(()),
        }
    }

    fn check_nodes(&self) -> Result<(), Refusal> {
        let number = self.paths().count();
        if number > NODES_MAX {
            let remedy = format!("name at most {NODES_MAX}; a folder counts once");
            return refuse("file, dir and link", &number.to_string(), "they are too many", &remedy);
        }
        let mut seen = BTreeSet::new();
        for (field, path) in self.paths() {
            check_path(field, path)?;
            if AGENTS.contains(&path) {
                return refuse(field, path, "the agent lies there", "choose another place");
            }
            if !seen.insert(path) {
                return refuse(field, path, "it is named twice", "name each path once");
            }
        }
        self.files.iter().try_for_each(RecipeFile::check)?;
        self.dirs.iter().try_for_each(|dir| check_mode("dir.mode", dir.mode))?;
        let is_target = |to: &str| (1..=TARGET_BYTES_MAX).contains(&to.len()) && is_word(to);
        match self.links.iter().find(|link| !is_target(&link.to)) {
            Some(link) => {
                let remedy =
                    format!("write 1 to {TARGET_BYTES_MAX} bytes without spaces and quotes");
                refuse("link.to", &link.to, "no link can lead there", &remedy)
            }
            None => Ok(()),
        }
    }
}

impl RecipeFile {
    fn check(&self) -> Result<(), Refusal> {
        check_mode("file.mode", self.mode)?;
        match (&self.text, &self.from) {
            (Some(_), None) => Ok(()),
            (None, Some(from)) => {
                if !(1..=TARGET_BYTES_MAX).contains(&from.len()) || !is_line(from) {
                    let remedy = format!("write a path of 1 to {TARGET_BYTES_MAX} bytes");
                    return refuse("file.from", from, "nothing can lie there", &remedy);
                }
                // A recipe is often somebody else's: what it takes of the host is what came with it.
                if from.starts_with('/') || from.split('/').any(|part| part == "..") {
                    let remedy = "copy it beside the recipe, and name it from there without `..`";
                    return refuse(
                        "file.from",
                        from,
                        "it leads out of the recipe's folder",
                        remedy,
                    );
                }
                Ok(())
            }
            (text, _) => {
                let problem = match text {
                    Some(_) => "it has two contents",
                    None => "it has no content",
                };
                refuse("file.path", &self.path, problem, "give it one of `text` and `from`")
            }
        }
    }
}

impl RecipeProcess {
    fn check(&self, base: &str) -> Result<(), Refusal> {
        if !matches!(base, "micro" | GROUND_BUSYBOX) {
            let remedy = "bring a unit of systemd as a `[[file]]`, and a `[[link]]` to it in \
                          /etc/systemd/system/multi-user.target.wants";
            return refuse("process on base", base, "systemd starts what runs there", remedy);
        }
        if self.argv.first().is_none_or(String::is_empty) || self.argv.len() > ARGS_MAX {
            let (number, remedy) = (
                self.argv.len().to_string(),
                format!("write a program and its arguments, {ARGS_MAX} at most"),
            );
            return refuse("process.argv", &number, "it is no command line", &remedy);
        }
        let is_bad = |text: &&String| text.len() > ARG_BYTES_MAX || text.contains('\0');
        let places = self.user.iter().chain(&self.cwd);
        if let Some(text) = self.argv.iter().chain(self.env.values()).chain(places).find(is_bad) {
            let remedy = format!("use at most {ARG_BYTES_MAX} bytes, and no zero byte");
            return refuse("process", text, "no process can have it", &remedy);
        }
        let is_name = |name: &str| {
            (1..=PACKAGE_BYTES_MAX).contains(&name.len()) && !name.contains('=') && is_word(name)
        };
        if self.env.len() > ARGS_MAX || !self.env.keys().all(|name| is_name(name)) {
            let shown = self.env.keys().find(|name| !is_name(name)).map_or("", String::as_str);
            let remedy = format!("name at most {ARGS_MAX} variables, without `=` and spaces");
            return refuse("process.env", shown, "it is no environment", &remedy);
        }
        Ok(())
    }
}

fn check_path(field: &str, path: &str) -> Result<(), Refusal> {
    let is_part =
        |part: &str| !matches!(part, "" | "." | "..") && part.len() <= 255 && is_word(part);
    let parts = path.strip_prefix('/').unwrap_or_default();
    if path.len() <= PATH_BYTES_MAX
        && parts.split('/').all(is_part)
        && parts.split('/').count() <= PARTS_MAX
    {
        return Ok(());
    }
    let remedy = format!(
        "write an absolute path of at most {PATH_BYTES_MAX} bytes and {PARTS_MAX} parts, without `.`, `..`, spaces, \
         quotes and a slash at its end"
    );
    refuse(field, path, "it is no path in a guest", &remedy)
}

fn check_mode(field: &str, mode: Option<u32>) -> Result<(), Refusal> {
    match mode {
        Some(mode) if mode > MODE_MAX => refuse(
            field,
            &format!("0o{mode:o}"),
            "it is no mode",
            "write 0o0 to 0o7777, e.g. 0o644",
        ),
        _ => Ok(()),
    }
}

/// What can stand in a line of text.
pub(super) fn is_line(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

/// What no program takes apart.
fn is_word(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || c.is_whitespace() || matches!(c, '"' | '\'' | '\\'))
}

pub(super) fn refuse<T>(
    field: &str,
    value: &str,
    problem: &str,
    remedy: &str,
) -> Result<T, Refusal> {
    let what = format!("recipe: {field} {}", quoted(value));
    Err(Refusal::new(ErrorCode::Invalid, what, problem, remedy))
}

#[cfg(test)]
mod tests {
    use super::super::RECIPE_BYTES_MAX;
    use super::super::tests::GOOD;
    use super::*;

    #[test]
    fn whatever_is_wrong_is_named_with_its_value() {
        for (from, to, shown) in [
            ("example.org/web", "../x", "../x"),
            ("example.org/web", "micro", "recipe: name `micro`"),
            (
                "\"micro\"",
                "\"arch\"",
                "recipe: base `arch`: nothing can be built on it; write one of: micro, debian-12",
            ),
            ("\"micro\"", "\"busybox\"", "base `busybox`"),
            ("\"micro\"", "\"debian-12\"", "recipe: process on base `debian-12`"),
            ("memo = \"pages\"", "memo = \"a\\nb\"", "recipe: memo"),
            ("128M", "1.5G", "recipe: size `1.5G`"),
            ("128M", "65G", "recipe: size `65G`"),
            ("\"128M\"", "128", "recipe, line 5 `size = 128`: invalid type: integer `128`"),
            ("g++", "-oDebug=1", "recipe: packages `-oDebug=1`"),
            ("g++", "?essential", "recipe: packages `?essential`"),
            ("g++", "./x.deb", "recipe: packages `./x.deb`"),
            ("/srv/index.html", "srv", "recipe: file.path `srv`"),
            ("/srv/index.html", "/srv/../etc", "recipe: file.path `/srv/../etc`"),
            ("/srv/index.html", "/a b", "recipe: file.path `/a b`"),
            ("/srv/index.html", "/sbin/tt-guest", "the agent lies there"),
            ("/srv/empty", "/srv/more", "recipe: dir.path `/srv/more`: it is named twice"),
            ("0o600", "0o10000", "recipe: file.mode `0o10000`"),
            ("from = \"pages\"", "from = \"\"", "recipe: file.from"),
            ("from = \"pages\"", "from = \"/etc/shadow\"", "it leads out of the recipe's folder"),
            ("from = \"pages\"", "from = \"a/../../b\"", "it leads out of the recipe's folder"),
            ("from = \"pages\"", "mode = 1", "it has no content"),
            ("from = \"pages\"", "from = \"x\"\ntext = \"y\"", "it has two contents"),
            ("../usr/share", "a b", "recipe: link.to"),
            ("[\"httpd\", \"-f\"]", "[]", "recipe: process.argv `0`"),
            ("PATH =", "\"A=B\" =", "recipe: process.env `A=B`"),
            ("memo =", "momo =", "line 4 `momo = \\\"pages\\\"`: unknown field `momo`"),
            ("to =", "ot =", "unknown field `ot`"),
            ("memo =", "memo", "recipe, line 4"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let error = Recipe::parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert_eq!(error.code, ErrorCode::Invalid);
            assert!(error.to_string().contains(shown), "{to}: {error}");
        }
        let many = |line: &str| format!("name = \"x\"\nbase = \"micro\"\n{line}");
        let packages = many(&format!("packages = [{}]", "\"aa\",".repeat(PACKAGES_MAX + 1)));
        let dirs: String =
            (0..=NODES_MAX).map(|number| format!("[[dir]]\npath = \"/{number}\"\n")).collect();
        for text in [packages, many(&dirs), many(&"#".repeat(RECIPE_BYTES_MAX))] {
            Recipe::parse(&text).unwrap_err();
        }
    }
}
