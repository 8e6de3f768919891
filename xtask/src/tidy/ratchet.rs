//! Lengths of files and functions: a target, and a list of what is known to be longer, which may shrink but not grow. How
//! functions are counted is clippy's to say; here it is only counted where clippy was told to look away.

use super::Tree;
use std::collections::BTreeMap;

/// Where the list is.
pub const PATH: &str = "xtask/ratchet.txt";
/// Longest file that need not be listed, in lines.
const TARGET: usize = 400;
/// Longest file at all, in lines.
const LIMIT: usize = 450;
/// How clippy is told to look away from a function's length; in two parts, or this file would be counted.
const LOOK_AWAY: &str = concat!("clippy::too_many", "_lines");
const HEAD: &str = "\
# What is longer than the project wants: `lines PATH N` for files of more than 400 lines, `functions PATH N` for functions
# that clippy finds too long. `cargo xtask tidy` lets these numbers shrink, never grow; `--shrink` writes the file.
";

/// What breaks it.
pub fn broken(tree: &Tree) -> Vec<String> {
    let known = known(tree);
    let mut broken = Vec::new();
    let now = found(tree);
    for (&(kind, path), &found) in &now {
        let listed = known.get(&(kind, path)).copied();
        if kind == "lines" && found > LIMIT {
            broken.push(format!("{path}: {found} lines, and {LIMIT} is the limit for all"));
        }
        match listed {
            Some(listed) if found > listed => {
                broken.push(format!("{path}: {found} {kind}, grown from {listed} in {PATH}"));
            }
            Some(_) => {}
            None if kind == "lines" => {
                broken.push(format!("{path}: {found} lines, more than {TARGET}"));
            }
            None => broken.push(format!("{path}: {found} functions that are too long")),
        }
    }
    for ((kind, path), listed) in known {
        let found = now.get(&(kind, path)).copied().unwrap_or(0);
        if found < listed {
            let what = format!("{path}: {found} {kind}, no more {listed}");
            broken.push(format!("{what}; run `cargo xtask tidy --shrink`"));
        }
    }
    broken
}

/// The list with lower numbers where less is there. Nothing new is listed.
pub fn shrunk(tree: &Tree) -> String {
    let now = found(tree);
    let kept = known(tree).into_iter().filter_map(|((kind, path), listed)| {
        let found = now.get(&(kind, path))?;
        Some(format!("{kind} {path} {}\n", found.min(&listed)))
    });
    HEAD.to_owned() + &kept.collect::<String>()
}

type Lengths<'a> = BTreeMap<(&'static str, &'a str), usize>;

/// What is longer than wanted.
fn found(tree: &Tree) -> Lengths<'_> {
    let mut found = BTreeMap::new();
    for (path, text) in tree.ending(".rs") {
        let lines = text.lines().count();
        if lines > TARGET {
            found.insert(("lines", path), lines);
        }
        let functions = text.matches(LOOK_AWAY).count();
        if functions > 0 {
            found.insert(("functions", path), functions);
        }
    }
    found
}

fn known(tree: &Tree) -> Lengths<'_> {
    let list = tree.files.get(PATH).map(String::as_str).unwrap_or_default();
    let entry = |line| match str::split_whitespace(line).collect::<Vec<_>>()[..] {
        ["lines", path, number] => Some((("lines", path), number.parse().ok()?)),
        ["functions", path, number] => Some((("functions", path), number.parse().ok()?)),
        _ => None,
    };
    list.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: usize, list: &str) -> Tree {
        Tree::of(&[("a.rs", &"x\n".repeat(lines)), (PATH, list)])
    }

    #[test]
    fn lengths_may_shrink_and_not_grow() {
        assert!(broken(&of(400, "")).is_empty());
        assert_eq!(broken(&of(401, "")), ["a.rs: 401 lines, more than 400"]);
        assert!(broken(&of(420, "lines a.rs 420")).is_empty());
        assert!(broken(&of(421, "lines a.rs 420"))[0].contains("grown from 420"));
        assert!(broken(&of(410, "lines a.rs 420"))[0].contains("--shrink"));
        assert!(broken(&of(451, "lines a.rs 460")).iter().any(|b| b.contains("450 is the limit")));
    }

    #[test]
    fn shrinking_lists_nothing_new() {
        let text = shrunk(&of(410, "lines a.rs 420\nlines gone.rs 430\n"));
        assert_eq!(text, format!("{HEAD}lines a.rs 410\n"));
        assert_eq!(shrunk(&of(410, "")), HEAD);
    }

    #[test]
    fn a_function_that_clippy_does_not_see_is_counted() {
        let text = format!("#[expect({LOOK_AWAY}, reason = \"a table\")]\nfn f() {{}}\n");
        let tree = Tree::of(&[("a.rs", &text)]);
        assert_eq!(broken(&tree), ["a.rs: 1 functions that are too long"]);
    }
}
