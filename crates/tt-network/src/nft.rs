//! The two tables of rules as text, and `nft` that loads them. The rules are constant: what changes
//! with an Env or a Vm is an element of a set or map and never comes here.

use crate::NetworkError;
use ipnet::Ipv4Net;
use std::io::{self, Write};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

/// Name of the tables in an Env's namespace.
pub(crate) const ENV_TABLE: &str = "tt";
/// The bridge in an Env's namespace.
pub(crate) const BRIDGE: &str = "br0";
/// The inner end of an Env's edge.
pub(crate) const EDGE: &str = "edge0";

/// Map of the host's table: protocol and public port to address and inner port.
pub(crate) const PORTS: &str = "ports";
/// Set of the host's table: members that are reached at their own address.
pub(crate) const FLAT: &str = "flat";
/// Set of the host's table: the other hosts.
pub(crate) const PEERS: &str = "peers";
/// Set in the namespace: port of the bridge and the one hardware address behind it.
pub(crate) const TAPS: &str = "taps";
/// Set in the namespace: as [`TAPS`], for the hardware address that a question by DHCP names.
pub(crate) const ASKERS: &str = "askers";
/// Set in the namespace: the version of the rules.
pub(crate) const RULES: &str = "rules";
/// Set in the namespace: port of the bridge, hardware address, and the one IPv4 address behind it.
pub(crate) const MEMBERS: &str = "members";
/// Set in the namespace: member, and an address that it can not reach.
pub(crate) const BLACKLIST: &str = "blacklist";
/// Set in the namespace: members that may open no connection to the outside.
pub(crate) const DENY_OUT: &str = "deny_out";

/// Connections that the members of an Env together may have open to the outside. The kernel counts
/// them in the host's table too, which holds 262,144 by default and must not be one guest's to fill.
const CONNECTIONS_MAX: u32 = 16_384;

/// What the host's table is made for.
#[derive(Clone, Debug)]
pub(crate) struct HostSide<'a> {
    /// Name of the table.
    pub(crate) table: &'a str,
    /// How the names of all edges begin.
    pub(crate) edges: &'a str,
    /// Name of the tunnel to other hosts.
    pub(crate) tunnel: &'a str,
    /// Its id and UDP port.
    pub(crate) tunnel_id: u32,
    pub(crate) tunnel_port: u16,
    /// Where this host's members have their addresses.
    pub(crate) block: Ipv4Net,
}

/// The host's table. Loading it again replaces the rules at one stroke and keeps the elements.
///
/// Guests reach the outside with the host's address, and neither the host itself, nor each other, nor
/// the link-local addresses where clouds keep secrets. Members with a flat address reach each other,
/// through the tunnel those of other hosts; what comes out of it leads to such members only, and
/// nobody but the other hosts can put anything into it.
pub(crate) fn host_rules(side: &HostSide<'_>) -> String {
    let HostSide { table, edges, tunnel, tunnel_id, tunnel_port, block } = side;
    format!(
        r#"table inet {table}
flush table inet {table}
table inet {table} {{
	map {PORTS} {{
		type inet_proto . inet_service : ipv4_addr . inet_service
	}}
	set {FLAT} {{
		type ipv4_addr
	}}
	set {PEERS} {{
		type ipv4_addr
	}}
	chain forged {{
		type filter hook prerouting priority raw; policy accept;
		iifname "{edges}*" fib saddr . iif oif missing drop
		iifname "{tunnel}" ip saddr {block} drop
	}}
	chain from_outside {{
		type nat hook prerouting priority dstnat; policy accept;
		iifname "{tunnel}" return
		iifname != "{edges}*" fib daddr type local dnat ip to meta l4proto . th dport map @{PORTS};
	}}
	chain from_host {{
		type nat hook output priority -100; policy accept;
		fib daddr type local dnat ip to meta l4proto . th dport map @{PORTS};
	}}
	chain leave {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname "{edges}*" ip saddr 127.0.0.0/8 masquerade
		oifname "{tunnel}" return
		oifname != "{edges}*" ip saddr {block} masquerade
	}}
	chain fit {{
		type filter hook forward priority mangle; policy accept;
		oifname "{tunnel}" tcp flags syn / syn,rst tcp option maxseg size set rt mtu
	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname "{edges}*" goto from_guests
		oifname "{edges}*" ct state established,related accept
		oifname "{edges}*" ct status dnat accept
		oifname "{edges}*" ip daddr @{FLAT} accept
		oifname "{edges}*" drop
		iifname "{tunnel}" drop
	}}
	chain from_guests {{
		oifname "{edges}*" ip saddr @{FLAT} ip daddr @{FLAT} accept
		oifname "{edges}*" drop
		oifname "{tunnel}" ip saddr @{FLAT} accept
		oifname "{tunnel}" drop
		ip daddr 169.254.0.0/16 drop
		ip daddr @{PEERS} udp dport {tunnel_port} drop
		ip saddr {block} accept
		drop
	}}
	chain input {{
		type filter hook input priority filter; policy accept;
		iifname "{edges}*" ct state established,related accept
		iifname "{edges}*" drop
		iifname "{tunnel}" ct state established,related accept
		iifname "{tunnel}" drop
		udp dport {tunnel_port} @th,96,24 {tunnel_id} ip saddr != @{PEERS} drop
	}}
}}
"#
    )
}

