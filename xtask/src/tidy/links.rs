//! Links of documents to files and headings of the project. It does not ask the network.

use super::Tree;

/// What breaks it.
pub fn broken(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    for (path, text) in tree.ending(".md") {
        for (number, link) in links(text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => Some(path.to_owned()),
                file => resolved(path, file),
            };
            let Some(target) = target.filter(|target| tree.has(target)) else {
                broken.push(format!("{path}:{number}: {link} is not there"));
                continue;
            };
            let document = tree.files.get(&target).filter(|_| target.ends_with(".md"));
            if !heading.is_empty() && !document.is_some_and(|text| has_heading(text, heading)) {
                broken.push(format!("{path}:{number}: {link}: no such heading"));
            }
        }
    }
    broken
}

/// Targets of `[text](target)` outside of code, with the number of their line.
fn links(text: &str) -> Vec<(usize, &str)> {
    let (mut links, mut is_code) = (Vec::new(), false);
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        }
        if is_code {
            continue;
        }
        // Code within a line stands between the odd and even of its quotes.
        let mut rest = line;
        while let Some(start) = rest.find("](") {
            let is_quoted = line[..line.len() - rest.len() + start].matches('`').count() % 2 == 1;
            rest = &rest[start + 2..];
            let target = rest.split([')', ' ']).next().unwrap_or_default();
            if !is_quoted {
                links.push((number + 1, target.trim_matches(['<', '>'])));
            }
        }
    }
    links
}

/// `link` as a path from the root, seen from the document `from`; nothing if it leaves the project.
fn resolved(from: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = match link.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => from.split('/').collect(),
    };
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Headings are linked to by their words in lower case, joined by hyphens.
fn has_heading(text: &str, wanted: &str) -> bool {
    let slug = |heading: &str| -> String {
        let kept = heading.trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| slug(line.trim_start_matches('#'))).any(|slug| slug == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_somewhere() {
        let text = "# The top\n[a](b.md#part-two) [x](../c.rs) [web](https://x.example/y) [t](#the-top)\n\
                    `[code](nowhere)` [lost](nowhere.md) [up](../../out) [h](b.md#part)\n\
                    ```\n[code](nowhere)\n```\n[folder](../docs/)\n";
        let tree = Tree::of(&[("docs/a.md", text), ("docs/b.md", "## Part, two\n"), ("c.rs", "")]);
        assert_eq!(
            broken(&tree),
            [
                "docs/a.md:3: nowhere.md is not there",
                "docs/a.md:3: ../../out is not there",
                "docs/a.md:3: b.md#part: no such heading",
            ]
        );
    }
}
