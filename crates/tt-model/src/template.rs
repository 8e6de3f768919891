//! The template: what runtime images are cloned from, what it is made of, and how it is asked for.

use crate::check::{check_name, check_template_name, quoted};
use crate::recipe::check_dir;
use crate::remote::Remote;
use crate::{ErrorCode, Recipe, Refusal, VmId, open_url, shown_url};
use serde::{Deserialize, Serialize};

/// What runtime images are cloned from. Immutable: another content is another digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmTemplate {
    /// Globally unique, e.g. `github.com/ktmlm/alpine`; built-in ones are short (`micro`).
    pub name: String,
    /// Where it lies, relative to the host's data directory.
    pub path: String,
    /// Description for people.
    pub memo: Option<String>,
    /// Names of the engines that can use it.
    pub compatible_engines: Vec<String>,
    /// Its forms and what is in it, for engines to use: the `FEATURE_` names of this module.
    pub features: Vec<String>,
    /// The processors that its programs are for, as `uname -m` says it, e.g. `x86_64`.
    #[serde(default = "x86_64")]
    pub arch: String,
    /// SHA-256 of its content, hexadecimal.
    pub digest: String,
    /// Size of its disk in MB (2^20 bytes): the smallest `disk_size` of a Vm made from it.
    pub disk_size: u32,
}

/// Feature of a template that brings a disk (`disk.raw`), the form for machines.
pub const FEATURE_DISK: &str = "disk";
/// Feature of a template that brings `kernel` and `initramfs` files for direct boot.
pub const FEATURE_KERNEL: &str = "kernel";
/// Feature of a template that brings `container.tar`, an image as `docker save` writes it, the form for containers.
pub const FEATURE_CONTAINER: &str = "container";
/// Feature of a template whose guest runs TT's agent.
pub const FEATURE_AGENT: &str = "agent";
/// Feature of a template whose guest runs cloud-init, and so looks for a seed disk (NoCloud).
pub const FEATURE_CLOUD_INIT: &str = "cloud-init";
/// Feature of a template whose disk is booted by UEFI; one with neither this nor `kernel` is booted by a BIOS.
pub const FEATURE_UEFI: &str = "uefi";
/// Features that an imported disk can be said to have: its content does not tell.
pub const FEATURES_SAID: [&str; 2] = [FEATURE_CLOUD_INIT, FEATURE_UEFI];

/// Longest description of a template.
pub const MEMO_BYTES_MAX: usize = 500;
/// Longest path or URL that a template is imported from.
pub const FROM_BYTES_MAX: usize = 2048;

/// A template as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TemplateSpec {
    /// Its globally unique name.
    pub name: String,
    /// What it is made from.
    pub source: TemplateSource,
    /// Description for people; without one, where it came from is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memo: Option<String>,
}

/// How much of a step is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Progress {
    /// Bytes that are done.
    pub done_bytes: u64,
    /// Bytes that there are to do, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
}

/// What a template is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TemplateSource {
    /// What a recipe that is built in says.
    Build {
        /// The recipe's name, e.g. `micro`.
        recipe: String,
    },
    /// What a recipe of a user says.
    Recipe {
        /// The recipe, as TOML; see `docs/recipes.md`. It names the same template as the request.
        text: String,
        /// Folder of the host in which the recipe lies: its files are looked for there.
        dir: String,
    },
    /// A disk, or a root file system, which gets TT's kernel and agent.
    Import {
        /// An absolute path of the host, or an `http` or `https` URL. It may be packed with gzip, xz or zstd.
        from: String,
        /// SHA-256 of the file as it lies there: `sha256:` and 64 hexadecimal digits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
        /// What it is, where its content does not say so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        format: Option<DiskFormat>,
        /// What a disk that boots by itself has: `cloud-init`, `uefi`, or both.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        features: Vec<String>,
    },
    /// The disk of a Vm at one moment. A running guest stands still for a moment and goes on.
    Publish {
        /// The Vm, `ENV/VM`.
        vm: String,
        /// A snapshot of it; without one, the moment is now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot: Option<String>,
    },
    /// A kept image.
    PublishImage {
        /// Id of the Vm that it was the runtime image of.
        #[cfg_attr(feature = "schema", schema(value_type = u64))]
        image: VmId,
    },
    /// A container image in a registry, or a template that was pushed there.
    Pull(Remote),
}

/// The moment that a template is published from, as it was planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// A snapshot of a Vm's disk.
    Snapshot {
        /// The Vm.
        vm: VmId,
        /// Name of the snapshot.
        snapshot: String,
        /// Whether it is taken for this alone, and goes with it.
        is_temporary: bool,
        /// Name of the template that the Vm was made from.
        template: String,
    },
    /// A kept image.
    Image {
        /// Id of the Vm that it was the runtime image of.
        image: VmId,
        /// Name of the template that that Vm was made from.
        template: String,
    },
}

impl Origin {
    /// Name of the template that it was once made from: what that brings beside its disk is carried over.
    pub fn template(&self) -> &str {
        match self {
            Self::Snapshot { template, .. } | Self::Image { template, .. } => template,
        }
    }
}

/// How a disk lies in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// Byte for byte.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's, in one file.
    Vmdk,
    /// VirtualBox's.
    Vdi,
}

impl DiskFormat {
    /// Name as in JSON and on the command line, and QEMU's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
        }
    }
}

impl TemplateSource {
    /// It without what may be a secret in its URL. That is what is shown of it, and kept once it was made: to make it again
    /// somebody has to say the whole URL again.
    #[must_use]
    pub fn open(mut self) -> Self {
        if let Self::Import { from, .. } = &mut self
            && from.contains("://")
        {
            *from = open_url(from);
        }
        self
    }

