//! An image, whatever it came in: an OCI layout (a folder, or a tar of it), or what `docker save` writes. Everything that
//! has a digest is checked against it while it is read; nothing is written here.

use super::blob::{Digest, Verified, decompress};
use super::source::Source;
use super::spec::{
    BLOB_BYTES_MAX, CONFIG_BYTES_MAX, Config, Descriptor, Document, LAYERS_MAX, MANIFEST_BYTES_MAX,
    Manifest, parse, refuse,
};
use super::tar::shown;
use crate::{ImageError, files};
use serde::Deserialize;
use std::io::{self, Read};
use tt_guest::entry::Entry;

/// What marks a layout.
const LAYOUT: &str = "oci-layout";
/// Where a layout begins.
const INDEX: &str = "index.json";
/// Where `docker save` begins.
const SAVED: &str = "manifest.json";
/// Indexes within indexes that are followed.
const INDEX_DEPTH_MAX: usize = 4;
/// Largest of the small files that an import begins with.
const SMALL_BYTES_MAX: u64 = MANIFEST_BYTES_MAX;

/// An image of which all parts are there.
#[derive(Debug)]
pub(super) struct Image<'a> {
    source: &'a Source,
    /// The config's digest, by which engines name images.
    pub(super) id: Digest,
    /// What it runs, if it names a program.
    pub(super) entry: Option<Entry>,
    config: Vec<u8>,
    layers: Vec<Layer>,
}

/// The content of a layer, and how much it is.
pub(super) struct Sized<'a> {
    pub(super) content: Box<dyn Read + 'a>,
    pub(super) bytes: u64,
}

#[derive(Debug)]
struct Layer {
    /// Its part's name.
    part: String,
    /// Of the part, where it was promised.
    packed: Option<(Digest, u64)>,
    diff_id: Digest,
}

/// What a part of an image begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Layout,
    Saved,
}

impl Form {
    /// What `source` holds, if it holds an image.
    pub(super) fn of(source: &Source) -> Option<Self> {
        if source.has(LAYOUT) && source.has(INDEX) {
            Some(Self::Layout)
        } else if source.has(SAVED) {
            Some(Self::Saved)
        } else {
            None
        }
    }
}

impl<'a> Image<'a> {
    /// The one image in `source`.
    pub(super) fn open(source: &'a Source) -> Result<Self, ImageError> {
        match Form::of(source) {
            Some(Form::Layout) => Self::of_layout(source),
            Some(Form::Saved) => Self::of_saved(source),
            None => {
                let problem = format!("it has neither {LAYOUT} with {INDEX} nor {SAVED}");
                Err(refuse(&name(source), problem))
            }
        }
    }

    /// The image of a manifest whose blobs are in `source`.
    pub(super) fn of_manifest(
        source: &'a Source,
        what: &str,
        manifest: &Manifest,
    ) -> Result<Self, ImageError> {
        manifest.check_image(what)?;
        let json = blob(source, &manifest.config, CONFIG_BYTES_MAX)?;
        let what = format!("config of {what}");
        let config = Config::read(&what, &json, manifest.layers.len())?;
        let layer = |(layer, diff_id): (&Descriptor, &Digest)| Layer {
            part: blob_name(&layer.digest),
            packed: Some((layer.digest.clone(), layer.size)),
            diff_id: diff_id.clone(),
        };
        Ok(Self {
            source,
            id: manifest.config.digest.clone(),
            entry: config.entry(&what)?,
            config: json,
            layers: manifest.layers.iter().zip(config.diff_ids()).map(layer).collect(),
        })
    }

    fn of_layout(source: &'a Source) -> Result<Self, ImageError> {
        let what = name(source);
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Layout {
            image_layout_version: String,
        }
        let layout: Layout = parse(&what, &source.read(LAYOUT, SMALL_BYTES_MAX)?)?;
        if !layout.image_layout_version.starts_with("1.") {
            let version = shown(layout.image_layout_version.as_bytes());
            return Err(refuse(&what, format!("its layout has version {version}, not 1")));
        }
        let json = source.read(INDEX, MANIFEST_BYTES_MAX)?;
        let (what, manifest) = choose(&what, "", json, &mut |descriptor| {
            blob(source, descriptor, MANIFEST_BYTES_MAX)
        })?;
        Self::of_manifest(source, &what, &manifest)
    }