/// The tables of an Env's namespace; the same for all Envs.
///
/// The bridge lets a port send from its member's two addresses only, ARP included. Frames for
/// reserved group addresses would enter the port's own stack beside the bridge, so they are dropped
/// where they do.
///
/// Loading them again replaces the rules at one stroke and keeps the elements.
pub(crate) fn env_rules() -> String {
    let rules = constant_env_rules();
    let version = hash(&rules);
    format!(
        "{rules}flush set bridge {ENV_TABLE} {RULES}\n\
         add element bridge {ENV_TABLE} {RULES} {{ 0x{version:08x} }}\n"
    )
}

/// Tells the rules of one version of this program from those of another one.
pub(crate) fn version() -> u32 {
    static VERSION: LazyLock<u32> = LazyLock::new(|| hash(&constant_env_rules()));
    *VERSION
}

/// 32 bits of FNV-1a: the same in every build.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn constant_env_rules() -> String {
    format!(
        r#"table bridge {ENV_TABLE}
flush table bridge {ENV_TABLE}
table bridge {ENV_TABLE} {{
	set {RULES} {{
		type mark
	}}
	set {ASKERS} {{
		typeof iifname . @th,288,48
	}}
	set {TAPS} {{
		type ifname . ether_addr
	}}
	set {MEMBERS} {{
		type ifname . ether_addr . ipv4_addr
	}}
	set {BLACKLIST} {{
		type ipv4_addr . ipv4_addr
	}}
	chain from_members {{
		type filter hook prerouting priority filter; policy drop;
		iifname . ether saddr != @{TAPS} drop
		ether type ip ip saddr . ip daddr @{BLACKLIST} drop
		ether type ip udp dport 67 ip frag-off & 0x3fff != 0 drop
		ether type ip udp dport 67 iifname . @th,288,48 != @{ASKERS} drop
		ether type ip iifname . ether saddr . ip saddr @{MEMBERS} accept
		ether type ip ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
		ether type arp iifname . ether saddr . arp saddr ip != @{MEMBERS} arp saddr ip != 0.0.0.0 drop
		ether type arp iifname . arp saddr ether . arp saddr ip @{MEMBERS} accept
		ether type arp arp saddr ip 0.0.0.0 iifname . arp saddr ether @{TAPS} accept
	}}
	chain between_members {{
		type filter hook forward priority filter; policy accept;
		ether type ip udp dport {{ 67, 68 }} drop
	}}
	chain beside_bridge {{
		type filter hook input priority filter; policy accept;
		ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop
	}}
}}
table inet {ENV_TABLE}
flush table inet {ENV_TABLE}
table inet {ENV_TABLE} {{
	set {DENY_OUT} {{
		type ipv4_addr
	}}
	chain input {{
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iifname "{BRIDGE}" icmp type echo-request accept
		iifname "{BRIDGE}" udp dport {{ 53, 67 }} accept
		iifname "{BRIDGE}" tcp dport 53 accept
	}}
	chain forward {{
		type filter hook forward priority filter; policy drop;
		iifname "{EDGE}" oifname "{BRIDGE}" accept
		iifname "{BRIDGE}" oifname "{EDGE}" ip saddr @{DENY_OUT} ct direction original drop
		iifname "{BRIDGE}" oifname "{EDGE}" ct state new ct count over {CONNECTIONS_MAX} drop
		iifname "{BRIDGE}" oifname "{EDGE}" accept
		iifname "{BRIDGE}" oifname "{BRIDGE}" accept
	}}
}}
"#
    )
}

/// `nft` at work on a table.
#[derive(Debug)]
pub(crate) struct Loading {
    child: Child,
    action: &'static str,
    table: String,
}

/// Starts `nft` on `rules` in the calling thread's namespace.
pub(crate) fn load(table: &str, rules: &str) -> Result<Loading, NetworkError> {
    run("load", table, &["-f", "-"], rules)
}

/// Removes a table with everything in it.
pub(crate) fn remove(table: &str) -> Result<(), NetworkError> {
    // Naming it first makes it, so that removing an absent one succeeds.
    let rules = format!("table inet {table}\ndelete table inet {table}\n");
    run("remove", table, &["-f", "-"], &rules)?.finish()
}

impl Loading {
    /// Waits for its end.
    pub(crate) fn finish(self) -> Result<(), NetworkError> {
        let output =
            self.child.wait_with_output().map_err(|source| NetworkError::RunNft { source })?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr);
        Err(NetworkError::LoadRules {
            action: self.action,
            table: self.table,
            reason: reason.trim_end().to_owned(),
        })
    }
}

fn run(
    action: &'static str,
    table: &str,
    arguments: &[&str],
    input: &str,
) -> Result<Loading, NetworkError> {
    let fail = |source| NetworkError::RunNft { source };
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(fail)?;
    // The text is smaller than a pipe's buffer, so this never waits for `nft`; its early end is
    // reported with its reason by `finish`.
    let written = child.stdin.take().map(|mut pipe| pipe.write_all(input.as_bytes()));
    match written {
        Some(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(fail(error)),
        _ => Ok(Loading { child, action, table: table.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_the_host() {
        let block = "10.7.0.0/16".parse().unwrap();
        insta::assert_snapshot!(host_rules(&HostSide {
            table: "tt_00ab",
            edges: "tt00abe",
            tunnel: "tt00abv",
            tunnel_id: 29_812,
            tunnel_port: 4789,
            block,
        }));
    }

    #[test]
    fn rules_of_an_env() {
        insta::assert_snapshot!(env_rules());
    }
}
