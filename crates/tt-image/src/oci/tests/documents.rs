//! Documents of images as an enemy writes them: index, manifest, config, and what they promise.

use super::hostile::attack;
use super::layers::{LIMITS, unpack};
use std::fs;
use std::path::Path;
use testkit::oci::{self, Image, Node, digest, tar};

/// Changes the files of a layout.
type Spoil = fn(&mut Vec<(String, Vec<u8>)>);

/// What is spoilt, and the words with which it is refused.
type Refused = (&'static str, Spoil, &'static str);

fn content<'a>(files: &'a mut [(String, Vec<u8>)], name: &str) -> &'a mut Vec<u8> {
    &mut files.iter_mut().find(|(path, _)| path.ends_with(name)).unwrap().1
}

/// Puts another text into `index.json`, or what stands for a manifest there.
fn index(files: &mut [(String, Vec<u8>)], from: &str, to: &str) {
    let index = content(files, "index.json");
    let text = String::from_utf8(index.clone()).unwrap();
    assert!(text.contains(from), "{text}");
    *index = text.replace(from, to).into_bytes();
}

/// Puts another document into the place of the manifest, with a digest and a size that are right.
fn manifest(files: &mut [(String, Vec<u8>)], change: impl Fn(String) -> String) {
    let at = files.len() - 1;
    let old = files[at].1.clone();
    let new = change(String::from_utf8(old.clone()).unwrap()).into_bytes();
    let (from, to) = (old.len().to_string(), new.len().to_string());
    index(files, &digest(&old), &digest(&new));
    index(files, &format!("\"size\":{from}"), &format!("\"size\":{to}"));
    files[at] = (format!("blobs/{}", digest(&new).replace(':', "/")), new);
}

