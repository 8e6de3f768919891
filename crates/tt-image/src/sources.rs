//! Where the host gets the packages of a release of Debian from: its own lists for apt, so that a mirror or a proxy that it
//! uses is used for guests, too. What the host logs in with there is for putting packages together, and in no guest.

use crate::{ImageError, files};
use std::fmt::Write as _;
use std::io;
use std::path::Path;

/// Apt's lists.
const LIST: &str = "/etc/apt/sources.list";
const DIR: &str = "/etc/apt/sources.list.d";
/// Largest list that is read.
const BYTES_MAX: u64 = 1 << 20;
/// What of a release a guest gets, beside the release itself.
const POCKETS: [&str; 3] = ["", "-updates", "-security"];
/// Debian's own servers, for hosts that have no list for the release; mmdebstrap knows the keys.
const DEBIAN: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://security.debian.org/debian-security";

/// The lists for a release, as files for apt: their names and texts.
///
/// # Errors
/// [`ImageError::Read`].
pub(crate) fn of_host(suite: &str) -> Result<Vec<(&'static str, String)>, ImageError> {
    let (mut lines, mut stanzas) = (String::new(), String::new());
    for path in names()? {
        let text = files::read(Path::new(&path), BYTES_MAX)?;
        let text = String::from_utf8_lossy(&text);
        match path.ends_with(".sources") {
            true => stanzas.push_str(&stanzas_of(&text, suite)),
            false => lines.push_str(&lines_of(&text, suite)),
        }
    }
    if lines.is_empty() && stanzas.is_empty() {
        lines = of_debian(suite);
    }
    let lists = [("guest.list", lines), ("guest.sources", stanzas)];
    Ok(lists.into_iter().filter(|(_, text)| !text.is_empty()).collect())
}

/// Takes the logins out of the lists in the root file system `tree`: they are the host's, which a guest is not to know. No
/// link is followed.
///
/// # Errors
/// What the file system says.
pub(crate) fn forget_logins(tree: &Path) -> io::Result<()> {
    let below = |path: &str| tree.join(path.trim_start_matches('/'));
    let mut paths = vec![below(LIST)];
    match std::fs::read_dir(below(DIR)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries? {
                paths.push(entry?.path());
            }
        }
    }
    for path in paths {
        if path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            let text = std::fs::read(&path)?;
            std::fs::write(&path, without_logins(&String::from_utf8_lossy(&text)))?;
        }
    }
    Ok(())
}

/// A list with its URLs, but for what stands before an `@` in each.
fn without_logins(text: &str) -> String {
    let (mut open, mut left) = (String::new(), text);
    while let Some((before, rest)) = left.split_once("://") {
        let end = rest.find(|c: char| c == '/' || c.is_whitespace()).unwrap_or(rest.len());
        let (authority, after) = rest.split_at(end);
        let host = authority.rsplit('@').next().unwrap_or_default();
        open.push_str(&format!("{before}://{host}"));
        left = after;
    }
    open + left
}

fn names() -> Result<Vec<String>, ImageError> {
    let mut names = Vec::new();
    if Path::new(LIST).is_file() {
        names.push(LIST.to_owned());
    }
    if Path::new(DIR).is_dir() {
        let there = files::names(Path::new(DIR))?;
        let is_list = |name: &&String| name.ends_with(".list") || name.ends_with(".sources");
        names.extend(there.iter().filter(is_list).map(|name| format!("{DIR}/{name}")));
    }
    Ok(names)
}

fn of_debian(suite: &str) -> String {
    format!(
        "deb {DEBIAN} {suite} main\ndeb {DEBIAN} {suite}-updates main\n\
         deb {SECURITY} {suite}-security main\n"
    )
}

fn is_of(name: &str, suite: &str) -> bool {
    name.strip_prefix(suite).is_some_and(|pocket| POCKETS.contains(&pocket))
}

/// The lines for the release (sources.list(5), "one-line-style").
fn lines_of(text: &str, suite: &str) -> String {
    let mut found = String::new();
    for line in text.lines().map(str::trim).filter(|line| line.starts_with("deb ")) {
        let rest = match line.split_once('[') {
            Some((_, rest)) => rest.split_once(']').map_or("", |(_, rest)| rest),
            None => &line["deb ".len()..],
        };
        if rest.split_whitespace().nth(1).is_some_and(|name| is_of(name, suite)) {
            // Writing to a string can not fail.
            let _ = writeln!(found, "{line}");
        }
    }
    found
}

