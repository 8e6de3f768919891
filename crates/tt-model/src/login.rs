//! What lets the owner of a guest in, and what its first boot is to do: public keys and user data, checked before anything
//! is looked up. Neither is a secret to TT: they are kept in the record.

use crate::check::quoted;
use crate::template::{FEATURE_AGENT, FEATURE_CLOUD_INIT};
use crate::{ErrorCode, Refusal, VmTemplate};

/// Most public keys of a Vm.
pub const SSH_KEYS_MAX: usize = 32;
/// Most bytes of all public keys of a Vm: ten of RSA with 4096 bits, or eighty of Ed25519.
pub const SSH_KEYS_BYTES_MAX: usize = 8 << 10;
/// Most bytes of user data: what other clouds take, and few enough for a member's record.
pub const USER_DATA_BYTES_MAX: usize = 16 << 10;

/// Kinds of keys that OpenSSH takes for logging in; without certificates, and without DSA, which it has dropped.
const KINDS: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// Whether a guest of that template can be given public keys.
pub fn takes_keys(template: &VmTemplate) -> bool {
    template.has(FEATURE_AGENT) || template.has(FEATURE_CLOUD_INIT)
}

/// Whether a guest of that template can be given user data.
pub fn takes_user_data(template: &VmTemplate) -> bool {
    template.has(FEATURE_CLOUD_INIT)
}

/// Checks public keys, each in the form of OpenSSH's `.pub` files, without options.
///
/// # Errors
/// Too many, or one that is no public key; a private key is named as such and never shown.
pub fn check_ssh_keys(keys: &[String]) -> Result<(), Refusal> {
    let bytes: usize = keys.iter().map(String::len).sum();
    if keys.len() > SSH_KEYS_MAX || bytes > SSH_KEYS_BYTES_MAX {
        return Err(invalid(
            format!("{} keys of {bytes} bytes", keys.len()),
            "they are too many for one Vm",
            format!("give at most {SSH_KEYS_MAX}, of {SSH_KEYS_BYTES_MAX} bytes together"),
        ));
    }
    keys.iter().try_for_each(|key| check_ssh_key(key))
}

fn check_ssh_key(key: &str) -> Result<(), Refusal> {
    const REMEDY: &str = "give the content of a `.pub` file of OpenSSH, e.g. ~/.ssh/id_ed25519.pub";
    if key.contains("PRIVATE KEY") {
        return Err(invalid("key".into(), "it is a private key", REMEDY.into()));
    }
    let is_line = key.trim() == key && !key.chars().any(char::is_control);
    let mut parts = key.split(' ');
    let (kind, content) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let problem = match () {
        () if !is_line => "it is not one line",
        () if !KINDS.contains(&kind) => "it is no public key of a known kind",
        () if !holds(content, kind) => "it is no whole public key",
        () => return Ok(()),
    };
    Err(invalid(format!("key {}", quoted(key)), problem, REMEDY.into()))
}

/// Whether `content` is base64 of a whole key that names itself as of that kind: fields, each behind its length, of which
/// the first is the kind (RFC 4253, 6.6).
fn holds(content: &str, kind: &str) -> bool {
    let Some(bytes) = decode(content) else { return false };
    let mut fields = Vec::new();
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let Some((length, behind)) = rest.split_first_chunk::<4>() else { return false };
        let length = u32::from_be_bytes(*length) as usize;
        let Some((field, behind)) = behind.split_at_checked(length) else { return false };
        fields.push(field);
        rest = behind;
    }
    fields.len() > 1 && fields[0] == kind.as_bytes()
}

/// Decodes base64 with its padding (RFC 4648, 4).
fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if text.is_empty() || !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len());
    let (mut bits, mut count) = (0u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

/// Checks user data: a text that cloud-init can tell the kind of by its first line.
///
/// # Errors
/// It is too long, empty, or no text.
pub fn check_user_data(text: &str) -> Result<(), Refusal> {
    let refuse = |problem: &str, remedy: String| Err(invalid("user_data".into(), problem, remedy));
    let is_text = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
    if text.len() > USER_DATA_BYTES_MAX {
        let problem = format!("it has {} bytes", text.len());
        return refuse(
            &problem,
            format!("give at most {USER_DATA_BYTES_MAX}, or let it fetch the rest"),
        );
    }
    if !text.chars().all(is_text) {
        return refuse("it has control characters", "give a text".into());
    }
    match text.starts_with("#") || text.starts_with("Content-Type:") {
        true => Ok(()),
        false => refuse(
            "cloud-init would not know what it is",
            "begin it with `#cloud-config` or `#!`, or as a MIME archive".into(),
        ),
    }
}

fn invalid(what: String, problem: &str, remedy: String) -> Refusal {
    Refusal::new(ErrorCode::Invalid, what, problem, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBPb7VJ+7BUBqjXSCGEHKNYvXdD/0zfYWVhGTaFOxAZB me@home";

    #[test]
    fn public_keys_are_told_from_what_is_none() {
        check_ssh_keys(&[ED25519.into(), ED25519.replace(" me@home", "")]).unwrap();
        check_ssh_keys(&[format!("{ED25519} and \"more\" words")]).unwrap();
        let content = ED25519.split(' ').nth(1).unwrap();
        for wrong in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 ",
            "ssh-ed25519 me@home",
            "ssh-ed25519 AAAA",
            &format!("ssh-rsa {content}"),
            &format!("ssh-dss {content}"),
            &format!("{ED25519}\n"),
            &format!(" {ED25519}"),
            &format!("{ED25519}\nssh-ed25519 x"),
            &format!("command=\"sh\" {ED25519}"),
            &format!("ssh-ed25519 {}", &content[..24]),
            &format!("ssh-ed25519 {}", content.replace('B', "ä")),
        ] {
            let refusal = check_ssh_keys(&[wrong.to_string()]).unwrap_err();
            assert_eq!(refusal.code, ErrorCode::Invalid, "{wrong:?}");
            assert!(!refusal.to_string().contains('\n'), "{wrong:?}");
        }
    }

    #[test]
    fn a_private_key_is_not_repeated() {
        let key =
            "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----";
        let refusal = check_ssh_keys(&[key.into()]).unwrap_err().to_string();
        assert!(refusal.contains("private key") && !refusal.contains("c2VjcmV0"), "{refusal}");
    }

    #[test]
    fn keys_and_user_data_are_bounded() {
        assert!(check_ssh_keys(&vec![ED25519.into(); SSH_KEYS_MAX + 1]).is_err());
        assert!(check_ssh_keys(&[format!("{ED25519}{}", "x".repeat(SSH_KEYS_BYTES_MAX))]).is_err());
        check_ssh_keys(&vec![ED25519.into(); SSH_KEYS_MAX]).unwrap();
        let text = |length: usize| format!("#!/bin/sh\n{}", "x".repeat(length - 10));
        check_user_data(&text(USER_DATA_BYTES_MAX)).unwrap();
        for wrong in [&*text(USER_DATA_BYTES_MAX + 1), "", "hello", "#!/bin/sh\n\0", "#!\u{1b}[0m"]
        {
            assert!(check_user_data(wrong).is_err(), "{:?}", &wrong[..wrong.len().min(20)]);
        }
    }
}