    /// In a few words, for people; a URL without what may be a secret in it.
    pub fn describe(&self) -> String {
        match self {
            Self::Build { recipe } => format!("recipe {recipe}"),
            Self::Recipe { dir, .. } => format!("a recipe in {dir}"),
            Self::Import { from, .. } if from.contains("://") => shown_url(from),
            Self::Import { from, .. } => from.clone(),
            Self::Publish { vm, snapshot: None } => vm.clone(),
            Self::Publish { vm, snapshot: Some(snapshot) } => format!("{vm}@{snapshot}"),
            Self::PublishImage { image } => format!("image {image}"),
            Self::Pull(from) => from.reference.clone(),
        }
    }
}

/// Names of the engines that can use a template of these features: its forms alone decide.
pub fn engines_for(features: &[String]) -> Vec<String> {
    let has = |wanted: &str| features.iter().any(|feature| feature == wanted);
    let mut engines = Vec::new();
    if has(FEATURE_DISK) {
        // By a kernel of the template, else by firmware from the disk.
        engines.push("qemu");
        if has(FEATURE_KERNEL) {
            engines.push("firecracker");
        }
    }
    if has(FEATURE_CONTAINER) {
        engines.push("docker");
    }
    engines.into_iter().map(str::to_owned).collect()
}

/// The digits of a digest that is written as `sha256:` and 64 lower-case hexadecimal digits.
pub fn digest_digits(text: &str) -> Option<&str> {
    let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    text.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.bytes().all(is_digit))
}

/// Checks what a template is asked for with, as far as that can be said before anything is looked at.
///
/// # Errors
/// A name that no template can have, a description that is too long, a place that can not be imported from, a digest
/// that is none.
pub fn check_spec(spec: &TemplateSpec) -> Result<(), Refusal> {
    check_template_name(&spec.name)?;
    let invalid = |what: String, problem: &str, remedy: String| {
        Err(Refusal::new(ErrorCode::Invalid, what, problem, remedy))
    };
    let is_shown = |text: &str| !text.chars().any(char::is_control);
    if let Some(memo) = &spec.memo
        && (memo.len() > MEMO_BYTES_MAX || !is_shown(memo))
    {
        let remedy = format!("use one line of at most {MEMO_BYTES_MAX} bytes");
        return invalid("memo".into(), "it is no description", remedy);
    }
    let (from, digest, features) = match &spec.source {
        TemplateSource::Import { from, digest, features, .. } => (from, digest, features),
        TemplateSource::Publish { vm, snapshot } => {
            let (env, name) = vm.split_once('/').unwrap_or((vm, ""));
            check_name("env", env)?;
            check_name("vm", name)?;
            return snapshot.as_ref().map_or(Ok(()), |name| check_name("snapshot", name));
        }
        TemplateSource::Pull(from) => return from.check().map(drop),
        TemplateSource::Recipe { text, dir } => return check_recipe(spec, text, dir),
        TemplateSource::Build { .. } | TemplateSource::PublishImage { .. } => return Ok(()),
    };
    let is_place =
        from.starts_with('/') || from.starts_with("http://") || from.starts_with("https://");
    if !is_place || from.len() > FROM_BYTES_MAX || !is_shown(from) {
        let remedy =
            "give an absolute path of the host, or a URL that begins with http:// or https://";
        return invalid(
            format!("from {}", quoted(from)),
            "nothing is imported from there",
            remedy.into(),
        );
    }
    let is_known = |feature: &&String| FEATURES_SAID.contains(&feature.as_str());
    if let Some(feature) = features.iter().find(|feature| !is_known(feature)) {
        let remedy = format!("say one of: {}", FEATURES_SAID.join(", "));
        return invalid(
            format!("feature {}", quoted(feature)),
            "no imported disk can be said to have it",
            remedy,
        );
    }
    match digest {
        Some(digest) if digest_digits(digest).is_none() => {
            let remedy =
                "write `sha256:` and 64 lower-case hexadecimal digits, as sha256sum prints them";
            invalid(format!("digest {}", quoted(digest)), "it is no digest", remedy.into())
        }
        _ => Ok(()),
    }
}

fn check_recipe(spec: &TemplateSpec, text: &str, dir: &str) -> Result<(), Refusal> {
    check_dir(dir)?;
    let recipe = Recipe::parse(text)?;
    if recipe.name == spec.name {
        return Ok(());
    }
    let problem = format!("its recipe makes {}", quoted(&recipe.name));
    let what = format!("template {}", quoted(&spec.name));
    Err(Refusal::new(ErrorCode::Invalid, what, problem, "ask for it by the recipe's name"))
}

fn x86_64() -> String {
    "x86_64".into()
}

impl VmTemplate {
    /// Whether it lists `feature`.
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|f| f == feature)
    }
}

/// Which of the templates `known` is meant by `wanted`: the one of that name, else the only one whose name ends in it
/// after a `/`, so that `alpine` is `github.com/ktmlm/alpine` as long as there is no other alpine.
///
/// # Errors
/// Several end in it.
pub fn resolve<'a>(
    wanted: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Result<Option<&'a str>, Refusal> {
    let ends = |name: &str| name.strip_suffix(wanted).is_some_and(|rest| rest.ends_with('/'));
    let mut short = Vec::new();
    for name in known {
        if name == wanted {
            return Ok(Some(name));
        }
        if !wanted.is_empty() && ends(name) {
            short.push(name);
        }
    }
    if let [_, _, ..] = short.as_slice() {
        return Err(Refusal::new(
            ErrorCode::Invalid,
            format!("template {}", quoted(wanted)),
            format!("several end in it: {}", short.join(", ")),
            "write the whole name",
        ));
    }
    Ok(short.pop())
}

#[cfg(test)]
mod tests;
