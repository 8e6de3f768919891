//! What this host can do and what to install for the rest. Every driver is tried for real, in a
//! scratch directory and a network namespace of its own; nothing is left behind.

use super::plug::Unplugged;
use super::{DaemonError, choose_storage, engines};
use crate::config::Config;
use serde::Serialize;
use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tt_docker::Docker;
use tt_model::{EngineFacts, Instance, Layout, StorageKind, feat};
use tt_network::{NetnsNetwork, Network, NetworkConfig};
use tt_storage::Choice;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// Whether it is as it should be.
    pub is_ok: bool,
    /// What was found.
    pub found: String,
    /// What to do, if it is not as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Programs that build the template `micro`, with the Debian package of each.
const BUILD_TOOLS: [(&str, &str); 4] = [
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("mkfs.ext4", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
];

/// Looks at everything that a daemon with this configuration needs.
pub fn examine(config: &Config) -> Vec<Check> {
    let mut checks = vec![privilege(), device("/dev/net/tun", "the tap devices of guests")];
    let (kind, storage) = storage(config);
    checks.extend(engine_checks(config, kind));
    checks.push(network(config));
    checks.push(six());
    checks.push(storage);
    checks.push(resolver(&config.upstream_dns));
    checks.push(file("guest agent", &config.guest_agent));
    checks.extend(BUILD_TOOLS.map(|(tool, package)| program(tool, package)));
    checks
}

impl Check {
    fn good(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), is_ok: true, found: found.into(), remedy: None }
    }

    fn bad(name: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { name: name.into(), is_ok: false, found: found.into(), remedy }
    }
}

fn privilege() -> Check {
    if rustix::process::geteuid().is_root() {
        return Check::good("privilege", "root");
    }
    Check::bad("privilege", "not root", "run as root, to see what the daemon would see")
}

fn device(path: &str, what: &str) -> Check {
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::good(path, "can be opened"),
        Err(error) => {
            Check::bad(path, error.to_string(), format!("load its kernel module: {what} need it"))
        }
    }
}

fn engine_checks(config: &Config, storage: StorageKind) -> Vec<Check> {
    let scratch = match Scratch::new() {
        Ok(scratch) => scratch,
        Err(error) => {
            return vec![Check::bad(
                "engines",
                error.to_string(),
                "make room in the temporary directory",
            )];
        }
    };
    let examine = |engine: &Arc<dyn tt_engine::VmEngine>| {
        let facts = engine.init(Arc::new(|_| {}));
        engine.close();
        facts
    };
    let docker = Arc::new(Docker::new(&config.docker_socket));
    let engines = engines(config, &scratch.layout, storage, docker, Arc::new(Unplugged));
    let facts: Vec<EngineFacts> = engines.iter().map(examine).collect();
    let is_any_usable = facts.iter().any(|facts| facts.unusable.is_none());
    let check = |facts: EngineFacts| {
        let name = format!("engine {}", facts.name);
        match facts.unusable {
            None => Check::good(
                name,
                format!(
                    "{}, {}; can: {}",
                    facts.version,
                    facts.detail,
                    feat::names(facts.features).join(", ")
                ),
            ),
            // A host needs no more than one.
            Some(why) if is_any_usable => Check::good(name, format!("unusable: {why}")),
            Some(why) => Check::bad(name, "unusable", why),
        }
    };
    facts.into_iter().map(check).collect()
}

/// How far guests get by IPv6. A host without it lacks nothing that is needed.
fn six() -> Check {
    let name = "ipv6";
    match tt_network::ways_out_six() {
        Ok(None) => Check::good(name, "the kernel has none: guests have IPv4 alone"),
        Ok(Some(links)) if links.is_empty() => Check::good(
            name,
            "guests have it inside their Envs; no default route leads out, which they are told",
        ),
        Ok(Some(links)) => Check::good(
            name,
            format!("guests have it, and leave by {} with this host's address", links.join(", ")),
        ),
        Err(error) => {
            Check::bad(name, super::chain(&error), "run as root, to see what the daemon would see")
        }
    }
}

