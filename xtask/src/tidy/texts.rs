//! Rules about what files say: headers, leftover marks, names of machines, reasons of exceptions, what CI runs.

use super::Tree;

/// Marks of what is not done; in two parts, or this file would break its own rule.
const MARKS: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX"), concat!("HA", "CK")];
/// Beginnings of paths that only exist on somebody's machine.
const PLACES: [&str; 4] = [
    concat!("/work", "/"),
    concat!("/Users", "/"),
    concat!("/home", "/runner"),
    concat!("/var/tmp", "/tt-"),
];
/// What Cargo writes is Cargo's.
const GENERATED: [&str; 1] = ["Cargo.lock"];
/// What CI starts, and what must stand in it.
const CI: (&str, &str) = (".ci/run", "cargo xtask test");

/// Source files that do not begin by saying what they are.
pub fn without_header(tree: &Tree) -> Vec<String> {
    let lacks = |text: &str| !text.trim_start().starts_with("//!");
    let files = tree.ending(".rs").filter(|(_, text)| lacks(text));
    files.map(|(path, _)| format!("{path}: it does not begin with `//!`")).collect()
}

/// Leftover marks.
pub fn marks(tree: &Tree) -> Vec<String> {
    let is_whole = |line: &str, mark: &str| {
        line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == mark)
    };
    lines(tree, |line| {
        MARKS.iter().find(|mark| is_whole(line, mark)).map(|mark| format!("{mark} is left"))
    })
}

/// Paths of one machine.
pub fn places(tree: &Tree) -> Vec<String> {
    let home = std::env::var("HOME").ok().filter(|home| home.starts_with(concat!("/ho", "me/")));
    let all: Vec<&str> = PLACES.into_iter().chain(home.as_deref()).collect();
    lines(tree, |line| {
        // Within a longer path it is something else, e.g. a place in a container.
        let begins =
            |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}/".contains(c));
        let hit = all.iter().find(|place| line.match_indices(**place).any(|(at, _)| begins(at)));
        hit.map(|place| format!("{place} exists on one machine"))
    })
}

/// Exceptions from lints without a reason.
pub fn reasonless(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in tree.ending(".rs") {
        for opening in ["[allow(", "[expect("] {
            for (at, _) in text.match_indices(opening) {
                let line_start = text[..at].rfind('\n').map_or(0, |end| end + 1);
                if !matches!(text[line_start..at].trim(), "#" | "#!") {
                    continue;
                }
                let attribute = text[at..].split(")]").next().unwrap_or_default();
                if !attribute.contains("reason") {
                    let number = text[..at].matches('\n').count() + 1;
                    found.push(format!("{path}:{number}: an exception without `reason`"));
                }
            }
        }
    }
    found
}

/// CI that runs something else.
pub fn ci(tree: &Tree) -> Vec<String> {
    let (path, command) = CI;
    let runs = |text: &String| text.lines().any(|line| line.trim() == command);
    match tree.files.get(path).is_some_and(runs) {
        true => Vec::new(),
        false => vec![format!("{path}: no line of it is `{command}`")],
    }
}

/// Lines of which `judge` says something, with where they are.
fn lines(tree: &Tree, judge: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in &tree.files {
        if GENERATED.contains(&path.as_str()) {
            continue;
        }
        let judged = text.lines().enumerate().filter_map(|(at, line)| Some((at, judge(line)?)));
        found.extend(judged.map(|(at, what)| format!("{path}:{}: {what}", at + 1)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_begins_with_what_it_is() {
        let tree = Tree::of(&[("a.rs", "//! A.\n"), ("b.rs", "use x;\n"), ("c.md", "")]);
        assert_eq!(without_header(&tree), ["b.rs: it does not begin with `//!`"]);
    }

    #[test]
    fn marks_are_whole_words() {
        let text = format!("// {}: later\n// {}x\n", MARKS[0], MARKS[0]);
        let tree = Tree::of(&[("a.rs", &text), ("Cargo.lock", MARKS[1])]);
        assert_eq!(marks(&tree), [format!("a.rs:1: {} is left", MARKS[0])]);
    }

    #[test]
    fn places_begin_paths() {
        let place = PLACES[0];
        let text = format!("cd {place}x\ncd target{place}x\n");
        let tree = Tree::of(&[("a.sh", &text)]);
        assert_eq!(places(&tree), [format!("a.sh:1: {place} exists on one machine")]);
    }

    #[test]
    fn exceptions_have_reasons() {
        let with = "#[expect(\n    dead_code,\n    reason = \"x\"\n)]\nfn f() {}\n";
        let without = "fn g() {}\n#[allow(dead_code)]\nfn f() { x[expect(1)]; }\n";
        let tree = Tree::of(&[("a.rs", with), ("b.rs", without)]);
        assert_eq!(reasonless(&tree), ["b.rs:2: an exception without `reason`"]);
    }

    #[test]
    fn ci_runs_what_a_newcomer_runs() {
        assert!(ci(&Tree::of(&[(".ci/run", "set -e\ncargo xtask test\n")])).is_empty());
        assert_eq!(ci(&Tree::of(&[(".ci/run", "# cargo xtask test\n")])).len(), 1);
    }
}
