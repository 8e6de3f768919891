//! `cargo xtask tidy`: rules that no compiler knows, each with the sentence that says why it is one. It reads what git
//! tracks or would track, and changes nothing; `--shrink` lowers the ratchet and nothing else.

mod links;
mod names;
mod ratchet;
mod rows;
mod texts;

use crate::command::Argv;
use crate::compile::root;
use crate::failure::{Failure, Outcome};
use crate::say;
use std::collections::BTreeMap;
use std::fs;

/// The files of the project, by their paths from its root. Pure rules look at it, so tests can make one up.
#[derive(Debug, Default)]
pub struct Tree {
    /// Texts.
    files: BTreeMap<String, String>,
    /// Files that are no text; only their names count.
    others: Vec<String>,
}

/// A rule: its name, why it is one, and what breaks it.
type Rule = (&'static str, &'static str, fn(&Tree) -> Vec<String>);

const RULES: [Rule; 9] = [
    (
        "rows",
        "the map of crates stays true, and a row can be understood without those above",
        rows::broken,
    ),
    (
        "lengths",
        "what does not fit a reader's head hides defects; so it may only get shorter",
        ratchet::broken,
    ),
    ("links", "a document that points nowhere is worse than none", links::broken),
    ("names", "a promise that names a test which is not there is kept by nobody", names::broken),
    (
        "headers",
        "who opens a file learns first what it is, and what it never does",
        texts::without_header,
    ),
    ("marks", "what is not done is an issue, or it is forgotten", texts::marks),
    ("places", "what names one machine works on one machine", texts::places),
    (
        "reasons",
        "an exception without its reason can not be judged, so it never goes",
        texts::reasonless,
    ),
    ("ci", "what is checked there and what a newcomer runs is the same", texts::ci),
];

/// Checks all rules.
///
/// # Errors
/// If one is broken; each breach was printed before, with the reason of its rule.
pub fn run() -> Outcome {
    let tree = Tree::read()?;
    let mut breaches = 0;
    for (name, why, broken) in RULES {
        let broken = broken(&tree);
        if broken.is_empty() {
            continue;
        }
        breaches += broken.len();
        say::line(format_args!("{name}: {why}"));
        broken.iter().for_each(|breach| say::line(format_args!("  {breach}")));
    }
    if breaches > 0 {
        return Err(Failure::new(format!("{breaches} breaches of the rules above")));
    }
    say::line(format_args!("{} files, {} rules: tidy", tree.files.len(), RULES.len()));
    Ok(())
}

/// Lowers the ratchet to what is there.
///
/// # Errors
/// If the tree can not be read, or the ratchet not be written.
pub fn shrink() -> Outcome {
    let text = ratchet::shrunk(&Tree::read()?);
    let path = root()?.join(ratchet::PATH);
    fs::write(&path, text).map_err(Failure::to("write", path.display()))
}

impl Tree {
    fn read() -> Outcome<Self> {
        let root = root()?;
        let list = Argv::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .dir(&root)
            .text()?;
        let mut tree = Self::default();
        for path in list.split('\0').filter(|path| !path.is_empty()) {
            // What is removed, but not yet for git, has no text.
            let Ok(bytes) = fs::read(root.join(path)) else { continue };
            match String::from_utf8(bytes) {
                Ok(text) => drop(tree.files.insert(path.to_owned(), text)),
                Err(_) => tree.others.push(path.to_owned()),
            }
        }
        Ok(tree)
    }

    /// Files whose paths end so, with their paths.
    fn ending(&self, end: &str) -> impl Iterator<Item = (&str, &str)> {
        let is_meant = move |(path, _): &(&String, &String)| path.ends_with(end);
        self.files.iter().filter(is_meant).map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// Whether there is a file or a folder of this path.
    fn has(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        let all = || self.files.keys().chain(&self.others);
        path.is_empty() || all().any(|file| file == path || file.starts_with(&folder))
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| (path.to_string(), text.to_string()));
        Self { files: files.collect(), others: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_can_be_read_and_has_this_file() {
        let tree = Tree::read().unwrap();
        assert!(tree.has("xtask/src/tidy.rs"));
        assert!(tree.has("xtask/src"));
        assert!(!tree.has("xtask/sr"));
    }

    #[test]
    fn each_rule_has_a_name_of_its_own_and_a_reason() {
        let mut names: Vec<_> = RULES.iter().map(|(name, ..)| name).collect();
        names.dedup();
        assert_eq!(names.len(), RULES.len());
        assert!(RULES.iter().all(|(_, why, _)| why.len() > 20));
    }
}
