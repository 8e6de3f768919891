//! A crate imports only from lower rows; crates of one row never import each other.

use super::Tree;

/// The rows of the architecture, from the program down to the nouns.
const ROWS: [(&str, u8); 11] = [
    ("tt", 4),
    ("tt-api", 3),
    ("tt-host", 3),
    ("tt-engine", 2),
    ("tt-storage", 2),
    ("tt-network", 2),
    ("tt-store", 2),
    ("tt-image", 2),
    ("tt-docker", 1),
    ("tt-guest", 1),
    ("tt-model", 1),
];
/// What proves the product may reach all of it.
const EXEMPT: [&str; 4] = ["bench", "testkit", "tests", "xtask"];

/// What breaks it.
pub fn broken(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    for (path, manifest) in tree.ending("Cargo.toml") {
        let Some(name) = path.strip_suffix("/Cargo.toml") else { continue };
        let name = name.rsplit('/').next().unwrap_or(name);
        if EXEMPT.contains(&name) {
            continue;
        }
        let Some(row) = row_of(name) else {
            broken.push(format!("{path}: {name} stands in no row; give it one in {}", file!()));
            continue;
        };
        for other in dependencies(manifest) {
            if let Some(below) = row_of(other).filter(|below| *below >= row) {
                broken.push(format!("{path}: {name} of row {row} imports {other} of row {below}"));
            }
        }
    }
    broken
}

fn row_of(name: &str) -> Option<u8> {
    ROWS.iter().find(|(known, _)| *known == name).map(|(_, row)| *row)
}

/// The names of all dependencies in a manifest, whatever they are for.
fn dependencies(manifest: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_list = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            is_list = section.ends_with("dependencies");
            // `[dependencies.NAME]`
            names.extend(section.rsplit_once("dependencies.").map(|(_, name)| name));
        } else if is_list && !line.starts_with('#') {
            let end = line.find(['.', ' ', '=']);
            names.extend(end.map(|end| line[..end].trim_matches('"')));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_rows_are_imported() {
        let tree = Tree::of(&[
            (
                "crates/tt-host/Cargo.toml",
                "[package]\nname = \"tt-host\"\n[dependencies]\ntt-engine.workspace = true\n\
                 tt-api = { workspace = true }\n[dev-dependencies.tt]\npath = \"x\"\n",
            ),
            (
                "crates/tt-engine/Cargo.toml",
                "[dependencies]\n# tt.workspace\ntestkit.workspace = true\n",
            ),
            ("tests/Cargo.toml", "[dependencies]\ntt.workspace = true\n"),
            ("Cargo.toml", "[workspace.dependencies]\ntt-api = { path = \"crates/tt-api\" }\n"),
        ]);
        assert_eq!(
            broken(&tree),
            [
                "crates/tt-host/Cargo.toml: tt-host of row 3 imports tt-api of row 3",
                "crates/tt-host/Cargo.toml: tt-host of row 3 imports tt of row 4",
            ]
        );
    }

    #[test]
    fn a_new_crate_needs_a_row() {
        let tree = Tree::of(&[("crates/tt-web/Cargo.toml", "")]);
        assert!(broken(&tree)[0].contains("tt-web stands in no row"));
    }
}
