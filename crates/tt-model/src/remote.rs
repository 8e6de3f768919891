//! Registries as places that templates come from and go to, and how they are asked. Pure: nobody is asked here.

use crate::check::{check_template_name, quoted};
use crate::reference::{Reference, Version};
use crate::{ErrorCode, Refusal, Trouble};
use serde::{Deserialize, Serialize};

/// Longest path of a file with credentials; Linux takes 4096.
const PATH_BYTES_MAX: usize = 2048;

/// A place in a registry, and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Remote {
    /// `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`, as containers are commonly named; without a host, Docker's hub.
    pub reference: String,
    /// Asks without encryption. A registry on this host's loopback always is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain_http: bool,
    /// An absolute path of the daemon's host: a file with credentials, as `docker login` writes it. Nobody but its owner
    /// and its group may read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
}

/// A push as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PushSpec {
    /// Name of the template.
    pub template: String,
    /// Where it is to lie; it has a tag, no digest.
    pub to: Remote,
}

/// The last push of a template, and what became of it. Under way as long as it has neither a digest nor a trouble.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Push {
    /// Where it is to lie.
    pub to: Remote,
    /// By what it can be pulled, once it lies there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What went wrong, if it could not be pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
    /// Where the push before this one brought it: what lies there need not be sent to the same registry again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
}

impl Push {
    /// Whether it is neither done nor given up.
    pub fn is_wanted(&self) -> bool {
        self.digest.is_none() && self.trouble.is_none()
    }
}

impl Remote {
    /// Its reference, if it and what is said beside it can be.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<Reference, Refusal> {
        let reference = Reference::parse(&self.reference)?;
        let is_path = |path: &String| {
            path.starts_with('/') && path.len() <= PATH_BYTES_MAX && !path.contains('\0')
        };
        match self.credentials.as_ref().filter(|path| !is_path(path)) {
            None => Ok(reference),
            Some(path) => Err(Refusal::new(
                ErrorCode::Invalid,
                format!("credentials {}", quoted(path)),
                "it is no file of the daemon's host",
                "give an absolute path",
            )),
        }
    }
}

/// Checks what a push is asked for with.
///
/// # Errors
/// A name that no template can have, a place where nothing can be put.
pub fn check_push(spec: &PushSpec) -> Result<(), Refusal> {
    check_template_name(&spec.template)?;
    match spec.to.check()?.version {
        Version::Tag(_) => Ok(()),
        Version::Digest(_) => Err(Refusal::new(
            ErrorCode::Invalid,
            format!("reference {}", quoted(&spec.to.reference)),
            "its digest would be known only when it is there",
            "give it a tag: HOST/NAME:TAG",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::{self, TemplateSource, TemplateSpec};

    #[test]
    fn places_in_registries_are_checked_before_anybody_is_asked() {
        let remote = |reference: &str, credentials: Option<&str>| Remote {
            reference: reference.into(),
            plain_http: false,
            credentials: credentials.map(str::to_owned),
        };
        let pull = |remote| {
            let source = TemplateSource::Pull(remote);
            template::check_spec(&TemplateSpec { name: "x".into(), source, memo: None })
        };
        let push = |to| check_push(&PushSpec { template: "x".into(), to });
        let digest = format!("r.org/x@sha256:{}", "0f".repeat(32));
        pull(remote("alpine", None)).unwrap();
        pull(remote(&digest, Some("/root/auth.json"))).unwrap();
        push(remote("r.org/x:1", None)).unwrap();
        push(remote(&digest, None)).unwrap_err();
        for wrong in
            [remote("r.org/X", None), remote("x", Some("auth.json")), remote("x", Some(""))]
        {
            pull(wrong.clone()).unwrap_err();
            push(wrong).unwrap_err();
        }
    }
}
