//! Names that documents use of the project's code: source files, and functions that are called by a sentence, as tests are.
//! It does not ask whether what is said of them is true.

use super::Tree;
use std::collections::BTreeSet;

/// From so many words on a name is taken for a function's; shorter ones may be fields, options or tables.
const WORDS_MIN: usize = 4;
/// Names of the first design, which documents compare with what there is.
const DESIGNED: [&str; 1] = ["gen_vm_from_meta"];

/// What breaks it.
pub fn broken(tree: &Tree) -> Vec<String> {
    let sources = || tree.ending(".rs");
    let paths: Vec<&str> = sources().map(|(path, _)| path).collect();
    let functions: BTreeSet<&str> = sources().flat_map(|(_, text)| functions(text)).collect();
    let mut broken = Vec::new();
    for (path, text) in tree.ending(".md") {
        for (number, code) in codes(text) {
            let lost = match code.split_once(".rs") {
                Some((file, rest)) if rest.is_empty() || rest.starts_with("::") => files(file)
                    .into_iter()
                    .any(|file| !is_placeholder(&file) && !paths.iter().any(|p| is_end(p, &file))),
                _ => is_sentence(code) && !functions.contains(code) && !DESIGNED.contains(&code),
            };
            if lost {
                broken.push(format!("{path}:{number}: there is no {code}"));
            }
        }
    }
    broken
}

/// What stands between single backquotes, outside of blocks of code, with the number of its line.
fn codes(text: &str) -> Vec<(usize, &str)> {
    let (mut codes, mut is_block) = (Vec::new(), false);
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_block = !is_block;
        } else if !is_block {
            codes.extend(line.split('`').skip(1).step_by(2).map(|code| (number + 1, code)));
        }
    }
    codes
}

/// The names behind `fn`.
fn functions(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let behind = text.split("fn ").skip(1);
    behind.map(move |rest| rest.split(|c: char| !is_part(c)).next().unwrap_or_default())
}

/// `a/{b, c}` is `a/b.rs` and `a/c.rs`.
fn files(name: &str) -> Vec<String> {
    let parts = name.split_once('{').and_then(|(head, rest)| Some((head, rest.split_once('}')?)));
    match parts {
        Some((head, (middle, tail))) => {
            middle.split(',').map(|one| format!("{head}{}{tail}.rs", one.trim())).collect()
        }
        None => vec![format!("{name}.rs")],
    }
}

/// Whether a reader is to put a name of his own there.
fn is_placeholder(file: &str) -> bool {
    file.split(['/', '.'])
        .any(|part| part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase()))
}

/// Whether a path ends in `file`, whole parts of it.
fn is_end(path: &str, file: &str) -> bool {
    path.strip_suffix(file).is_some_and(|head| head.is_empty() || head.ends_with('/'))
}

fn is_sentence(code: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    code.split('_').all(is_word) && code.split('_').count() >= WORDS_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_sentences_are_found() {
        let text = "`b/c.rs`, `c.rs::fails` and `a/b/{c, d}.rs`: `it_works_and_is_kept`, `gen_vm_from_meta`\n\
                    `cpu_num`, `crates/NAME/mod.rs`, `run x.rs y`, `x.rs.bak`\n\
                    ```\n`it_was_never_there_either`\n```\n\
                    `it_was_never_there`, `lost.rs`, `d/c.rs`, `b/{c, e}.rs`\n";
        let code = "fn it_works_and_is_kept() {}\npub fn fails() {}";
        let tree = Tree::of(&[("docs/a.md", text), ("a/b/c.rs", code), ("a/b/d.rs", "")]);
        assert_eq!(
            broken(&tree),
            [
                "docs/a.md:6: there is no it_was_never_there",
                "docs/a.md:6: there is no lost.rs",
                "docs/a.md:6: there is no d/c.rs",
                "docs/a.md:6: there is no b/{c, e}.rs",
            ]
        );
    }
}