/// Wrong ways to a manifest.
fn indexes() -> Vec<Refused> {
    vec![
        ("no layout", |f| f.clear(), "neither"),
        (
            "layout of a later version",
            |f| content(f, "oci-layout").clone_from(&br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec()),
            "version",
        ),
        ("no manifest", |f| drop(f.pop()), "it has no"),
        ("another manifest", |f| content(f, "index.json").clone_from(&b"[]".to_vec()), "image"),
        ("index that is none", |f| content(f, "index.json").truncate(20), "EOF"),
        (
            "index of ten thousand",
            |f| {
                let one = format!(r#"{{"digest":"{}","size":1}},"#, digest(b""));
                let list = one.repeat(10_000);
                let json = format!(
                    r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
                    list.trim_end_matches(',')
                );
                *content(f, "index.json") = json.into_bytes();
            },
            "too many manifests",
        ),
        (
            "index of another platform",
            |f| index(f, "\"size\"", r#""platform":{"os":"linux","architecture":"s390x"},"size""#),
            "linux/s390x",
        ),
        (
            "index that is empty",
            |f| {
                content(f, "index.json")
                    .clone_from(&br#"{"schemaVersion":2,"manifests":[]}"#.to_vec())
            },
            "nothing for",
        ),
        ("negative size", |f| index(f, "\"size\":", "\"size\":-"), "invalid value"),
        ("huge size", |f| index(f, "\"size\":", "\"size\":9999999999"), "at most"),
        (
            "size that overflows",
            |f| index(f, "\"size\":", "\"size\":99999999999999999999"),
            "invalid",
        ),
        ("wrong size", |f| index(f, "\"size\":", "\"size\":1"), "bytes"),
        ("digest of another kind", |f| index(f, "sha256:", "md5:"), "no digest"),
        ("digest that is a path", |f| index(f, "sha256:", "sha256:../"), "no digest"),
        (
            "manifest of another content",
            |f| f.last_mut().unwrap().1.iter_mut().filter(|b| **b == b'2').for_each(|b| *b = b'3'),
            "digest",
        ),
        (
            "wrong media type",
            |f| index(f, "vnd.oci.image.manifest.v1+json", "vnd.evil+json"),
            "neither an index",
        ),
    ]
}

/// Wrong manifests.
fn manifests() -> Vec<Refused> {
    vec![
        (
            "index in the manifest's place",
            |f| manifest(f, |m| m.replace("\"layers\"", "\"manifests\"")),
            "neither an index",
        ),
        (
            "manifest and index at once",
            |f| manifest(f, |m| m.replacen('{', r#"{"manifests":[],"#, 1)),
            "at once",
        ),
        (
            "unknown layer",
            |f| {
                manifest(f, |m| {
                    m.replace("image.layer.v1.tar+gzip", "image.layer.v1.tar+gzip+encrypted")
                })
            },
            "no part of an image",
        ),
        (
            "layer elsewhere",
            |f| {
                manifest(f, |m| {
                    m.replace(
                        "application/vnd.oci.image.layer.v1.tar+gzip",
                        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                    )
                })
            },
            "no part of an image",
        ),
        (
            "unknown config",
            |f| manifest(f, |m| m.replace("image.config.v1+json", "unknown.config.v1+json")),
            "no part of an image",
        ),
        (
            "old version",
            |f| manifest(f, |m| m.replace("\"schemaVersion\":2", "\"schemaVersion\":1")),
            "version 1",
        ),
        (
            "sizes that add up to too much",
            |f| {
                manifest(f, |m| {
                    let layer = format!(
                        r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":9223372036854775807}}"#,
                        digest(b"")
                    );
                    m.replace("\"layers\":[", &format!("\"layers\":[{layer},{layer},{layer},"))
                })
            },
            "more than",
        ),
        (
            "one layer too few",
            |f| manifest(f, |m| m.replace("\"layers\":[{", "\"layers\":[],\"rest\":[{")),
            "names 1 layers",
        ),
    ]
}

/// Layers that are too many, or not what was promised of them.
fn blobs() -> Vec<Refused> {
    vec![
        (
            "a thousand layers",
            |f| {
                manifest(f, |m| {
                    let layer = format!(
                        r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":0}},"#,
                        digest(b"")
                    );
                    m.replace("\"layers\":[", &format!("\"layers\":[{}", layer.repeat(1000)))
                })
            },
            "layers, 256 at most",
        ),
        ("layer that is cut", |f| f[2].1.truncate(40), "bytes, not"),
        ("layer of another content", |f| f[2].1[30] ^= 1, "layer 1"),
        ("layer that is none", |f| f.remove(2).1.clear(), "it has no"),
        ("missing config", |f| drop(f.remove(3)), "it has no"),
    ]
}

#[test]
fn hostile_documents_are_refused() {
    let nodes = [Node::file("a", "some content that is long enough to be packed")];
    let image = Image::of(&[&nodes]);
    assert_eq!(attack("right", &image.layout(), LIMITS).unwrap(), ["a"]);
    for (name, spoil, why) in [indexes(), manifests(), blobs()].into_iter().flatten() {
        let mut files = image.layout();
        spoil(&mut files);
        match attack(name, &files, LIMITS) {
            Err(error) => assert!(error.contains(why), "{name}: {error}"),
            Ok(listing) => panic!("{name} was let in: {listing:?}"),
        }
    }
}

#[test]
fn a_layer_is_what_its_config_promises() {
    // The blob is right by the manifest, but no layer of this config.
    let mut image = Image::of(&[&[Node::file("a", "x")]]);
    let config = image.config();
    image.layers[0] = tar(&[Node::file("evil", "x")]);
    for files in [image.layout(), image.saved()] {
        let mut files = files;
        let own = image.config();
        for (path, content) in &mut files {
            if *content == own {
                content.clone_from(&config);
            }
            let text = String::from_utf8(content.clone());
            if let (Ok(text), false) = (text, *content == config) {
                *content = text.replace(&digest(&own), &digest(&config)).into_bytes();
            }
            *path = path.replace(&digest(&own)[7..], &digest(&config)[7..]);
        }
        // Names of what now has another content are put right, so that nothing but the layer is wrong.
        let manifest = files.last().unwrap().1.clone();
        if files[1].0 == "index.json" {
            let at = files.len() - 1;
            let old = files[at].0.rsplit('/').next().unwrap().to_owned();
            files[at].0 = files[at].0.replace(&old, &digest(&manifest)[7..]);
            index(&mut files, &old, &digest(&manifest)[7..]);
        } else {
            let text = String::from_utf8(manifest).unwrap();
            let at = files.len() - 1;
            files[at].1 = text.replace(&digest(&own)[7..], &digest(&config)[7..]).into_bytes();
        }
        let error = attack("another layer", &files, LIMITS).unwrap_err();
        assert!(error.contains("layer 1") && error.contains("has the digest"), "{error}");
    }
}

#[test]
fn archives_of_images_that_say_a_thing_twice_are_refused() {
    let image = Image::of(&[&[Node::file("a", "x")]]);
    let dir = tempfile::tempdir().unwrap();
    let mut files = image.saved();
    files.extend(image.saved());
    let source = dir.path().join("source.tar");
    fs::write(&source, oci::archive(&files)).unwrap();
    let error = unpack(dir.path(), &source, LIMITS).unwrap_err();
    assert!(error.to_string().contains("twice"), "{error}");
}

#[test]
fn parts_that_are_no_files_are_refused() {
    type Make = fn(&Path);
    let makes: [(&str, Make, &str); 4] = [
        ("link", |p| std::os::unix::fs::symlink("/etc/hostname", p).unwrap(), "is a link"),
        ("directory", |p| fs::create_dir(p).unwrap(), "no regular file"),
        (
            "pipe",
            |p| {
                let mode = rustix::fs::Mode::RUSR;
                rustix::fs::mknodat(rustix::fs::CWD, p, rustix::fs::FileType::Fifo, mode, 0)
                    .unwrap();
            },
            "no regular file",
        ),
        ("sparse terabyte", |p| fs::File::create(p).unwrap().set_len(1 << 40).unwrap(), "at most"),
    ];
    for (name, make, why) in makes {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        oci::write(&source, &Image::of(&[&[Node::file("a", "x")]]).layout());
        fs::remove_file(source.join("index.json")).unwrap();
        make(&source.join("index.json"));
        fs::write(source.join("manifest.json"), "[]").unwrap();
        let error = unpack(dir.path(), &source, LIMITS).unwrap_err().to_string();
        // What is no file is no layout, so it is taken for the other form, which is none either.
        assert!(error.contains(why) || error.contains("0 images"), "{name}: {error}");
    }
}