/// The stanzas for nothing but the release (sources.list(5), "deb822-style").
fn stanzas_of(text: &str, suite: &str) -> String {
    let mut found = String::new();
    let text = text.replace("\r\n", "\n");
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            let mut lines = stanza.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
        };
        let is_enabled = !matches!(field("Enabled"), Some("no" | "false" | "0"));
        let has_programs =
            field("Types").is_some_and(|types| types.split_whitespace().any(|kind| kind == "deb"));
        let mut suites = field("Suites").unwrap_or_default().split_whitespace().peekable();
        let is_its = suites.peek().is_some() && suites.all(|name| is_of(name, suite));
        if is_enabled && has_programs && is_its {
            let lines = stanza.lines().filter(|line| !line.starts_with('#'));
            lines.for_each(|line| {
                let _ = writeln!(found, "{line}");
            });
            found.push('\n');
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_of_the_release_is_taken() {
        let text = "# deb http://a/debian bookworm main\n\
                    deb http://a/debian bookworm main contrib\n\
                    deb [arch=amd64 signed-by=/k] http://a/debian bookworm-updates main\n\
                    deb-src http://a/debian bookworm main\n\
                    deb http://a/debian bookworm-backports main\n\
                    deb http://a/debian trixie main\n\
                    deb http://a/ubuntu jammy main\ndeb\ndeb [\n";
        assert_eq!(
            lines_of(text, "bookworm"),
            "deb http://a/debian bookworm main contrib\n\
             deb [arch=amd64 signed-by=/k] http://a/debian bookworm-updates main\n"
        );
    }

    #[test]
    fn stanzas_are_taken_whole_or_not_at_all() {
        let its = "Types: deb\nURIs: http://a/debian\nSuites: bookworm bookworm-updates\nComponents: main\n";
        let others = [
            its.replace("bookworm-updates", "bookworm-backports"),
            its.replace("Types: deb", "Types: deb-src"),
            its.replace("bookworm bookworm-updates", ""),
            format!("{its}Enabled: no\n"),
        ];
        let text = format!("# first\n{its}\n{}", others.join("\n"));
        assert_eq!(stanzas_of(&text, "bookworm"), format!("{its}\n"));
    }

    #[test]
    fn logins_of_the_host_are_in_no_list_of_a_guest() {
        let dir = tempfile::tempdir().unwrap();
        let lists = dir.path().join("etc/apt/sources.list.d");
        std::fs::create_dir_all(&lists).unwrap();
        let line = "deb [signed-by=/k] https://LOGINa.org:8443/d@d bookworm main\n\
                    deb mirror+http://LOGINb.org bookworm main # or http://LOGINc.org\n\
                    deb copy:/d bookworm me@home\n";
        let stanza = "Types: deb\nURIs: http://x.org http://LOGINy.org/debian\n http://LOGINz.org\n\
                      Suites: bookworm\n";
        let files = [
            (dir.path().join("etc/apt/sources.list"), line),
            (lists.join("0000guest.list"), line),
            (lists.join("0001guest.sources"), stanza),
        ];
        for (path, text) in &files {
            std::fs::write(path, text.replace("LOGIN", "user:pa@ss:word@")).unwrap();
        }
        // What a link leads to is not the guest's.
        let outside = dir.path().join("outside");
        std::fs::write(&outside, "deb http://u:p@a.org bookworm main").unwrap();
        std::os::unix::fs::symlink(&outside, lists.join("link.list")).unwrap();
        for _ in 0..2 {
            forget_logins(dir.path()).unwrap();
            for (path, text) in &files {
                assert_eq!(std::fs::read_to_string(path).unwrap(), text.replace("LOGIN", ""));
            }
        }
        assert!(std::fs::read_to_string(&outside).unwrap().contains("u:p@"));
        forget_logins(&dir.path().join("empty")).unwrap();
    }

    #[test]
    fn a_host_without_lists_for_it_asks_debian() {
        assert_eq!(lines_of(&of_debian("bookworm"), "bookworm"), of_debian("bookworm"));
    }
}
