//! A template as an artifact of a registry: one manifest, the template's record as its config, and a layer for each file.
//! `docs/artifact.md` is the format's contract. Whoever unpacks one believes nothing but the digests, and takes from its config
//! only what this version knows.

use super::blob::Digest;
use super::runs;
use super::spec::{
    BLOB_BYTES_MAX, CONFIG_BYTES_MAX, Descriptor, MANIFEST, Manifest, parse, refuse,
};
use crate::{
    CONTAINER, DISK, Facts, INITRAMFS, ImageError, KERNEL, Progress, digest, files, record,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tt_model::VmTemplate;
use tt_model::template::{
    FEATURE_AGENT, FEATURE_CLOUD_INIT, FEATURE_CONTAINER, FEATURE_DISK, FEATURE_KERNEL,
    FEATURE_UEFI, MEMO_BYTES_MAX,
};

/// What a manifest says that is a template.
pub(super) const TYPE: &str = "application/vnd.tt.template.v1";
/// Its config.
const CONFIG: &str = "application/vnd.tt.template.config.v1+json";
/// The files of a template and what their layers are called.
const LAYERS: [(&str, &str); 4] = [
    (DISK, "application/vnd.tt.template.disk.v1+zstd"),
    (KERNEL, "application/vnd.tt.template.kernel.v1+zstd"),
    (INITRAMFS, "application/vnd.tt.template.initramfs.v1+zstd"),
    (CONTAINER, "application/vnd.tt.template.container.v1+zstd"),
];
/// Version of the config's form.
const VERSION: u32 = 1;
/// Features that are no forms, as far as this version knows what they mean.
const KNOWN: [&str; 3] = [FEATURE_AGENT, FEATURE_CLOUD_INIT, FEATURE_UEFI];

/// What the files do not say themselves.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    version: u32,
    name: String,
    memo: Option<String>,
    arch: String,
    /// Features that are no forms.
    inside: Vec<String>,
    /// Of each file the digest that a template's own is made of.
    files: BTreeMap<String, String>,
}

/// Whether a manifest is one of a template.
pub(super) fn is_template(manifest: &Manifest) -> bool {
    manifest.config.media_type == CONFIG
}

/// What a part of an artifact is called: the file, or its record.
pub(super) fn name(blob: &Descriptor) -> &str {
    let layer = LAYERS.iter().find(|(_, media_type)| *media_type == blob.media_type);
    layer.map_or("its record", |(name, _)| name)
}

/// The parts of a template's artifact, as files in `to`.
pub(super) struct Packed {
    /// The manifest as it is sent.
    pub(super) manifest: Vec<u8>,
    /// What it names, and where that lies.
    pub(super) blobs: Vec<(Descriptor, PathBuf)>,
}

/// Packs the template whose files lie in `dir` into `to`.
pub(super) fn pack(
    template: &VmTemplate,
    dir: &Path,
    to: &Path,
    progress: &dyn Progress,
) -> Result<Packed, ImageError> {
    let mut files = BTreeMap::new();
    let mut blobs = Vec::new();
    for name in record::files_of(template) {
        let path = dir.join(name);
        progress.step(&format!("packing {name}"));
        files.insert(name.to_owned(), digest::of_sparse_file(&path, progress)?);
        let layer = LAYERS.iter().find(|(file, _)| *file == name);
        let media_type = layer.map(|(_, media_type)| *media_type).unwrap_or_default();
        let packed = to.join(format!("packed-{name}"));
        files::remove(&packed)?;
        let (digest, size) = runs::pack(&path, &packed, progress)?;
        if size > BLOB_BYTES_MAX {
            let problem =
                format!("packed it has {} MB, {} at most", size >> 20, BLOB_BYTES_MAX >> 20);
            return Err(refuse(name, problem));
        }
        blobs.push((describe(media_type, digest, size), packed));
    }
    let forms = [FEATURE_DISK, FEATURE_KERNEL, FEATURE_CONTAINER];
    let inside = template.features.iter().filter(|feature| !forms.contains(&feature.as_str()));
    let config = Config {
        version: VERSION,
        name: template.name.clone(),
        // One that nobody could pull is left out.
        memo: template.memo.clone().filter(|memo| is_line(memo)),
        arch: template.arch.clone(),
        inside: inside.cloned().collect(),
        files,
    };
    let path = to.join("packed-config");
    files::remove(&path)?;
    let json = |value: serde_json::Result<Vec<u8>>| {
        value.map_err(|error| files::not_written(&path)(error.into()))
    };
    let config = json(serde_json::to_vec(&config))?;
    files::write(&path, &config)?;
    let config_digest = Digest::of(&config);
    let config = describe(CONFIG, config_digest, config.len() as u64);
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST[0].into(),
        artifact_type: Some(TYPE.into()),
        config: config.clone(),
        layers: blobs.iter().map(|(descriptor, _)| descriptor.clone()).collect(),
    };
    let manifest = json(serde_json::to_vec(&manifest))?;
    blobs.push((config, path));
    Ok(Packed { manifest, blobs })
}

