//! Where an image or template lies in a registry, as people write it: `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`. Pure.

use crate::check::{check_template_name, quoted};
use crate::template::digest_digits;
use crate::{ErrorCode, Refusal};
use std::net::{IpAddr, Ipv6Addr};

/// Who is meant where no host is named, what that is called on the network, and where its own images lie.
const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_SERVER: &str = "registry-1.docker.io";
const DEFAULT_OWNER: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// Longest name of a host in DNS, with a port behind it.
const HOST_BYTES_MAX: usize = 255;
/// Bounds of the distribution specification.
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// A place in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host, and port if one was written, as credentials are kept by.
    pub host: String,
    /// The repository.
    pub name: String,
    /// A tag, which may be moved, or a digest.
    pub version: Version,
}

/// Which of the contents of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// A name that may be moved to another content.
    Tag(String),
    /// The content itself: `sha256:` and 64 hexadecimal digits.
    Digest(String),
}

impl Reference {
    /// Reads it as it was written. A digest counts more than a tag beside it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let refused = |problem: &str| {
            Err(Refusal::new(
                ErrorCode::Invalid,
                format!("reference {}", quoted(text)),
                problem,
                "write HOST/NAME:TAG or HOST/NAME@sha256:DIGITS, e.g. registry.example.org/team/app:1",
            ))
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| digest_digits(digest).is_none()) {
            return refused("its digest is not `sha256:` and 64 hexadecimal digits");
        }
        let (host, path) = match rest.split_once('/') {
            Some((host, path)) if host.contains(['.', ':', '[']) || host == "localhost" => {
                (host, path)
            }
            _ => (DEFAULT_HOST, rest),
        };
        let (name, tag) = match path.rsplit_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (path, None),
        };
        if !is_host(host) {
            return refused("its host is none");
        }
        if name.len() > NAME_BYTES_MAX || !name.split('/').all(is_part) {
            return refused("its name is not of lower-case letters, digits, `.`, `_`, `-` and `/`");
        }
        if !tag.is_none_or(is_tag) {
            return refused("its tag is not of letters, digits, `.`, `_` and `-`");
        }
        let name = if host == DEFAULT_HOST && !name.contains('/') {
            format!("{DEFAULT_OWNER}/{name}")
        } else {
            name.to_owned()
        };
        let version = match digest {
            Some(digest) => Version::Digest(digest.to_owned()),
            None => Version::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
        };
        Ok(Self { host: host.to_owned(), name, version })
    }

    /// The template that it becomes where nobody says another name: host and repository, without port and tag.
    ///
    /// # Errors
    /// No template can have that name.
    pub fn template_name(&self) -> Result<String, Refusal> {
        let host = self.host.rsplit_once(':').map_or(self.host.as_str(), |(host, _)| host);
        let name = format!("{}/{}", host.to_ascii_lowercase(), self.name);
        check_template_name(&name)?;
        Ok(name)
    }

    /// Who is asked.
    pub fn server(&self) -> &str {
        if self.host == DEFAULT_HOST { DEFAULT_SERVER } else { &self.host }
    }

    /// Whether it lies on this machine, where nobody else listens in.
    pub fn is_local(&self) -> bool {
        let host = match self.host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.host.split(':').next().unwrap_or_default(),
        };
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Its tag or digest, the last part of a manifest's URL.
    pub fn version(&self) -> &str {
        let (Version::Tag(version) | Version::Digest(version)) = &self.version;
        version
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<Ipv6Addr>().is_err() {
                return false;
            }
            ("v6", port.strip_prefix(':').or(port.is_empty().then_some("443")))
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, Some("443")),
        },
    };
    host.len() <= HOST_BYTES_MAX
        && !name.is_empty()
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
        })
        && port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn is_part(part: &str) -> bool {
    let is_end = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    is_end(part.as_bytes().first())
        && is_end(part.as_bytes().last())
        && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
        && !part.contains("..")
}

fn is_tag(tag: &str) -> bool {
    (1..=TAG_BYTES_MAX).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_mean_what_they_mean_elsewhere() {
        let hex = "ab".repeat(32);
        for (text, host, name, version) in [
            ("alpine", "docker.io", "library/alpine", "latest"),
            ("ktmlm/alpine:3", "docker.io", "ktmlm/alpine", "3"),
            ("ghcr.io/a/b/c:v1.2", "ghcr.io", "a/b/c", "v1.2"),
            ("localhost/x", "localhost", "x", "latest"),
            ("127.0.0.1:5000/x:y", "127.0.0.1:5000", "x", "y"),
            ("[::1]:5000/x", "[::1]:5000", "x", "latest"),
            (&format!("r.org/x:t@sha256:{hex}"), "r.org", "x", &format!("sha256:{hex}")),
        ] {
            let reference = Reference::parse(text).unwrap();
            let found = (reference.host.as_str(), reference.name.as_str(), reference.version());
            assert_eq!(found, (host, name, version), "{text}");
        }
        let local = |text: &str| Reference::parse(text).unwrap().is_local();
        assert!(local("127.0.0.1:5000/x") && local("localhost/x") && local("[::1]/x"));
        assert!(!local("localhost.evil.org/x") && !local("x") && !local("10.0.0.1/x"));
        assert_eq!(Reference::parse("x").unwrap().server(), "registry-1.docker.io");
    }

    #[test]
    fn a_template_is_called_by_host_and_repository() {
        let name = |text: &str| Reference::parse(text).unwrap().template_name();
        assert_eq!(name("alpine:3").unwrap(), "docker.io/library/alpine");
        assert_eq!(name("R.org:5000/a/b").unwrap(), "r.org/a/b");
        name("[::1]:5000/x").unwrap_err();
        name(&format!("r.org/{}", "a".repeat(200))).unwrap_err();
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a".repeat(300);
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "A/b",
            "a//b",
            "a/../b",
            "a:b:c",
            "a@sha256:00",
            "a@",
            "a:",
            "a:-x",
            "r.org/",
            "r.org:0/x",
            "r.org:99999/x",
            "r.org:p/x",
            "-r.org/x",
            "[::1/x",
            "[x]/y",
            "u:p@r.org/x",
            "a b",
            "a?b",
            "a#b",
            "http://r.org/x",
            "a%2e",
            &long,
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }
}
