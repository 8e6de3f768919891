//! The documents of an image: index, manifest, config (OCI image specification 1.1, and Docker's schema 2, which has the
//! same form under other names). They are a stranger's: sizes and numbers are bounded, unknown fields ignored, unknown
//! media types refused. It never asks for anything.

use super::blob::Digest;
use crate::ImageError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tt_guest::entry::Entry;
use tt_model::names::LABEL_ENTRY;

/// Largest index or manifest, as registries have it.
pub(super) const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Largest config.
pub(super) const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// Layers of an image; Docker stops at 127.
pub(super) const LAYERS_MAX: usize = 256;
/// Manifests that an index names.
const MANIFESTS_MAX: usize = 1024;
/// Largest layer, packed or not, and largest image.
pub(super) const BLOB_BYTES_MAX: u64 = 64 << 30;
/// Arguments and environment of the image's process together; the kernel takes 2 MiB on a small stack.
const PROCESS_BYTES_MAX: usize = 1 << 20;

pub(super) const INDEX: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
pub(super) const MANIFEST: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIG: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// How a layer is packed is seen in its first bytes; the word only has to be one for a layer of files.
const LAYER: [&str; 5] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

/// Names content with its type and length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

/// What an image is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
}

/// A list of manifests, or of further lists.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub(super) schema_version: u32,
    pub(super) manifests: Vec<Descriptor>,
}

/// What an image, or another artifact, consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    #[serde(default)]
    pub(super) media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<String>,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// What an image is to be run as.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    config: Option<Process>,
    rootfs: RootFs,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Process {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Vec<Digest>,
}

/// A document is refused.
pub(super) fn refuse(what: &str, problem: impl Into<String>) -> ImageError {
    ImageError::Format { what: what.to_owned(), problem: problem.into() }
}

/// A document as a value.
pub(super) fn parse<'a, T: Deserialize<'a>>(what: &str, json: &'a [u8]) -> Result<T, ImageError> {
    serde_json::from_slice(json).map_err(|error| refuse(what, error.to_string()))
}

/// What a document says it is: an index or a manifest. `media_type` is what whoever brought it said.
pub(super) enum Document {
    Index(Index),
    Manifest(Manifest),
}

impl Document {
    pub(super) fn read(what: &str, media_type: &str, json: &[u8]) -> Result<Self, ImageError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Kind {
            #[serde(default)]
            media_type: String,
            // Any value: only whether it is there counts.
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
        }
        let kind: Kind = parse(what, json)?;
        let said = [media_type, &kind.media_type];
        let mut said = said.into_iter().filter(|said| !said.is_empty());
        let is = |types: &[&str], said: &str| types.contains(&said);
        match (kind.manifests.is_some(), kind.layers.is_some()) {
            // What can be read as both might be another thing to somebody else.
            (true, true) => Err(refuse(what, "it is an index and a manifest at once")),
            (true, false) if said.all(|said| is(&INDEX, said)) => {
                Index::check(parse(what, json)?, what).map(Self::Index)
            }
            (false, true) if said.all(|said| is(&MANIFEST, said)) => {
                Manifest::check(parse(what, json)?, what).map(Self::Manifest)
            }
            _ => {
                let shown: String = media_type.chars().take(100).collect();
                Err(refuse(
                    what,
                    format!("{shown:?} is neither an index nor a manifest of an image"),
                ))
            }
        }
    }
}

impl Index {
    fn check(self, what: &str) -> Result<Self, ImageError> {
        if self.schema_version != 2 || self.manifests.len() > MANIFESTS_MAX {
            return Err(refuse(what, "it has another version than 2, or too many manifests"));
        }
        Ok(self)
    }

    /// The manifest for this machine; of several the first one, as the specification has it. One that does not say what
    /// it is for is taken where it is the only one.
    pub(super) fn choose(&self, what: &str) -> Result<&Descriptor, ImageError> {
        let is_ours = |descriptor: &&Descriptor| {
            descriptor
                .platform
                .as_ref()
                .is_some_and(|p| p.os == "linux" && p.architecture == architecture())
        };
        let chosen = self.manifests.iter().find(is_ours).or(match self.manifests.as_slice() {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        });
        chosen.ok_or_else(|| {
            let platform = |d: &Descriptor| {
                d.platform.as_ref().map(|p| format!("{}/{}", p.os, p.architecture))
            };
            let mut there: Vec<String> = self.manifests.iter().filter_map(platform).collect();
            there.sort();
            there.dedup();
            there.truncate(20);
            let there: String = there.join(", ").chars().take(200).collect();
            refuse(what, format!("it has nothing for linux/{}, only: {there:?}", architecture()))
        })
    }
}