/// Unpacks the layers of a template's manifest into files of `dir`, and checks each against the config. `part` says where a
/// blob lies, which is verified again.
pub(super) fn unpack(
    manifest: &Manifest,
    part: &dyn Fn(&Descriptor) -> PathBuf,
    dir: &Path,
    what: &str,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let config = config(manifest, part, what)?;
    let mut wanted = config.files;
    let mut files = Vec::new();
    for layer in &manifest.layers {
        let known = LAYERS.iter().find(|(_, media_type)| *media_type == layer.media_type);
        let Some((name, digest)) = known.and_then(|(name, _)| wanted.remove_entry(*name)) else {
            let shown: String = layer.media_type.chars().take(100).collect();
            return Err(refuse(what, format!("its layer {shown:?} is there twice, or unknown")));
        };
        files.push((layer, name, digest));
    }
    if let Some(name) = wanted.keys().next() {
        let shown: String = name.chars().take(100).collect();
        return Err(refuse(what, format!("its layer for {shown:?} is missing")));
    }
    for (layer, name, digest) in files {
        progress.step(&format!("unpacking {name}"));
        let path = dir.join(&name);
        files::remove(&path)?;
        let what = format!("{name} of {what}");
        runs::unpack(&part(layer), layer, &path, &what, progress)?;
        let found = digest::of_sparse_file(&path, progress)?;
        if found != digest {
            let problem = format!("its content has the digest {found}, which was not promised");
            return Err(refuse(&what, problem));
        }
    }
    Ok(())
}

/// What the template is, under the name that `own` gives it.
pub(super) fn facts(
    manifest: &Manifest,
    part: &dyn Fn(&Descriptor) -> PathBuf,
    own: &Facts,
    what: &str,
) -> Result<Facts, ImageError> {
    let config = config(manifest, part, what)?;
    Ok(Facts {
        name: own.name.clone(),
        memo: own.memo.clone().or(config.memo),
        arch: config.arch,
        inside: config.inside,
    })
}

fn config(
    manifest: &Manifest,
    part: &dyn Fn(&Descriptor) -> PathBuf,
    what: &str,
) -> Result<Config, ImageError> {
    let path = part(&manifest.config);
    let json = files::read(&path, CONFIG_BYTES_MAX)?;
    if Digest::of(&json) != manifest.config.digest {
        return Err(refuse(what, "its config is not the one that was promised"));
    }
    let config: Config = parse(&format!("config of {what}"), &json)?;
    if config.version != VERSION {
        let problem = format!("it has version {}, not {VERSION}", config.version);
        return Err(refuse(what, problem));
    }
    if !config.memo.iter().all(|memo| is_line(memo)) {
        let problem = format!("its description is not one line of at most {MEMO_BYTES_MAX} bytes");
        return Err(refuse(what, problem));
    }
    // What it says to be must not be a form: those follow from its files.
    let known = |feature: &String| KNOWN.contains(&feature.as_str());
    if !config.inside.iter().all(known) || config.inside.len() > KNOWN.len() {
        let problem =
            format!("it has features that this version does not know: it knows {KNOWN:?}");
        return Err(refuse(what, problem));
    }
    if config.inside.iter().collect::<BTreeSet<_>>().len() < config.inside.len() {
        return Err(refuse(what, "it has a feature twice"));
    }
    if config.arch != std::env::consts::ARCH {
        let arch: String = config.arch.chars().take(60).collect();
        let problem = format!("it is for {arch:?}, not for {}", std::env::consts::ARCH);
        return Err(refuse(what, problem));
    }
    Ok(config)
}

fn is_line(memo: &str) -> bool {
    memo.len() <= MEMO_BYTES_MAX && !memo.chars().any(char::is_control)
}

fn describe(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest,
        size,
        platform: None,
        annotations: BTreeMap::new(),
    }
}
