//! The configuration file as text: its keys and how values are written. Says nothing of whether a value makes sense.

use super::{Accelerator, ConfigError, StorageChoice};
use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tt_model::units::parse_size_mb;

/// Where name servers listen (RFC 1035).
const DNS_PORT: u16 = 53;

/// All keys of the file; every one may be missing, none may be unknown.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub data_dir: Option<PathBuf>,
    pub run_dir: Option<PathBuf>,
    pub cache_dir: Option<PathBuf>,
    pub socket: Option<PathBuf>,
    pub range: Option<Ipv4Net>,
    pub block: Option<Ipv4Net>,
    pub port_min: Option<u16>,
    pub port_max: Option<u16>,
    pub public_addr: Option<Ipv4Addr>,
    pub underlay_addr: Option<Ipv4Addr>,
    pub tunnel_port: Option<NonZero<u16>>,
    pub upstream_dns: Option<Vec<NameServer>>,
    pub storage: StorageChoice,
    pub guest_agent: Option<PathBuf>,
    pub log: Option<String>,
    pub sweep_grace: Option<Span>,
    pub qemu: QemuTable,
    pub exec: ExecTable,
    pub firecracker: FirecrackerTable,
    pub docker: DockerTable,
    pub zfs: ZfsTable,
    pub policy: PolicyTable,
    pub host: HostTable,
}

/// `[qemu]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct QemuTable {
    pub binary: Option<PathBuf>,
    pub accelerator: Accelerator,
}

/// `[exec]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ExecTable {
    pub program: Option<PathBuf>,
}

/// `[firecracker]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FirecrackerTable {
    pub binary: Option<PathBuf>,
}

/// `[docker]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DockerTable {
    pub socket: Option<PathBuf>,
}

/// `[zfs]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ZfsTable {
    pub pool: Option<PoolName>,
}

/// `[policy]`: the fields of [`Policy`](tt_model::plan::Policy).
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PolicyTable {
    pub life_time_default: Option<Span>,
    pub life_time_max: Option<Span>,
    pub mgmt_interval: Option<Span>,
    pub shutdown_grace: Option<Span>,
    pub cpu_num_default: Option<u16>,
    pub mem_size_default: Option<Size>,
}

/// `[host]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HostTable {
    pub mem_size: Option<Size>,
    pub cpu_num: Option<u16>,
}

/// A duration, written `"1d12h"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span(pub Duration);

/// A size in MB (2^20 bytes), written `"512M"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size(pub u32);

/// A pool of ZFS, or a data set in one, written `"tank/vms"`.
#[derive(Clone, Debug)]
pub(super) struct PoolName(pub String);

/// A name server, written `"192.0.2.1"` or `"192.0.2.1:5353"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct NameServer(pub SocketAddr);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let refuse = |_| {
            D::Error::custom(format!(
                "{text:?} is no duration; write e.g. \"20s\", \"4h\" or \"1d12h\""
            ))
        };
        humantime::parse_duration(&text).map(Self).map_err(refuse)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_size_mb(&String::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for PoolName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let refuse = |problem| {
            D::Error::custom(format!("{name:?}: {problem}; write e.g. \"tank\" or \"tank/vms\""))
        };
        tt_storage::check_pool(&name).map_err(refuse)?;
        Ok(Self(name))
    }
}

impl<'de> Deserialize<'de> for NameServer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let with_port = || text.parse::<IpAddr>().ok().map(|addr| SocketAddr::new(addr, DNS_PORT));
        text.parse().ok().or_else(with_port).map(Self).ok_or_else(|| {
            D::Error::custom(format!(
                "{text:?} is no name server; write an address, with a port if wanted"
            ))
        })
    }
}

/// Reads the text of a configuration file.
pub(super) fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    toml::from_str(text)
        .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
}

/// The name servers of a `resolv.conf`: as many as the system's own resolver takes (`MAXNS`, resolv.conf(5)).
pub(super) fn name_servers(resolv_conf: &str) -> Vec<SocketAddr> {
    const MAXNS: usize = 3;
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        Some(SocketAddr::new(address.parse().ok()?, DNS_PORT))
    };
    resolv_conf.lines().filter_map(server).take(MAXNS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_names_up_to_three_servers() {
        let text = "# nameserver 192.0.2.9\nsearch example\nnameserver 192.0.2.1\nnameserver 2001:db8::1 \n\
                    nameserver fe80::1%eth0\nnameserver\n nameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let servers: Vec<String> = name_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.2:53"]);
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_named() {
        for (text, expected) in [
            ("data-dir = \"/x\"", "unknown field `data-dir`"),
            ("[qemu]\nbin = \"x\"", "unknown field `bin`"),
            ("[policy]\nlife_time_max = 5", "invalid type: integer `5`, expected a string"),
            ("[policy]\nlife_time_max = \"5\"", "\"5\" is no duration; write e.g."),
            ("[host]\nmem_size = \"1GB\"", "\"1GB\" is no size"),
            ("upstream_dns = [\"dns.example\"]", "\"dns.example\" is no name server"),
            ("port_min = 70000", "70000"),
            (
                "storage = \"lvm\"",
                "unknown variant `lvm`, expected one of `auto`, `file`, `qcow2`, `btrfs`, `zfs`, `zvol`",
            ),
            (
                "zfs.pool = \"tank@x\"",
                "it is no name of a pool, or of a data set in one; write e.g.",
            ),
            ("[zfs]\nzvol = true", "unknown field `zvol`, expected `pool`"),
            ("[qemu]\naccelerator = \"xen\"", "unknown variant `xen`"),
            ("range = \"10.0.0.0\"", "range"),
            ("=", "TOML parse error"),
        ] {
            let error = parse(Path::new("/etc/tt/tt.toml"), text).unwrap_err();
            let ConfigError::Parse { source, .. } = error else { panic!("{error:?}") };
            assert!(source.to_string().contains(expected), "{text:?}: {source}");
        }
    }
}