impl Manifest {
    fn check(self, what: &str) -> Result<Self, ImageError> {
        if self.schema_version != 2 {
            return Err(refuse(what, format!("it has version {}, not 2", self.schema_version)));
        }
        if self.layers.len() > LAYERS_MAX {
            let problem = format!("it has {} layers, {LAYERS_MAX} at most", self.layers.len());
            return Err(refuse(what, problem));
        }
        let total = self.layers.iter().try_fold(0_u64, |sum, layer| sum.checked_add(layer.size));
        if total.is_none_or(|total| total > BLOB_BYTES_MAX) {
            return Err(refuse(what, format!("its layers have more than {BLOB_BYTES_MAX} bytes")));
        }
        if self.config.size > CONFIG_BYTES_MAX {
            return Err(refuse(what, format!("its config has more than {CONFIG_BYTES_MAX} bytes")));
        }
        Ok(self)
    }

    /// Refuses what is no image of files.
    pub(super) fn check_image(&self, what: &str) -> Result<(), ImageError> {
        let unknown = |kind: &str, media_type: &str| {
            let shown: String = media_type.chars().take(100).collect();
            Err(refuse(what, format!("its {kind} is {shown:?}, which is no part of an image")))
        };
        if !CONFIG.contains(&self.config.media_type.as_str()) {
            return unknown("config", &self.config.media_type);
        }
        match self.layers.iter().find(|layer| !LAYER.contains(&layer.media_type.as_str())) {
            Some(layer) => unknown("layer", &layer.media_type),
            None => Ok(()),
        }
    }
}

impl Config {
    /// Reads and checks it for an image of so many layers.
    pub(super) fn read(what: &str, json: &[u8], layers: usize) -> Result<Self, ImageError> {
        let config: Self = parse(what, json)?;
        if !matches!(config.os.as_str(), "" | "linux")
            || !(config.architecture.is_empty() || config.architecture == architecture())
        {
            let shown: String =
                format!("{}/{}", config.os, config.architecture).chars().take(60).collect();
            let problem = format!("it is for {shown:?}, not for linux/{}", architecture());
            return Err(refuse(what, problem));
        }
        if config.rootfs.kind != "layers" || config.rootfs.diff_ids.len() != layers {
            let problem = format!(
                "its config names {} layers, its manifest {layers}",
                config.rootfs.diff_ids.len()
            );
            return Err(refuse(what, problem));
        }
        Ok(config)
    }

    /// The digests of the layers as they are unpacked, the lowest first.
    pub(super) fn diff_ids(&self) -> &[Digest] {
        &self.rootfs.diff_ids
    }

    /// What the guest runs; `None` where the image names no program.
    pub(super) fn entry(&self, what: &str) -> Result<Option<Entry>, ImageError> {
        let process = self.config.clone().unwrap_or_default();
        // An image that was made of a container of TT's says what it had run, and would run the agent.
        let noted = process.labels.as_ref().and_then(|labels| labels.get(LABEL_ENTRY));
        let entry = match noted.map(|noted| serde_json::from_str(noted)) {
            Some(Ok(noted)) => noted,
            _ => process.entry(),
        };
        let Some(entry) = entry else { return Ok(None) };
        entry.check().map_err(|problem| refuse(what, problem))?;
        if entry.bytes() > PROCESS_BYTES_MAX {
            let problem = format!("its arguments and environment exceed {PROCESS_BYTES_MAX} bytes");
            return Err(refuse(what, problem));
        }
        Ok(Some(entry))
    }
}

impl Process {
    fn entry(self) -> Option<Entry> {
        let argv = [self.entrypoint.unwrap_or_default(), self.cmd.unwrap_or_default()].concat();
        if argv.is_empty() {
            return None;
        }
        let mut env = Vec::new();
        for variable in self.env.unwrap_or_default() {
            // What has no name can not be set, and Docker leaves it out, too.
            match variable.split_once('=') {
                Some((name, value)) if !name.is_empty() => {
                    env.push((name.to_owned(), value.to_owned()));
                }
                _ => {}
            }
        }
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        Some(Entry { argv, env, user: filled(self.user), cwd: filled(self.working_dir) })
    }
}

/// This machine's processors, as images spell them.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
