//! The template: what runtime images are cloned from, what it is made of, and how it is asked for.

use crate::check::quoted;
use crate::{ErrorCode, Refusal};
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
    /// Packages of a distribution, put together by a recipe.
    Build {
        /// The recipe's name, e.g. `micro`.
        recipe: String,
    },
}

impl TemplateSource {
    /// In a few words, for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Build { recipe } => format!("recipe {recipe}"),
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
mod tests {
    use super::*;

    #[test]
    fn forms_decide_about_engines() {
        for (forms, engines) in [
            (&[][..], &[][..]),
            (&[FEATURE_DISK], &["qemu"]),
            (&[FEATURE_DISK, FEATURE_KERNEL], &["qemu", "firecracker"]),
            (&[FEATURE_KERNEL], &[]),
            (&[FEATURE_CONTAINER, FEATURE_AGENT], &["docker"]),
            (&[FEATURE_CONTAINER, FEATURE_DISK], &["qemu", "docker"]),
        ] {
            let features: Vec<String> = forms.iter().map(|form| (*form).to_owned()).collect();
            assert_eq!(engines_for(&features), engines, "{forms:?}");
        }
    }

    #[test]
    fn a_short_name_means_the_only_template_that_ends_in_it() {
        let known = ["micro", "github.com/ktmlm/alpine", "a.org/x/debian", "b.org/debian"];
        for (wanted, want) in [
            ("micro", Some("micro")),
            ("alpine", Some("github.com/ktmlm/alpine")),
            ("ktmlm/alpine", Some("github.com/ktmlm/alpine")),
            ("x/debian", Some("a.org/x/debian")),
            ("lpine", None),
            ("", None),
        ] {
            assert_eq!(resolve(wanted, known), Ok(want), "{wanted:?}");
        }
        let refusal = resolve("debian", known).unwrap_err();
        assert!(refusal.to_string().contains("a.org/x/debian, b.org/debian"), "{refusal}");
        assert_eq!(resolve("debian", known.into_iter().chain(["debian"])), Ok(Some("debian")));
    }
}
