//! The files that name a guest: host name, hosts, name servers, machine id. A file is only written when its content
//! changes, and then as a whole.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tt_guest::message::Setup;

/// The kernel's limit, `__NEW_UTS_LEN`.
const MAX_HOSTNAME: usize = 64;
/// Where a server of OpenSSH looks for root's keys.
const KEYS: &str = "/root/.ssh/authorized_keys";

/// Sets the host name, now and for the next boot.
pub fn set_hostname(hostname: &str) -> io::Result<()> {
    if !is_hostname(hostname) {
        let text =
            format!("{hostname:?} must be 1 to {MAX_HOSTNAME} letters, digits, dots and hyphens");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    if rustix::system::uname().nodename().to_bytes() != hostname.as_bytes() {
        rustix::system::sethostname(hostname.as_bytes())?;
    }
    write("/etc/hostname", &format!("{hostname}\n"))
}

/// Writes `/etc/hosts`, and `/etc/resolv.conf` if there are name servers.
pub fn write_names(setup: &Setup) -> io::Result<()> {
    if let Some((name, _)) = setup.hosts.iter().find(|(name, _)| !is_hostname(name)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is no host name"),
        ));
    }
    write("/etc/hosts", &hosts(setup))?;
    if setup.dns.is_empty() {
        return Ok(());
    }
    write(
        "/etc/resolv.conf",
        &setup.dns.iter().map(|server| format!("nameserver {server}\n")).collect::<String>(),
    )
}

/// Writes `/etc/machine-id`; without an id the file is made empty.
pub fn write_machine_id(id: Option<&str>) -> io::Result<()> {
    match id {
        None => write("/etc/machine-id", ""),
        Some(id)
            if id.len() == 32
                && id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) =>
        {
            write("/etc/machine-id", &format!("{id}\n"))
        }
        Some(id) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{id:?} is not 32 lower-case hexadecimal digits"),
        )),
    }
}

/// Adds to root's `authorized_keys` those of `keys` that are not there. What else is there is the guest's own.
pub fn add_keys(keys: &[String]) -> io::Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    if let Some(key) = keys.iter().find(|key| key.contains(['\n', '\r', '\0'])) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{key:?} is not one line"),
        ));
    }
    let old = match fs::read_to_string(KEYS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        old => old?,
    };
    let text = with_keys(&old, keys);
    if text == old {
        return Ok(());
    }
    // The server takes no keys from what others may write to.
    let dir = Path::new(KEYS).parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    let temporary = format!("{KEYS}.tt-new");
    fs::write(&temporary, text)?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
    fs::rename(&temporary, KEYS)
}

fn with_keys(old: &str, keys: &[String]) -> String {
    let mut text = old.to_owned();
    for key in keys {
        if text.lines().any(|line| line == key) {
            continue;
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(key);
        text.push('\n');
    }
    text
}

fn hosts(setup: &Setup) -> String {
    let own = setup
        .network
        .as_ref()
        .map_or_else(|| "127.0.1.1".to_owned(), |network| network.address.to_string());
    let mut text = format!(
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{own} {}\n",
        setup.hostname
    );
    for (name, address) in setup.hosts.iter().filter(|(name, _)| *name != setup.hostname) {
        text.push_str(&format!("{address} {name}\n"));
    }
    text
}

fn is_hostname(name: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=MAX_HOSTNAME).contains(&name.len())
        && name.bytes().all(is_part)
        && !name.starts_with(['-', '.'])
}

fn write(path: &str, content: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|old| old == content.as_bytes()) {
        return Ok(());
    }
    let describe = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
    fs::create_dir_all(Path::new(path).parent().unwrap_or(Path::new("/"))).map_err(describe)?;
    let temporary = format!("{path}.tt-new");
    fs::write(&temporary, content).map_err(describe)?;
    fs::rename(&temporary, path)
        .or_else(|_| {
            // In a container these files are mounts, which cannot be replaced.
            fs::remove_file(&temporary)?;
            fs::write(path, content)
        })
        .map_err(describe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tt_guest::message::NetworkSetup;

    fn setup() -> Setup {
        let peers = [("web", [10, 0, 0, 2]), ("db", [10, 0, 0, 3])];
        Setup {
            hostname: "web".to_owned(),
            network: Some(NetworkSetup {
                mac: "82:17:0d:00:00:02".to_owned(),
                address: [10, 0, 0, 2].into(),
                prefix_len: 8,
                gateway: [10, 0, 0, 1].into(),
                mtu: 1500,
                six: None,
            }),
            dns: vec![],
            hosts: peers.map(|(name, address)| (name.to_owned(), address.into())).to_vec(),
            machine_id: None,
            ssh_keys: vec![],
            entropy: None,
        }
    }

    #[test]
    fn keys_are_added_once_and_nothing_is_lost() {
        let keys = ["ssh-ed25519 A a".to_owned(), "ssh-ed25519 B b".to_owned()];
        let all = with_keys("", &keys);
        assert_eq!(all, "ssh-ed25519 A a\nssh-ed25519 B b\n");
        assert_eq!(with_keys(&all, &keys), all);
        assert_eq!(with_keys("own", &keys[..1]), "own\nssh-ed25519 A a\n");
        assert!(add_keys(&["a\nb".to_owned()]).is_err());
    }

    #[test]
    fn hosts_holds_the_own_name_once_and_the_peers() {
        let head = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
        assert_eq!(hosts(&setup()), format!("{head}10.0.0.2 web\n10.0.0.3 db\n"));
        let without = Setup { network: None, hosts: vec![], ..setup() };
        assert_eq!(hosts(&without), format!("{head}127.0.1.1 web\n"));
    }

    #[test]
    fn names_that_would_break_a_file_are_refused() {
        for good in ["a", "web-1", "db.shop", "x_y", &"a".repeat(64)] {
            assert!(is_hostname(good), "{good}");
        }
        for bad in ["", "a b", "a\n10.0.0.1 bank", "-a", ".a", "ä", &"a".repeat(65)] {
            assert!(!is_hostname(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_wrong_machine_id_writes_nothing() {
        for wrong in ["", "0", &"g".repeat(32), &"A".repeat(32), &"0".repeat(33)] {
            assert_eq!(
                write_machine_id(Some(wrong)).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{wrong}"
            );
        }
    }
}
