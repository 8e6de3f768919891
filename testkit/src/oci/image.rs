//! An image out of layers and a process, in every form in which images come.

use super::tar::{Node, tar};
use crate::Must;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::Path;

/// What content is called by.
pub fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An image for this machine's kind.
#[derive(Clone, Debug)]
pub struct Image {
    /// The tar archives of its layers, the lowest first.
    pub layers: Vec<Vec<u8>>,
    /// What it runs, as the field `config` of an image's config.
    pub process: Value,
}

/// A layer as a registry has it: its media type and its bytes.
type Packed = (&'static str, Vec<u8>);

impl Image {
    /// An image of these layers that runs nothing.
    pub fn of(layers: &[&[Node]]) -> Self {
        Self { layers: layers.iter().map(|nodes| tar(nodes)).collect(), process: json!({}) }
    }

    /// That runs this.
    #[must_use]
    pub fn running(self, process: Value) -> Self {
        Self { process, ..self }
    }

    /// Its config.
    pub fn config(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": self.process,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        config.to_string().into_bytes()
    }

    /// Its manifest, and the blobs that this names. Layers are packed by gzip, by zstd and not at all, in turns.
    pub fn manifest(&self) -> (Vec<u8>, Vec<Vec<u8>>) {
        let config = self.config();
        let mut blobs = Vec::new();
        let mut layers = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let (media_type, packed) = pack(number, layer);
            layers.push(json!({
                "mediaType": media_type, "digest": digest(&packed), "size": packed.len(),
            }));
            blobs.push(packed);
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config), "size": config.len(),
            },
            "layers": layers,
        });
        blobs.push(config);
        (manifest.to_string().into_bytes(), blobs)
    }

    /// Its files in an OCI layout: path and content.
    pub fn layout(&self) -> Vec<(String, Vec<u8>)> {
        let (manifest, blobs) = self.manifest();
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest(&manifest), "size": manifest.len(),
            }],
        });
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
        ];
        for blob in blobs.into_iter().chain([manifest]) {
            files.push((format!("blobs/{}", digest(&blob).replace(':', "/")), blob));
        }
        files
    }

    /// Its files as `docker save` writes them: path and content.
    pub fn saved(&self) -> Vec<(String, Vec<u8>)> {
        let config = self.config();
        let config_name = format!("{}.json", &digest(&config)["sha256:".len()..]);
        let names: Vec<String> =
            (0..self.layers.len()).map(|number| format!("{number:064x}/layer.tar")).collect();
        let manifest =
            json!([{ "Config": config_name, "RepoTags": ["test:latest"], "Layers": names }]);
        let mut files: Vec<_> = names.into_iter().zip(self.layers.iter().cloned()).collect();
        files.push((config_name, config));
        files.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
        files
    }
}

/// Files as one archive.
pub fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let nodes: Vec<Node> = files.iter().map(|(path, content)| Node::file(path, content)).collect();
    tar(&nodes)
}

/// Files below a directory.
pub fn write(dir: &Path, files: &[(String, Vec<u8>)]) {
    for (path, content) in files {
        let path = dir.join(path);
        let parent = path.parent().must("parent of a file");
        std::fs::create_dir_all(parent).must("make a directory");
        std::fs::write(&path, content).must("write a file");
    }
}

fn pack(number: usize, layer: &[u8]) -> Packed {
    match number % 3 {
        0 => {
            let level = flate2::Compression::fast();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(layer).must("pack a layer");
            let packed = encoder.finish().must("pack a layer");
            ("application/vnd.oci.image.layer.v1.tar+gzip", packed)
        }
        1 => {
            let packed = zstd::stream::encode_all(layer, 1).must("pack a layer");
            ("application/vnd.oci.image.layer.v1.tar+zstd", packed)
        }
        _ => ("application/vnd.oci.image.layer.v1.tar", layer.to_vec()),
    }
}
