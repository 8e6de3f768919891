//! Apt's sources as text: where the machine's own suite comes from, and the suite of backports from the same place. Pure.

use std::collections::BTreeMap;

/// Debian's own servers, and the keys of its package `debian-archive-keyring`.
const DEBIAN: &str = "http://deb.debian.org/debian";
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where a suite comes from.
#[derive(Debug, PartialEq, Eq)]
struct Mirror {
    uri: String,
    signed_by: Option<String>,
}

/// A file for apt (deb822, sources.list(5)) that adds the backports of `codename`, from the mirror that `files`, as (path,
/// text), name for `codename` itself. Nothing if none does.
pub fn backports(files: &[(String, String)], codename: &str) -> Option<String> {
    let Mirror { uri, signed_by } = mirror_of(files, codename)?;
    let key = signed_by.map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
    Some(format!("Types: deb\nURIs: {uri}\nSuites: {codename}-backports\nComponents: main\n{key}"))
}

/// A file for apt with these components of a release of Debian: from the mirror that `files` name for it, else from Debian's own
/// servers.
pub fn of_release(files: &[(String, String)], codename: &str, components: &str) -> String {
    let Mirror { uri, signed_by } = mirror_of(files, codename)
        .unwrap_or_else(|| Mirror { uri: DEBIAN.to_owned(), signed_by: None });
    let key = signed_by.unwrap_or_else(|| KEYS.to_owned());
    format!(
        "Types: deb\nURIs: {uri}\nSuites: {codename} {codename}-updates\nComponents: {components}\nSigned-By: {key}\n"
    )
}

fn mirror_of(files: &[(String, String)], codename: &str) -> Option<Mirror> {
    files.iter().find_map(|(path, text)| match path.ends_with(".sources") {
        true => stanzas(text).find_map(|stanza| of_stanza(&stanza, codename)),
        false if path.ends_with(".list") => text.lines().find_map(|line| of_line(line, codename)),
        false => None,
    })
}

/// The stanzas of a deb822 file, keys in lower case.
fn stanzas(text: &str) -> impl Iterator<Item = BTreeMap<String, &str>> {
    text.split("\n\n").map(|stanza| {
        let lines = stanza.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.filter_map(|line| line.split_once(':'));
        pairs.map(|(key, value)| (key.trim().to_lowercase(), value.trim())).collect()
    })
}

fn of_stanza(stanza: &BTreeMap<String, &str>, codename: &str) -> Option<Mirror> {
    let has = |key: &str, word: &str| {
        stanza.get(key).is_some_and(|value| value.split_whitespace().any(|each| each == word))
    };
    let is_off = has("enabled", "no") || !has("types", "deb");
    if is_off || !has("suites", codename) || !has("components", "main") {
        return None;
    }
    let uri = stanza.get("uris")?.split_whitespace().next()?.to_owned();
    // A key may be written into the stanza itself, over several lines; then apt's own keys are asked.
    let signed_by = stanza.get("signed-by").filter(|key| key.starts_with('/'));
    Some(Mirror { uri, signed_by: signed_by.map(ToString::to_string) })
}

/// `deb [option=value ..] URI SUITE COMPONENT ..`
fn of_line(line: &str, codename: &str) -> Option<Mirror> {
    let rest = line.trim().strip_prefix("deb ")?.trim();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    if suite != codename || !words.any(|component| component == "main") {
        return None;
    }
    let key = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    Some(Mirror { uri: uri.to_owned(), signed_by: key.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(name: &str, text: &str) -> Vec<(String, String)> {
        let other = ("a.list".to_owned(), "deb http://other.example/x stable main\n".to_owned());
        vec![other, (name.to_owned(), text.to_owned())]
    }

    #[test]
    fn the_mirror_of_stanzas_is_used() {
        let text = "Types: deb\n# a comment: with a colon\nURIs: http://mirror.example/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n\n\
                    Types: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\n\
                    Components: main\n";
        assert_eq!(
            backports(&files("debian.sources", text), "bookworm").unwrap(),
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\n\
             Components: main\nSigned-By: /k.gpg\n"
        );
    }

    #[test]
    fn the_mirror_of_a_line_is_used() {
        let text = "# deb http://off.example/debian bookworm main\n\
                    deb-src http://src.example/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main\n";
        let source = backports(&files("sources.list", text), "bookworm").unwrap();
        assert!(source.contains("URIs: http://mirror.example/debian\n"), "{source}");
        assert!(source.contains("Signed-By: /k.gpg\n"), "{source}");
    }

    #[test]
    fn a_release_comes_from_its_mirror_or_from_debian() {
        let list = files("sources.list", "deb http://mirror.example/debian bookworm main\n");
        let text = of_release(&list, "bookworm", "main contrib");
        assert!(
            text.contains(
                "URIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n"
            )
        );
        assert!(text.contains("Components: main contrib\n"), "{text}");
        let text = of_release(&list, "trixie", "main");
        assert!(text.contains(&format!("URIs: {DEBIAN}\nSuites: trixie ")), "{text}");
    }

    #[test]
    fn without_a_mirror_of_the_suite_there_is_nothing() {
        let off = "Enabled: no\nTypes: deb\nURIs: http://m.example/d\nSuites: bookworm\n\
                   Components: main\n";
        assert_eq!(backports(&files("x.sources", off), "bookworm"), None);
        assert_eq!(
            backports(&files("x.list", "deb http://m.example bookworm contrib"), "bookworm"),
            None
        );
        assert_eq!(
            backports(&files("x.bak", "deb http://m.example bookworm main"), "bookworm"),
            None
        );
    }
}