    fn of_saved(source: &'a Source) -> Result<Self, ImageError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Saved {
            config: String,
            #[serde(default)]
            repo_tags: Option<Vec<String>>,
            layers: Vec<String>,
        }
        let what = name(source);
        let saved: Vec<Saved> = parse(&what, &source.read(SAVED, SMALL_BYTES_MAX)?)?;
        let [saved] = saved.as_slice() else {
            let tags = saved.iter().filter_map(|saved| saved.repo_tags.as_ref()?.first());
            let tags: Vec<&str> = tags.map(String::as_str).take(20).collect();
            let tags = shown(tags.join(", ").as_bytes());
            let problem = format!("it holds {} images, not one: {tags}", saved.len());
            return Err(refuse(&what, problem));
        };
        if saved.layers.len() > LAYERS_MAX {
            let problem = format!("it has {} layers, {LAYERS_MAX} at most", saved.layers.len());
            return Err(refuse(&what, problem));
        }
        let json = source.read(&saved.config, CONFIG_BYTES_MAX)?;
        let id = Digest::of(&json);
        let file = saved.config.rsplit('/').next().unwrap_or_default();
        let promised = file.strip_suffix(".json").unwrap_or(file);
        if crate::digest::is_digest(promised) && promised != id.hex() {
            return Err(refuse(&what, format!("its config has the digest {id}, not {promised}")));
        }
        let config_name = format!("config of {what}");
        let config = Config::read(&config_name, &json, saved.layers.len())?;
        let layer = |(part, diff_id): (&String, &Digest)| Layer {
            part: part.clone(),
            packed: None,
            diff_id: diff_id.clone(),
        };
        Ok(Self {
            source,
            id,
            entry: config.entry(&config_name)?,
            config: json,
            layers: saved.layers.iter().zip(config.diff_ids()).map(layer).collect(),
        })
    }

    /// How many layers it has.
    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// What the layer of that number is called in messages; 0 is the lowest.
    pub(super) fn layer_name(&self, number: usize) -> String {
        let diff_id = self.layers.get(number).map(|layer| layer.diff_id.to_string());
        format!("layer {} ({})", number + 1, diff_id.unwrap_or_default())
    }

    /// The tar of a layer, of which more than `bytes_max` is an error, as is another content than the promised one.
    pub(super) fn open_layer(
        &self,
        number: usize,
        bytes_max: u64,
    ) -> Result<impl Read + use<'_, 'a>, ImageError> {
        let layer = self.layer(number)?;
        let unpacked = decompress(self.packed(layer)?).map_err(|e| self.not_read(number, e))?;
        Ok(Verified::up_to(unpacked, layer.diff_id.clone(), bytes_max))
    }

    /// A layer in a form that every Docker reads: packed by gzip or not at all.
    pub(super) fn open_for_docker(&self, number: usize) -> Result<Sized<'_>, ImageError> {
        let layer = self.layer(number)?;
        let part = self.source.part(&layer.part)?;
        let bytes = part.left();
        let is_zstd = super::blob::is_zstd(part).map_err(|e| self.not_read(number, e))?;
        if !is_zstd {
            return Ok(Sized { content: self.packed(layer)?, bytes });
        }
        // Its header says how long it is.
        let mut counted = self.open_layer(number, BLOB_BYTES_MAX)?;
        let bytes = io::copy(&mut counted, &mut io::sink());
        let bytes = bytes.map_err(|e| self.not_read(number, e))?;
        Ok(Sized { content: Box::new(self.open_layer(number, BLOB_BYTES_MAX)?), bytes })
    }

    /// Its config, as it was written.
    pub(super) fn config(&self) -> &[u8] {
        &self.config
    }

    /// What a failed reading of a layer was.
    pub(super) fn not_read(&self, number: usize, error: io::Error) -> ImageError {
        match error.raw_os_error() {
            Some(_) => files::not_read(self.source.path())(error),
            None => refuse(&self.layer_name(number), error.to_string()),
        }
    }

    fn layer(&self, number: usize) -> Result<&Layer, ImageError> {
        self.layers.get(number).ok_or_else(|| refuse(&self.layer_name(number), "there is none"))
    }

    /// As it came, checked where something was promised of that.
    fn packed(&self, layer: &Layer) -> Result<Box<dyn Read + 'static>, ImageError> {
        let part = self.source.part(&layer.part)?;
        Ok(match &layer.packed {
            Some((digest, bytes)) => Box::new(Verified::exact(part, digest.clone(), *bytes)),
            None => Box::new(part),
        })
    }
}

/// Follows an index, read from `json`, down to the manifest for this machine. `media_type` is what whoever brought the
/// document says that it is; `fetch` brings what a descriptor names, verified. Answers what to call the manifest, too.
pub(super) fn choose(
    what: &str,
    media_type: &str,
    json: Vec<u8>,
    fetch: &mut dyn FnMut(&Descriptor) -> Result<Vec<u8>, ImageError>,
) -> Result<(String, Manifest), ImageError> {
    let (mut name, mut media_type, mut json) = (what.to_owned(), media_type.to_owned(), json);
    for _ in 0..INDEX_DEPTH_MAX {
        let index = match Document::read(&name, &media_type, &json)? {
            Document::Manifest(manifest) => return Ok((name, manifest)),
            Document::Index(index) => index,
        };
        let chosen = index.choose(&name)?;
        name = format!("manifest {} of {what}", chosen.digest);
        media_type.clone_from(&chosen.media_type);
        json = fetch(chosen)?;
    }
    Err(refuse(what, format!("more than {INDEX_DEPTH_MAX} indexes lead to each other")))
}

/// The blob that a descriptor names, verified.
fn blob(source: &Source, descriptor: &Descriptor, bytes_max: u64) -> Result<Vec<u8>, ImageError> {
    let what = format!("blob {}", descriptor.digest);
    if descriptor.size > bytes_max {
        let problem = format!("it has {} bytes, {bytes_max} at most", descriptor.size);
        return Err(refuse(&what, problem));
    }
    let part = source.part(&blob_name(&descriptor.digest))?;
    let mut content = Vec::new();
    let digest = descriptor.digest.clone();
    let read = Verified::exact(part, digest, descriptor.size).read_to_end(&mut content);
    read.map_err(|e| match e.raw_os_error() {
        Some(_) => files::not_read(source.path())(e),
        None => refuse(&what, e.to_string()),
    })?;
    Ok(content)
}

/// Where a layout has a blob.
fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn name(source: &Source) -> String {
    format!("image {}", source.path().display())
}