/// Makes and removes the host's part of the network in a namespace of its own.
fn network(config: &Config) -> Check {
    let (range, upstream_dns) = (config.range, config.upstream_dns.clone());
    let tunnel_port = config.tunnel_port;
    let attempt = std::thread::spawn(move || -> Result<(), String> {
        let scratch = Scratch::new().map_err(|error| error.to_string())?;
        // SAFETY: the thread is our own, ends here, and shares nothing with others that a
        // namespace of its own could break.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
            .map_err(|error| format!("no network namespace: {error}"))?;
        let block = tt_network::choose_block(range, &[]).ok_or("the range has no block")?;
        let layout = scratch.layout.clone();
        let network = NetnsNetwork::new(NetworkConfig {
            layout,
            range,
            block,
            public: None,
            underlay: None,
            is_underlay_found: false,
            tunnel_port,
            upstream_dns,
        });
        network.init().map_err(|error| super::chain(&error))?;
        network.close().map_err(|error| super::chain(&error))
    });
    match attempt.join() {
        Ok(Ok(())) => {
            Check::good("network", format!("namespaces and nftables work; range {range}"))
        }
        Ok(Err(why)) => Check::bad("network", why, "install nftables, and run as root"),
        Err(_) => Check::bad("network", "the attempt panicked", "report this defect"),
    }
}

/// What kind of disk new ones would have, and what is to be said of it.
fn storage(config: &Config) -> (StorageKind, Check) {
    let Some(existing) = config.data_dir.ancestors().find(|path| path.is_dir()) else {
        let check = Check::bad("storage", "no directory above the data directory", "make one");
        return (StorageKind::File, check);
    };
    let config = Config { data_dir: existing.to_owned(), ..config.clone() };
    let chosen = choose_storage(&config);
    let kind = chosen.as_ref().map_or(StorageKind::File, |(choice, _)| choice.kind);
    let check = match chosen {
        Ok((Choice { kind, reason, trouble: None }, _)) => {
            Check::good("storage", format!("{}: {reason}", kind.name()))
        }
        Ok((Choice { kind, reason, trouble: Some(trouble) }, _)) => {
            let found = format!("{}: {reason}; disks wait: {trouble}", kind.name());
            Check::bad(
                "storage",
                found,
                "let `zpool status` show the pool, or configure another one",
            )
        }
        Err(error @ DaemonError::NoPool(_)) => {
            Check::bad("storage", super::chain(&error), "name a pool, or choose another storage")
        }
        Err(error) => Check::bad("storage", super::chain(&error), "choose another data directory"),
    };
    (kind, check)
}

fn resolver(upstream: &[SocketAddr]) -> Check {
    let servers: Vec<String> = upstream.iter().map(ToString::to_string).collect();
    if servers.is_empty() {
        let remedy = "name servers in the configuration (`upstream_dns`) or in /etc/resolv.conf";
        return Check::bad("name servers", "none: guests resolve each other only", remedy);
    }
    Check::good("name servers", servers.join(", "))
}

fn file(name: &str, path: &Path) -> Check {
    if path.is_file() {
        return Check::good(name, path.display().to_string());
    }
    Check::bad(name, format!("{} is not there", path.display()), "install `tt-guest` beside `tt`")
}

fn program(name: &str, package: &str) -> Check {
    match crate::config::find_program(name) {
        Some(path) => Check::good(name, path.display().to_string()),
        None => Check::bad(name, "not installed", format!("install {package}, to build templates")),
    }
}

/// A directory for a driver that is only tried; removed when it is dropped.
struct Scratch {
    layout: Layout,
    path: PathBuf,
}

impl Scratch {
    fn new() -> std::io::Result<Self> {
        let mut bytes = [0; 2];
        getrandom::fill(&mut bytes)?;
        let instance = Instance(u16::from_le_bytes(bytes));
        let path =
            std::env::temp_dir().join(format!("tt-doctor-{}-{instance}", std::process::id()));
        let layout = Layout { data: path.join("data"), run: path.join("run"), instance };
        // Machines' users pass it, and the umask may take that away.
        let make = |dir: &Path| {
            std::fs::create_dir(dir)?;
            std::fs::set_permissions(dir, Permissions::from_mode(0o711))
        };
        make(&path)?;
        let scratch = Self { layout, path };
        make(&scratch.layout.data)?;
        make(&scratch.layout.run)?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "scratch directory not removed");
        }
    }
}
