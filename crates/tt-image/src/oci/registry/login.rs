//! Who asks a registry: credentials out of a file, and what a registry says about how it wants to be asked. Nothing of a
//! credential is in a message, a log or a record.

use crate::ImageError;
use crate::import::open_local;
use hyper::header::HeaderValue;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tt_model::Reference;

/// Largest file of credentials; those in use have some hundred bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How a registry wants to be asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// Reads `Basic ..` or `Bearer realm="..",service=".."` (RFC 9110, 11.6.1).
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut rest) = (None, None, rest);
        while let Some((key, value)) = rest.split_once('=') {
            let (value, after) = match value.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => value.split_once(',').unwrap_or((value, "")),
            };
            match key.trim_matches([' ', ',']).to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = Some(value.to_owned()),
                _ => {}
            }
            rest = after;
        }
        Some(Self::Bearer { realm: realm?, service })
    }
}

/// The header `Authorization` for the registry of `reference`, out of a file as `docker login` writes it:
/// `{"auths": {"HOST": {"auth": "BASE64 OF USER:PASSWORD"}}}`.
pub(super) fn credentials(file: &Path, reference: &Reference) -> Result<HeaderValue, ImageError> {
    #[derive(Deserialize)]
    struct Login {
        auth: Option<String>,
    }
    #[derive(Deserialize)]
    struct Logins {
        #[serde(default)]
        auths: BTreeMap<String, Login>,
    }
    let refused = |problem: String| ImageError::Format {
        what: format!("file of credentials {}", file.display()),
        problem,
    };
    let not_read = crate::files::not_read(file);
    let opened = open_local(file)?;
    if opened.metadata().map_err(&not_read)?.mode() & 0o007 != 0 {
        return Err(refused("everybody may read it; run `chmod o= FILE`".into()));
    }
    let mut json = Vec::new();
    opened.take(FILE_BYTES_MAX).read_to_end(&mut json).map_err(&not_read)?;
    // What is wrong with it may quote it, so that is not said.
    let form =
        || refused("write it as `docker login` does: {\"auths\": {HOST: {\"auth\": ..}}}".into());
    let logins: Logins = serde_json::from_slice(&json).map_err(|_| form())?;
    let login = logins.auths.into_iter().find(|(key, _)| is_for(key, reference));
    let Some((_, login)) = login else {
        return Err(refused(format!("it has none for {}", reference.host)));
    };
    let helper = "it names a helper; TT asks no program for passwords, so write `auth` into it";
    let auth = login.auth.filter(|auth| !auth.is_empty()).ok_or_else(|| refused(helper.into()))?;
    let is_base64 = |b: u8| b.is_ascii_alphanumeric() || b"+/=".contains(&b);
    if !auth.bytes().all(is_base64) {
        return Err(form());
    }
    secret(&format!("Basic {auth}")).ok_or_else(form)
}

/// Whether an entry is for a registry: Docker writes hosts, and one URL for its own hub.
fn is_for(key: &str, reference: &Reference) -> bool {
    let host = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default();
    host == reference.host || host == reference.server() || {
        host == "index.docker.io" && reference.host == "docker.io"
    }
}

/// A header that is shown nowhere.
pub(super) fn secret(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.map(str::to_owned) })
        };
        let quoted = "Bearer realm=\"https://a/t?x=y,z\",service=\"s\"";
        for (text, want) in [
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (quoted, bearer("https://a/t?x=y,z", Some("s"))),
            ("bearer service=s, realm=\"https://a\"", bearer("https://a", Some("s"))),
            ("Bearer realm=\"https://a\", error=\"e\"", bearer("https://a", None)),
            ("Bearer service=\"s\"", None),
            ("Bearer realm=\"open", None),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(Challenge::parse(text), want, "{text}");
        }
    }

    #[test]
    fn credentials_are_those_of_the_host_and_shown_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        let find = |text: &str, mode: u32, reference: &str| {
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            credentials(&file, &Reference::parse(reference).unwrap())
        };
        let good = r#"{"auths": {"r.org:5000": {"auth": "c2VjcmV0"}, "https://index.docker.io/v1/": {"auth": "aHVi"}}}"#;
        let found = find(good, 0o600, "r.org:5000/x").unwrap();
        assert_eq!(found.to_str().unwrap(), "Basic c2VjcmV0");
        assert!(!format!("{found:?}").contains("c2VjcmV0"));
        assert_eq!(find(good, 0o640, "alpine").unwrap().to_str().unwrap(), "Basic aHVi");
        for (text, mode, reference, why) in [
            (good, 0o604, "alpine", "everybody may read it"),
            (good, 0o600, "r.org/x", "it has none for r.org"),
            (good, 0o600, "evil-r.org:5000/x", "it has none for"),
            ("c2VjcmV0", 0o600, "alpine", "write it as"),
            (r#"{"auths": {"r.org": {}}}"#, 0o600, "r.org/x", "it names a helper"),
            (
                r#"{"auths": {"r.org": {"auth": "c2VjcmV0\r\nX: y"}}}"#,
                0o600,
                "r.org/x",
                "write it as",
            ),
        ] {
            let error = find(text, mode, reference).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("c2VjcmV0"), "{error}");
        }
    }
}
