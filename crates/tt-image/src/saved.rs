//! The form of templates on BusyBox for engines that run containers: an image of one layer as `docker save` writes it, the
//! same, byte for byte, wherever and whenever it is made. The agent is not in it: a container of TT's begins with its own.

use crate::oci::container::{BLOCK, Head, put};
use crate::rootfs::{Node, Nodes};
use crate::{ImageError, digest, files};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use tt_guest::entry::Entry;

/// What a container has from its engine.
const LEFT_OUT: [&str; 2] = ["/sbin/init", "/sbin/tt-guest"];
/// Longest name and target in the header of an entry; what is longer goes into one before it.
const NAME_BYTES_MAX: usize = 100;

/// Writes the archive of everything in `nodes` to the new file `path`. `entry`: what containers run.
pub(crate) fn write(nodes: &Nodes, entry: Option<&Entry>, path: &Path) -> Result<(), ImageError> {
    let mut file = File::create_new(path).map_err(files::not_written(path))?;
    archive(nodes, entry, &mut file).map_err(files::not_written(path))
}

fn archive(nodes: &Nodes, entry: Option<&Entry>, out: &mut impl Write) -> io::Result<()> {
    let layer = layer(nodes)?;
    let config = json!({
        "architecture": match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        },
        "os": "linux",
        "config": entry.map_or_else(|| json!({}), process),
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest::of_bytes(&layer))] },
    });
    let config = config.to_string().into_bytes();
    let name = format!("{}.json", digest::of_bytes(&config));
    let manifest = json!([{ "Config": name, "RepoTags": null, "Layers": ["0/layer.tar"] }]);
    put(out, &Head::file("manifest.json"), manifest.to_string().as_bytes())?;
    put(out, &Head::file(&name), &config)?;
    put(out, &Head::file("0/layer.tar"), &layer)?;
    out.write_all(&[0; 2 * BLOCK])
}

/// A process as the config of an image says it.
fn process(entry: &Entry) -> Value {
    json!({
        "Cmd": entry.argv,
        "Env": entry.env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
        "User": entry.user.as_deref().unwrap_or_default(),
        "WorkingDir": entry.cwd.as_deref().unwrap_or_default(),
    })
}

fn layer(nodes: &Nodes) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    for (path, node) in nodes.iter().filter(|(path, _)| !LEFT_OUT.contains(&path.as_str())) {
        let name = path.trim_start_matches('/');
        let (name, kind, mode, target, content): (_, _, _, &str, &[u8]) = match node {
            Node::Dir(mode) => (format!("{name}/"), b'5', *mode, "", &[]),
            Node::File(mode, content) => (name.to_owned(), b'0', *mode, "", content),
            Node::Link(target) => (name.to_owned(), b'2', 0o777, target, &[]),
        };
        put_long(&mut out, &[("path", &name), ("linkpath", target)])?;
        let head = Head { name: short(&name), kind, mode, target: short(target), bytes: 0 };
        put(&mut out, &head, content)?;
    }
    out.write_all(&[0; 2 * BLOCK])?;
    Ok(out)
}

/// As much of a text as fits into a header.
fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(NAME_BYTES_MAX)]
}

/// The entry before another one that says what is too long for that one (pax, POSIX.1-2001).
fn put_long(out: &mut Vec<u8>, fields: &[(&str, &str)]) -> io::Result<()> {
    let long = fields.iter().filter(|(_, value)| value.len() > NAME_BYTES_MAX);
    let records: String = long.map(|(key, value)| record(key, value)).collect();
    if records.is_empty() {
        return Ok(());
    }
    put(out, &Head { kind: b'x', ..Head::file("pax") }, records.as_bytes())
}

/// `LENGTH KEY=VALUE` and the end of a line, where the length counts itself.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut len = rest.len();
    while len < rest.len() + len.to_string().len() {
        len = rest.len() + len.to_string().len();
    }
    format!("{len}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn an_archive_holds_the_system_without_what_only_machines_need() {
        let deep = format!("/{}/file", "d".repeat(120));
        let to = "t".repeat(130);
        let nodes = Nodes::from([
            ("/bin".into(), Node::Dir(0o755)),
            ("/bin/busybox".into(), Node::File(0o755, b"busybox".into())),
            ("/bin/sh".into(), Node::Link("/bin/busybox".into())),
            ("/far".into(), Node::Link(to.clone())),
            ("/tmp".into(), Node::Dir(0o1777)),
            ("/sbin/init".into(), Node::Link("tt-guest".into())),
            (deep.clone(), Node::File(0o600, b"deep".into())),
        ]);
        let entry = Entry {
            argv: vec!["httpd".into(), "-f".into()],
            env: vec![("A".into(), "b=c".into())],
            user: None,
            cwd: Some("/srv".into()),
        };
        let dir = tempfile::tempdir().unwrap();
        write(&nodes, Some(&entry), &dir.path().join("a.tar")).unwrap();
        let tar = |args: &[&str]| {
            let output = Command::new("tar").args(args).current_dir(dir.path()).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        tar(&["-xf", "a.tar"]);
        let list = tar(&["-tvf", "0/layer.tar"]);
        let has = |part: &str| list.lines().any(|line| line.ends_with(part));
        assert!(has("bin/sh -> /bin/busybox") && has(" tmp/") && has(" bin/busybox"), "{list}");
        assert!(has(&format!(" {}", &deep[1..])) && has(&format!(" far -> {to}")), "{list}");
        assert!(list.contains("drwxrwxrwt 0/0") && !list.contains("sbin/init"), "{list}");
        let read = |path: &str| std::fs::read(dir.path().join(path)).unwrap();
        let manifest: Value = serde_json::from_slice(&read("manifest.json")).unwrap();
        let config = manifest[0]["Config"].as_str().unwrap();
        assert_eq!(config, format!("{}.json", digest::of_bytes(&read(config))));
        let config: Value = serde_json::from_slice(&read(config)).unwrap();
        let layer = format!("sha256:{}", digest::of_bytes(&read("0/layer.tar")));
        assert_eq!(config["rootfs"]["diff_ids"], json!([layer]));
        let process =
            json!({"Cmd": ["httpd", "-f"], "Env": ["A=b=c"], "User": "", "WorkingDir": "/srv"});
        assert_eq!(config["config"], process);
    }

    #[test]
    fn a_record_counts_itself() {
        for len in [1, 80, 90, 91, 92, 93, 985, 988, 990, 995] {
            let record = record("path", &"x".repeat(len));
            assert_eq!(record.split(' ').next().unwrap().parse(), Ok(record.len()));
        }
    }
}
