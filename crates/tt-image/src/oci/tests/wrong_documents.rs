//! Documents and templates as an enemy puts them into a registry: each is refused, and leaves nothing.

use super::registry::Lab;
use super::wrong_registry::{image, patience, refused};
use serde_json::{Value, json};
use testkit::oci::digest;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What is changed in a document.
type Change = Box<dyn Fn(&mut Value)>;

/// A document with a part of it changed.
fn changed(manifest: &[u8], change: impl Fn(&mut Value)) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(manifest).unwrap();
    change(&mut value);
    value.to_string().into_bytes()
}

/// What is wrong, how, and the words with which it is refused.
type Case = (&'static str, Change, &'static str);

fn set(pointer: &'static str, to: Value) -> Change {
    Box::new(move |value| *value.pointer_mut(pointer).unwrap() = to.clone())
}

fn digests_and_sizes() -> Vec<Case> {
    vec![
        (
            "a path for a digest",
            set("/layers/0/digest", json!("sha256:../../../etc/passwd")),
            "no digest",
        ),
        ("a query for a digest", set("/layers/0/digest", json!("sha256:x?y")), "no digest"),
        (
            "another hash",
            set("/config/digest", json!(format!("md5:{}", "0".repeat(32)))),
            "no digest",
        ),
        ("too large a layer", set("/layers/0/size", json!(1_u64 << 40)), "more than"),
        ("layers that overflow", set("/layers/0/size", json!(u64::MAX)), "more than"),
        ("less than nothing", set("/layers/0/size", json!(-1)), "can not be used"),
        ("shorter than said", set("/layers/0/size", json!(1 << 20)), "it ends after"),
        ("longer than said", set("/layers/0/size", json!(3)), "it has more than 3"),
        ("too large a config", set("/config/size", json!(1 << 30)), "its config has more"),
    ]
}

fn forms() -> Vec<Case> {
    vec![
        (
            "no layer of files",
            set("/layers/0/mediaType", json!("application/x-sh")),
            "no part of an image",
        ),
        (
            "no config of an image",
            set("/config/mediaType", json!("application/x-sh")),
            "no part of an image",
        ),
        ("a fourth version", set("/schemaVersion", json!(4)), "not 2"),
        (
            "too many layers",
            Box::new(|value| {
                let layer = value["layers"][0].clone();
                value["layers"] = vec![layer; 300].into();
            }),
            "256 at most",
        ),
        (
            "one layer more than the config knows",
            Box::new(|value| {
                let layer = value["layers"][0].clone();
                value["layers"].as_array_mut().unwrap().push(layer);
            }),
            "its manifest 3",
        ),
        ("index and manifest at once", Box::new(|value| value["manifests"] = json!([])), "at once"),
        (
            "a template without files",
            set("/config/mediaType", json!("application/vnd.tt.template.config.v1+json")),
            "can not be used",
        ),
    ]
}

#[test]
fn documents_of_an_enemy_are_refused() {
    let lab = Lab::new();
    lab.registry.put_image("evil", "1", &image());
    let right = lab.registry.manifest("evil", "1");
    for (what, change, why) in digests_and_sizes().into_iter().chain(forms()) {
        lab.registry.put_manifest("evil", "2", MANIFEST, &changed(&right, change));
        let said = refused(&lab, what, &lab.remote("evil:2"), patience(None));
        assert!(said.contains(why), "{what}: {said}");
    }
    // An index of itself can not be: a digest would have to be its own. A deep one can.
    let mut inner = (MANIFEST, right);
    for depth in 0..6 {
        let entry =
            json!({ "mediaType": inner.0, "digest": digest(&inner.1), "size": inner.1.len() });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string().into_bytes();
        lab.registry.put_manifest("evil", &format!("deep{depth}"), INDEX, &index);
        inner = (INDEX, index);
    }
    let said = refused(&lab, "deep index", &lab.remote("evil:deep5"), patience(None));
    assert!(said.contains("indexes lead to each other"), "{said}");
}

/// The record of a template, changed.
fn records() -> Vec<Case> {
    vec![
        ("of a later version", Box::new(|c| c["version"] = json!(2)), "not 1"),
        ("for another machine", Box::new(|c| c["arch"] = json!("sparc")), "it is for \"sparc\""),
        ("with a form by word", Box::new(|c| c["inside"] = json!(["disk"])), "does not know"),
        ("with a feature twice", Box::new(|c| c["inside"] = json!(["agent", "agent"])), "twice"),
        ("with a long description", Box::new(|c| c["memo"] = json!("m".repeat(501))), "one line"),
        ("with colours", Box::new(|c| c["memo"] = json!("\u{1b}[31m")), "one line"),
        (
            "without a file's digest",
            Box::new(|c| c["files"]["kernel"] = json!(null)),
            "can not be used",
        ),
        ("with another file's digest", Box::new(|c| c["files"]["kernel"] = json!("00")), "digest"),
        ("with a file that is none", Box::new(|c| c["files"]["../x"] = json!("00")), "is missing"),
    ]
}

/// The file of a template, packed otherwise.
fn files() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let runs = |text: &[u8], begin: u64, len: u64| {
        let head = [b"TTRUNS1\n".as_slice(), &100_u64.to_le_bytes()].concat();
        let run = [&begin.to_le_bytes(), &len.to_le_bytes(), text].concat();
        zstd::stream::encode_all(&*[head, run].concat(), 1).unwrap()
    };
    vec![
        ("no runs", zstd::stream::encode_all(&b"MZ"[..], 1).unwrap(), "can not be used"),
        ("not packed", b"#!/bin/sh".to_vec(), "can not be used"),
        ("a run behind the end", runs(b"x", 100, 1), "not within its file"),
        ("a run that overflows", runs(b"x", u64::MAX, 2), "not within its file"),
        ("a run that is cut", runs(b"x", 0, 50), "middle of a run"),
        ("a run of nothing", runs(b"", 5, 0), "a run of nothing"),
    ]
}

#[test]
fn templates_of_an_enemy_are_refused() {
    let lab = Lab::new();
    let template = lab.template("x");
    lab.push(&template, &lab.remote("x:1")).unwrap();
    let right: Value = serde_json::from_slice(&lab.registry.manifest("x", "1")).unwrap();
    let config = lab.registry.blob("x", right["config"]["digest"].as_str().unwrap());
    let kernel = right["layers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|layer| layer["mediaType"].as_str().unwrap().contains("kernel"));
    let kernel = kernel.unwrap().clone();
    let records = records().into_iter().map(|(what, change, why)| (what, change, None, why));
    let files = files().into_iter().map(|(what, packed, why)| {
        let same: Change = Box::new(|_| ());
        (what, same, Some(packed), why)
    });
    for (what, change, packed, why) in records.chain(files) {
        let config = changed(&config, change);
        let mut manifest = right.clone();
        manifest["config"]["digest"] = digest(&config).into();
        manifest["config"]["size"] = config.len().into();
        lab.registry.put_blob("x", &config);
        if let Some(packed) = packed {
            for layer in manifest["layers"].as_array_mut().unwrap() {
                if layer["digest"] == kernel["digest"] {
                    layer["digest"] = digest(&packed).into();
                    layer["size"] = packed.len().into();
                }
            }
            lab.registry.put_blob("x", &packed);
        }
        lab.registry.put_manifest("x", "2", MANIFEST, manifest.to_string().as_bytes());
        let said = refused(&lab, what, &lab.remote("x:2"), patience(None));
        assert!(said.contains(why), "{what}: {said}");
    }
}
